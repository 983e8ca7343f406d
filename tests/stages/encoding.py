"""A tiny encoder with random weights and a corpus for it: what the tests of `encoder` and `stacked` share."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import polars as pl
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel

from pipeline import tables
from pipeline.params import Encoder, Params
from pipeline.spans import sha256_text
from stages.extract.annotated import Annotated
from stages.extract.encoder.fit import fit_encoder
from stages.extract.encoder.model import EncoderExtractor
from stages.extract.linear import Floors
from tests.stages.extracting import params

NAMES = ("Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gil", "Hal")
FLOORS = Floors(trigger=0.2, mention=0.2, role=0.05)
DOCUMENTS, SENTENCES = tables.table("ingest/documents"), tables.table("ingest/sentences")


def save_base(folder: Path) -> Path:
    """Write a two-layer encoder with random weights and a small vocabulary; the folder."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [str(d) for d in range(10)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *".,;!?'-",
             "attacked", "paid", "the", "rain", "was", "quiet", *(n.casefold() for n in NAMES)]  # fmt: skip
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(words[:5])
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=64, max_position_embeddings=128)  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def options(base: Path, **changes: Any) -> Encoder:
    plain: dict[str, Any] = {"base": str(base), "frozen": 1, "chunk": 48, "context": 8, "epochs": 2, "batch": 128}
    return Encoder(**{**plain, "rate": 3e-3, "head_rate": 1e-2, "checkpoint": 2, "precision": "float32", **changes})


def corpus(windows: int, seed: int) -> Annotated:
    """Windows of one document: "A attacked B. C paid D after that. The rain was quiet." in all mixtures."""
    draw = random.Random(seed)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("documents", "sentences", *tables.GOLD)}
    for w in range(windows):
        window = f"w{seed}-{w:03d}"
        text, events = "", []
        own = {"window_id": window, "doc_id": f"{window}.0"}
        for s in range(6):
            start = len(text)
            if draw.random() < 0.3:
                text += "The rain was quiet."
            else:
                verb, kind, roles = draw.choice((("attacked", "fight.attack", ("attacker", "target")),
                                                 ("paid", "money.pay", ("payer", "payee"))))  # fmt: skip
                one, other = draw.sample(NAMES, 2)
                text += f"{one} {verb} {other}."
                event_id = f"{window}#e{len(events)}"
                at = start + len(one) + 1
                events.append(event_id)
                place = {**own, "start": at, "end": at + len(verb), "surface": verb}
                rows["events"].append(
                    {**place, "event_id": event_id, "chain_id": event_id, "type": kind, "realis": None}
                )
                for name, begin, role in zip((one, other), (start, at + len(verb) + 1), roles, strict=True):
                    mention = {**own, "mention_id": f"{window}#m{begin}", "entity_id": f"{window}#{name}"}
                    rows["mentions"].append({**mention, "start": begin, "end": begin + len(name), "surface": name,
                                             "type": "person"})  # fmt: skip
                    rows["arguments"].append({"window_id": window, "event_id": event_id,
                                              "mention_id": mention["mention_id"], "role": role})  # fmt: skip
            rows["sentences"].append({**own, "sentence": s, "start": start, "end": len(text)})
            rows["labelled"].append({**own, "sentence": s})
            text += " "
        rows["relations"] += [{"window_id": window, "head_event_id": a, "tail_event_id": b, "type": "BEFORE"}
                              for a, b in itertools.pairwise(events)]  # fmt: skip
        rows["documents"].append({**own, "position": 0, "split": "train", "text": text, "sha256": "0" * 64,
                                  "title": None, "date": None, "url": None})  # fmt: skip
    gold = {name: tables.table(f"ingest/gold/train/{name}").frame(rows[name]) for name in tables.GOLD}
    return Annotated(DOCUMENTS.frame(rows["documents"]), SENTENCES.frame(rows["sentences"]), gold)


def documents(*texts: str) -> pl.DataFrame:
    return DOCUMENTS.frame(
        {"window_id": f"w{i}", "doc_id": f"d{i}", "position": 0, "split": "test", "text": text, "sha256": "0" * 64,
         "title": None, "date": None, "url": None}
        for i, text in enumerate(texts)
    )  # fmt: skip


def fit(base: Path, work: Path, **changes: Any) -> EncoderExtractor:
    model, _ = fit_encoder(
        corpus(12, 1), corpus(6, 2), FLOORS, options(base, **changes), seed=5, work=work, say=lambda _: None
    )
    return model


def encoder_params(base: Path, model: str = "encoder", **changes: Any) -> Params:
    # A tiny encoder knows next to nothing: everything it says is kept.
    floors = {"trigger_floor": 1e-4, "mention_floor": 1e-4, "lattice": 1e-5}
    return params(extract={"model": model, "encoder": options(base, epochs=1), **floors, **changes})


def write_corpus() -> None:
    """Write data/ingest of the working directory: eight train windows and three of tune."""
    parts = {"train": corpus(8, 1), "tune": corpus(3, 2)}
    for split, part in parts.items():
        for name, rows in part.gold.items():
            tables.write(f"ingest/gold/{split}/{name}", rows)
    texts = [
        part.documents.with_columns(split=pl.lit(split), sha256=pl.col("text").map_elements(sha256_text, pl.String))
        for split, part in parts.items()
    ]
    tables.write("ingest/documents", pl.concat(texts))
    tables.write("ingest/sentences", pl.concat([part.sentences for part in parts.values()]))
