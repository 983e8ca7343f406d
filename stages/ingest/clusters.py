"""Candidate clusters for corpora without annotated coreference (task definition, section 2).

Two mentions are one candidate when they have the same name (casefolded, leading determiners and forms of address
stripped; a pronoun never has a name), or when they fill the same role of coreferent events. The second rule needs each
of the two event mentions to name a single filler for the role: an attack with two victims does not make them one.
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


_MASCULINE = frozenset(["mr", "mister", "sir", "lord", "señor", "monsieur", "herr"])
_FEMININE = frozenset(["mrs", "ms", "miss", "madam", "madame", "dame", "lady", "señora", "frau"])
_OTHER = frozenset(["dr", "doctor", "prof", "professor", "mx", "rev", "reverend", "sen", "rep", "gov", "gen", "col",
                    "lt", "capt", "sgt", "hon", "president", "senator", "governor", "minister", "judge"])  # fmt: skip
ADDRESS = _MASCULINE | _FEMININE | _OTHER
"""Words before a name that are not part of it, without their period."""


def name_key(surface: str) -> str | None:
    """What a mention is matched by, or None for a pronoun.

    >>> name_key("The  FBI"), name_key("them")
    ('fbi', None)
    """
    words = surface.casefold().split()
    while len(words) > 1 and words[0] in DETERMINERS:
        words = words[1:]
    return None if len(words) == 1 and words[0] in PRONOUNS else " ".join(words)


def name_keys(surfaces: Sequence[str]) -> list[str | None]:
    """What the mentions of one window are matched by: `name_key` without a form of address.

    Where a name is addressed both as a man's and as a woman's, only the bare name and neutral forms are one.

    >>> name_keys(["Mrs. Olten", "Olten", "the senator"])
    ['olten', 'olten', 'senator']
    >>> name_keys(["Mr Olten", "Mrs Olten", "Dr. Olten", "Olten"])
    ['mr olten', 'mrs olten', 'olten', 'olten']
    """
    keys = [name_key(surface) for surface in surfaces]
    bare = [key if key is None else _split(key) for key in keys]
    genders: dict[str, set[bool]] = defaultdict(set)
    for pair in bare:
        if pair is not None and (gender := _feminine(pair[0])) is not None:
            genders[pair[1]].add(gender)
    out: list[str | None] = []
    for pair in bare:
        if pair is None:
            out.append(None)
        else:
            address, name = pair
            apart = len(genders[name]) == 2 and _feminine(address) is not None
            out.append(f"{' '.join(address)} {name}" if apart else name)
    return out


def _split(key: str) -> tuple[tuple[str, ...], str]:
    """(forms of address without their periods, the name), at least one word of which stays."""
    words = key.split()
    n = 0
    while n < len(words) - 1 and words[n].rstrip(".") in ADDRESS:
        n += 1
    return tuple(word.rstrip(".") for word in words[:n]), " ".join(words[n:])


def _feminine(address: tuple[str, ...]) -> bool | None:
    """Whether somebody is addressed as a woman; None where the form does not tell."""
    for word in address:
        if word in _MASCULINE or word in _FEMININE:
            return word in _FEMININE
    return None


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
    for i, key in enumerate(name_keys(surfaces)):
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
