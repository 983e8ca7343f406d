"""Wrong twins of right answers: the same list, but for one candidate who should not stand there.

A twin is made of a hard negative (`stages/trajectories/negatives.py`) of a kind that names a wrong candidate: somebody
who took part in the same event, acted in one of its type, or bears the same last name stands in the place of the right
one, with evidence of their own where they have any; or with the right one's evidence. So right answer and twin differ
in ids and handles, and nowhere else. Negatives whose error no answer can spell (altered trajectories, spans that are no
handles, more spans than a slot may cite) make none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline import certificates, tables
from pipeline.certificates import Entry
from pipeline.windows import stable_seed
from stages.sft.lessons import Example, Lesson, Rendered, Teacher

OWN_EVIDENCE = ("co_participant", "same_type", "same_head")
"""Kinds in which the wrong candidate is certified by what it did itself."""
BORROWED = "other_candidate"
"""The kind in which it is certified by what the right one did."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """Who might wrongly stand in whose place. Canonical ids; `kind` as in `trajectories/negatives`."""

    kind: str
    right: str
    other: str


def read_wrongs(root: str | Path = "data") -> dict[tuple[str, str], list[Wrong]]:
    """(window_id, intent_id) -> the hard negatives that name a wrong candidate, in the table's order.

    They were made from one roster setting; in another one somebody may be missing, whom `twin` then passes over.
    """
    wanted = pl.col("kind").is_in([*OWN_EVIDENCE, BORROWED]) & pl.col("other_id").is_not_null()
    found: dict[tuple[str, str], list[Wrong]] = {}
    for batch in tables.Reader("trajectories/negatives", root).batches():
        rows = batch.filter(wanted).select("window_id", "intent_id", "kind", "candidate_id", "other_id")
        for window_id, intent_id, kind, right, other in rows.iter_rows():
            found.setdefault((window_id, intent_id), []).append(Wrong(kind, right, other))
    return found


def twin(entries: Sequence[Entry], wrongs: Sequence[Wrong], own: Mapping[str, Entry], draw: int) -> list[Entry] | None:
    """The list with one candidate replaced.

    Args:
        entries: the right list.
        wrongs: of its instance.
        own: certificate of each candidate that may be put there, by its own deeds; who has none there borrows.
        draw: any number; settles which of the usable negatives is taken.

    Returns:
        None where no negative concerns this list.
    """
    listed = [entry.candidate_id for entry in entries]
    usable = [w for w in wrongs if w.right in listed and w.other not in listed and w.other in own]
    if not usable:
        return None
    wrong = usable[draw % len(usable)]
    place = listed.index(wrong.right)
    evidence = own[wrong.other].slots if wrong.kind in OWN_EVIDENCE else ()
    swapped = Entry(wrong.other, evidence or entries[place].slots)
    return [*entries[:place], swapped, *entries[place + 1 :]]


def twin_example(
    teacher: Teacher, lesson: Lesson, rendered: Rendered, wrongs: Sequence[Wrong], epoch: int
) -> Example | None:
    """The twin of a rendered lesson behind the same prompt; None where there is none.

    Only evidence that the prompt shows is cited. Which negative is taken changes from epoch to epoch.
    """
    window, skeleton, limits = rendered.prompt.window, lesson.task.skeleton, lesson.task.limits
    entries = [e for e in lesson.entries if all(span in window.handle_of for span in e.spans)]
    roster = {c.candidate_id for c in window.candidates}
    others = sorted({wrong.other for wrong in wrongs} & roster)
    own = {c: certificates.attach(window, skeleton, c, limits) or Entry(c) for c in others}
    found = twin(entries, wrongs, own, stable_seed("twin", teacher.seed, lesson.key, epoch))
    if found is None:
        return None
    prompt = rendered.example.ids[: rendered.example.prompt]
    answer = (*teacher.write(certificates.render(found, window)), teacher.end)
    return Example((*prompt, *answer), len(prompt))
