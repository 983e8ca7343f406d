"""Which roster mention takes part in which extracted event when the candidates are events themselves."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from pipeline import tables
from pipeline.spans import Span
from stages.roster.overlap import Overlaps

SELF = "self"
"""The one role of an event chain: it takes part in its own events."""


def chains(events: pl.DataFrame) -> list[list[Span]]:
    """Predicted clusters: the trigger spans of each chain; a span with several types belongs to its likeliest."""
    likeliest = events.sort("confidence", "event_id", descending=[True, False]).unique(
        ["doc_id", "start", "end"], keep="first", maintain_order=True
    )
    out: dict[str, list[Span]] = {}
    rows = likeliest.sort("chain_id", "doc_id", "start", "end").select("chain_id", "doc_id", "start", "end")
    for chain, doc_id, start, end in rows.iter_rows():
        out.setdefault(chain, []).append(Span(doc_id, start, end))
    return [out[key] for key in sorted(out)]


def own_events(window_id: str, events: pl.DataFrame, mentions: Iterable[Span], iou: float) -> pl.DataFrame:
    """Rows of extract/arguments with the role `self`: every event on whose trigger a mention lies (IoU >= `iou`)."""
    columns = events.select("doc_id", "start", "end", "event_id", "confidence")
    found = Overlaps(
        (Span(doc_id, start, end), (event_id, confidence)) for doc_id, start, end, event_id, confidence in
        columns.iter_rows()
    )  # fmt: skip
    rows: list[dict[str, object]] = []
    for mention in mentions:
        for trigger, (event_id, confidence) in found.of(mention):
            if mention.iou(trigger) >= iou:
                rows.append(
                    {"window_id": window_id, "event_id": event_id, "mention_id": str(mention), "role": SELF,
                     "confidence": confidence}
                )  # fmt: skip
    return tables.table("extract/arguments").frame(rows)
