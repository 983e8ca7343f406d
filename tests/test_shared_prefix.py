"""Shared-prefix generation: the tokens of transformers' generate, the stated distribution, samples that stand alone."""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.decoders import Decoder, decoder_for
from pipeline.errors import DataError, ParamError, SetupError
from pipeline.mla import MLAConfig, MLAForCausalLM
from pipeline.mla_storage import save_mla
from pipeline.shared_prefix import (
    Prompt,
    Sample,
    Sampling,
    attend_in_parts,
    choose,
    encode,
    generate,
    nucleus,
)

VOCABULARY = 61
GREEDY = Sampling(max_new_tokens=20, temperature=0)


def make_mla() -> MLAForCausalLM:
    config = MLAConfig(
        vocab_size=VOCABULARY, hidden_size=40, intermediate_size=64, num_hidden_layers=3, num_attention_heads=3,
        kv_lora_rank=24, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10, initializer_range=0.3,
        max_position_embeddings=128,
    )  # fmt: skip
    return MLAForCausalLM(config, seed=2).eval()


def make_llama(**changes: Any) -> Any:
    """A Llama with the head layout of SmolLM2-135M: nine query heads, three key heads, tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=72, intermediate_size=96, num_hidden_layers=3, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=128, initializer_range=0.3, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
        **{"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, **changes},
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module", params=["mla", "llama", "llama3 positions"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, Any]:
    """Our decoder, and the transformers model of the same weights."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if request.param == "mla":
        from transformers import DeepseekV3ForCausalLM

        folder: Path = tmp_path_factory.mktemp("mla")
        ours = make_mla()
        save_mla(ours, folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return decoder_for(ours), DeepseekV3ForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    stretched = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
                 "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
    theirs = make_llama(**({"rope_parameters": stretched} if request.param != "llama" else {}))
    return decoder_for(theirs), theirs


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return decoder_for(make_mla())


def prompts_of(*lengths: int, seed: int = 0) -> list[Prompt]:
    rng = Random(seed)
    return [Prompt(f"w{i}", tuple(rng.randrange(VOCABULARY) for _ in range(n))) for i, n in enumerate(lengths)]


def continued(model: Any, ids: Sequence[int], tokens: Sequence[int]) -> Tensor:
    """The reference model's logits [len(tokens), W], each after the prompt and the tokens before it."""
    with torch.inference_mode():
        whole: Tensor = model(torch.tensor([[*ids, *tokens]])).logits[0]
    return whole[len(ids) - 1 : -1]


def test_greedy_tokens_are_those_of_generate(pair: tuple[Decoder, Any]) -> None:
    """One batch of prompts of different lengths against one call of generate each."""
    ours, theirs = pair
    prompts = prompts_of(37, 1, 12, 37)
    for prompt, samples in zip(prompts, generate(ours, prompts, 3, GREEDY), strict=True):
        ids = torch.tensor([prompt.ids])
        out = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=0,
            eos_token_id=None,
        )  # fmt: skip
        expected = out[0, len(prompt.ids) :].tolist()
        assert len(expected) == 20 and len(set(expected)) > 3  # a model that repeats itself would prove little
        for sample in samples:
            assert sample.tokens == expected
            assert sample.finish == "length"
            assert sample.log_probs == [0.0] * 20


def test_log_probs_of_samples_are_those_of_a_plain_forward_pass(pair: tuple[Decoder, Any]) -> None:
    ours, theirs = pair
    sampling = Sampling(max_new_tokens=15, temperature=0.7, seed=4)
    prompts = prompts_of(9, 21)
    for prompt, samples in zip(prompts, generate(ours, prompts, 4, sampling), strict=True):
        assert len({tuple(sample.tokens) for sample in samples}) == 4
        for sample in samples:
            logits = continued(theirs, prompt.ids, sample.tokens).double()
            at = torch.tensor(sample.tokens)[:, None]
            own = logits.log_softmax(-1).gather(1, at)[:, 0]
            drawn = (logits / 0.7).log_softmax(-1).gather(1, at)[:, 0]
            assert sample.model_log_probs == pytest.approx(own.tolist(), abs=2e-4)
            assert sample.log_probs == pytest.approx(drawn.tolist(), abs=2e-4)


def test_encoding_gives_the_logits_after_the_prompt(pair: tuple[Decoder, Any]) -> None:
    ours, theirs = pair
    (prompt,) = prompts_of(30)
    expected = continued(theirs, prompt.ids, [0])[0]
    torch.testing.assert_close(encode(ours, prompt.ids).logits_W, expected, rtol=1e-4, atol=1e-4)


