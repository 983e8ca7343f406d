"""Candidate clusters for corpora without annotated coreference (task definition, section 2).

Two mentions are one candidate when they have the same name (casefolded, leading determiners stripped; a pronoun never
has a name), or when they fill the same role of coreferent events. The second rule needs each of the two event mentions
to name a single filler for the role: an attack with two victims does not make them one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

_DETERMINERS_WORDS = (
    "the a an this that these those its their his her our my your some any another other each every both"
)
DETERMINERS = frozenset(_DETERMINERS_WORDS.split())
_PRONOUNS_WORDS = (
    "i me my mine myself you your yours yourself he him his himself she her hers herself it its itself we us our "
    "ours ourselves they them their theirs themselves who whom whose which that this these those what one ones "
    "someone anyone everyone somebody anybody everybody nobody none something anything everything nothing others "
    "another each both all some many few several any such"
)
PRONOUNS = frozenset(_PRONOUNS_WORDS.split())


def name_key(surface: str) -> str | None:
    """What a mention is matched by, or None for a pronoun.

    >>> name_key("The  FBI"), name_key("them")
    ('fbi', None)
    """
    words = surface.casefold().split()
    while len(words) > 1 and words[0] in DETERMINERS:
        words = words[1:]
    return None if len(words) == 1 and words[0] in PRONOUNS else " ".join(words)


def cluster(surfaces: Sequence[str], fills: Iterable[tuple[str, str, str, int]] = ()) -> list[int]:
    """Group mentions.

    Args:
        surfaces: one per distinct mention span, in text order.
        fills: (chain, event, role, index of the mention).

    Returns:
        For each mention the index of the first mention of its cluster.
    """
    parent = list(range(len(surfaces)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(i: int, j: int) -> None:
        i, j = sorted((find(i), find(j)))
        parent[j] = i

    first: dict[str, int] = {}
    for i, surface in enumerate(surfaces):
        key = name_key(surface)
        if key is not None:
            join(first.setdefault(key, i), i)
    named = [find(i) for i in range(len(surfaces))]
    fillers: dict[tuple[str, str], dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for chain, event, role, i in fills:
        fillers[chain, role][event].add(named[i])
    for by_event in fillers.values():
        single = sorted(min(members) for members in by_event.values() if len(members) == 1)
        for other in single[1:]:
            join(single[0], other)
    return [find(i) for i in range(len(surfaces))]
