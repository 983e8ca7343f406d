"""The encoder extractor: one forward pass per chunk, and everything the pipeline asks of an extractor.

    pieces -> frozen layers -> trained layers -> token vectors -> triggers and their types, mentions, roles, relations

It has the methods of `stages.extract.linear.LinearExtractor`, so the stages use either. What a span, a type or a role
is worth is calibrated on held-out documents; hypotheses are kept down to the floors (the lattice). Use it where a model
can be trained for some minutes; it needs English text and an encoder's weights. The linear model needs neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch
from scipy import special

from pipeline import tables
from stages.extract import chains, ordering
from stages.extract.encoder.coreference import Coreference, People
from stages.extract.encoder.reading import SPAN_FLOOR, Network, Shard, list_likely
from stages.extract.encoder.train import reproducible
from stages.extract.hashing import Floats, Ints
from stages.extract.linear import Floors
from stages.extract.rows import frame_spans, shape
from stages.extract.softmax import Calibration, Mask, normalise
from stages.extract.tokens import Text

LINKED = 0.5
"""BEFORE relations from this confidence on order the events of a window."""
RELATED = 0.3
"""Triggers from this confidence on are related to each other: the few nearest are asked about, so the unlikely ones
must not take their places. Training knows gold triggers only."""


@dataclass(frozen=True, slots=True)
class Temperatures:
    """Scores of a softmax head are divided by its temperature."""

    kind: float = 1.0
    role: float = 1.0
    link: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Analysis:
    """A shard as read by the model. G trigger spans that do not overlap, K event types, W longest mention.

    Args:
        shard: its text and token vectors.
        first, last: tokens of the triggers, both inclusive, ascending.
        p_span: probability that exactly this span is a trigger.
        kind_GK: scores of the event types.
        mention_TW: probability that a mention of length 1 to W begins at each token; None without mention head.
    """

    shard: Shard
    first: Ints
    last: Ints
    p_span: Floats
    kind_GK: Floats
    mention_TW: Floats | None

    @property
    def text(self) -> Text:
        return self.shard.text


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Scored (event, mention) pairs: rows of the two frames, log-probabilities [pairs, 1 + roles], none first, and
    whether both stand in one sentence."""

    events: pl.DataFrame
    mentions: pl.DataFrame
    event_Q: Ints
    mention_Q: Ints
    log_p: Floats
    same_Q: Mask


