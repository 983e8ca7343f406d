"""Easier windows first: lessons about a part of a window's candidates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from pipeline.windows import stable_seed
from stages.sft.lessons import Lesson


def narrowed(lesson: Lesson, most: int, seed: int) -> Lesson:
    """The lesson about at most so many candidates, drawn by hash, with the evidence of these alone.

    About half of them, one at least, are candidates of the right answer, which keep their order. With `most` = 0, or
    no more candidates than that, the lesson is as it was.
    """
    window = lesson.task.window
    if not most or len(window.candidates) <= most:
        return lesson
    random = np.random.default_rng(stable_seed(seed, "narrowed", lesson.key))
    shuffled = [window.candidates[i].candidate_id for i in random.permutation(len(window.candidates)).tolist()]
    named = {entry.candidate_id for entry in lesson.entries}
    first = [c for c in shuffled if c in named][: int(random.integers(1, most + 1))]
    others = sorted((c for c in shuffled if c not in first), key=lambda c: c in named)
    kept = {*first, *others[: most - len(first)]}
    steps = tuple(step for step in window.steps if step.candidate_id in kept)
    spans = {span for step in steps for span in (step.trigger, step.mention)}
    own = replace(
        window,
        candidates=tuple(c for c in window.candidates if c.candidate_id in kept),
        steps=steps,
        handles=tuple(handle for handle in window.handles if handle.span in spans),
    )
    entries = tuple(entry for entry in lesson.entries if entry.candidate_id in kept)
    return replace(lesson, task=replace(lesson.task, window=own), entries=entries)


def portion(lessons: Sequence[Lesson], begin: int, count: int, most: int, seed: int) -> Iterator[Lesson]:
    """So many lessons from place `begin` on, around the end where there are fewer, each narrowed."""
    for i in range(begin, begin + count):
        yield narrowed(lessons[i % len(lessons)], most, seed + i // len(lessons))
