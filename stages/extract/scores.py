"""How good an extraction is: precision, recall and F1 of triggers and arguments against gold.

Pure functions over frames; used by the stages that may see the gold of the split in question. An event counts by
(span, type), an argument by (event type, mention span, role), each once per document. `exact` asks for the very span,
`overlap` for at least one shared character. Only sentences that are annotated exhaustively are looked at, and only
decided hypotheses: the lattice below a threshold is there to be cited, not to be believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

THRESHOLDS = (0.01, 0.02, 0.03, 0.05, 0.075, *(i / 20 for i in range(2, 20)))
SPAN = ["doc_id", "start", "end"]


def harmonic_mean(precision: float | None, recall: float | None) -> float | None:
    """F1: 0 when both are 0, None when one is undefined."""
    if precision is None or recall is None:
        return None
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def as_figures(precision: float | None, recall: float | None, f1: float | None) -> dict[str, float | None]:
    """Rounded to four digits, by name."""
    named = (("precision", precision), ("recall", recall), ("f1", f1))
    return {name: None if value is None else round(value, 4) for name, value in named}


@dataclass(frozen=True, slots=True)
class Score:
    """Counts: `found` decided hypotheses, `right_found` of them right, `gold` annotated, `right_gold` of them found."""

    found: int
    right_found: int
    gold: int
    right_gold: int

    @property
    def precision(self) -> float | None:
        return self.right_found / self.found if self.found else None

    @property
    def recall(self) -> float | None:
        return self.right_gold / self.gold if self.gold else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean; 0 when both are 0, None when there is no gold or nothing was found."""
        return harmonic_mean(self.precision, self.recall)

    def as_dict(self) -> dict[str, float | int | None]:
        rounded = as_figures(self.precision, self.recall, self.f1)
        return {**rounded, "found": self.found, "gold": self.gold}


@dataclass(frozen=True, slots=True)
class Decision:
    """Least confidence at which an event, and an argument, is believed."""

    event: float
    argument: float


def score_extraction(
    gold: Mapping[str, pl.DataFrame],
    found: Mapping[str, pl.DataFrame],
    sentences: pl.DataFrame,
    decision: Decision,
) -> dict[str, Score]:
    """Scores of one split.

    Args:
        gold: events, mentions, arguments, labelled of ingest/gold/<split>.
        found: events, mentions, arguments of extract (documents of other splits are left out: they have no gold).
        sentences: ingest/sentences of at least these documents.
        decision: thresholds.

    Returns:
        `trigger_exact`, `trigger_overlap`, `trigger_span` (exact, type ignored), `mention_exact`, `mention_overlap`,
        `argument_exact`, `argument_overlap`.
    """
    ranges = labelled_ranges(gold, sentences)
    events = inside(found["events"], ranges)
    decided = events.filter(pl.col("confidence") >= decision.event)
    arguments = found["arguments"].filter(pl.col("confidence") >= decision.argument)
    typed, spans = [*SPAN, "type"], [pl.col(name) for name in SPAN]
    truth = gold["events"].select(typed).unique()
    best = decided.sort("confidence", descending=True, maintain_order=True).unique(SPAN, keep="first").select(typed)
    mentions = inside(found["mentions"], ranges).select(*spans, type=pl.lit(""))
    people = inside(gold["mentions"], ranges).select(*spans, type=pl.lit("")).unique()
    filled = join_arguments(gold["arguments"], gold["events"], gold["mentions"])
    filling = join_arguments(arguments, events, found["mentions"])
    blank = pl.lit("").alias("type")
    return {
        "trigger_exact": exact(truth, best),
        "trigger_overlap": overlapping(truth, best),
        "trigger_span": exact(truth.with_columns(blank).unique(), best.with_columns(blank)),
        "mention_exact": exact(people, mentions),
        "mention_overlap": overlapping(people, mentions),
        "argument_exact": exact(filled, filling),
        "argument_overlap": overlapping(filled, filling),
    }


def decide(gold: Mapping[str, pl.DataFrame], found: Mapping[str, pl.DataFrame], sentences: pl.DataFrame) -> Decision:
    """The thresholds with the best exact F1 of events and of arguments, on a split that is not tested on."""
    scores = {t: score_extraction(gold, found, sentences, Decision(t, t)) for t in THRESHOLDS}
    event, argument = (
        max(THRESHOLDS, key=lambda t: (scores[t][name].f1 or 0.0, -t)) for name in ("trigger_exact", "argument_exact")
    )
    return Decision(event, argument)


def labelled_ranges(gold: Mapping[str, pl.DataFrame], sentences: pl.DataFrame) -> pl.DataFrame:
    """Character ranges of exhaustively annotated sentences: doc_id, low, high."""
    joined = gold["labelled"].select("doc_id", "sentence").join(sentences, on=["doc_id", "sentence"])
    return joined.select("doc_id", low="start", high="end").sort("doc_id", "low")


def join_arguments(arguments: pl.DataFrame, events: pl.DataFrame, mentions: pl.DataFrame) -> pl.DataFrame:
    """Arguments as unique (doc_id, start, end of the mention, `event type: role`)."""
    joined = arguments.select("event_id", "mention_id", "role").join(events.select("event_id", "type"), on="event_id")
    joined = joined.join(mentions.select("mention_id", *SPAN), on="mention_id")
    return joined.select(*SPAN, type=pl.concat_str("type", pl.lit(": "), "role")).unique()


def exact(gold: pl.DataFrame, found: pl.DataFrame) -> Score:
    """Equal spans of equal type; both frames hold doc_id, start, end, type without repetition."""
    right = found.join(gold, on=[*SPAN, "type"], how="semi").height
    return Score(found.height, right, gold.height, right)


def overlapping(gold: pl.DataFrame, found: pl.DataFrame) -> Score:
    """Spans of equal type that share a character."""
    # A document and type is a line of its own: its spans are shifted beyond those of the one before.
    lines = pl.concat([frame.select(line=pl.struct("doc_id", "type")) for frame in (gold, found)])
    group = lines["line"].rank("dense").cast(pl.Int64)
    width = 1 + max(_most(gold["end"]), _most(found["end"]))
    low, high = (pl.concat([gold[name], found[name]]) + group * width for name in ("start", "end"))
    n = gold.height
    a, b = _Spans(low[:n].to_numpy(), high[:n].to_numpy()), _Spans(low[n:].to_numpy(), high[n:].to_numpy())
    return Score(found.height, b.touched_by(a), gold.height, a.touched_by(b))


class _Spans(NamedTuple):
    """Half-open ranges of one line, none empty."""

    low: NDArray[np.int64]
    high: NDArray[np.int64]

    def touched_by(self, others: _Spans) -> int:
        """How many of these overlap some other: as many others begin before its end as do not end before it begins."""
        begun = np.searchsorted(np.sort(others.low), self.high, side="left")
        ended = np.searchsorted(np.sort(others.high), self.low, side="right")
        return int((begun > ended).sum())


def _most(column: pl.Series) -> int:
    return int(column.max() or 0)  # type: ignore[arg-type]


def inside(frame: pl.DataFrame, ranges: pl.DataFrame) -> pl.DataFrame:
    """Rows whose span begins in one of the ranges (which do not overlap)."""
    placed = frame.sort("doc_id", "start", maintain_order=True).join_asof(
        ranges, left_on="start", right_on="low", by="doc_id", strategy="backward", check_sortedness=False
    )
    return placed.filter(pl.col("start") < pl.col("high")).drop("low", "high")
