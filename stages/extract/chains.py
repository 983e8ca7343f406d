"""Which found events of a window are mentions of one event: same type, same head word."""

from __future__ import annotations

import re

import polars as pl

from stages.extract.words import lemma_of

_WORD = re.compile(r"[^\W_]+")


def link(events: pl.DataFrame) -> pl.Series:
    """Chain ids, unique in the corpus: the event id of the chain's first event.

    Args:
        events: columns window_id, event_id, type, surface; in window and text order.
    """
    first: dict[tuple[str, str, str], str] = {}
    out = []
    for window, event, kind, surface in events.select("window_id", "event_id", "type", "surface").iter_rows():
        out.append(first.setdefault((window, kind, head_of(surface)), event))
    return pl.Series("chain_id", out, dtype=pl.String)


def head_of(surface: str) -> str:
    """The last word's lemma; the whole surface when it holds no word.

    >>> head_of("was stolen"), head_of("a data breach")
    ('steal', 'breach')
    """
    words = _WORD.findall(surface)
    return lemma_of(words[-1]) if words else surface
