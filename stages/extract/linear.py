"""The linear extractor: triggers, their types, participant mentions and roles, each by a linear model.

    tokens -> field over triggers -> types of the spans -> field over mentions (sees the triggers) -> roles of the pairs

Every span the fields find carries the probability that exactly this span is one; types and roles keep every
hypothesis above its floor (the lattice), because nothing downstream can certify what was not extracted. Confidence is
calibrated on held-out documents. Use it as the baseline that runs anywhere in seconds; where a fine-tuned encoder is
affordable, that will extract better.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline import tables
from stages.extract import chains, clusters, ordering
from stages.extract.crf import Posterior, Tagger, choose, list_spans, span_probabilities
from stages.extract.features import Words, lexical_rows, span_rows, token_rows, trigger_rows, type_rows
from stages.extract.hashing import Floats, Hashes, Ints, Rows
from stages.extract.pairs import Spans, list_pairs, pair_rows
from stages.extract.rows import frame_spans, shape
from stages.extract.softmax import Calibration, Classifier
from stages.extract.tokens import Text, read_text
from stages.extract.words import code

TRIGGER_SEEN = 0.25
"""Triggers from this probability on are shown to the mention model."""
SPAN_FLOOR = 0.03
"""Raw probability below which a span is not looked at any further."""
STEPS = np.array([0.05, 0.15, 0.3, 0.5, 0.7, 0.85])
NO_ROLE = 0
"""Index of "takes no part" among the role labels."""
PAIRS = 1 << 16
"""(event, mention) pairs whose roles are scored together; a pair takes about 2 KB meanwhile."""


@dataclass(frozen=True, slots=True)
class Floors:
    """Hypotheses below these calibrated probabilities are dropped."""

    trigger: float
    mention: float
    role: float


@dataclass(frozen=True, slots=True, eq=False)
class Analysis:
    """A shard as read by the model: text, words, trigger spans with type probabilities, mention posterior."""

    text: Text
    words: Words
    first: Ints
    last: Ints
    p_span: Floats
    p_type: Floats
    mentions: Posterior | None


@dataclass(frozen=True, slots=True, eq=False)
class LinearExtractor:
    """A fitted extractor. `mention`, `mention_type` and `role` are None where training had no such annotation.

    Args:
        trigger, trigger_type: find and type event triggers.
        mention, mention_type: find and type participant mentions.
        role: the labels' first is "takes no part".
        allowed: [types, roles] roles that an event type may take.
        reach: sentences between an event and its arguments, at most.
        event_calibration: of (span, type).
        mention_calibration: of (span).
        role_calibration: of (role) given the event.
        floors: which hypotheses are kept.
    """

    trigger: Tagger
    trigger_type: Classifier
    mention: Tagger | None
    mention_type: Classifier | None
    role: Classifier | None
    allowed: NDArray[np.bool_]
    reach: int
    event_calibration: Calibration
    mention_calibration: Calibration
    role_calibration: Calibration
    floors: Floors

    @property
    def candidate_kind(self) -> str:
        """`entity` where roles were annotated in training, else `event_chain`."""
        return "event_chain" if self.role is None else "entity"

    def with_floors(self, floors: Floors) -> LinearExtractor:
        return replace(self, floors=floors)

    def analyse(self, documents: pl.DataFrame, sentences: pl.DataFrame) -> Analysis:
        """Read the documents of a shard: rows of ingest/documents and ingest/sentences."""
        text = read_text(documents, sentences)
        words = Words.of(text)
        return self.analyse_words(text, words, token_rows(words))

    def analyse_words(self, text: Text, words: Words, rows: Rows) -> Analysis:
        """The same from the text's token features on."""
        posterior = self.trigger.posterior(lexical_rows(rows), text.first_Q)
        first, last, p = list_spans(posterior, text.first_Q, SPAN_FLOOR, self.trigger.longest)
        chosen = choose(first, last, p)
        first, last, p = first[chosen], last[chosen], p[chosen]
        p_type = type_probabilities(self.trigger_type, text, words, first, last)
        mentions = None
        if self.mention is not None:
            seen = trigger_context(text, words, first, last, p)
            mentions = self.mention.posterior(np.hstack([rows, seen]), text.first_Q)
        return Analysis(text, words, first, last, p, p_type, mentions)

    def event_probabilities(self, analysis: Analysis) -> Floats:
        """[G, K] calibrated probability of (span, type) of the trigger spans."""
        p_span = np.broadcast_to(analysis.p_span[:, None], analysis.p_type.shape)
        return self.event_calibration.apply(p_span, analysis.p_type)

    def events(self, analysis: Analysis) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Event hypotheses in order, and BEFORE relations between them: rows of extract/events, extract/relations."""
        text = analysis.text
        p = self.event_probabilities(analysis)
        span, kind = np.nonzero(p >= self.floors.trigger)
        found = np.unique(span)
        place = np.searchsorted(found, span)
        first, last = analysis.first[found], analysis.last[found]
        edges = ordering.before_edges(text, first, last)
        rank = ordering.rank(text, first, edges)
        frame = frame_spans(text, first[place], last[place]).with_columns(
            type=pl.Series([self.trigger_type.labels[k] for k in kind], dtype=pl.String),
            confidence=pl.Series(p[span, kind], dtype=pl.Float64),
            order=pl.Series(rank[place], dtype=pl.Int64),
        )
        frame = frame.with_columns(event_id=pl.concat_str("mention_id", pl.lit("/"), "type")).drop("mention_id")
        frame = frame.with_columns(chain_id=chains.link(frame))
        relations = ordering.relations(frame, place, edges)
        return shape(frame, "extract/events"), shape(relations, "extract/relations")

    def mentions(self, analysis: Analysis) -> pl.DataFrame:
        """Participant mentions with clusters: rows of extract/mentions."""
        if analysis.mentions is None or self.mention is None:
            return tables.table("extract/mentions").empty()
        text = analysis.text
        first, last = self.mention_spans(analysis)
        confidence = self.mention_probabilities(analysis, first, last)
        kept = confidence >= self.floors.mention
        first, last, confidence = first[kept], last[kept], confidence[kept]
        frame = frame_spans(text, first, last).with_columns(
            confidence=pl.Series(confidence, dtype=pl.Float64),
            type=pl.Series(self._mention_types(analysis, first, last), dtype=pl.String),
        )
        return shape(frame.with_columns(entity_id=clusters.link(frame)), "extract/mentions")

    def mention_spans(self, analysis: Analysis) -> tuple[Ints, Ints]:
        """Spans worth a look, ascending, none overlapping."""
        if analysis.mentions is None or self.mention is None:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        first, last, p = list_spans(analysis.mentions, analysis.text.first_Q, SPAN_FLOOR, self.mention.longest)
        chosen = choose(first, last, p)
        return first[chosen], last[chosen]

    def mention_probabilities(self, analysis: Analysis, first: Ints, last: Ints) -> Floats:
        """Calibrated probability of spans of tokens of being participant mentions."""
        return self.mention_calibration.apply(self._raw(analysis, first, last))

    def score_mentions(self, analysis: Analysis, spans: pl.DataFrame) -> Floats:
        """Calibrated probability of given spans (columns doc_id, start, end) of being participant mentions."""
        return self.mention_probabilities(analysis, *self._locate(analysis, spans))

    def arguments(self, analysis: Analysis, events: pl.DataFrame, mentions: pl.DataFrame) -> pl.DataFrame:
        """Role hypotheses of given mentions in given events: rows of extract/arguments.

        Args:
            analysis: of the shard.
            events: columns event_id, doc_id, start, end, type, confidence.
            mentions: columns mention_id, doc_id, start, end.
        """
        if self.role is None or events.is_empty() or mentions.is_empty():
            return tables.table("extract/arguments").empty()
        first_E, last_E = self._locate(analysis, events)
        first_M, last_M = self._locate(analysis, mentions)
        index = {name: i for i, name in enumerate(self.trigger_type.labels)}
        kind_E = np.array([index[name] for name in events["type"].to_list()], dtype=np.int64)
        found = []
        for event_P, mention_P, p in self._score_pairs(analysis, first_E, last_E, kind_E, first_M, last_M):
            # The floor is on the role given the event; the confidence is of both.
            given = np.where(p > 0, self.role_calibration.apply(p), 0.0)
            given[:, NO_ROLE] = 0.0
            pair, role = np.nonzero(given >= self.floors.role)
            joint = given[pair, role] * events["confidence"].to_numpy()[event_P[pair]]
            found.append(pl.DataFrame({
                "window_id": events["window_id"].gather(event_P[pair]),
                "event_id": events["event_id"].gather(event_P[pair]),
                "mention_id": mentions["mention_id"].gather(mention_P[pair]),
                "role": pl.Series([self.role.labels[r] for r in role], dtype=pl.String),
                "confidence": pl.Series(np.round(joint, 6), dtype=pl.Float64),
            }))  # fmt: skip
        return shape(pl.concat(found), "extract/arguments")

    def role_probabilities(
        self, analysis: Analysis, first_E: Ints, last_E: Ints, kind_E: Ints, first_M: Ints, last_M: Ints
    ) -> tuple[Ints, Ints, Floats]:
        """Uncalibrated role probabilities of all pairs within reach.

        Args:
            analysis: of the shard.
            first_E, last_E, kind_E: tokens and index of the type of events.
            first_M, last_M: tokens of mentions; spans without a token take part in no pair.

        Returns:
            Index of the event and of the mention of every pair, and [pairs, role labels].
        """
        parts = self._score_pairs(analysis, first_E, last_E, kind_E, first_M, last_M)
        event_P, mention_P, p = (np.concatenate(column) for column in zip(*parts, strict=True))
        return event_P, mention_P, p

    def _score_pairs(
        self, analysis: Analysis, first_E: Ints, last_E: Ints, kind_E: Ints, first_M: Ints, last_M: Ints
    ) -> Iterator[tuple[Ints, Ints, Floats]]:
        """The same, at most `PAIRS` pairs at a time; at least once, if without a pair."""
        assert self.role is not None
        at_E, at_M = np.flatnonzero(last_E >= first_E), np.lexsort((last_M, first_M))
        at_M = at_M[last_M[at_M] >= first_M[at_M]]
        first_E, last_E, kind_E = first_E[at_E], last_E[at_E], kind_E[at_E]
        first_M, last_M = first_M[at_M], last_M[at_M]
        kinds, sorts = self.trigger_type.labels, self._mention_types(analysis, first_M, last_M)
        sort_M = hash_names("sort", [sort or "" for sort in sorts])
        events = Spans(
            first_E, last_E, hash_names("type", kinds)[kind_E],
            hash_names("type", [family_of(kind) for kind in kinds])[kind_E], np.zeros(len(kind_E), dtype=np.int64),
        )  # fmt: skip
        mentions = Spans(first_M, last_M, sort_M, sort_M, steps_of(self._raw(analysis, first_M, last_M)))
        event_P, mention_P = list_pairs(analysis.text, events, mentions, self.reach)
        for low in range(0, max(len(event_P), 1), PAIRS):
            event, mention = event_P[low : low + PAIRS], mention_P[low : low + PAIRS]
            rows = pair_rows(analysis.text, analysis.words, events, mentions, event, mention)
            p = self.role.probabilities(rows, self.allowed[kind_E[event]])
            yield at_E[event], at_M[mention], p

    def _locate(self, analysis: Analysis, spans: pl.DataFrame) -> tuple[Ints, Ints]:
        return analysis.text.locate(spans["doc_id"].to_list(), spans["start"].to_numpy(), spans["end"].to_numpy())

    def _raw(self, analysis: Analysis, first: Ints, last: Ints) -> Floats:
        """Uncalibrated probability of spans, 0 where there is no token, or the span crosses sequences."""
        if analysis.mentions is None:
            return np.zeros(len(first))
        return safe_span_probabilities(analysis.text, analysis.mentions, first, last)

    def _mention_types(self, analysis: Analysis, first: Ints, last: Ints) -> list[str | None]:
        if self.mention_type is None:
            return [None] * len(first)
        p = self.mention_type.probabilities(span_rows(analysis.words, first, last))
        return [self.mention_type.labels[k] for k in p.argmax(axis=1)]


def type_probabilities(classifier: Classifier, text: Text, words: Words, first: Ints, last: Ints) -> Floats:
    """[N, types] of trigger spans."""
    return classifier.probabilities(type_rows(text, words, first, last))


def trigger_context(text: Text, words: Words, first: Ints, last: Ints, p: Floats) -> Rows:
    """Features that tell the mention model about the triggers it may see."""
    seen = p >= TRIGGER_SEEN
    return trigger_rows(text, words, first[seen], last[seen], steps_of(p[seen]))


def safe_span_probabilities(text: Text, posterior: Posterior, first: Ints, last: Ints) -> Floats:
    """Probabilities of arbitrary spans: 0 for an empty one and for one that crosses a sequence's end."""
    sequence = np.searchsorted(text.first_Q, np.stack([first, last]), side="right")
    fits = (last >= first) & (sequence[0] == sequence[1])
    out = np.zeros(len(first))
    out[fits] = span_probabilities(posterior, first[fits], last[fits])
    return out


def steps_of(p: Floats) -> Ints:
    """Probability in steps, 0 to 6."""
    return np.digitize(p, STEPS).astype(np.int64)


def hash_names(kind: str, names: object) -> Hashes:
    """One hash per name."""
    known: dict[str, int] = {}
    out = []
    for name in names:  # type: ignore[attr-defined]
        if name not in known:
            known[name] = code(kind, name)
        out.append(known[name])
    return np.array(out, dtype=np.uint64)


def family_of(event_type: str) -> str:
    """The coarser type: all parts but the last of a dotted name, at most two of them.

    >>> family_of("life.die.n/a"), family_of("Attack.Ransom"), family_of("Attack")
    ('life.die', 'Attack', 'Attack')
    """
    parts = event_type.split(".")
    return ".".join(parts[: max(1, min(2, len(parts) - 1))])
