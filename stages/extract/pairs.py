"""(event, mention) pairs: which are looked at, and the features by which a role is given.

E event hypotheses, M mentions, P pairs; tokens are those of the shard's `Text`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.extract.features import Words
from stages.extract.hashing import Hashes, Ints, Rows, join, to_rows
from stages.extract.tokens import Text
from stages.extract.words import Attribute as A  # noqa: N817 - it stands in every template

FAR = 240
"""Tokens between the beginnings of a trigger and a mention, at most: a text without sentence ends stays affordable."""
BETWEEN = 5
"""Words between trigger and mention that are features, counted from both ends."""


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Token spans with what is known about them; `first` and `last` are inclusive.

    Args:
        first, last: tokens.
        kind: hash of the event type or mention type.
        family: hash of a coarser type.
        level: confidence in steps, 0 upwards.
    """

    first: Ints
    last: Ints
    kind: Hashes
    family: Hashes
    level: Ints


def list_pairs(text: Text, events: Spans, mentions: Spans, reach: int) -> tuple[Ints, Ints]:
    """Indices (event, mention) of the pairs at most `reach` sentences and `FAR` tokens apart, by event, mention.

    Both stand in one document. Mentions must be sorted by first token.
    """
    if not len(events.first) or not len(mentions.first):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    sentence_M = text.sentence_T[mentions.first]
    sentence_E = text.sentence_T[events.first]
    # Sentences are numbered over the shard: within the document they run from sentence - number to ... .
    begin_E = sentence_E - np.minimum(reach, text.number_S[sentence_E])
    last_S = _last_of_document(text)
    end_E = np.minimum(sentence_E + reach, last_S[sentence_E])
    near_low = np.searchsorted(mentions.first, events.first - FAR, side="left")
    near_high = np.searchsorted(mentions.first, events.first + FAR, side="right")
    low = np.maximum(np.searchsorted(sentence_M, begin_E, side="left"), near_low)
    high = np.minimum(np.searchsorted(sentence_M, end_E, side="right"), near_high)
    counts = np.maximum(high - low, 0)
    event_P = np.repeat(np.arange(len(low)), counts)
    offset_P = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return event_P, low[event_P] + offset_P


def _last_of_document(text: Text) -> Ints:
    """For every sentence of the shard the last sentence of its document."""
    heads = np.flatnonzero(text.number_S == 0)
    bounds = np.append(heads[1:], len(text.number_S)) - 1
    return np.repeat(bounds, np.diff(np.append(heads, len(text.number_S))))