def test_attention_in_parts_equals_attention_over_the_whole() -> None:
    """Also where one part has all of the weight, and with prompts of different lengths."""
    torch.manual_seed(0)
    prompts, group, heads, key_heads, size, width, own = 2, 3, 6, 2, 8, 5, 4
    lengths = [7, 4]
    for strength in (1.0, 60.0):
        q = torch.randn(prompts, group, heads, size) * strength
        keys, values = torch.randn(prompts, key_heads, 7, size), torch.randn(prompts, key_heads, 7, width)
        own_keys = torch.randn(prompts, group, key_heads, own, size)
        own_values = torch.randn(prompts, group, key_heads, own, width)
        hidden = torch.arange(7) >= torch.tensor(lengths)[:, None]
        found = attend_in_parts(q, keys, values, hidden, own_keys, own_values, 0.3)
        for b in range(prompts):
            for g in range(group):
                for h in range(heads):
                    j = h // (heads // key_heads)
                    k = torch.cat([keys[b, j, : lengths[b]], own_keys[b, g, j]])
                    v = torch.cat([values[b, j, : lengths[b]], own_values[b, g, j]])
                    expected = (k @ q[b, g, h] * 0.3).softmax(0) @ v
                    torch.testing.assert_close(found[b, g, h], expected, rtol=1e-4, atol=1e-5)


def test_a_sample_does_not_depend_on_the_batch_it_is_in(decoder: Decoder) -> None:
    """Alone, in larger groups, among other prompts in another order: the same tokens under the same key and number."""
    prompts = prompts_of(11, 30, 5)
    sampling = Sampling(max_new_tokens=12, temperature=1.3, top_p=0.9, stop=frozenset({7, 8}), seed=11)
    whole = generate(decoder, prompts, 6, sampling)
    turned = generate(decoder, prompts[::-1], 4, sampling)
    for i, prompt in enumerate(prompts):
        (alone,) = generate(decoder, [prompt], 2, sampling)
        for g in range(4):
            assert whole[i][g].tokens == turned[2 - i][g].tokens
            assert g >= 2 or whole[i][g].tokens == alone[g].tokens
    assert whole[0][0].tokens != generate(decoder, [Prompt("other", prompts[0].ids)], 1, sampling)[0][0].tokens


def test_equal_calls_give_equal_samples_and_other_seeds_others(decoder: Decoder) -> None:
    prompts = prompts_of(8)
    first, again, other = (
        generate(decoder, prompts, 3, Sampling(max_new_tokens=10, seed=seed))[0] for seed in (1, 1, 2)
    )
    assert first == again
    assert [s.tokens for s in first] != [s.tokens for s in other]


def test_stop_tokens_end_samples_and_leave_the_others_untouched(decoder: Decoder) -> None:
    """The samples without stop tokens, cut behind the first of them: ending early changes nobody else's tokens."""
    prompts = prompts_of(10, 25, 3)
    free = generate(decoder, prompts, 5, Sampling(max_new_tokens=30, temperature=1.5, seed=3))
    stop = frozenset(range(0, VOCABULARY, 9))
    ended = generate(decoder, prompts, 5, Sampling(max_new_tokens=30, temperature=1.5, seed=3, stop=stop))
    lengths = set()
    for before, after in zip(chain(*free), chain(*ended), strict=True):
        cut = next((i + 1 for i, token in enumerate(before.tokens) if token in stop), None)
        assert after.tokens == before.tokens[:cut]
        assert after.finish == ("length" if cut is None else "stop")
        assert after.log_probs == pytest.approx(before.log_probs[:cut], abs=1e-3)
        assert len(after.tokens) == len(after.log_probs) == len(after.model_log_probs)
        lengths.add(len(after.tokens))
    assert len(lengths) > 5  # so that the batch shrank more than once on its way


