"""What the held-out extractor says of a shard: events, their order, and the roles of the rosters' mentions it believes.

It reads masked texts and answers in spans of the original ones. Trajectories keep a lattice of hypotheses, because what
is not extracted cannot be cited; here nothing is cited, somebody is asked, so only what the model stands for is written
(the thresholds with the best F1 on tune). With the whole lattice L3 would agree with nearly everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from pipeline import tables
from pipeline.spans import Span
from stages.heldout.masking import in_original, mask
from stages.heldout.model import HeldoutModel
from stages.roster.takes_part import own_events

Frames = dict[str, pl.DataFrame]


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """The held-out model and what it must know of the rosters.

    Args:
        model: reads masked texts.
        kind: `entity` or `event_chain`: what candidates are.
        merge_iou: overlap from which a mention of an event chain is a found event.
    """

    model: HeldoutModel
    kind: str
    merge_iou: float

    def read(self, documents: pl.DataFrame, sentences: pl.DataFrame, rosters: Mapping[str, pl.DataFrame]) -> Frames:
        """Rows of the stage's tables for a shard, by their names below `heldout/`.

        Args:
            documents, sentences: rows of ingest/documents and ingest/sentences of whole windows.
            rosters: roster setting -> rows of roster/<setting>/mentions of the same windows.
        """
        extractor, believed = self.model.extractor, self.model.believed
        masked = mask(documents, self.model.common)
        analysis = extractor.analyse(masked.documents, sentences)
        events, relations = extractor.events(analysis)
        shown, names = in_original(events, dict(documents.select("doc_id", "text").iter_rows()))
        out: Frames = {
            "windows": tables.table("heldout/windows").frame(
                {"window_id": window_id, "words": n, "hidden": masked.hidden[window_id]}
                for window_id, n in masked.words.items()
            ),
            "events": shown,
            "relations": relations.with_columns(pl.col("head_event_id", "tail_event_id").replace(names)),
        }
        for setting, mentions in rosters.items():
            if self.kind == "event_chain":
                found, least = _own_events(shown, mentions, self.merge_iou), believed.event
            else:
                found, least = extractor.arguments(analysis, events, mentions), believed.argument
                found = found.with_columns(pl.col("event_id").replace(names))
            out[f"{setting}/arguments"] = found.filter(pl.col("confidence") >= least)
        return out


def _own_events(events: pl.DataFrame, mentions: pl.DataFrame, iou: float) -> pl.DataFrame:
    """Role `self` of event chains, window by window."""
    parts = [tables.table("heldout/<setting>/arguments").empty()]
    spans: dict[str, list[Span]] = {}
    for window_id, doc_id, start, end in mentions.select("window_id", "doc_id", "start", "end").iter_rows():
        spans.setdefault(window_id, []).append(Span(doc_id, start, end))
    for (window_id,), found in events.group_by("window_id", maintain_order=True):
        parts.append(own_events(str(window_id), found, spans.get(str(window_id), []), iou))
    return pl.concat(parts)
