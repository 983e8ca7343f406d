"""Stage `rank_oracle`: the cap on CertNDCG that the extraction allows. The only ranking that reads gold.

The oracle knows every candidate's grade and nothing better than the extraction: it orders the candidates that can be
certified at all by gold grade and emits as many as K, each with a bundle that the verifier accepts, chosen so that all
of them verify *together* (candidates that share their evidence cannot all be recovered from one list). The rest of the
list follows by grade. Because an emitted list must hold every certifiable candidate that fits (or be infeasible), the
oracle is the best *feasible* list: its CertNDCG is the cap, its NDCG is not.

Reads what `rank` reads but for the reward model, and `data/reference/audit`; writes `data/rank/oracle/<setting>`. Run
it with `dvc repro rank_oracle@closed`, or alone with

    python -m stages.rank_oracle closed
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import islice

import polars as pl

from pipeline import certificates, tables
from pipeline.certificates import Entry, Limits
from pipeline.errors import ParamError
from pipeline.params import Params
from pipeline.rankings import Draft, RankingWriter, Task, count_windows
from pipeline.skeletons import MICRO, intents_from_table
from pipeline.stage import progress, run
from pipeline.windows import Window, load_windows

CHUNK = 64
"""Windows whose grades are held at once."""

ALTERNATIVES = 12
"""Bundles tried for a candidate that does not verify beside the others."""

Grades = Mapping[str, int]
"""candidate_id -> gold grade; a candidate without an entry has grade 0."""


def main(setting: str, params: Params) -> None:
    """Rank every (window, intent) by gold grade.

    Raises:
        ParamError: unknown setting.
    """
    if setting not in tables.SETTINGS:
        raise ParamError(f"unknown roster setting {setting!r}", mend=f"one of {', '.join(tables.SETTINGS)}")
    intents = intents_from_table(tables.read("trajectories/skeletons"))
    limits = Limits.of(params.verifier)
    accept, margin = (round(x * MICRO) for x in (params.verifier.accept, params.verifier.margin))
    total = count_windows(params.rank.splits)
    windows = progress(load_windows(setting, params.rank.splits), f"oracle {setting}, windows", total)
    with RankingWriter("oracle", setting) as writer:
        for window, grades in graded(windows, setting):
            for intent in intents:
                task = Task(window, intent, limits, accept, margin)
                writer.add(task, best(task, grades.get(intent.intent_id, {})))
    print(f"  {writer.summary()}", file=sys.stderr)


def graded(windows: Iterable[Window], setting: str) -> Iterator[tuple[Window, dict[str, Grades]]]:
    """Windows, each with intent_id -> the grades of its roster; a few windows' grades are in memory at a time."""
    windows = iter(windows)
    grades, mapping = (tables.Reader(f"reference/audit/{name}") for name in ("grades", "mapping"))
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


def best(task: Task, grades: Grades) -> Draft:
    """The best feasible list: certifiable candidates by grade with bundles that verify together, the rest by grade."""
    scores = {c: float(grades.get(c, 0)) for c in task.candidates}
    by_grade = sorted(task.candidates, key=lambda c: -scores[c])
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


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m stages.rank_oracle SETTING")
    run(f"rank_oracle@{sys.argv[1]}", partial(main, sys.argv[1]))
