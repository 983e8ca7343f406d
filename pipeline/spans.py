"""Spans and citation strings: the coordinates that everything else in certrank is written in.

A span is a half-open range of Unicode code points of one document's exact text: `text[start:end]`. Texts are never
normalised; a document's identity is the sha256 of its UTF-8 bytes. The citation string is `doc_id:start-end`;
document ids are opaque and may themselves contain `:` or `-`, so strings are parsed from the right.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.errors import SpanError

_CITATION = re.compile(r"(?s)(?P<doc>.+):(?P<start>0|[1-9][0-9]{0,17})-(?P<end>[1-9][0-9]{0,17})\Z")


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A half-open range of characters (Unicode code points, from 0) of one document.

    Raises:
        SpanError: empty doc_id, offsets that are not plain ints (`True` is refused), negative, or start >= end.
    """

    doc_id: str
    start: int
    end: int

    def __post_init__(self) -> None:
        if type(self.doc_id) is not str or not self.doc_id:
            raise SpanError("doc_id must be a non-empty string", field="doc_id")
        for name, value in (("start", self.start), ("end", self.end)):
            if type(value) is not int:
                raise SpanError(f"offset must be an integer, not {value!r}", field=name)
        if not 0 <= self.start < self.end:
            raise SpanError(f"need 0 <= start < end, got {self.start}-{self.end}", field="span")

    def __str__(self) -> str:
        return f"{self.doc_id}:{self.start}-{self.end}"

    def __len__(self) -> int:
        return self.end - self.start

    def contains(self, other: Span) -> bool:
        """Whether `other` lies wholly inside this span."""
        return self.doc_id == other.doc_id and self.start <= other.start and other.end <= self.end

    def overlaps(self, other: Span) -> bool:
        """Whether the two share at least one character."""
        return self.doc_id == other.doc_id and self.start < other.end and other.start < self.end

    def iou(self, other: Span) -> float:
        """Intersection over union in characters, 0 for different documents."""
        if not self.overlaps(other):
            return 0.0
        shared = min(self.end, other.end) - max(self.start, other.start)
        return shared / (len(self) + len(other) - shared)


def parse_citation(text: str) -> Span:
    """Parse `doc_id:start-end`; the inverse of `str(span)`.

    Raises:
        SpanError: on anything else: signs, leading zeros, spaces, other digits than ASCII, start >= end.
    """
    match = _CITATION.fullmatch(text)
    if match is None:
        raise SpanError(f"not a citation of the form doc_id:start-end: {text!r}")
    return Span(match["doc"], int(match["start"]), int(match["end"]))


def sha256_text(text: str) -> str:
    """Hex sha256 of the exact UTF-8 bytes of a document's text."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def merge(spans: Iterable[Span]) -> list[Span]:
    """Union of spans as sorted, disjoint spans; overlapping and adjacent ones are joined."""
    merged: list[Span] = []
    for span in sorted(spans):
        last = merged[-1] if merged else None
        if last is not None and last.doc_id == span.doc_id and span.start <= last.end:
            if span.end > last.end:
                merged[-1] = Span(span.doc_id, last.start, span.end)
        else:
            merged.append(span)
    return merged
