"""A deterministic sentence splitter for corpora that bring no sentence boundaries.

It looks at the text alone, never at an annotation, so that boundaries cannot tell where a gold span lies. A sentence
ends at `.`, `!`, `?` or an ellipsis, with closing quotes or brackets, before white space and something that is not a
small letter; at full-width stops; at an empty line; and before a list item. Titles and initials ("Dr. Ng",
"J. Smith") never end one; "Inc." or "U.S." do so only before a word that usually opens a sentence.
"""

from __future__ import annotations

import re

_CANDIDATE = re.compile(
    r"(?P<stop>[.!?]+|…)[)\]\"'’”»]*(?=\s)|(?P<wide>[。！？]+)[」』”]*|(?P<break>\r?\n[ \t\r]*\n|\n(?=[ \t]*[-*•–]\s))"
)
_NEXT = re.compile(r"\s*[(\[\"'‘“«]*")
_WORD = re.compile(r"[A-Za-z]+")
_BEFORE = re.compile(r"[\w.]+\Z")

_TITLES_WORDS = (
    "mr mrs ms mx dr prof sen rep gov gen col lt sgt capt maj cmdr adm hon rev fr st mt ft no nos vs fig figs art "
    "pp dept ed eds al cf e.g i.e viz approx est jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues "
    "wed thu thur thurs fri sat sun"
)
_TITLES = frozenset(_TITLES_WORDS.split())
_MAYBE_WORDS = "inc ltd co corp llc plc gmbh jr sr etc u.s u.k u.n e.u a.m p.m d.c ph.d u.s.a bros"
_MAYBE = frozenset(_MAYBE_WORDS.split())
_OPENERS_WORDS = (
    "a an the this that these those he she it they we you i his her its their our my in on at by for from with as "
    "after before when while if but and or so however meanwhile according last one there what who how why both "
    "all some many most another earlier later although since despite"
)
_OPENERS = frozenset(_OPENERS_WORDS.split())


def split_sentences(text: str) -> tuple[tuple[int, int], ...]:
    """Ranges of the sentences of a text, ascending and disjoint; together they hold every non-space character."""
    ranges: list[tuple[int, int]] = []
    start = 0
    for match in _CANDIDATE.finditer(text):
        if match["stop"] and not _ends(text, start, match.start("stop"), match["stop"], match.end()):
            continue
        _append(ranges, text, start, match.end())
        start = match.end()
    _append(ranges, text, start, len(text))
    return tuple(ranges)


def _ends(text: str, start: int, stop: int, mark: str, end: int) -> bool:
    following = _NEXT.match(text, end)
    position = following.end() if following else end
    if position < len(text) and text[position].islower():
        return False
    if mark != ".":
        return True
    word = _BEFORE.search(text, max(start, stop - 16), stop)
    if word is None:
        return True
    token = word.group().casefold()
    if token in _TITLES or (len(token) == 1 and word.group().isupper()):
        return False
    if token in _MAYBE:
        opener = _WORD.match(text, position)
        return opener is None or opener.group().casefold() in _OPENERS
    return True


def _append(ranges: list[tuple[int, int]], text: str, start: int, end: int) -> None:
    piece = text[start:end]
    stripped = piece.strip()
    if stripped:
        first = start + len(piece) - len(piece.lstrip())
        ranges.append((first, first + len(stripped)))
