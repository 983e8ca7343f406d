"""Features of tokens, spans and (event, mention) pairs, all computed by array arithmetic over a shard.

T tokens, N spans, P pairs. A token feature looks at the token's own forms, its neighbours up to two places away
within the sequence, and conjunctions of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.extract.hashing import Hashes, Ints, Rows, join, to_rows
from stages.extract.tokens import Text
from stages.extract.words import Attribute as A  # noqa: N817 - it stands in every template
from stages.extract.words import word_hashes

REACH = 3
"""Neighbouring tokens that a feature may look at."""

Template = tuple[tuple[int, A], ...]

TOKEN_TEMPLATES: tuple[Template, ...] = (
    *(((o, A.WORD),) for o in (-2, -1, 0, 1, 2)),
    *(((o, A.LEMMA),) for o in (-2, -1, 0, 1, 2)),
    *(((o, A.FORM),) for o in (-2, -1, 0, 1, 2)),
    ((0, A.SUFFIX2),), ((0, A.SUFFIX3),), ((0, A.PREFIX),), ((0, A.SHAPE),), ((-1, A.SHAPE),), ((1, A.SHAPE),),
    ((-1, A.SUFFIX3),), ((1, A.SUFFIX3),),
    ((-1, A.LEMMA), (0, A.LEMMA)), ((0, A.LEMMA), (1, A.LEMMA)), ((-1, A.LEMMA), (1, A.LEMMA)),
    ((-2, A.LEMMA), (-1, A.LEMMA)), ((1, A.LEMMA), (2, A.LEMMA)),
    ((-1, A.FORM), (0, A.FORM)), ((0, A.FORM), (1, A.FORM)), ((-1, A.FORM), (0, A.FORM), (1, A.FORM)),
    ((-2, A.FORM), (-1, A.FORM), (0, A.FORM)), ((0, A.FORM), (1, A.FORM), (2, A.FORM)),
    ((0, A.LEMMA), (-1, A.FORM)), ((0, A.LEMMA), (1, A.FORM)), ((0, A.FORM), (-1, A.LEMMA)),
    ((0, A.FORM), (1, A.LEMMA)), ((3, A.LEMMA),), ((-3, A.LEMMA),),
)  # fmt: skip


LEXICON = 5
"""Extra copies of a trigger's lemma among its features: the weights' penalty then bears on it far less than on its
context, so the model begins as a lexicon of trigger words and learns from the context where that has enough to say.
(RAMS, 739 training triggers: F1 of trigger spans 0.49 without, 0.70 with.)"""
_LEMMA_COLUMN = TOKEN_TEMPLATES.index(((0, A.LEMMA),))


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """Hashes of a shard's words, and its tokens padded at the edges of the sequences.

    Args:
        table: [V + 1, attributes].
        at: for offset o from -REACH to REACH, `at[o + REACH]` is the word index at t + o, V beyond the edge.
    """

    table: Hashes
    at: list[Ints]

    @classmethod
    def of(cls, text: Text) -> Words:
        table = word_hashes(text.words)
        size = text.size
        lengths = np.diff(text.first_Q)
        low = np.repeat(text.first_Q[:-1], lengths)
        high = np.repeat(text.first_Q[1:], lengths)
        t = np.arange(size)
        at = []
        for offset in range(-REACH, REACH + 1):
            place = t + offset
            inside = (place >= low) & (place < high)
            at.append(np.where(inside, text.word_T[np.clip(place, 0, max(size - 1, 0))], len(text.words)))
        return cls(table, at)

    def get(self, attribute: A, tokens: Ints, offset: int = 0) -> Hashes:
        """The attribute's hash `offset` places from the given tokens; beyond the sequence's edge its own value."""
        return np.asarray(self.table[self.at[offset + REACH][tokens], attribute])


def token_rows(words: Words) -> Rows:
    """[T, F] buckets of every token."""
    cache: dict[tuple[int, A], Hashes] = {}
    for template in TOKEN_TEMPLATES:
        for offset, attribute in template:
            if (offset, attribute) not in cache:
                cache[offset, attribute] = words.table[words.at[offset + REACH], attribute]
    return to_rows([join(*(cache[part] for part in template)) for template in TOKEN_TEMPLATES])


def lexical_rows(rows: Rows) -> Rows:
    """Token features for finding triggers: the token's lemma counts several times."""
    return np.hstack([rows, np.repeat(rows[:, [_LEMMA_COLUMN]], LEXICON, axis=1)])


SPAN_WORDS = 6
"""Words of a span that are features of its type: the last so many."""


