"""Token spans and what is found about them as rows of the declared tables."""

from __future__ import annotations

import polars as pl

from pipeline import tables
from stages.extract.hashing import Ints
from stages.extract.tokens import Text


def frame_spans(text: Text, first: Ints, last: Ints) -> pl.DataFrame:
    """Columns window_id, doc_id, start, end, surface and mention_id (the citation string) of token spans."""
    doc, start, end = text.doc_T[first].tolist(), text.start_T[first].tolist(), text.end_T[last].tolist()
    spans = list(zip(doc, start, end, strict=True))
    return pl.DataFrame({
        "window_id": pl.Series([text.window_ids[d] for d in doc], dtype=pl.String),
        "doc_id": pl.Series([text.doc_ids[d] for d in doc], dtype=pl.String),
        "start": pl.Series(start, dtype=pl.Int64), "end": pl.Series(end, dtype=pl.Int64),
        "surface": pl.Series([text.surface(*span) for span in spans], dtype=pl.String),
        "mention_id": pl.Series([f"{text.doc_ids[d]}:{a}-{b}" for d, a, b in spans], dtype=pl.String),
    })  # fmt: skip


def shape(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """Columns and order as declared."""
    declared = tables.table(name)
    return frame.select(declared.schema.names()).sort(declared.sort, maintain_order=True)
