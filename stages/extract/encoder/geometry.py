"""Where spans stand to each other: which pairs are looked at, and how far apart they are.

Spans are (first, last) tokens, both inclusive; N tokens of a batch or block, E events, M mentions, G triggers, Q pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.extract.hashing import Ints
from stages.extract.tokens import Text
from stages.extract.words import shape_of

SHAPES = 8
"""Kinds of spelling of a token."""
GAPS = 16
"""Steps of the distance between two spans."""
PLACES = 2 * GAPS + 1
"""Distance and side: after, before, overlapping."""
HOPS = 7
"""Sentences from one span to the other, -3 to 3."""
RIVALS = 40
"""Mentions that are compared for an event, at most, on either side of it: the nearest."""
NEIGHBOURS = 4
"""A trigger is related to so many of the triggers told after it, at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Near:
    """Pairs of spans, by the first, then the second.

    Args:
        event_Q, mention_Q: indices of the two spans (of the earlier and the later trigger, in relations).
        place_Q: 0 .. GAPS - 1 the second comes after the first, GAPS .. 2 * GAPS - 1 before it, else they overlap.
        hop_Q: sentences from the first to the second, plus 3.
        low_Q, high_Q: the tokens between the two, half-open, empty where they touch or overlap.
    """

    event_Q: Ints
    mention_Q: Ints
    place_Q: Ints
    hop_Q: Ints
    low_Q: Ints
    high_Q: Ints


def list_near(sentence_N: Ints, e_first: Ints, e_last: Ints, m_first: Ints, m_last: Ints, reach: int) -> Near:
    """Pairs at most `reach` sentences apart.

    Args:
        sentence_N: sentence of every token, ascending, with a gap of more than `reach` where a new text begins.
        e_first, e_last, m_first, m_last: spans; mentions ascending by first token.
        reach: sentences.
    """
    sentence_E, sentence_M = sentence_N[e_first], sentence_N[m_first]
    here = np.searchsorted(m_first, e_first)
    low = np.maximum(np.searchsorted(sentence_M, sentence_E - reach, side="left"), here - RIVALS)
    high = np.minimum(np.searchsorted(sentence_M, sentence_E + reach, side="right"), here + RIVALS)
    return _compare(sentence_N, e_first, e_last, m_first, m_last, low, np.maximum(high - low, 0))


def list_neighbours(sentence_N: Ints, first_G: Ints, last_G: Ints) -> Near:
    """Pairs of a trigger and one of the next few, no two of which stand 8 sentences apart; triggers ascending.

    Args:
        sentence_N: as above, with a gap of at least 8 where a new text begins.
        first_G, last_G: triggers.
    """
    sentence_G = sentence_N[first_G]
    text_G = np.cumsum(np.diff(sentence_G, prepend=sentence_G[:1]) >= 8)
    after = np.arange(len(first_G)) + 1
    stop = np.minimum(np.searchsorted(text_G, text_G, side="right"), after + NEIGHBOURS)
    return _compare(sentence_N, first_G, last_G, first_G, last_G, after, stop - after)


def _compare(
    sentence_N: Ints, e_first: Ints, e_last: Ints, m_first: Ints, m_last: Ints, low: Ints, counts: Ints
) -> Near:
    """Pairs of each first span with `counts` second ones from `low` on."""
    event = np.repeat(np.arange(len(e_first)), counts)
    mention = np.repeat(low, counts) + np.arange(len(event)) - np.repeat(np.cumsum(counts) - counts, counts)
    e1, e2, m1, m2 = e_first[event], e_last[event], m_first[mention], m_last[mention]
    after, before = m1 > e2, m2 < e1
    gap = np.where(after, m1 - e2 - 1, np.where(before, e1 - m2 - 1, 0))
    place = np.where(after, _step(gap), np.where(before, GAPS + _step(gap), 2 * GAPS))
    hop = np.clip(sentence_N[m1] - sentence_N[e1], -3, 3) + 3
    low_Q = np.where(after, e2 + 1, np.where(before, m2 + 1, e1))
    return Near(event, mention, place, hop, low_Q, np.where(after, m1, e1))


def _step(gap: Ints) -> Ints:
    """0 to 7 exactly, then two steps per doubling up to GAPS - 1."""
    return np.where(gap < 8, gap, np.minimum(8 + 2 * np.log2(np.maximum(gap, 8) / 8), GAPS - 1).astype(np.int64))


def spelling(text: Text) -> Ints:
    """[T] kind of spelling of every token, in 0 .. SHAPES - 1."""
    kinds = np.array([_spelling_of(word) for word in text.words], dtype=np.int64)
    return kinds[text.word_T] if len(kinds) else np.zeros(0, np.int64)


def _spelling_of(word: str) -> int:
    shape = shape_of(word)
    if shape == "a":
        return 0
    if shape in ("A", "Aa"):
        return 1
    if shape == "AA":
        return 2
    if word.isdigit():
        return 3
    if word.isalpha():
        return 4
    if word.isalnum():
        return 5
    return 6 if word in ".,;:!?'\"()-" else 7


def room(segments: Ints, token: Ints, stop: Ints) -> Ints:
    """Tokens from `token` to the end of its segment or to `stop`, whichever comes first, its own included."""
    return np.minimum(segments[np.searchsorted(segments, token, side="right")], stop) - token
