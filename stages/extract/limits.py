"""Where the limits of a reader cut something of a text, counted so that it can be said."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import polars as pl

from stages.extract.folds import Extractor
from stages.extract.hashing import Ints
from stages.extract.tokens import MAX_SEQUENCE

SENTENCES, WORDS = "sentences", "words"
SAID = {
    SENTENCES: f"sentences are too long to be read as one ({MAX_SEQUENCE} words, fewer for an encoder with small "
               "chunks): nothing that a cut divides is found",
    WORDS: "words have more pieces than the encoder reads of a word: it saw how they begin",
}  # fmt: skip
"""What is counted, in words."""


class Watched:
    """An extractor, in all else itself, that notes in `met` how often limits were met in the shard it read last."""

    def __init__(self, model: Extractor) -> None:
        self._model = model
        self.met: Counter[str] = Counter()

    def analyse(self, documents: pl.DataFrame, sentences: pl.DataFrame) -> Any:
        analysis = self._model.analyse(documents, sentences)
        self.met = reached(analysis)
        return analysis

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def reached(analysis: Any) -> Counter[str]:
    """How often a limit was met in a shard that an extractor has read."""
    if isinstance(analysis, list):  # of a cross-fitted extractor: parts, each read by one model
        return sum((reached(part.analysis) for part in analysis), Counter[str]())
    if hasattr(analysis, "encoder"):  # of a stacked one: the encoder cuts wherever the linear model does, and more
        return reached(analysis.encoder)
    text = analysis.text
    shard = getattr(analysis, "shard", None)
    if shard is None:
        return Counter({SENTENCES: in_parts(text.sentence_T, text.first_Q)})
    return Counter({SENTENCES: in_parts(text.sentence_T, shard.segments), WORDS: shard.pieces.cut})


def in_parts(sentence_T: Ints, first_Q: Ints) -> int:
    """Number of sentences that stand in more than one sequence.

    Args:
        sentence_T: sentence of every token, ascending.
        first_Q: first token of every sequence, the number of tokens appended.
    """
    sentence_Q = sentence_T[first_Q[:-1]]
    return len(np.unique(sentence_Q[1:][sentence_Q[1:] == sentence_Q[:-1]]))