@dataclass(frozen=True, slots=True, eq=False)
class EncoderExtractor:
    """A fitted extractor.

    Args:
        network: encoder, heads, tokenizer, labels.
        temperatures: of the softmax heads.
        event_calibration: of the product of span and type.
        mention_calibration: of the span.
        role_calibration: of the product of role and event, so an argument's confidence is that both are right.
        far_calibration: the same where event and mention stand in different sentences. Where only arguments are
            annotated (RAMS), training shows no mention that takes no part, and far ones are believed too readily.
        coreference: joins clusters of mentions beyond the string rule.
        floors: which hypotheses are kept.
    """

    network: Network
    temperatures: Temperatures
    event_calibration: Calibration
    mention_calibration: Calibration
    role_calibration: Calibration
    far_calibration: Calibration
    coreference: Coreference
    floors: Floors

    @property
    def candidate_kind(self) -> str:
        """`entity` where roles were annotated in training, else `event_chain`."""
        return "event_chain" if self.network.heads.roles is None else "entity"

    def with_floors(self, floors: Floors) -> EncoderExtractor:
        return replace(self, floors=floors)

    def analyse(self, documents: pl.DataFrame, sentences: pl.DataFrame) -> Analysis:
        """Read the documents of a shard: rows of ingest/documents and ingest/sentences."""
        with reproducible(0), torch.inference_mode():
            return self._analyse(self.network.prepare(documents, sentences))

    def _analyse(self, shard: Shard) -> Analysis:
        network, heads = self.network, self.network.heads
        parts: list[tuple[Ints, Ints, Floats, Floats]] = []
        mentions: list[Floats] = []
        for index, block in enumerate(shard.blocks):
            tokens = network.vectors(shard, index)
            first, last, p = list_likely(network.spans(shard, index, tokens, heads.triggers), SPAN_FLOOR)
            parts.append((first + block.low, last + block.low, p, network.kinds(tokens, first, last)))
            if heads.mentions is not None:
                mentions.append(network.spans(shard, index, tokens, heads.mentions))
        labels = network.labels
        none = np.zeros(0, np.int64)
        if not parts:
            parts.append((none, none, np.zeros(0), np.zeros((0, len(labels.kinds)))))
            mentions.append(np.zeros((0, labels.longest_mention)))
        first, last, p_span, kind_GK = (np.concatenate(column) for column in zip(*parts, strict=True))
        return Analysis(
            shard, first, last, p_span, kind_GK, np.concatenate(mentions) if heads.mentions is not None else None
        )

    def types(self, analysis: Analysis) -> Floats:
        """[G, K] probabilities of the event types of the triggers."""
        return normalise(analysis.kind_GK / self.temperatures.kind)

    def event_probabilities(self, analysis: Analysis) -> Floats:
        """[G, K] calibrated probability of (span, type) of the triggers."""
        return self.event_calibration.apply(analysis.p_span[:, None] * self.types(analysis))

    def events(self, analysis: Analysis) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Event hypotheses in order, and relations between them: rows of extract/events, extract/relations."""
        p = self.event_probabilities(analysis)
        return self.lay_out_events(analysis, analysis.first, analysis.last, p, self.network.labels.kinds)

    def lay_out_events(
        self, analysis: Analysis, first: Ints, last: Ints, p_GK: Floats, kinds: Sequence[str]
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The same for given trigger spans (ascending, none overlapping) and probabilities of the named types."""
        text = analysis.text
        span, kind = np.nonzero(p_GK >= self.floors.trigger)
        found = np.unique(span)
        place = np.searchsorted(found, span)
        first, last = first[found], last[found]
        edges = self.links(analysis, first, last, p_GK[found].max(axis=1, initial=0.0) >= RELATED)
        before = ordering.before_edges(text, first, last)
        before += [(a, b, c) for a, b, name, c in edges if name == "BEFORE"]
        sure = [edge for edge in before if edge[2] >= LINKED]
        frame = frame_spans(text, first[place], last[place]).with_columns(
            type=pl.Series([kinds[k] for k in kind.tolist()], dtype=pl.String),
            confidence=pl.Series(p_GK[span, kind], dtype=pl.Float64),
            order=pl.Series(ordering.rank(text, first, sure)[place], dtype=pl.Int64),
        )
        frame = frame.with_columns(event_id=pl.concat_str("mention_id", pl.lit("/"), "type")).drop("mention_id")
        frame = frame.with_columns(chain_id=chains.link(frame))
        relations = [ordering.relations(frame, place, _strongest(before))]
        for name in self.network.labels.links:
            if name != "BEFORE":
                own = [(a, b, c) for a, b, link, c in edges if link == name]
                relations.append(ordering.relations(frame, place, own).with_columns(type=pl.lit(name)))
        return shape(frame, "extract/events"), shape(pl.concat(relations), "extract/relations")

    def links(self, analysis: Analysis, first: Ints, last: Ints, likely: Mask) -> list[tuple[int, int, str, float]]:
        """Relations between likely trigger spans, down to the floor of roles: head, tail, type, confidence.

        The confidence is that of the relation, given that both events are right.
        """
        network = self.network
        if network.heads.links is None:
            return []
        own = np.flatnonzero(likely)
        with reproducible(0), torch.inference_mode():
            ones, others, scores = network.links(analysis.shard, first[own], last[own])
        p = special.expit(scores / self.temperatures.link)
        n = len(network.labels.links)
        out = []
        for q, column in zip(*(axis.tolist() for axis in np.nonzero(p >= self.floors.role)), strict=True):
            pair = int(own[ones[q]]), int(own[others[q]])
            head, tail = pair if column < n else pair[::-1]
            out.append((head, tail, network.labels.links[column % n], round(float(p[q, column]), 6)))
        return out

    def mentions(self, analysis: Analysis) -> pl.DataFrame:
        """Participant mentions with clusters: rows of extract/mentions."""
        first, last = self.mention_spans(analysis)
        return self.lay_out_mentions(analysis, first, last, self.mention_probabilities(analysis, first, last))

    def mention_spans(self, analysis: Analysis) -> tuple[Ints, Ints]:
        """Spans worth a look, ascending, none overlapping."""
        if analysis.mention_TW is None:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return list_likely(analysis.mention_TW, SPAN_FLOOR)[:2]

    def mention_probabilities(self, analysis: Analysis, first: Ints, last: Ints) -> Floats:
        """Calibrated probability of spans of tokens of being participant mentions."""
        p = np.zeros(len(first))
        if analysis.mention_TW is not None:
            size = last - first
            fits = (size >= 0) & (size < analysis.mention_TW.shape[1])
            p[fits] = analysis.mention_TW[first[fits], size[fits]]
        return self.mention_calibration.apply(p)

    def lay_out_mentions(self, analysis: Analysis, first: Ints, last: Ints, confidence: Floats) -> pl.DataFrame:
        """Rows of extract/mentions for given spans (ascending, none overlapping), clusters included."""
        if analysis.mention_TW is None:
            return tables.table("extract/mentions").empty()
        kept = confidence >= self.floors.mention
        first, last, confidence = first[kept], last[kept], confidence[kept]
        with reproducible(0), torch.inference_mode():
            sorts = self.network.sorts(analysis.shard, first, last)
        frame = frame_spans(analysis.text, first, last).with_columns(
            confidence=pl.Series(confidence, dtype=pl.Float64), type=pl.Series(sorts, dtype=pl.String)
        )
        frame = frame.with_columns(entity_id=self._link(analysis, frame, first, last))
        return shape(frame, "extract/mentions")

    def _link(self, analysis: Analysis, frame: pl.DataFrame, first: Ints, last: Ints) -> pl.Series:
        """Cluster ids: the mention id of the cluster's first mention."""
        ids = frame["mention_id"].to_list()
        out: list[str] = []
        for _, people in self.people(analysis, frame, first, last):
            begin = len(out)
            out += [ids[begin + i] for i in self.coreference.link(people)]
        return pl.Series("entity_id", out, dtype=pl.String)

    def people(self, analysis: Analysis, frame: pl.DataFrame, first: Ints, last: Ints) -> Iterator[tuple[str, People]]:
        """Mentions window by window.

        Args:
            analysis: of the shard.
            frame: columns window_id, doc_id, surface, type; in text order.
            first, last: their tokens.
        """
        with reproducible(0), torch.inference_mode():
            vectors = self.network.means(analysis.shard, first, last)
        sentences = analysis.text.sentence_T[first]
        begin = 0
        for rows in frame.partition_by("window_id", maintain_order=True):
            own = slice(begin, begin + rows.height)
            yield rows["window_id"][0], People(
                rows["surface"].to_list(), rows["type"].to_list(), rows["doc_id"].to_list(), sentences[own],
                vectors[own],
            )  # fmt: skip
            begin += rows.height

    def score_mentions(self, analysis: Analysis, spans: pl.DataFrame) -> Floats:
        """Calibrated probability of given spans (columns doc_id, start, end) of being participant mentions."""
        return self.mention_probabilities(analysis, *_locate(analysis.text, spans))

    def arguments(self, analysis: Analysis, events: pl.DataFrame, mentions: pl.DataFrame) -> pl.DataFrame:
        """Role hypotheses of given mentions in given events: rows of extract/arguments.

        Args:
            analysis: of the shard.
            events: columns window_id, event_id, doc_id, start, end, type, confidence.
            mentions: columns mention_id, doc_id, start, end.
        """
        if self.network.heads.roles is None or events.is_empty() or mentions.is_empty():
            return tables.table("extract/arguments").empty()
        pairs = self.score_pairs(analysis, events, mentions)
        p_role = normalise(pairs.log_p / self.temperatures.role)[:, 1:]
        certainty_Q1 = pairs.events["confidence"].to_numpy()[pairs.event_Q, None]
        raw = p_role * certainty_Q1
        p = np.where(pairs.same_Q[:, None], self.role_calibration.apply(raw), self.far_calibration.apply(raw))
        # The confidence is of both, the floor on the role given the event, as with the linear model. Forbidden roles
        # have a probability of next to nothing; calibration must not lift it over a floor.
        pair, role = np.nonzero((p >= self.floors.role * certainty_Q1) & (p_role > 1e-6))
        frame = pl.DataFrame({
            "window_id": pairs.events["window_id"].gather(pairs.event_Q[pair]),
            "event_id": pairs.events["event_id"].gather(pairs.event_Q[pair]),
            "mention_id": pairs.mentions["mention_id"].gather(pairs.mention_Q[pair]),
            "role": pl.Series([self.network.labels.roles[r] for r in role], dtype=pl.String),
            "confidence": pl.Series(p[pair, role], dtype=pl.Float64),
        })  # fmt: skip
        return shape(frame, "extract/arguments")

    def score_pairs(self, analysis: Analysis, events: pl.DataFrame, mentions: pl.DataFrame) -> Pairs:
        """Raw role log-probabilities of all pairs within reach; the frames are as in `arguments`."""
        index = {name: k for k, name in enumerate(self.network.labels.kinds)}
        events, e_first, e_last = _ascending(analysis, events)
        mentions, m_first, m_last = _ascending(analysis, mentions)
        kind_E = np.array([index[name] for name in events["type"].to_list()], dtype=np.int64)
        with reproducible(0), torch.inference_mode():
            event_Q, mention_Q, log_p = self.network.pairs(analysis.shard, e_first, e_last, kind_E, m_first, m_last)
        sentence_T = analysis.text.sentence_T
        same_Q = sentence_T[e_first][event_Q] == sentence_T[m_first][mention_Q]
        return Pairs(events, mentions, event_Q, mention_Q, log_p, same_Q)


def _ascending(analysis: Analysis, frame: pl.DataFrame) -> tuple[pl.DataFrame, Ints, Ints]:
    """Rows with a token, by (first, last) token; a given span that a cut divides ends at the cut."""
    first, last = _locate(analysis.text, frame)
    cuts = analysis.shard.segments
    last = np.where(last < first, last, np.minimum(last, cuts[np.searchsorted(cuts[:-1], first, side="right")] - 1))
    order = np.lexsort((last, first))
    order = order[last[order] >= first[order]]
    return frame[order], first[order], last[order]


def _locate(text: Text, spans: pl.DataFrame) -> tuple[Ints, Ints]:
    return text.locate(spans["doc_id"].to_list(), spans["start"].to_numpy(), spans["end"].to_numpy())


def _strongest(edges: list[ordering.Edge]) -> list[ordering.Edge]:
    """One edge per pair."""
    best: dict[tuple[int, int], float] = {}
    for a, b, confidence in edges:
        best[a, b] = max(best.get((a, b), 0.0), confidence)
    return [(a, b, confidence) for (a, b), confidence in best.items()]
