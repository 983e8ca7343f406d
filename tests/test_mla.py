"""tiny-mla: the same function as transformers' DeepSeek-V3, cached, absorbed and packed alike; golden numbers."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.errors import DataError, ParamError
from pipeline.files import read_json, write_json
from pipeline.mla import IGNORED, LatentCache, MLAConfig, MLAForCausalLM
from pipeline.mla_storage import load_mla, save_mla

SMALL = MLAConfig(
    vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=3, kv_lora_rank=32,
    qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10, initializer_range=0.3,
)  # fmt: skip
"""Wide weights: with the usual small ones attention is almost flat and a wrong mask or rotation hardly shows."""

CONFIGS = {
    "plain": SMALL,
    "query compressed": replace(SMALL, q_lora_rank=24),
    "untied": replace(SMALL, tie_word_embeddings=False, rope_theta=500.0),
    "wide values": replace(SMALL, v_head_dim=28),
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> MLAConfig:
    return CONFIGS[request.param]


def make(config: MLAConfig = SMALL, seed: int = 1) -> MLAForCausalLM:
    return MLAForCausalLM(config, seed).eval()


def draw(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, SMALL.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def transformers_model(folder: Path) -> torch.nn.Module:
    """The folder through transformers' own class; a tensor that it misses or does not know fails."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoModelForCausalLM, DeepseekV3ForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    assert type(model) is DeepseekV3ForCausalLM
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@torch.inference_mode()
def test_transformers_computes_the_same_logits(config: MLAConfig, tmp_path: Path) -> None:
    model = make(config)
    save_mla(model, tmp_path)
    theirs = transformers_model(tmp_path)
    ids = draw(2, 41)
    ours = model(ids)
    assert ours.std() > 0.5  # else a limit of 1e-5 would say little
    torch.testing.assert_close(ours, theirs(ids).logits, rtol=0, atol=1e-5 * float(ours.abs().max()))


