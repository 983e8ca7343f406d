"""The best feasible list, given gold grades: the cap that the extraction allows, and what a policy is taught to write.

The oracle knows every candidate's grade and nothing better than the extraction: it orders the candidates that can be
certified at all by gold grade and emits as many as K, each with a bundle that the verifier accepts, chosen so that all
of them verify *together* (candidates that share their evidence cannot all be recovered from one list). The rest of the
list follows by grade. Because an emitted list must hold every certifiable candidate that fits (or be infeasible), this
is the best *feasible* list: its CertNDCG is the cap, its NDCG is not.

Which grades may be read is decided by dvc.yaml: `train` for supervision, `tune` for choosing models, `audit` for the
stages that measure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import polars as pl

from pipeline import certificates, tables
from pipeline.certificates import Entry
from pipeline.rankings import Draft, Task
from pipeline.windows import Window

CHUNK = 64
"""Windows whose grades are held at once."""

ALTERNATIVES = 12
"""Bundles tried for a candidate that does not verify beside the others."""

Grades = Mapping[str, int]
"""candidate_id -> gold grade; a candidate without an entry has grade 0."""


def graded(
    windows: Iterable[Window], setting: str, part: str, root: str | Path = "data"
) -> Iterator[tuple[Window, dict[str, Grades]]]:
    """Windows, each with intent_id -> the grades of its roster; a few windows' grades are in memory at a time.

    Args:
        windows: in the order of the tables.
        setting: their roster setting.
        part: of the reference: train, tune or audit.
    """
    windows = iter(windows)
    grades, mapping = (tables.Reader(f"reference/{part}/{name}", root) for name in ("grades", "mapping"))
    while chunk := list(islice(windows, CHUNK)):
        span = (chunk[0].window_id, chunk[-1].window_id)
        mapped = mapping.frame(span).filter(pl.col("setting") == setting).drop("setting", "iou")
        known: dict[str, dict[str, dict[str, int]]] = {}
        joined = grades.frame(span).join(mapped, on=["window_id", "entity_id"], how="inner", maintain_order="left")
        for row in joined.iter_rows(named=True):
            by_intent = known.setdefault(row["window_id"], {})
            by_intent.setdefault(row["intent_id"], {})[row["candidate_id"]] = row["grade"]
        for window in chunk:
            yield window, dict(known.get(window.window_id, {}))


def best(task: Task, grades: Grades, ties: Mapping[str, float] | None = None) -> Draft:
    """The best feasible list: certifiable candidates by grade with bundles that verify together, the rest by grade.

    Args:
        task: the instance.
        grades: gold grades of its candidates.
        ties: higher goes first among equal grades; without it the roster's order decides.
    """
    scores = {c: float(grades.get(c, 0)) for c in task.candidates}
    by_grade = sorted(task.candidates, key=lambda c: (-scores[c], -ties[c] if ties else 0.0))
    certifiable = task.certifiable if task.answerable else {}
    emitted = together(task, [certifiable[c] for c in by_grade if c in certifiable])
    shown = [entry.candidate_id for entry in emitted]
    return Draft((*shown, *(c for c in by_grade if c not in shown)), scores, tuple(emitted))


def together(task: Task, wanted: list[Entry]) -> list[Entry]:
    """At most K of the wanted entries, the first ones first, with bundles all of which are recovered from one list.

    Greedy: an entry joins with the first of its bundles beside which everything already chosen is still recovered; one
    for which there is none is left out.
    """
    chosen = wanted[: task.window.k]
    if verified(task, chosen):
        return chosen
    chosen = []
    for entry in wanted:
        if len(chosen) == task.window.k:
            break
        for bundle in (entry, *alternatives(task, entry.candidate_id)):
            if verified(task, [*chosen, bundle]):
                chosen.append(bundle)
                break
    return chosen


def verified(task: Task, entries: list[Entry]) -> bool:
    """Whether the verifier recovers every entry from the list."""
    verdicts = task.verifier.verify([entry.spans for entry in entries])
    return all(v.candidate_id == entry.candidate_id for v, entry in zip(verdicts, entries, strict=True))


def alternatives(task: Task, candidate_id: str) -> list[Entry]:
    """Valid bundles of one slot and one step each, the weightiest slot and the surest step first."""
    steps = task.window.trajectories[candidate_id]
    found: dict[Entry, None] = {}
    for slot in sorted(task.skeleton.slots, key=lambda s: -s.weight):
        for step in sorted((s for s in steps if slot.fits(s.type, s.role)), key=lambda s: -s.confidence):
            pair = (step.trigger, step.mention)
            outer = tuple(span for span, other in zip(pair, pair[::-1], strict=True) if not other.contains(span))
            entry = Entry(candidate_id, ((slot.slot_id, outer or pair[:1]),))
            if certificates.check(entry, task.window, task.skeleton, task.limits) is None:
                found[entry] = None
    return list(found)[:ALTERNATIVES]
