"""In which order the found events of a window happened: connectives where there are any, else the order of telling.

A connective gives a BEFORE edge between two neighbouring triggers. The order is topological over the edges; among
events that are free, and out of a cycle, the one told first comes first, documents in window order.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl

from stages.extract.hashing import Ints
from stages.extract.tokens import Text

Edge = tuple[int, int, float]
"""(earlier, later, confidence): indices of trigger spans."""

WITHIN, LEADING = 0.9, 0.8
"""Confidence of an edge by a connective between two triggers, and by one that opens a sentence."""
LOOK_BACK = 3
"""A sentence that opens with "later" refers to the last trigger at most so many sentences before."""
OPENING = 4
"""Words at the beginning of a sentence among which a leading connective stands."""

_AFTER = frozenset(["after", "following", "once", "since"])
_BEFORE = frozenset(["before", "until", "till"])
_LATER = frozenset(["later", "subsequently", "then", "afterwards", "afterward", "thereafter", "eventually"])
_EARLIER = frozenset(["earlier", "previously", "formerly", "beforehand"])
_POINTING = frozenset(["that", "this", "these", "those", "which", "then"])


def before_edges(text: Text, first: Ints, last: Ints) -> list[Edge]:
    """Edges that connectives state between neighbouring triggers.

    Args:
        text: the shard.
        first, last: tokens of triggers that do not overlap, in text order.
    """
    low = [word.casefold() for word in text.words]
    # Of the shard's many sentences only those can say anything that hold one of these words.
    telling = np.array([word in _ANY for word in low], dtype=bool)
    if not len(first) or not telling.any():
        return []
    starts = np.searchsorted(text.sentence_T, text.sentence_T[first], side="left").tolist()
    seen_T = np.concatenate([[0], np.cumsum(telling[text.word_T])])
    sentences, docs = text.sentence_T[first].tolist(), text.doc_T[first].tolist()
    firsts, lasts = first.tolist(), last.tolist()
    edges: list[Edge] = []
    for j in range(len(firsts)):
        begin = starts[j]
        if j and sentences[j - 1] == sentences[j]:
            between = lasts[j - 1] + 1, firsts[j]
            opening = begin, min(begin + OPENING, firsts[j - 1])
            if seen_T[between[1]] == seen_T[between[0]] and seen_T[opening[1]] == seen_T[opening[0]]:
                continue
            words = [low[w] for w in text.word_T[slice(*between)]]
            opens = [low[w] for w in text.word_T[slice(*opening)]]
            alone = j < 2 or sentences[j - 2] != sentences[j]
            sign = _within(words) or (_clause(opens) if alone else 0)
            if sign:
                edges.append((j - 1, j, WITHIN) if sign > 0 else (j, j - 1, WITHIN))
        elif j and docs[j - 1] == docs[j] and sentences[j] - sentences[j - 1] <= LOOK_BACK:
            end = min(begin + OPENING, firsts[j])
            if seen_T[end] == seen_T[begin]:
                continue
            sign = _leading([low[w] for w in text.word_T[begin:end]])
            if sign:
                edges.append((j - 1, j, LEADING) if sign > 0 else (j, j - 1, LEADING))
    return edges


_ANY = _AFTER | _BEFORE | _LATER | _EARLIER | {"prior", "ahead"}


def _within(words: Sequence[str]) -> int:
    """1 when the words between two triggers say that the first came first, -1 the other way round, 0 nothing."""
    for i, word in enumerate(words):
        pointing = i + 1 < len(words) and words[i + 1] in _POINTING
        if word in _LATER:
            return 1
        if word in _BEFORE or (word in ("prior", "ahead") and words[i + 1 : i + 2] in (["to"], ["of"])):
            return -1 if pointing else 1
        if word in _AFTER or word in _EARLIER:
            return 1 if pointing else -1
    return 0


def _clause(words: Sequence[str]) -> int:
    """The same for the opening of a sentence: "After A, B" and "Before A, B"."""
    if not words or (len(words) > 1 and words[1] in _POINTING):
        return 0
    return 1 if words[0] in _AFTER else -1 if words[0] in _BEFORE or words[:2] == ["prior", "to"] else 0


def _leading(words: Sequence[str]) -> int:
    """1 when a sentence's opening puts it after what was told before it, -1 before it, 0 nothing."""
    for i, word in enumerate(words):
        pointing = i + 1 < len(words) and words[i + 1] in _POINTING
        if word in _LATER or (word in _AFTER and pointing):
            return 1
        if word in _EARLIER or (word in _BEFORE and pointing) or (word == "prior" and words[i + 1 : i + 2] == ["to"]):
            return -1
    return 0


def rank(text: Text, first: Ints, edges: Iterable[Edge]) -> Ints:
    """Rank of every trigger within its window, from 0 without gaps."""
    windows = [text.window_ids[d] for d in text.doc_T[first].tolist()]
    after: dict[int, list[tuple[int, int]]] = {}
    for a, b, _ in edges:
        after.setdefault(a, []).append((a, b))
    out = np.zeros(len(windows), dtype=np.int64)
    begin = 0
    for i in range(1, len(windows) + 1):
        if i == len(windows) or windows[i] != windows[begin]:
            pairs = [(a - begin, b - begin) for a in range(begin, i) for _, b in after.get(a, [])]
            out[begin:i] = topological(i - begin, pairs)
            begin = i
    return out


def topological(n: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Ranks of 0..n-1 such that a comes before b for every pair (a, b); ties, and cycles, by number.

    >>> topological(3, [(2, 0)]), topological(3, [(1, 0), (0, 1)])
    ([2, 0, 1], [0, 1, 2])
    """
    later: list[list[int]] = [[] for _ in range(n)]
    waiting = [0] * n
    for a, b in sorted(set(pairs)):
        if a != b:
            later[a].append(b)
            waiting[b] += 1
    ready = [i for i in range(n) if not waiting[i]]
    ranks = [-1] * n
    blocked = 0
    for position in range(n):
        if not ready:
            # Only cycles are left: the earliest told is taken out of its cycle.
            while ranks[blocked] >= 0:
                blocked += 1
            waiting[blocked] = 0
            ready = [blocked]
        i = heapq.heappop(ready)
        ranks[i] = position
        for j in later[i]:
            waiting[j] -= 1
            if waiting[j] == 0 and ranks[j] < 0:
                heapq.heappush(ready, j)
    return ranks


def relations(events: pl.DataFrame, span_N: Ints, edges: Iterable[Edge]) -> pl.DataFrame:
    """Edges between spans as BEFORE relations between all their event hypotheses.

    Args:
        events: one row per hypothesis: window_id, event_id.
        span_N: index of each row's trigger span.
        edges: between spans.
    """
    rows: dict[int, list[tuple[str, str]]] = {}
    for span, window, event in zip(span_N.tolist(), events["window_id"], events["event_id"], strict=True):
        rows.setdefault(span, []).append((window, event))
    out = [
        {"window_id": window, "head_event_id": head, "tail_event_id": tail, "type": "BEFORE", "confidence": p}
        for a, b, p in edges
        for window, head in rows[a]
        for _, tail in rows[b]
    ]
    schema = dict.fromkeys(("window_id", "head_event_id", "tail_event_id", "type"), pl.String)
    return pl.DataFrame(out, schema={**schema, "confidence": pl.Float64}, orient="row")