def test_the_mask_decides_what_can_come_and_the_log_probs_know() -> None:
    """A grammar of its own per sample: even tokens, then odd ones; sample 2 must copy a given string and stop."""
    given = [4, 9, 4, 60]
    calls: Counter[tuple[int, int]] = Counter()

    def mask(logits_NW: Tensor, samples: Sequence[Sample]) -> Tensor:
        assert len(logits_NW) == len(samples)
        for logits_W, sample in zip(logits_NW, samples, strict=True):
            assert sample.finish is None
            calls[sample.prompt, sample.number] += 1
            legal = torch.zeros(VOCABULARY, dtype=torch.bool)
            if sample.number == 2:
                legal[given[len(sample.tokens)]] = True
            else:
                legal[len(sample.tokens) % 2 :: 2] = True
            logits_W[~legal] = -torch.inf
        return logits_NW

    prompts = prompts_of(6, 14)
    sampling = Sampling(max_new_tokens=9, temperature=2.0, stop=frozenset({60}), seed=5)
    model = make_mla()
    for b, samples in enumerate(generate(decoder_for(model), prompts, 4, sampling, mask)):
        for sample in samples:
            assert calls[b, sample.number] == len(sample.tokens)
            if sample.number == 2:
                assert (sample.tokens, sample.finish) == (given, "stop")
                assert sample.log_probs == pytest.approx([0.0] * 4, abs=1e-12)
                assert all(own < 0 for own in sample.model_log_probs)
                continue
            assert all(token % 2 == i % 2 for i, token in enumerate(sample.tokens))
            with torch.inference_mode():
                logits = model(torch.tensor([[*prompts[b].ids, *sample.tokens]]))[0, len(prompts[b].ids) - 1 : -1]
            for i, (token, log_prob) in enumerate(zip(sample.tokens, sample.log_probs, strict=True)):
                legal = (logits[i, i % 2 :: 2] / 2.0).log_softmax(-1)
                assert log_prob == pytest.approx(legal[token // 2].item(), abs=2e-4)


def test_a_mask_that_hides_illegal_tokens_only_does_not_change_the_greedy_choice(decoder: Decoder) -> None:
    prompts = prompts_of(16)
    (free,) = generate(decoder, prompts, 1, GREEDY)
    used = torch.zeros(VOCABULARY, dtype=torch.bool)
    used[free[0].tokens] = True

    def mask(logits_NW: Tensor, _: Sequence[Sample]) -> Tensor:
        return logits_NW.masked_fill(~used, -torch.inf)

    (masked,) = generate(decoder, prompts, 1, GREEDY, mask)
    assert masked[0].tokens == free[0].tokens
    assert masked[0].model_log_probs == free[0].model_log_probs


def test_a_mask_without_a_legal_token_and_broken_weights_are_errors(decoder: Decoder) -> None:
    def mask(logits_NW: Tensor, samples: Sequence[Sample]) -> Tensor:
        return logits_NW.fill_(-torch.inf) if len(samples[0].tokens) == 2 else logits_NW

    with pytest.raises(DataError, match="no token is legal here: prompt 0, sample 0, token 2"):
        generate(decoder, prompts_of(4), 2, Sampling(max_new_tokens=5), mask)
    broken = make_mla()
    with torch.no_grad():
        broken.model.norm.weight[3] = math.nan
    with pytest.raises(DataError, match="not finite"):
        generate(decoder_for(broken), prompts_of(4), 2, Sampling(max_new_tokens=5))


def drawn_shares(logits: list[float], sampling: Sampling, count: int = 20_000) -> tuple[list[float], dict[int, float]]:
    """How often each token is drawn, and the log-probability it is said to have."""
    rng = Random(1)
    rows = torch.tensor(logits).expand(count, -1)
    tokens, log_probs, _ = choose(rows, [Sample(0, 0)] * count, [rng.random() for _ in range(count)], sampling, None)
    counts = Counter(tokens)
    return [counts[token] / count for token in range(len(logits))], dict(zip(tokens, log_probs, strict=True))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_stated_distribution(temperature: float) -> None:
    logits = [1.0, -math.inf, 0.0, 2.0, -1.0]
    shares, log_probs = drawn_shares(logits, Sampling(max_new_tokens=1, temperature=temperature))
    expected = (torch.tensor(logits) / temperature).softmax(0).tolist()
    assert shares == pytest.approx(expected, abs=0.015)  # four standard errors
    for token, log_prob in log_probs.items():
        assert math.exp(log_prob) == pytest.approx(expected[token], rel=1e-5)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.3, {2}), (0.4, {2}), (0.41, {2, 0}), (0.69, {2, 0}), (0.75, {2, 0, 4}), (1.0, {0, 1, 2, 3, 4})],
)  # fmt: skip
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: set[int]) -> None:
    shares = [0.3, 0.1, 0.4, 0.05, 0.15]
    found, log_probs = drawn_shares([math.log(p) for p in shares], Sampling(max_new_tokens=1, top_p=top_p - 1e-6))
    whole = sum(shares[token] for token in kept)
    assert found == pytest.approx([p / whole if t in kept else 0 for t, p in enumerate(shares)], abs=0.02)
    for token, log_prob in log_probs.items():
        assert math.exp(log_prob) == pytest.approx(shares[token] / whole, rel=1e-5)


