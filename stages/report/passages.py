"""Documents with their cited spans marked: overlapping citations are cut into pieces, long uncited stretches folded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipeline.spans import Span
from pipeline.windows import Document

FOLD_ABOVE = 6_000
"""Characters from which a document's stretches far from any citation are folded away."""

NEAR = 3
"""Sentences on either side of a cited one that stay."""

GAP = 120
"""A stretch up to so many characters is not worth folding."""

_BIDI = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_CONTROLS = {i: 0x2400 + i for i in range(32) if chr(i) not in "\n\t"} | {0x7F: 0x2421}
_CONTROLS |= dict.fromkeys((*range(0x80, 0xA0), *_BIDI), 0xFFFD)


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of text under the same citations.

    Args:
        text: what to show; control characters are replaced by their pictures.
        ranks: ranks of the entries that cite it, ascending; empty for plain text.
        anchors: ids of the cited spans that begin here.
        note: instead of text, how much was folded away.
    """

    text: str
    ranks: tuple[int, ...] = ()
    anchors: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Passage:
    """A document as it is shown. `cited` says whether any span of it is."""

    doc_id: str
    heading: str
    pieces: tuple[Piece, ...]
    cited: bool


def shown(text: str) -> str:
    """Text of the same length without control characters, which HTML cannot hold, and without those that turn the
    direction of writing: either could hide something."""
    return text.translate(_CONTROLS)


def passage(document: Document, heading: str, cited: Iterable[tuple[Span, int]], anchors: dict[Span, str]) -> Passage:
    """Cut a document into pieces.

    Args:
        document: its text and sentences.
        heading: title and date.
        cited: (span, rank of the entry that cites it), of any document.
        anchors: id of each cited span.
    """
    here = sorted({(span, rank) for span, rank in cited if span.doc_id == document.doc_id})
    pieces: list[Piece] = []
    for start, end in _kept(document, [span for span, _ in here]):
        if start < 0:
            pieces.append(Piece("", note=f"{end:,} characters not shown"))
            continue
        cuts = {start, end} | {x for span, _ in here for x in (span.start, span.end) if start < x < end}
        edges = sorted(cuts)
        for a, b in pairwise(edges):
            over = [(span, rank) for span, rank in here if span.start <= a and b <= span.end]
            pieces.append(
                Piece(
                    shown(document.text[a:b]),
                    tuple(sorted({rank for _, rank in over})),
                    tuple(anchors[span] for span in sorted({span for span, _ in over}) if span.start == a),
                )
            )
    return Passage(document.doc_id, heading, tuple(pieces), bool(here))


def _kept(document: Document, cited: Sequence[Span]) -> list[tuple[int, int]]:
    """Ranges to show, in order; (-1, n) stands for n characters folded away."""
    n = len(document.text)
    if n <= FOLD_ABOVE:
        return [(0, n)] if n else []
    near: set[int] = set()
    for i, (a, b) in enumerate(document.sentences):
        if any(span.start < b and a < span.end for span in cited):
            near |= set(range(i - NEAR, i + NEAR + 1))
    if not near:
        near = set(range(2 * NEAR))
    ranges: list[tuple[int, int]] = []
    at = 0
    for a, b in [document.sentences[i] for i in sorted(near) if 0 <= i < len(document.sentences)] + [(n, n)]:
        if a - at > GAP:
            ranges.append((-1, a - at))
            ranges.append((a, b))
        elif ranges and ranges[-1][0] >= 0:
            ranges[-1] = (ranges[-1][0], b)
        else:
            ranges.append((at, b))
        at = b
    return [(a, b) for a, b in ranges if a < b]