def span_rows(words: Words, first: Ints, last: Ints) -> Rows:
    """Features for the type of N spans of tokens first..last.

    Args:
        words: the shard's words.
        first, last: [N] tokens, both inclusive.
    """
    head, length = last, np.minimum(last - first, SPAN_WORDS)
    columns: list[Hashes] = []
    masks: list[NDArray[np.bool_] | None] = []

    def add(*parts: Hashes | int, mask: NDArray[np.bool_] | None = None) -> None:
        columns.append(np.broadcast_to(join(*parts), first.shape))
        masks.append(mask)

    for attribute in A:
        add(words.get(attribute, head))
        if attribute is not A.WORD:
            add(words.get(attribute, first))
    for offset in (1, 2, 3):
        add(words.get(A.LEMMA, first, -offset))
        add(words.get(A.LEMMA, last, offset))
        add(words.get(A.FORM, first, -offset))
        add(words.get(A.FORM, last, offset))
    add(words.get(A.LEMMA, first, -1), words.get(A.LEMMA, head))
    add(words.get(A.LEMMA, head), words.get(A.LEMMA, last, 1))
    add(words.get(A.LEMMA, last, 1), words.get(A.LEMMA, last, 2))
    add(words.get(A.LEMMA, first, -2), words.get(A.LEMMA, first, -1))
    add(length.astype(np.uint64))
    # The bag of a span's own words and of the words around it: the same template number for every place.
    rows = [to_rows(columns, masks)]
    rows += [_bag(words, head - i, first, 1001) for i in range(SPAN_WORDS)]
    return np.hstack(rows)


def _bag(words: Words, token: Ints, low: Ints, tag: int) -> Rows:
    """One bag place: the lemma of `token` where it is not before `low`."""
    column = join(words.get(A.LEMMA, np.maximum(token, 0)), tag)
    return to_rows([column], [token >= low])


def type_rows(text: Text, words: Words, first: Ints, last: Ints) -> Rows:
    """Features for the type of triggers: the span, its head's lemma several times, and the words around it."""
    spans = span_rows(words, first, last)
    head = to_rows([words.get(A.LEMMA, last)])
    return np.hstack([spans, np.repeat(head, LEXICON, axis=1), context_rows(words, text, first, last, CONTEXT)])


CONTEXT = 12
"""Words on both sides that help to type a trigger."""


def context_rows(words: Words, text: Text, first: Ints, last: Ints, width: int) -> Rows:
    """The bag of lemmas up to `width` tokens on both sides of N spans, within the sentence."""
    rows = []
    for side, anchor, sign in ((2001, first, -1), (2002, last, 1)):
        for i in range(1, width + 1):
            token = anchor + sign * i
            inside = (token >= 0) & (token < text.size)
            token = np.clip(token, 0, max(text.size - 1, 0))
            inside &= text.sentence_T[token] == text.sentence_T[np.clip(anchor, 0, max(text.size - 1, 0))]
            rows.append(to_rows([join(words.get(A.LEMMA, token), side)], [inside]))
    return np.hstack(rows)


def trigger_rows(text: Text, words: Words, first: Ints, last: Ints, level: Ints) -> Rows:
    """Where the nearest trigger of a token's sentence stands, and its lemma: [T, F] buckets.

    Args:
        text, words: of the shard.
        first, last, level: trigger spans that do not overlap, in text order, with their confidence in steps.
    """
    t = np.arange(text.size)
    if not len(first):
        none = np.zeros(text.size, dtype=bool)
        return to_rows([words.table[words.at[REACH], A.FORM]] * 8, [none] * 8)
    left = np.searchsorted(first, t, side="right") - 1
    right = np.minimum(left + 1, len(first) - 1)
    left = np.maximum(left, 0)
    far = text.size + 1
    to_left = np.where((first[left] <= t) & _same(text, first[left], t), np.maximum(t - last[left], 0), far)
    to_right = np.where((first[right] > t) & _same(text, first[right], t), first[right] - t, far)
    nearest = np.where(to_left <= to_right, left, right)
    gap = np.minimum(to_left, to_right)
    has = gap < far
    side = np.where(gap == 0, 0, np.where(to_left <= to_right, 1, 2)).astype(np.uint64)
    place = join(side, np.minimum(np.ceil(np.log2(gap + 1)), 5).astype(np.uint64))
    sure = level[nearest].astype(np.uint64)
    lemma = words.get(A.LEMMA, last[nearest])
    form, before = words.table[words.at[REACH], A.FORM], words.table[words.at[REACH - 1], A.FORM]
    own = words.table[words.at[REACH], A.LEMMA]
    columns = [
        join(place), join(place, sure), join(place, sure, form), join(lemma, place), join(lemma, side, form),
        join(place, before), join(lemma, own), join(lemma),
    ]  # fmt: skip
    return to_rows(columns, [has] * len(columns))


def _same(text: Text, a: Ints, b: Ints) -> NDArray[np.bool_]:
    return np.asarray(text.sentence_T[a] == text.sentence_T[b])
