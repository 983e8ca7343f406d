"""Texts as word pieces, and documents as chunks of at most so many pieces.

The fast tokenizer gives every piece its characters; each piece then belongs to the token of `stages.extract.tokens` in
which it begins. Everything after that speaks of tokens, whose offsets are exact, so no span is ever read back from a
piece. A token of which the tokenizer makes nothing (a control character) gets the unknown piece.

T tokens of a shard, P pieces of a shard, C chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from stages.extract.hashing import Ints
from stages.extract.tokens import Text

PIECES_PER_TOKEN = 8
"""More pieces of one token (a long hash, a base64 run) are not read."""


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Word pieces of a shard: those of token t are `id_P[first_T[t] : first_T[t + 1]]`, at least one each.

    Of `cut` tokens only the first pieces are there.
    """

    id_P: Ints
    first_T: Ints
    cut: int


def cut_pieces(text: Text, tokenizer: Tokenizer, unknown: int) -> Pieces:
    """Run the tokenizer over all texts.

    Args:
        text: the shard.
        tokenizer: without truncation and padding; special tokens spelt out in a text must be plain text to it.
        unknown: piece for tokens that the tokenizer drops.
    """
    ids, starts = [], []
    width = 1 + max((len(t) for t in text.texts), default=0)
    for document, encoding in enumerate(tokenizer.encode_batch(text.texts, add_special_tokens=False)):
        ids.append(np.array(encoding.ids, dtype=np.int64))
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        starts.append(offsets[:, 0] + document * width)
    id_P = np.concatenate(ids) if ids else np.zeros(0, np.int64)
    start_P = np.concatenate(starts) if starts else np.zeros(0, np.int64)
    start_T = text.doc_T * width + text.start_T
    # A piece that begins before the first token of its document (stray white space) has no token.
    token_P = np.searchsorted(start_T, start_P, side="right") - 1
    known = token_P >= 0
    known[known] = text.doc_T[token_P[known]] == start_P[known] // width
    id_P, token_P = id_P[known], token_P[known]
    lacking = np.flatnonzero(np.bincount(token_P, minlength=text.size) == 0)
    id_P = np.concatenate([id_P, np.full(len(lacking), unknown, dtype=np.int64)])
    token_P = np.concatenate([token_P, lacking])
    order = np.argsort(token_P, kind="stable")
    id_P, token_P = id_P[order], token_P[order]
    rank_P = np.arange(len(token_P)) - np.searchsorted(token_P, token_P, side="left")
    kept = rank_P < PIECES_PER_TOKEN
    counts = np.bincount(token_P[kept], minlength=text.size)
    cut = int((rank_P == PIECES_PER_TOKEN).sum())
    return Pieces(id_P[kept], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), cut)


@dataclass(frozen=True, slots=True, order=True)
class Chunk:
    """A run of tokens of one document: it reads `first` to `last` and answers for `begin` to `end` (all half-open)."""

    first: int
    begin: int
    end: int
    last: int
    pieces: int


def cut_segments(text: Text, pieces: Pieces, most: int) -> Ints:
    """First tokens of the segments, T appended: the text's sequences, cut where one has more than `most` pieces."""
    first_Q = text.first_Q
    sizes = pieces.first_T[first_Q[1:]] - pieces.first_T[first_Q[:-1]]
    extra: list[int] = []
    for q in np.flatnonzero(sizes > most):
        start = int(first_Q[q])
        for token in range(start, int(first_Q[q + 1])):
            if pieces.first_T[token + 1] - pieces.first_T[start] > most:
                extra.append(token)
                start = token
    return np.unique(np.concatenate([first_Q, np.array(extra, dtype=np.int64)]))


def cut_chunks(text: Text, pieces: Pieces, segments: Ints, most: int, context: int) -> list[Chunk]:
    """Cover every document by chunks of whole segments, of about equal size, in order.

    Args:
        text: the shard.
        pieces: its pieces.
        segments: from `cut_segments(text, pieces, most - 2 * context)`.
        most: pieces per chunk.
        context: pieces on either side that are only read.
    """
    first_T = pieces.first_T
    chunks: list[Chunk] = []
    bounds = np.searchsorted(text.doc_T, np.arange(len(text.texts) + 1))
    for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        total = int(first_T[high] - first_T[low])
        if high > low and total <= most:
            chunks.append(Chunk(low, low, high, high, total))
        elif high > low:
            cuts = segments[np.searchsorted(segments, low) : np.searchsorted(segments, high)].tolist()
            chunks += _cut_document(first_T, [*cuts, high], most, context)
    return chunks


def _cut_document(first_T: Ints, cuts: list[int], most: int, context: int) -> Iterator[Chunk]:
    low, high = cuts[0], cuts[-1]
    core = most - 2 * context
    total = int(first_T[high] - first_T[low])
    target = total / -(-total // core)
    begin = low
    for cut, following in zip(cuts[1:], [*cuts[2:], None], strict=True):
        size = int(first_T[cut] - first_T[begin])
        if following is None or size >= target or first_T[following] - first_T[begin] > core:
            first, last = begin, cut
            while first > low and first_T[begin] - first_T[first - 1] <= context:
                first -= 1
            while last < high and first_T[last + 1] - first_T[cut] <= context:
                last += 1
            yield Chunk(first, begin, cut, last, int(first_T[last] - first_T[first]))
            begin = cut


def bucket(chunks: list[Chunk], budget: int, special: int) -> list[list[int]]:
    """Indices of chunks of similar length, in batches of at most `budget` pieces, padding and special ones included."""
    order = sorted(range(len(chunks)), key=lambda c: (chunks[c].pieces, c))
    batches: list[list[int]] = []
    for c in order:
        size = chunks[c].pieces + special
        if batches and (len(batches[-1]) + 1) * size <= budget:
            batches[-1].append(c)
        else:
            batches.append([c])
    return batches
