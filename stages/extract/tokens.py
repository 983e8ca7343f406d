"""Texts as arrays of tokens: what every part of the extractor works on.

All documents of a shard become one run of tokens, so that features are computed by array arithmetic, not word by word:
a token is a run of letters, digits or a single other visible character, an integer into the shard's list of distinct
words. Offsets are Unicode code points of the document's own text, so `text[start:end]` is the surface exactly.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_TOKEN = re.compile(r"[^\W_]+|[^\w\s]|_")
MAX_SEQUENCE = 160
"""Tokens per sequence: a longer sentence is cut, so that one broken sentence split cannot take all the memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """The tokens of a shard. T tokens, D documents, S sentences, Q sequences.

    Args:
        doc_ids, window_ids, texts: D each, sorted by (window_id, position).
        words: the distinct tokens of the shard, in order of first occurrence.
        word_T: index into `words`.
        start_T, end_T: characters within the document.
        doc_T: index of the document.
        sentence_T: index of the sentence, running over the shard.
        first_Q: first token of each sequence (a sentence, or a part of a very long one), plus T at the end.
        number_S: the sentence's index within its document.
    """

    doc_ids: list[str]
    window_ids: list[str]
    texts: list[str]
    words: list[str]
    word_T: Ints
    start_T: Ints
    end_T: Ints
    doc_T: Ints
    sentence_T: Ints
    first_Q: Ints
    number_S: Ints

    @property
    def size(self) -> int:
        return len(self.word_T)

    def surface(self, doc: int, start: int, end: int) -> str:
        return self.texts[doc][start:end]

    def locate(self, doc_D: Sequence[str], start: Ints, end: Ints) -> tuple[Ints, Ints]:
        """Character spans -> (first token, last token); a span that cuts a token takes the whole of it.

        Args:
            doc_D: document ids, one per span.
            start, end: characters, one per span.

        Returns:
            Two arrays; where no token is touched (or the document is not of this shard) last < first.
        """
        index = {doc_id: i for i, doc_id in enumerate(self.doc_ids)}
        doc = np.array([index.get(d, -1) for d in doc_D], dtype=np.int64)
        # Documents stand one after the other, so (document, offset) is a sorted key over all tokens.
        width = 1 + max((len(t) for t in self.texts), default=0)
        first = np.searchsorted(self.doc_T * width + self.end_T, doc * width + start, side="right")
        last = np.searchsorted(self.doc_T * width + self.start_T, doc * width + end, side="left") - 1
        last = np.where(doc < 0, first - 1, last)
        return first, last


def read_text(documents: pl.DataFrame, sentences: pl.DataFrame) -> Text:
    """Tokenise the documents of a shard.

    Args:
        documents: rows of ingest/documents.
        sentences: rows of ingest/sentences of the same documents; text outside of every sentence belongs to the
            sentence before it.

    Returns:
        Text: with documents sorted by (window_id, position).
    """
    documents = documents.sort("window_id", "position", "doc_id")
    texts: list[str] = documents["text"].to_list()
    doc_ids: list[str] = documents["doc_id"].to_list()
    vocabulary: dict[str, int] = {}
    words: list[int] = []
    starts: list[int] = []
    counts: list[int] = []
    for text in texts:
        before = len(words)
        for match in _TOKEN.finditer(text):
            words.append(vocabulary.setdefault(match.group(), len(vocabulary)))
            starts.append(match.start())
        counts.append(len(words) - before)
    names = list(vocabulary)
    word_T = np.array(words, dtype=np.int64)
    start_T = np.array(starts, dtype=np.int64)
    lengths = np.array([len(name) for name in names], dtype=np.int64)
    doc_T = np.repeat(np.arange(len(texts), dtype=np.int64), counts)
    sentence_T, number_S = _sentences(doc_ids, texts, sentences, doc_T, start_T)
    return Text(
        doc_ids, documents["window_id"].to_list(), texts, names, word_T, start_T,
        start_T + (lengths[word_T] if len(names) else 0), doc_T, sentence_T, _sequences(sentence_T), number_S,
    )  # fmt: skip


def _sentences(
    doc_ids: list[str], texts: list[str], sentences: pl.DataFrame, doc_T: Ints, start_T: Ints
) -> tuple[Ints, Ints]:
    """The sentence of every token, and every sentence's number within its document."""
    order = pl.DataFrame({"doc_id": doc_ids, "doc": np.arange(len(doc_ids), dtype=np.int64)}, strict=False)
    known = sentences.select("doc_id", "sentence", "start").join(order.cast({"doc_id": pl.String}), on="doc_id")
    # A document without sentences is one sentence; a text before the first sentence belongs to the first.
    lacking = order.cast({"doc_id": pl.String}).join(known.select("doc_id").unique(), on="doc_id", how="anti")
    known = pl.concat([
        known.select("doc", "sentence", "start"),
        lacking.select("doc", sentence=pl.lit(0, dtype=pl.Int64), start=pl.lit(0, dtype=pl.Int64)),
    ]).sort("doc", "sentence")  # fmt: skip
    doc_S, number_S, start_S = (known[name].to_numpy().astype(np.int64) for name in ("doc", "sentence", "start"))
    if len(doc_S):
        start_S = np.where(np.diff(doc_S, prepend=-1) != 0, 0, start_S)
    width = 1 + max((len(t) for t in texts), default=0)
    return np.searchsorted(doc_S * width + start_S, doc_T * width + start_T, side="right") - 1, number_S


def _sequences(sentence_T: Ints) -> Ints:
    """First tokens of the sequences, T appended."""
    size = len(sentence_T)
    if not size:
        return np.zeros(1, dtype=np.int64)
    heads = np.flatnonzero(np.diff(sentence_T, prepend=-1))
    offset_T = np.arange(size) - np.repeat(heads, np.diff(heads, append=size))
    return np.append(np.flatnonzero(offset_T % MAX_SEQUENCE == 0), size).astype(np.int64)