@torch.inference_mode()
def test_the_default_sizes_agree_with_transformers_and_fit_the_kernels(tmp_path: Path) -> None:
    config = MLAConfig(vocab_size=512)
    assert (config.kv_lora_rank, config.qk_rope_head_dim) == (512, 64)
    model = make(config)
    assert 3e6 < sum(p.numel() for p in model.parameters()) < 8e6
    save_mla(model, tmp_path)
    ids = draw(1, 60)
    torch.testing.assert_close(model(ids), transformers_model(tmp_path)(ids).logits, rtol=0, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("absorbed", [False, True])
def test_cached_decoding_equals_the_full_pass(config: MLAConfig, absorbed: bool) -> None:
    model, ids = make(config), draw(3, 23)
    full = model(ids)
    cache = LatentCache(config, rows=3, capacity=23)
    parts = [model(part, cache=cache, absorbed=absorbed) for part in ids.split([9, 1, 1, 5, 1, 6], dim=1)]
    assert cache.length == 23
    torch.testing.assert_close(torch.cat(parts, 1), full, rtol=1e-4, atol=1e-4)
    with pytest.raises(DataError, match="24 tokens for a cache of 23"):
        model(ids[:, :1], cache=cache)


@torch.inference_mode()
def test_absorbed_attention_equals_expanded(config: MLAConfig) -> None:
    model, ids = make(config), draw(2, 30)
    segments = torch.tensor([[1] * 12 + [2] * 18, [0] * 5 + [1] * 25])
    torch.testing.assert_close(model(ids, absorbed=True), model(ids), rtol=1e-4, atol=1e-4)
    packed = model(ids, segments_BT=segments)
    torch.testing.assert_close(model(ids, segments_BT=segments, absorbed=True), packed, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_packed_and_padded_sequences_get_the_logits_they_get_alone() -> None:
    model, ids = make(), draw(2, 20)
    segments = torch.tensor([[1] * 7 + [2] * 1 + [3] * 9 + [0] * 3, [0] * 6 + [1] * 10 + [0] * 4])
    packed = model(ids, segments_BT=segments)
    assert packed.isfinite().all()  # padding too: a NaN would spread through the gradient
    for row, begin, end in ((0, 0, 7), (0, 7, 8), (0, 8, 17), (1, 6, 16)):
        alone = model(ids[row : row + 1, begin:end])[0]
        torch.testing.assert_close(packed[row, begin:end], alone, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("absorbed", [False, True])
def test_nothing_leaks_between_segments_from_padding_or_from_later_tokens(absorbed: bool) -> None:
    """Bit for bit: what a token must not see is changed, and its logits stay the same."""
    model, ids = make(), draw(1, 20)
    segments = torch.tensor([[1] * 8 + [2] * 8 + [0] * 4])
    before = model(ids, segments_BT=segments, absorbed=absorbed)
    changed = ids.clone()
    changed[0, 5:8] = (changed[0, 5:8] + 1) % SMALL.vocab_size
    changed[0, 14:] = (changed[0, 14:] + 1) % SMALL.vocab_size
    after = model(changed, segments_BT=segments, absorbed=absorbed)
    same = [i for i in range(20) if torch.equal(before[0, i], after[0, i])]
    assert same == [*range(5), *range(8, 14)]


@torch.inference_mode()
def test_left_padding_with_a_cache_equals_each_row_alone() -> None:
    model, ids = make(), draw(2, 15)
    segments = torch.tensor([[0] * 4 + [1] * 11, [1] * 15])
    cache = LatentCache(SMALL, rows=2, capacity=15)
    model(ids[:, :12], segments_BT=segments[:, :12], cache=cache)
    rest = torch.cat([model(ids[:, i : i + 1], cache=cache) for i in range(12, 15)], 1)
    torch.testing.assert_close(rest[0], model(ids[:1, 4:])[0, -3:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rest[1], model(ids[1:])[0, -3:], rtol=1e-4, atol=1e-4)


def test_loss_counts_completions_only_and_never_the_first_token_of_a_segment() -> None:
    model, ids = make(), draw(2, 10)
    segments = torch.tensor([[1] * 6 + [2] * 4, [1] * 8 + [0] * 2])
    labels = ids.clone()
    labels[0, :3] = IGNORED
    labels[1, :5] = IGNORED
    counted = {(0, 3), (0, 4), (0, 5), (0, 7), (0, 8), (0, 9), (1, 5), (1, 6), (1, 7)}  # not (0, 6), not padding
    found = model.log_probs(ids, labels, segments_BT=segments)
    full = model(ids, segments_BT=segments).log_softmax(-1)
    for b in range(2):
        for t in range(10):
            expected = full[b, t - 1, ids[b, t]].item() if (b, t) in counted else 0.0
            assert found[b, t].item() == pytest.approx(expected, abs=1e-4)
    loss = model.loss(ids, labels, segments_BT=segments)
    assert loss.weight.item() == len(counted)
    assert loss.mean.item() == pytest.approx(-found.sum().item() / len(counted), rel=1e-5)
    weights = torch.rand(2, 10, generator=torch.Generator().manual_seed(4))
    weighted = model.loss(ids, labels, segments_BT=segments, weights_BT=weights)
    assert weighted.total.item() == pytest.approx(-(found * weights).sum().item(), rel=1e-5)
    assert weighted.weight.item() == pytest.approx(sum(weights[place].item() for place in counted), rel=1e-5)
    assert torch.equal(labels[:, 0], torch.tensor([IGNORED, IGNORED]))  # the caller's labels are left alone


def test_gradients_of_packed_batches_are_those_of_the_sequences_alone() -> None:
    model, ids = make(), draw(1, 14)
    segments = torch.tensor([[1] * 6 + [2] * 6 + [0] * 2])
    names = [name for name, _ in model.named_parameters()]
    packed = torch.autograd.grad(model.loss(ids, ids, segments_BT=segments).total, list(model.parameters()))
    alone = [torch.autograd.grad(model.loss(part, part).total, list(model.parameters()))
             for part in (ids[:, :6], ids[:, 6:12])]  # fmt: skip
    for name, whole, first, second in zip(names, packed, *alone, strict=True):
        torch.testing.assert_close(whole, first + second, rtol=1e-3, atol=1e-3, msg=name)


def test_it_learns_to_copy() -> None:
    """Eighty steps on fresh random strings: repeating what was read goes from chance to almost certain."""
    model = MLAForCausalLM(replace(SMALL, vocab_size=11, initializer_range=0.02), seed=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(80):
        half = torch.randint(0, 11, (32, 5), generator=generator)
        ids = torch.cat([half, half], 1)
        labels = ids.clone()
        labels[:, :5] = IGNORED
        loss = model.loss(ids, labels).mean
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(11), abs=0.15)
    assert losses[-1] < 0.3


def test_golden_logits() -> None:
    """Numbers written once: a change of weights drawn, of rotation, norm or scale shows here, and needs a reason."""
    logits = make()(torch.tensor([[3, 14, 15, 92, 65]]))[0, -1, :6]
    expected = torch.tensor([0.2007, -2.5916, -2.9868, 3.6922, -1.1574, -2.5998])
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4)


def test_weights_depend_on_the_seed_alone_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, other, third = make(seed=5), make(seed=5), make(seed=6)
    assert torch.equal(before, torch.get_rng_state())
    for (name, a), b, c in zip(one.named_parameters(), other.parameters(), third.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim == 1 or not torch.equal(a, c), name


def test_saving_and_loading_gives_the_same_model_and_the_same_bytes(config: MLAConfig, tmp_path: Path) -> None:
    model = make(config)
    save_mla(model, tmp_path / "a")
    loaded = load_mla(tmp_path / "a")
    assert loaded.config == config
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is config.tie_word_embeddings
    ids = draw(1, 9)
    assert torch.equal(loaded(ids), model(ids))
    save_mla(loaded, tmp_path / "b")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_half_precision_is_kept(tmp_path: Path) -> None:
    model = make().to(torch.bfloat16)
    save_mla(model, tmp_path)
    loaded = load_mla(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    ids = draw(1, 12)
    for absorbed in (False, True):
        assert loaded(ids, absorbed=absorbed).isfinite().all()
    assert read_json(tmp_path / "config.json")["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"model_type": "llama"}, "model_type"),
        ({"rope_interleave": False}, "rope_interleave"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps"),
        ({"first_k_dense_replace": 1}, "experts"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "rope_parameters"),
        ({"hidden_size": None}, "config.json"),
        ({"hidden_size": -3}, "hidden_size"),
        ({"hidden_size": 64}, "broken model"),
        ({"vocab_size": "many"}, "config.json"),
    ],
)
def test_a_model_that_cannot_be_computed_is_refused(change: dict[str, object], place: str, tmp_path: Path) -> None:
    save_mla(make(), tmp_path)
    config = read_json(tmp_path / "config.json")
    write_json(tmp_path / "config.json", {**config, **change})
    with pytest.raises(DataError, match=place):
        load_mla(tmp_path)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json"):
        load_mla(tmp_path)
    save_mla(make(), tmp_path)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="broken model"):
        load_mla(tmp_path)
    weights.unlink()
    with pytest.raises(DataError, match="file not found"):
        load_mla(tmp_path)
    config = read_json(tmp_path / "config.json")
    del config["v_head_dim"]
    write_json(tmp_path / "config.json", config)
    with pytest.raises(DataError, match=r"v_head_dim: missing"):
        load_mla(tmp_path)


def test_a_tied_model_whose_two_matrices_differ_is_refused(tmp_path: Path) -> None:
    save_mla(make(replace(SMALL, tie_word_embeddings=False)), tmp_path)
    write_json(tmp_path / "config.json", {**read_json(tmp_path / "config.json"), "tie_word_embeddings": True})
    with pytest.raises(DataError, match="tied"):
        load_mla(tmp_path)


def test_sizes_are_checked() -> None:
    with pytest.raises(ParamError, match="hidden_size"):
        MLAConfig(vocab_size=5, hidden_size=0)
    with pytest.raises(ParamError, match="even"):
        MLAConfig(vocab_size=5, qk_rope_head_dim=7)
