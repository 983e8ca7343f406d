"""Stage `reference`: what the corpus' own annotation says about who should be ranked, and on which evidence.

The only stage that reads gold annotation of every split. For each (window, intent) it writes the grades of the gold
candidates, whether the instance is kept and with which ideal DCG, the mapping of each roster's candidates to gold ones,
and for every relevant candidate the family of minimal sufficient gold span sets.

The gold steps of an entity are its gold arguments. Those of an event chain are its own events (role `self`) and the
events that its CAUSE, PRECONDITION, BEFORE and SUBEVENT relations lead to: see `stages/trajectories/annotated.py`.

Three parts of the same four tables are written, and dvc.yaml decides who may read which: `train` (the train split, for
supervision), `tune` (the tune split, for choosing models) and `audit` (every split). A corpus without annotation gives
empty tables. Run it with `dvc repro reference`, or alone with

    python -m stages.reference
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator

import polars as pl

from pipeline import tables
from pipeline.params import Params, Setting
from pipeline.skeletons import MICRO, Intent, intents_from_table
from pipeline.stage import progress, run
from pipeline.tables import Reader
from pipeline.verifier import Verifier
from stages.reference.grades import Graded, grade_window, ideal_dcg
from stages.reference.mapping import map_candidates
from stages.reference.sufficient import minimal_sets
from stages.trajectories.annotated import Annotated, AnnotatedReader

PARTS: dict[str, tuple[str, ...]] = {"train": ("train",), "tune": ("tune",), "audit": tables.SPLITS}
"""Part -> the splits it holds."""

TABLES = ("instances", "grades", "mapping", "sufficient")
Rows = list[dict[str, object]]


def main(params: Params) -> None:
    """Grade every annotated window, shard by shard."""
    intents = intents_from_table(tables.read("trajectories/skeletons"))
    gold = AnnotatedReader(tables.SPLITS)
    windows, entities = Reader("roster/windows"), Reader("ingest/roster")
    rosters = {setting: Reader(f"roster/{setting}/mentions") for setting in params.roster.settings}
    reasons: Counter[str] = Counter()
    bare = 0
    shards = tables.shards("roster/windows")
    with tables.writers(f"reference/{part}/{name}" for part in PARTS for name in TABLES) as writers:
        for shard in progress(shards, "reference", len(shards)):
            facts = windows.frame(shard)
            ranked = {row["window_id"]: row for row in facts.iter_rows(named=True)}
            rows: dict[str, Rows] = {"instances": [], "grades": [], "sufficient": []}
            for annotated in gold.windows(shard):
                window = ranked[annotated.window_id]
                graded = grade_window(annotated, intents, window["kept"])
                reasons.update(g.dropped or "kept" for g in graded)
                rows["instances"] += [_instance(annotated, g, window["split"], window["k"]) for g in graded]
                rows["grades"] += _grade_rows(annotated, graded)
                sets, without = _sufficient_rows(annotated, graded, params)
                rows["sufficient"] += sets
                bare += without
            frames = {name: tables.table(f"reference/audit/{name}").frame(found) for name, found in rows.items()}
            frames["mapping"] = _mapping_rows(rosters, entities, shard, params.reference.match_iou)
            for concrete, writer in writers.items():
                _, part, name = concrete.split("/")
                inside = facts.filter(pl.col("split").is_in(PARTS[part])).select("window_id")
                writer.append(frames[name].join(inside, on="window_id", how="semi", maintain_order="left"))
    for why, n in sorted(reasons.items()):
        print(f"  instances, {why}: {n}", file=sys.stderr)
    if bare:
        print(f"  relevant candidates of kept instances without a sufficient gold set: {bare}", file=sys.stderr)


def _instance(annotated: Annotated, graded: Graded, split: str, k: int) -> dict[str, object]:
    return {
        "window_id": annotated.window_id,
        "intent_id": graded.intent.intent_id,
        "split": split,
        "k": k,
        "idcg": ideal_dcg(graded.grades.values(), k),
        "kept": graded.dropped is None,
        "dropped": graded.dropped,
    }


def _grade_rows(annotated: Annotated, graded: list[Graded]) -> Iterator[dict[str, object]]:
    for g in graded:
        for entity, value in g.grades.items():
            yield {
                "window_id": annotated.window_id, "intent_id": g.intent.intent_id, "entity_id": entity, "grade": value,
            }  # fmt: skip


def _sufficient_rows(annotated: Annotated, graded: list[Graded], params: Params) -> tuple[Rows, int]:
    """Sufficient sets of the kept instances, and how many of their relevant candidates have none."""
    rows: Rows = []
    without = 0
    trajectories = annotated.trajectories()
    for g in graded:
        if g.dropped is not None:
            continue
        verifier = _verifier(annotated, g.intent, params)
        for entity, value in g.grades.items():
            if value == 0:
                continue
            sets = minimal_sets(verifier, g.intent.skeleton, entity, trajectories[entity], value)
            without += not sets
            rows += [
                {
                    "window_id": annotated.window_id, "intent_id": g.intent.intent_id, "entity_id": entity, "set": i,
                    "spans": [str(span) for span in spans],
                }
                for i, spans in enumerate(sets)
            ]  # fmt: skip
    return rows, without


def _verifier(annotated: Annotated, intent: Intent, params: Params) -> Verifier:
    accept, margin = (round(x * MICRO) for x in (params.verifier.accept, params.verifier.margin))
    return Verifier(list(annotated.mentions), annotated.steps, intent.skeleton, accept, margin)


def _mapping_rows(
    rosters: dict[Setting, Reader], gold: Reader, shard: tuple[str, str], match_iou: float
) -> pl.DataFrame:
    """Rows of `reference/<part>/mapping` for one shard, all settings."""
    entities = gold.frame(shard)
    return pl.concat([
        map_candidates(roster.frame(shard), entities, match_iou).with_columns(setting=pl.lit(setting))
        for setting, roster in rosters.items()
    ])  # fmt: skip


if __name__ == "__main__":
    run("reference", main)
