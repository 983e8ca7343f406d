"""Which mentions of a window are one participant, by string match (task definition, section 2).

Equal names are one: casefolded, determiners and a possessive stripped; a pronoun is nobody else. A name also joins the
one longer name of its window that it abbreviates: by its last words (a surname), its first words (a firm's short name)
or its initials. Where two longer names would do, it stays by itself. A form of address is no part of a name, but
tells apart: "Mrs Smith" is "Smith", unless there is a "Mr Smith", too.
"""

from __future__ import annotations

import re

import polars as pl

from stages.ingest.clusters import DETERMINERS, name_keys

_WORD = re.compile(r"\w+")
_POSSESSIVE = re.compile(r"(?<=\w)['’](?:s\b)?\s*\Z")
_TITLES = frozenset(["mr", "mrs", "ms", "dr", "sir", "lady", "president", "minister", "senator", "judge"])
LONGEST = 8
"""Names of more words than this are descriptions: nothing is taken for their abbreviation."""


def link(mentions: pl.DataFrame) -> pl.Series:
    """Cluster ids, unique in the corpus: the mention id of the cluster's first mention.

    Args:
        mentions: columns window_id, mention_id, surface; in window and text order.
    """
    out: list[str] = []
    columns = mentions.select("window_id", "mention_id", "surface")
    for rows in columns.partition_by("window_id", maintain_order=True):
        ids = rows["mention_id"].to_list()
        out.extend(ids[i] for i in cluster(rows["surface"].to_list()))
    return pl.Series("entity_id", out, dtype=pl.String)


def cluster(surfaces: list[str]) -> list[int]:
    """For each mention of a window, in text order, the index of the first mention of its cluster.

    >>> cluster(["Ann Smith", "She", "Smith", "The International Monetary Fund", "she", "IMF"])
    [0, 1, 0, 3, 4, 3]
    """
    keys = name_keys([_POSSESSIVE.sub("", surface) or surface for surface in surfaces])
    proper = {key: words for key, surface in zip(keys, surfaces, strict=True) if key and (words := _proper(surface))}
    longer = _abbreviations(proper)
    first: dict[str, int] = {}
    out = []
    for i, key in enumerate(keys):
        if key is None:
            out.append(i)
            continue
        seen = {key}
        # An abbreviation of an abbreviation (Smith, Ann Smith, Mrs Ann Smith) leads to the longest name.
        while key in longer and longer[key] not in seen:
            key = longer[key]
            seen.add(key)
        out.append(first.setdefault(key, i))
    return out


def _proper(surface: str) -> tuple[str, ...]:
    """The words of a proper name, titles and determiners stripped; () for anything else."""
    words = _WORD.findall(_POSSESSIVE.sub("", surface))
    while len(words) > 1 and words[0].casefold() in DETERMINERS | _TITLES:
        words = words[1:]
    if not words or not (words[0][0].isupper() and words[-1][0].isupper()):
        return ()
    return tuple(words)


def _abbreviations(proper: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """Name key -> key of the one longer name it abbreviates."""
    by_short: dict[tuple[str, ...], set[str]] = {}
    for key, words in proper.items():
        folded = tuple(word.casefold() for word in words)
        if not 1 < len(words) <= LONGEST:
            continue
        for n in range(1, len(words)):
            by_short.setdefault(folded[:n], set()).add(key)
            by_short.setdefault(folded[-n:], set()).add(key)
        initials = "".join(word[0] for word in words if word[0].isupper())
        if len(initials) > 1:
            by_short.setdefault((initials,), set()).add(key)
    out = {}
    for key, words in proper.items():
        whole = words[0] if len(words) == 1 and words[0].isupper() and len(words[0]) > 1 else None
        folded = tuple(word.casefold() for word in words)
        names = by_short.get(folded, set()) | (by_short.get((whole,), set()) if whole else set())
        names = {name for name in names if name != key and len(proper[name]) > len(words)}
        # Of nested longer names (Ann Smith, Ann Smith Jones) only the maximal ones count as rivals. The longest of all
        # is maximal, and the only one if it holds every other.
        longest = max(names, key=lambda name: (len(name), name), default="")
        if names and all(f" {name} " in f" {longest} " for name in names):
            out[key] = longest
    return out