@pytest.mark.parametrize("spread", [0.01, 3.0])
def test_the_nucleus_of_a_large_vocabulary_is_that_of_sorting_it(spread: float) -> None:
    """A flat distribution needs more than the likeliest few hundred, a peaked one does not."""
    log = (torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)) * spread).double().log_softmax(-1)
    down = log.sort(-1, descending=True).values
    for top_p in (0.1, 0.9, 0.999):
        first = (down.exp().cumsum(-1) >= top_p).int().argmax(-1, keepdim=True)
        assert torch.equal(nucleus(log, top_p), down.gather(1, first))


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53])
def test_the_ends_of_the_distribution_never_give_an_impossible_token(draw: float) -> None:
    logits = torch.tensor([[-math.inf, -math.inf, 0.3, -1.0, -math.inf, -math.inf]])
    ((token,), (log_prob,), _) = choose(logits, [Sample(0, 0)], [draw], Sampling(max_new_tokens=1), None)
    assert token == (2 if draw == 0 else 3)
    assert log_prob > -3


@pytest.mark.parametrize("make", [make_mla, make_llama])
def test_half_precision_stays_near_single(make: Callable[[], Any]) -> None:
    """The first tokens' log-probabilities move by what half precision costs, no more."""
    sampling, prompts = Sampling(max_new_tokens=6, seed=2), prompts_of(20, 7)
    half = generate(decoder_for(make().to(torch.bfloat16)), prompts, 2, sampling)
    for prompt, samples in zip(prompts, half, strict=True):
        for sample in samples:
            with torch.inference_mode():
                out = make()(torch.tensor([[*prompt.ids, *sample.tokens]]))
            logits = (out if isinstance(out, Tensor) else out.logits)[0, len(prompt.ids) - 1 : -1]
            exact = logits.log_softmax(-1).gather(1, torch.tensor(sample.tokens)[:, None])[:, 0]
            assert sample.model_log_probs == pytest.approx(exact.tolist(), abs=1.0)


def test_one_token_needs_no_step(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.shared_prefix.Batch.step", None)
    (samples,) = generate(decoder, prompts_of(5), 2, Sampling(max_new_tokens=1, temperature=0))
    assert [len(sample.tokens) for sample in samples] == [1, 1]
    assert generate(decoder, [], 2, GREEDY) == []


def test_the_prompt_is_encoded_once_whatever_the_number_of_samples() -> None:
    """Rows that go through the first layer: the prompt's tokens once, then one per sample and step."""
    model = make_mla()
    rows: list[int] = []
    model.model.layers[0].self_attn.kv_b_proj.register_forward_hook(lambda _m, x, _y: rows.append(x[0].shape[0]))
    generate(decoder_for(model), prompts_of(50), 8, Sampling(max_new_tokens=4, temperature=0))
    assert rows == [50, 8, 8, 8]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: generate(d, [Prompt("a", ())], 1, GREEDY), "'a' is empty"),
        (lambda d: generate(d, [Prompt("a", (VOCABULARY,))], 1, GREEDY), "outside the vocabulary of 61"),
        (lambda d: generate(d, [Prompt("a", (-1,))], 1, GREEDY), "outside the vocabulary"),
        (lambda d: generate(d, prompts_of(109), 1, GREEDY), "109 tokens; with 20 new ones"),
    ],
)
def test_prompts_are_checked(decoder: Decoder, call: Callable[[Decoder], object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        call(decoder)


@pytest.mark.parametrize(
    ("given", "field"),
    [({"max_new_tokens": 0}, "max_new_tokens"), ({"temperature": -0.1}, "temperature"), ({"top_p": 0.0}, "top_p"),
     ({"temperature": math.nan}, "temperature"), ({"top_p": 1.1}, "top_p")],
)  # fmt: skip
def test_sampling_is_checked(given: dict[str, Any], field: str) -> None:
    with pytest.raises(ParamError, match=field):
        Sampling(**{"max_new_tokens": 3, **given})


def test_groups_and_keys_are_checked(decoder: Decoder) -> None:
    with pytest.raises(ParamError, match="group"):
        generate(decoder, prompts_of(3), 0, GREEDY)
    with pytest.raises(ParamError, match="same key"):
        generate(decoder, [Prompt("a", (1,)), Prompt("a", (2,))], 1, GREEDY)


def test_other_models_are_refused() -> None:
    with pytest.raises(SetupError, match="Linear cannot be run"):
        decoder_for(torch.nn.Linear(2, 2))
    with pytest.raises(SetupError, match="dynamic"):
        decoder_for(make_llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}))
