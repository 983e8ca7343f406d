"""Relevance of gold candidates and which (window, intent) pairs are worth ranking (task definition, sections 2 and 3).

The grade of a candidate comes from A*, the best order-free alignment of its gold events to the skeleton: 3 for the
climax in a target role and one more slot, 2 for the climax alone, 1 for any other slot, 0 else. An instance is kept iff
its window is ranked, some grade is at least 2, and two grades occur.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.skeletons import Intent, align, grade
from stages.trajectories.annotated import Annotated

NO_TARGET = "no candidate fills the climax in a target role"
ONE_GRADE = "all candidates have the same grade"
WINDOW = "the window is not ranked"


@dataclass(frozen=True, slots=True)
class Graded:
    """One instance with the grades of its gold candidates.

    Args:
        intent: the intent.
        grades: entity_id -> 0 to 3, every gold candidate, sorted by id.
        dropped: reason when the instance is not kept.
    """

    intent: Intent
    grades: dict[str, int]
    dropped: str | None


def grade_window(annotated: Annotated, intents: Iterable[Intent], ranked: bool) -> list[Graded]:
    """Grades of all gold candidates of a window for every intent.

    Args:
        annotated: the window's gold.
        intents: registered intents.
        ranked: whether `roster/windows` keeps the window.
    """
    plans = annotated.plan_steps()
    out = []
    for intent in intents:
        skeleton = intent.skeleton
        grades = {entity: grade(skeleton, align(skeleton, steps)) for entity, steps in plans.items()}
        out.append(Graded(intent, grades, worth(grades.values()) if ranked else WINDOW))
    return out


def worth(grades: Iterable[int]) -> str | None:
    """None when these grades make an instance; else why not."""
    seen = set(grades)
    if not seen or max(seen) < 2:
        return NO_TARGET
    return ONE_GRADE if len(seen) == 1 else None


def ideal_dcg(grades: Iterable[int], k: int) -> float:
    """IDCG@k: gain 2^grade - 1, discount log2(rank + 1), over gold candidates in the best order."""
    best = sorted(grades, reverse=True)[:k]
    return math.fsum((2**g - 1) / math.log2(i + 2) for i, g in enumerate(best))
