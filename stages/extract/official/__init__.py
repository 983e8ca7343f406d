"""Scores as the datasets' own scorers count them, and predictions in the form that those scorers read.

One module per dataset: `rams`, `casie`, `maven_ere`. `stages/extract/scores.py` counts in one way for every corpus;
here each corpus is counted in its own, so that a figure means what the same figure means elsewhere.
docs/extraction_scores.md says which convention that is, where it was read, and what keeps our numbers from being
compared with published ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from stages.extract.scores import as_figures, harmonic_mean


@dataclass(frozen=True, slots=True)
class Counts:
    """What a score is made of; counts of several windows add up.

    Args:
        right: what was found rightly; not a whole number where a scorer gives credit for a part of a span.
        found: what was found.
        gold: what is annotated.
    """

    right: float = 0
    found: int = 0
    gold: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.right + other.right, self.found + other.found, self.gold + other.gold)

    @property
    def precision(self) -> float | None:
        """In [0, 1]; None when nothing was found. The official scorers say 0 there, or fail."""
        return self.right / self.found if self.found else None

    @property
    def recall(self) -> float | None:
        """In [0, 1]; None when nothing is annotated."""
        return self.right / self.gold if self.gold else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean in [0, 1]; 0 when nothing is right, None when nothing was found or nothing is annotated."""
        return harmonic_mean(self.precision, self.recall)

    def as_dict(self) -> dict[str, float | int | None]:
        """Rounded to four digits, as `stages.extract.scores.Score` has it."""
        return {**as_figures(self.precision, self.recall, self.f1), "found": self.found, "gold": self.gold}
