"""Minimal sufficient gold span sets: the least evidence from which the verifier recovers a gold candidate.

The verifier runs over the *gold* steps of the window. For every gold event in which a relevant candidate fills a slot,
its trigger and argument span are tried; where that does not do (a co-participant is named inside the same span, say),
unions of two such pairs. For a candidate that fills the climax (grade 2 and 3) only climax evidence counts: showing
something else about it would not show why it is ranked there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from pipeline.skeletons import Skeleton
from pipeline.spans import Span
from pipeline.verifier import Verifier
from pipeline.windows import Step

MAX_UNIONS = 12
"""Unions are tried over the first so many insufficient pairs only: their number is quadratic."""

SpanSet = tuple[Span, ...]


def minimal_sets(
    verifier: Verifier, skeleton: Skeleton, candidate_id: str, steps: Sequence[Step], grade: int
) -> list[SpanSet]:
    """All minimal sufficient sets that stand on one or two gold atoms of the candidate.

    Args:
        verifier: over the gold steps of the window and this skeleton.
        skeleton: the plan.
        candidate_id: gold candidate.
        steps: its gold steps.
        grade: its grade; 0 has no evidence.

    Returns:
        Sorted tuples of spans, no one containing another; empty where nothing suffices.
    """
    if grade == 0:
        return []
    slots = [skeleton.slots[skeleton.climax]] if grade >= 2 else list(skeleton.slots)
    pairs = sorted({
        tuple(sorted({s.trigger, s.mention})) for s in steps if any(slot.fits(s.type, s.role) for slot in slots)
    })  # fmt: skip
    enough: set[SpanSet] = set()
    short: list[SpanSet] = []
    for pair in pairs:
        if verifier.sufficient(candidate_id, pair):
            enough.add(_shrink(verifier, candidate_id, pair))
        else:
            short.append(pair)
    for first, second in combinations(short[:MAX_UNIONS], 2):
        union = tuple(sorted({*first, *second}))
        if verifier.sufficient(candidate_id, union):
            enough.add(_shrink(verifier, candidate_id, union))
    return drop_supersets(enough)


def _shrink(verifier: Verifier, candidate_id: str, spans: SpanSet) -> SpanSet:
    """The first smallest sufficient subset; a mention that contains the trigger needs no second span."""
    for size in range(1, len(spans)):
        for subset in combinations(spans, size):
            if verifier.sufficient(candidate_id, subset):
                return subset
    return spans


def drop_supersets(sets: Iterable[SpanSet]) -> list[SpanSet]:
    """The sets that contain no other of them, sorted."""
    unique = sorted(set(sets))
    return [s for s in unique if not any(set(other) < set(s) for other in unique)]