def pair_rows(text: Text, words: Words, events: Spans, mentions: Spans, event_P: Ints, mention_P: Ints) -> Rows:
    """[P, F] buckets."""
    e1, e2 = events.first[event_P], events.last[event_P]
    m1, m2 = mentions.first[mention_P], mentions.last[mention_P]
    kind, family = events.kind[event_P], events.family[event_P]
    sort, level = mentions.kind[mention_P], mentions.level[mention_P].astype(np.uint64)
    after, before = m1 > e2, m2 < e1
    gap = np.where(after, m1 - e2 - 1, np.where(before, e1 - m2 - 1, 0))
    inside = (m1 <= e1) & (e2 <= m2)
    side = np.where(after, 1, np.where(before, 2, np.where(inside, 3, 4))).astype(np.uint64)
    hop = np.clip(text.sentence_T[m1] - text.sentence_T[e1], -3, 3)
    near = (hop == 0) & (after | before)
    far = np.where(hop == 0, _bucket(gap), 16 + hop).astype(np.uint64)
    place = join(side, far)
    crossed = _crossed(mentions.first, events.first, e1, m1, mention_P, after).astype(np.uint64)
    rivals = _rivals(events.first, e1, m1).astype(np.uint64)
    w = words
    head_l, head_f, head_s = w.get(A.LEMMA, m2), w.get(A.FORM, m2), w.get(A.SUFFIX3, m2)
    start_f, prev_l, prev2_l = w.get(A.FORM, m1), w.get(A.LEMMA, m1, -1), w.get(A.LEMMA, m1, -2)
    next_l, trigger = w.get(A.LEMMA, m2, 1), w.get(A.LEMMA, e2)
    prev_f, next_f = w.get(A.FORM, m1, -1), w.get(A.FORM, m2, 1)
    after_trigger, before_trigger = w.get(A.LEMMA, e2, 1), w.get(A.LEMMA, e1, -1)
    voice = join(w.get(A.CLASS, e1, -1), w.get(A.CLASS, e1), w.get(A.SUFFIX2, e2))
    left, right = np.where(after, e2, m2), np.where(after, m1, e1)
    path = _path(w, left, right, near & (gap <= 3))
    ends = join(w.get(A.LEMMA, left, 1), w.get(A.LEMMA, right, -1))
    columns: list[Hashes] = [
        join(side), place, join(place, crossed), join(place, rivals), join(place, level), join(level),
        sort, head_l, join(head_f), head_s, join(start_f), prev_l, join(prev2_l, prev_l), next_l,
        join(side, prev_l), join(side, next_l), join(place, prev_f), join(place, next_f), join(prev_f, head_f),
        join(kind), join(kind, side), join(kind, place), join(kind, crossed, side), join(kind, sort),
        join(kind, sort, side), join(kind, head_l), join(kind, head_f, side), join(kind, prev_l), join(kind, level),
        join(kind, prev_l, sort), join(kind, side, prev_l), join(kind, start_f, side), join(kind, head_s),
        join(kind, side, voice), join(kind, voice, prev_l), join(kind, next_l),
        join(family, side), join(family, place), join(family, sort, side), join(family, head_l),
        join(family, prev_l), join(family, side, prev_l, head_f), join(family, side, voice), join(family, head_f),
        join(trigger, side), join(trigger, prev_l), join(trigger, sort), join(trigger, head_l),
        join(trigger, place, rivals), join(trigger, side, voice), join(trigger, head_f, side),
        join(after_trigger, side), join(kind, after_trigger, side), join(kind, before_trigger, side),
        join(side, voice), join(sort, side, rivals), join(sort, place), join(voice, prev_l, side),
        join(path, side), join(path, side, kind), join(path, side, sort), join(ends, side), join(ends, side, kind),
    ]  # fmt: skip
    masks: list[NDArray[np.bool_] | None] = [None] * (len(columns) - 5) + [near & (gap <= 3)] * 3 + [near] * 2
    rows = [to_rows(columns, masks)]
    for i in range(1, BETWEEN + 1):
        token = left + i
        mask = near & (token < right)
        token = np.minimum(token, max(text.size - 1, 0))
        lemma = w.get(A.LEMMA, token)
        rows.append(to_rows([join(lemma, side, 3001), join(lemma, side, kind)], [mask, mask]))
    return np.hstack(rows)


def _bucket(gap: Ints) -> Ints:
    """Token distances: 0 to 4 exactly, then by doubling."""
    return np.where(gap < 5, gap, np.minimum(3 + np.log2(np.maximum(gap, 1)).astype(np.int64), 10))


def _crossed(first_M: Ints, first_E: Ints, e1: Ints, m1: Ints, mention_P: Ints, after: NDArray[np.bool_]) -> Ints:
    """Other mentions between the trigger and the mention, at most 4."""
    place = np.searchsorted(first_M, e1, side="left")
    return np.clip(np.where(after, mention_P - place, place - 1 - mention_P), 0, 4)


def _rivals(first_E: Ints, e1: Ints, m1: Ints) -> Ints:
    """Other triggers between the trigger and the mention, at most 3."""
    spans = np.unique(first_E)
    a, b = np.searchsorted(spans, e1), np.searchsorted(spans, m1)
    return np.asarray(np.clip(np.abs(b - a) - (b > a), 0, 3))


def _path(words: Words, left: Ints, right: Ints, short: NDArray[np.bool_]) -> Hashes:
    """Hash of the forms of the words between, for pairs at most three words apart."""
    path: Hashes = np.zeros(len(left), dtype=np.uint64)
    for i in (1, 2, 3):
        use = short & (left + i < right)
        token = np.where(use, left + i, left)
        path = np.where(use, join(path, words.get(A.FORM, token)), path)
    return path
