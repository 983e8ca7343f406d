"""Annotated documents as every extractor is fitted on them, read from the tables of ingest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import polars as pl

from pipeline import tables
from pipeline.windows import stable_seed
from stages.extract.triggers import read_triggers

Frames = Mapping[str, pl.DataFrame]
INPUTS = ("ingest/documents", "ingest/sentences")
FOLDS = (0, 1)


@dataclass(frozen=True, slots=True, eq=False)
class Annotated:
    """Documents, their sentences, and their gold: entities, mentions, events, arguments, relations, labelled."""

    documents: pl.DataFrame
    sentences: pl.DataFrame
    gold: Frames

    def without(self, fold: int) -> Annotated:
        """The windows of the other fold."""
        windows = self.documents["window_id"].unique()
        others = pl.Series([w for w in windows.to_list() if fold_of(w) != fold], dtype=pl.String).implode()

        def kept(frame: pl.DataFrame) -> pl.DataFrame:
            return frame.filter(pl.col("window_id").is_in(others))

        return Annotated(
            kept(self.documents), kept(self.sentences), {name: kept(rows) for name, rows in self.gold.items()}
        )


def fold_of(window_id: str) -> int:
    """The half of the train windows that a window belongs to."""
    return stable_seed("half", window_id) % len(FOLDS)


def windows_of(split: str) -> set[str]:
    """Ids of the windows of a split."""
    found: set[str] = set()
    for batch in tables.Reader("ingest/documents").batches(columns=["window_id", "split"]):
        found.update(batch.filter(pl.col("split") == split)["window_id"].to_list())
    return found


def drawn(windows: set[str], most: int, seed: int, purpose: str = "train") -> set[str]:
    """At most so many windows, drawn by hash, so that adding a window moves no other in; other purposes draw others."""
    return set(sorted(windows, key=lambda w: (stable_seed(purpose, seed, w), w))[:most])


def read_annotated(split: str, windows: Iterable[str]) -> Annotated:
    """Documents and gold of some windows of a split; the tables are streamed, so memory goes with the windows."""
    wanted = pl.Series(sorted(windows), dtype=pl.String).implode()

    def rows(name: str) -> pl.DataFrame:
        batches = tables.Reader(name).batches(4096)
        found = [batch.filter(pl.col("window_id").is_in(wanted)) for batch in batches]
        return pl.concat([tables.table(name).empty(), *found])

    documents, sentences = (rows(name) for name in INPUTS)
    return Annotated(documents, sentences, {name: rows(f"ingest/gold/{split}/{name}") for name in tables.GOLD})


def add_triggers(data: Annotated, file: str) -> Annotated:
    """The same with the extra sentences of a file: they teach finding and typing triggers alone."""
    documents, sentences, gold = read_triggers(file)
    return Annotated(
        pl.concat([data.documents, documents]), pl.concat([data.sentences, sentences]),
        {name: pl.concat([frame, gold[name]]) for name, frame in data.gold.items()},
    )  # fmt: skip
