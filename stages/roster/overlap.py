"""Which of many given spans overlap a span, found without looking at all of them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import Generic, TypeVar

from pipeline.spans import Span

T = TypeVar("T")


class Overlaps(Generic[T]):
    """An index of spans, each with something that it stands for.

    A query costs what it finds and a binary search, as long as no span is much longer than the others; a roster of
    10,000 mentions compared with one of as many pair by pair takes half a minute.

    Args:
        items: spans and what they stand for, in an order that answers keep.
    """

    def __init__(self, items: Iterable[tuple[Span, T]]) -> None:
        by_document: dict[str, list[tuple[int, Span, T]]] = {}
        for number, (span, item) in enumerate(items):
            by_document.setdefault(span.doc_id, []).append((number, span, item))
        self._rows = {d: sorted(rows, key=lambda row: row[1].start) for d, rows in by_document.items()}
        self._starts = {d: [span.start for _, span, _ in rows] for d, rows in self._rows.items()}
        # How far the spans up to each one reach: ascending, so those before the first that reaches far enough are out.
        self._reach = {d: list(accumulate((span.end for _, span, _ in rows), max)) for d, rows in self._rows.items()}

    def of(self, span: Span) -> list[tuple[Span, T]]:
        """The indexed spans that share a character with this one, in the order in which they were given."""
        rows = self._rows.get(span.doc_id)
        if rows is None:
            return []
        low = bisect_right(self._reach[span.doc_id], span.start)
        high = bisect_left(self._starts[span.doc_id], span.end)
        found = sorted((row for row in rows[low:high] if row[1].overlaps(span)), key=lambda row: row[0])
        return [(other, item) for _, other, item in found]
