"""The stacked extractor: the linear one and the encoder read every document, and what both say is weighed.

Stacked generalisation (Wolpert, Neural Networks 5, 1992): a hypothesis has the confidence that a logistic map, fitted
on held-out documents, gives to the two extractors' confidences; of a trigger or role that it does not hold, one has
`ABSENT`, spread over types as the other one has them. The two err differently (words and their neighbours against
vectors of whole sentences), so together they are surer where they agree, and the lattice holds what either has found,
of overlapping spans the likeliest. Order, relations and clusters are the encoder's.

G trigger spans, K event types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import polars as pl

from pipeline import tables
from stages.extract import linear
from stages.extract.crf import choose
from stages.extract.encoder import model as encoder
from stages.extract.encoder.model import EncoderExtractor
from stages.extract.hashing import Floats, Ints
from stages.extract.linear import Floors, LinearExtractor
from stages.extract.rows import shape
from stages.extract.softmax import Calibration, Mask
from stages.extract.tokens import Text

ABSENT = 0.01
"""Confidence of an extractor in a hypothesis that it does not hold: about what it holds least."""
HELD = 0.01
"""Roles are asked of either extractor down to this probability given the event."""
PLAIN = Calibration((0.5, 0.5), 0.0)
"""The geometric mean, before anything is fitted."""


class Analysis(NamedTuple):
    """A shard as read by both."""

    linear: linear.Analysis
    encoder: encoder.Analysis

    @property
    def text(self) -> Text:
        return self.encoder.text


class Triggers(NamedTuple):
    """Trigger spans of either extractor, ascending by first token: their tokens, and [G, K] confidences of each."""

    first: Ints
    last: Ints
    linear_GK: Floats
    encoder_GK: Floats


@dataclass(frozen=True, slots=True, eq=False)
class StackedExtractor:
    """A fitted extractor.

    Args:
        linear, encoder: fitted and calibrated on the same documents.
        event_map: of (linear, encoder) confidence in span and type.
        mention_map: of (linear, encoder) confidence in a span.
        role_map: of (linear, encoder) confidence in a role given the event.
        floors: which hypotheses are kept.
    """

    linear: LinearExtractor
    encoder: EncoderExtractor
    event_map: Calibration
    mention_map: Calibration
    role_map: Calibration
    floors: Floors

    @classmethod
    def of(cls, one: LinearExtractor, other: EncoderExtractor, floors: Floors) -> StackedExtractor:
        """Both with equal weight (`stages.extract.stacking.fit_stack` fits better ones).

        Raises:
            ValueError: they know different event types, so they were not fitted on the same documents.
        """
        if one.trigger_type.labels != other.network.labels.kinds:
            raise ValueError("the linear model and the encoder know different event types")
        return cls(one, other, PLAIN, PLAIN, PLAIN, floors).with_floors(floors)

    @property
    def candidate_kind(self) -> str:
        """`entity` where roles were annotated in training, else `event_chain`."""
        return self.encoder.candidate_kind

    @property
    def kinds(self) -> tuple[str, ...]:
        """Event types."""
        return self.encoder.network.labels.kinds

    def with_floors(self, floors: Floors) -> StackedExtractor:
        # Roles and their floor are applied here; spans are laid out by the encoder, so it needs the floors themselves.
        members = replace(floors, role=min(HELD, floors.role))
        return replace(
            self, linear=self.linear.with_floors(members), encoder=self.encoder.with_floors(floors), floors=floors
        )

    def analyse(self, documents: pl.DataFrame, sentences: pl.DataFrame) -> Analysis:
        """Read the documents of a shard: rows of ingest/documents and ingest/sentences."""
        return Analysis(self.linear.analyse(documents, sentences), self.encoder.analyse(documents, sentences))

    # ---- events ----------------------------------------------------------------------------------------------------

    def triggers(self, analysis: Analysis) -> Triggers:
        """What either extractor holds for a trigger; spans may overlap."""
        spans = [(own.first, own.last) for own in (analysis.linear, analysis.encoder)]
        width = 1 + max(last.max(initial=0) for _, last in spans)
        inside = [within(analysis, first, last) for first, last in spans]
        keys = [(first * width + last)[kept] for (first, last), kept in zip(spans, inside, strict=True)]
        union = np.union1d(*keys)
        held = [np.searchsorted(union, key) for key in keys]
        found = (self.linear.event_probabilities(analysis.linear), self.encoder.event_probabilities(analysis.encoder))
        confidences = [np.zeros((len(union), len(self.kinds))) for _ in found]
        for own, rows, p_GK, kept in zip(confidences, held, found, inside, strict=True):
            own[rows] = p_GK[kept]
        for own, rows, other in zip(confidences, held, confidences[::-1], strict=True):
            absent = np.setdiff1d(np.arange(len(union)), rows)
            own[absent] = ABSENT * other[absent] / other[absent].sum(axis=1, keepdims=True)
        return Triggers(union // width, union % width, *confidences)

    def event_probabilities(self, triggers: Triggers) -> Floats:
        """[G, K] stacked confidence."""
        return self.event_map.apply(triggers.linear_GK, triggers.encoder_GK)

    def events(self, analysis: Analysis) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Event hypotheses in order, and relations between them: rows of extract/events, extract/relations."""
        triggers = self.triggers(analysis)
        p_GK = self.event_probabilities(triggers)
        chosen = choose(triggers.first, triggers.last, np.minimum(p_GK.sum(axis=1), 1.0))
        first, last = triggers.first[chosen], triggers.last[chosen]
        return self.encoder.lay_out_events(analysis.encoder, first, last, p_GK[chosen], self.kinds)

    # ---- mentions --------------------------------------------------------------------------------------------------

    def mention_parts(self, analysis: Analysis, first: Ints, last: Ints) -> tuple[Floats, Floats]:
        """Confidence of either extractor in spans of tokens."""
        return (
            self.linear.mention_probabilities(analysis.linear, first, last),
            self.encoder.mention_probabilities(analysis.encoder, first, last),
        )

    def mention_spans(self, analysis: Analysis) -> tuple[Ints, Ints, Floats]:
        """Spans of either, ascending, none overlapping a likelier one, with their stacked confidence."""
        found = [self.linear.mention_spans(analysis.linear), self.encoder.mention_spans(analysis.encoder)]
        both = np.unique(np.concatenate([np.stack(own, axis=1) for own in found]), axis=0)
        both = both[within(analysis, both[:, 0], both[:, 1])]
        first, last = both[:, 0], both[:, 1]
        p = self.mention_map.apply(*self.mention_parts(analysis, first, last))
        chosen = choose(first, last, p)
        return first[chosen], last[chosen], p[chosen]

    def mentions(self, analysis: Analysis) -> pl.DataFrame:
        """Participant mentions with clusters: rows of extract/mentions."""
        return self.encoder.lay_out_mentions(analysis.encoder, *self.mention_spans(analysis))

    def score_mentions(self, analysis: Analysis, spans: pl.DataFrame) -> Floats:
        """Calibrated probability of given spans (columns doc_id, start, end) of being participant mentions."""
        return self.mention_map.apply(*self.mention_parts(analysis, *locate(analysis.text, spans)))

    # ---- roles -----------------------------------------------------------------------------------------------------

    def role_parts(self, analysis: Analysis, events: pl.DataFrame, mentions: pl.DataFrame) -> pl.DataFrame:
        """What either extractor says of roles of given mentions in given events.

        Returns:
            window_id, event_id, mention_id, role, event (its confidence), and the parts of `role_map`: linear, encoder.
        """
        # With events taken for certain, the linear model's confidence is that of the role given the event.
        sure = events.with_columns(confidence=pl.lit(1.0))
        deep = self.encoder.with_floors(replace(self.floors, role=min(HELD, self.floors.role)))
        key = ["window_id", "event_id", "mention_id", "role"]
        one = self.linear.arguments(analysis.linear, sure, mentions).rename({"confidence": "linear"})
        other = deep.arguments(analysis.encoder, events, mentions).rename({"confidence": "joint"})
        both = one.join(other, on=key, how="full", coalesce=True)
        both = both.join(events.select("event_id", event="confidence"), on="event_id", maintain_order="left")
        given = (pl.col("joint") / pl.col("event")).clip(upper_bound=1.0)
        return both.select(
            *key, "event", linear=pl.col("linear").fill_null(ABSENT), encoder=given.fill_null(ABSENT)
        ).sort(key)  # fmt: skip

    def arguments(self, analysis: Analysis, events: pl.DataFrame, mentions: pl.DataFrame) -> pl.DataFrame:
        """Role hypotheses of given mentions in given events: rows of extract/arguments.

        Args:
            analysis: of the shard.
            events: columns window_id, event_id, doc_id, start, end, type, confidence.
            mentions: columns mention_id, doc_id, start, end.
        """
        if self.candidate_kind == "event_chain" or events.is_empty() or mentions.is_empty():
            return tables.table("extract/arguments").empty()
        parts = self.role_parts(analysis, events, mentions)
        # The confidence is of role and event, the floor on the role given the event, as with either extractor.
        given = pl.Series("given", self.role_map.apply(*role_columns(parts)), dtype=pl.Float64)
        kept = parts.with_columns(given).filter(pl.col("given") >= self.floors.role)
        joint = (pl.col("given") * pl.col("event")).round(6)
        return shape(kept.with_columns(confidence=joint), "extract/arguments")


def role_columns(parts: pl.DataFrame) -> Sequence[Floats]:
    """The parts of `role_map`, one array each."""
    return [parts[name].to_numpy() for name in ("linear", "encoder")]


def locate(text: Text, spans: pl.DataFrame) -> tuple[Ints, Ints]:
    """First and last token of spans in columns doc_id, start, end."""
    return text.locate(spans["doc_id"].to_list(), spans["start"].to_numpy(), spans["end"].to_numpy())


def within(analysis: Analysis, first: Ints, last: Ints) -> Mask:
    """Which spans the encoder reads in one piece: it cuts long sentences elsewhere than the linear model."""
    cuts = analysis.encoder.shard.segments
    return np.asarray(np.searchsorted(cuts, first, side="right") == np.searchsorted(cuts, last, side="right"))
