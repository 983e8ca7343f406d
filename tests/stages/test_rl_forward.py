"""Prefix sharing in the training forward: the log-probabilities and gradients of the repeated forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.decoders import decoder_for
from pipeline.mla import MLAConfig, MLAForCausalLM
from stages.rl import forward as fw

close = pytest.approx
PROMPT, LENGTHS = 13, (5, 1, 9, 3)


def llama(**changes: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return LlamaForCausalLM(config).eval()


def mla() -> nn.Module:
    return MLAForCausalLM(MLAConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2,
        kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=4,
    ), seed=3).eval()  # fmt: skip


def group(lengths: tuple[int, ...] = LENGTHS) -> tuple[list[int], list[list[int]], Tensor, Tensor, Tensor]:
    """Prompt, responses, and per token: id, temperature of its row, legal tokens (its own among them)."""
    random = torch.Generator().manual_seed(0)
    prompt = torch.randint(1, 50, (PROMPT,), generator=random).tolist()
    responses = [torch.randint(1, 50, (n,), generator=random).tolist() for n in lengths]
    tokens = torch.tensor([t for r in responses for t in r])
    heat = torch.tensor([0.7 + 0.2 * g for g, r in enumerate(responses) for _ in r])
    legal = torch.rand(len(tokens), 50, generator=random) < 0.5
    legal[torch.arange(len(tokens)), tokens] = True
    return prompt, responses, tokens, heat, legal


def scored(model: nn.Module, way: str, lengths: tuple[int, ...] = LENGTHS) -> Tensor:
    prompt, responses, tokens, heat, legal = group(lengths)
    if way == "repeated":
        logits = fw.repeated_logits(model, fw.repeated(model, prompt, responses))
    else:
        decoder = decoder_for(model)
        logits = decoder.logits(fw.shared(decoder, prompt, responses, way))  # type: ignore[arg-type]
    return fw.log_probs(logits, tokens, heat.to(logits.dtype), legal)


def gradients(model: nn.Module, found: Tensor) -> Tensor:
    weight = torch.linspace(-1, 1, len(found))
    parts = torch.autograd.grad((found * weight).sum(), list(model.parameters()))
    return torch.cat([p.flatten() for p in parts])


@pytest.mark.parametrize("lengths", [LENGTHS, (4, 4, 4), (1, 1), (6,)])
@pytest.mark.parametrize("way", ["split", "block_mask"])
@pytest.mark.parametrize("make", [llama, mla])
def test_sharing_the_prompt_changes_neither_log_probabilities_nor_gradients(
    make: Any, way: str, lengths: tuple[int, ...]
) -> None:
    """rl-neighbours.md, section 8: unequal lengths, a temperature per row, a grammar; the model's own forward."""
    model = make()
    one, two = scored(model, way, lengths), scored(model, "repeated", lengths)
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
    a, b = gradients(model, one), gradients(model, two)
    assert float((a - b).norm() / b.norm()) < 1e-5


def test_in_float64_they_are_equal_to_the_last_digits() -> None:
    model = mla().double()
    one, two = scored(model, "split"), scored(model, "repeated")
    assert one.dtype == torch.float64 and float((one - two).detach().abs().max()) < 1e-12
    a, b = gradients(model, one), gradients(model, two)
    assert float((a - b).norm() / b.norm()) < 1e-12


def test_in_bfloat16_the_gradients_still_point_the_same_way() -> None:
    model = mla().bfloat16()
    a, b = (gradients(model, scored(model, way)).float() for way in ("split", "repeated"))
    assert float(torch.nn.functional.cosine_similarity(a, b, dim=0)) > 0.999


def test_log_probabilities_are_row_wise_softmax_at_the_row_s_temperature() -> None:
    """agpo.md, P11 and D2: also of soft-capped logits with a head's bias; at temperature 1 it is the plain path."""
    _, _, tokens, heat, _ = group()
    raw = torch.randn(len(tokens), 50, generator=torch.Generator().manual_seed(1)) * 9
    logits = torch.tanh(raw / 5) * 5 + torch.linspace(-1, 1, 50)
    wanted = torch.stack([(row / h).log_softmax(0)[t] for row, h, t in zip(logits, heat, tokens, strict=True)])
    torch.testing.assert_close(fw.log_probs(logits, tokens, heat), wanted)
    plain = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(fw.log_probs(logits, tokens, torch.ones_like(heat)), plain)


def test_a_grammar_renormalises_and_a_forced_token_is_certain() -> None:
    """agpo.md, section 8."""
    _, _, tokens, heat, legal = group()
    legal[0] = False
    legal[0, tokens[0]] = True
    logits = torch.randn(len(tokens), 50, generator=torch.Generator().manual_seed(1)).requires_grad_()
    found = fw.log_probs(logits, tokens, heat, legal)
    assert found[0].item() == 0
    [own] = torch.autograd.grad(found.sum(), logits)
    assert own.isfinite().all() and (own[~legal] == 0).all() and (own[0] == 0).all()
    entropy = fw.entropies(logits, legal).detach()
    assert entropy[0].item() == 0 and (entropy >= 0).all()
    p = logits.detach()[3][legal[3]].softmax(0)
    torch.testing.assert_close(entropy[3], -(p * p.log()).sum())


@pytest.mark.parametrize(
    ("prompt", "response", "size", "work", "attention"),
    [(2000, 200, 8, 0.2045, 0.2769), (2000, 200, 16, 0.1477, None), (1000, 1000, 8, 0.5625, None),
     (500, 100, 2, 0.5833, None)],
)  # fmt: skip
def test_what_sharing_saves(prompt: int, response: int, size: int, work: float, attention: float | None) -> None:
    """rl-neighbours.md, section 8."""
    assert fw.work_ratio(prompt, response, size) == close(work, abs=5e-5)
    assert attention is None or fw.attention_ratio(prompt, response, size) == close(attention, abs=5e-5)
    assert len(fw.Layout.of(range(prompt), [range(response + 1)] * size, torch.device("cpu")).ids_N) == close(
        work * size * (prompt + response), rel=1e-3
    )
