"""Stage `trajectories`: what every candidate is reported to have done, and with which spans that can be shown.

For every ranked window and roster setting, the extractor's role hypotheses become per-candidate trajectories (one step
per event, mention and role, in extracted order) and every span the extractor produced becomes an evidence handle with a
window-local name. The registered intents are frozen into the table `skeletons`, and on train windows hard negatives are
made from trajectories that fill the climax. Nothing here is gold: the rosters' mentions are inputs of the extractor.

Reads `intents/<ingest.source>/`, `data/extract`, `data/roster`, `data/ingest/{documents,sentences}.parquet`; writes
`data/trajectories`. Run it with `dvc repro trajectories`, or alone with

    python -m stages.trajectories
"""

from __future__ import annotations

import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import polars as pl

from pipeline import tables
from pipeline.params import Params
from pipeline.skeletons import MICRO, Intent, load_intents
from pipeline.stage import progress, run
from pipeline.tables import Reader, Writer
from pipeline.windows import load_windows
from stages.trajectories.handles import attach_handles, build_handles
from stages.trajectories.negatives import MAX_BASES, window_negatives
from stages.trajectories.steps import build_steps

BATCH = 64
"""Train windows whose negatives are held, and then written, at once."""


def main(params: Params) -> None:
    """Write skeletons, then steps and handles shard by shard, then hard negatives."""
    intents = load_intents(Path("intents") / params.ingest.source)
    tables.write("trajectories/skeletons", tables.table("trajectories/skeletons").frame(skeleton_rows(intents)))
    types = write_trajectories(params)
    warn_unknown_types(intents, types)
    write_negatives(params, intents)


def skeleton_rows(intents: list[Intent]) -> list[dict[str, object]]:
    """Rows of `trajectories/skeletons`."""
    return [
        {
            "intent_id": intent.intent_id, "version": intent.version, "title": intent.title, "sha256": intent.sha256,
            "slot_id": slot.slot_id, "types": list(slot.types), "roles": list(slot.roles),
            "weight": slot.weight / MICRO, "required": slot.required, "climax": slot.climax,
            "predecessors": list(slot.predecessors),
        }
        for intent in intents
        for slot in intent.skeleton.slots
    ]  # fmt: skip


def write_trajectories(params: Params) -> set[str]:
    """Write steps and handles of every roster setting; return the event types that the extractor found."""
    settings = params.roster.settings
    windows, events, relations, sentences = (
        Reader(name) for name in ("roster/windows", "extract/events", "extract/relations", "ingest/sentences")
    )
    mentions = {s: Reader(f"roster/{s}/mentions") for s in settings}
    arguments = {s: Reader(f"roster/{s}/arguments") for s in settings}
    shards = tables.shards("roster/windows")
    types: set[str] = set()
    with tables.writers(f"trajectories/{s}/{name}" for s in settings for name in ("steps", "handles")) as out:
        steps_out = {s: out[f"trajectories/{s}/steps"] for s in settings}
        handles_out = {s: out[f"trajectories/{s}/handles"] for s in settings}
        for shard in progress(shards, "trajectories", len(shards)):
            kept = windows.frame(shard).filter(pl.col("kept")).select("window_id")

            def ranked(reader: Reader, shard: tuple[str, str] = shard, kept: pl.DataFrame = kept) -> pl.DataFrame:
                """Rows of windows that are ranked; the others have no trajectories."""
                return reader.frame(shard).join(kept, on="window_id", how="semi", maintain_order="left")

            found, edges, borders = ranked(events), ranked(relations), ranked(sentences)
            types.update(found["type"].unique())
            for setting in settings:
                roster, roles = ranked(mentions[setting]), ranked(arguments[setting])
                handles = build_handles(found, roster, roles, borders, params.seed, params.trajectories.buckets)
                steps = build_steps(found, edges, roster, roles, setting)
                handles_out[setting].append(handles)
                steps_out[setting].append(attach_handles(steps, handles))
        for setting in settings:
            print(f"  {setting}: {steps_out[setting].rows} steps, {handles_out[setting].rows} handles", file=sys.stderr)
    return types


def warn_unknown_types(intents: list[Intent], types: set[str]) -> None:
    """Say which slots no extracted event can fill: a typing error in an intent, or a rare type."""
    for intent in intents:
        for slot in intent.skeleton.slots:
            if not any(slot.fits_type(event_type) for event_type in types):
                print(
                    f"  intent {intent.intent_id}, slot {slot.slot_id}: no extracted event has one of the types "
                    f"{', '.join(slot.types)}",
                    file=sys.stderr,
                )


def write_negatives(params: Params, intents: list[Intent]) -> None:
    """Write hard negatives of the train windows, from closed rosters (the first setting where closed is not built)."""
    settings = params.roster.settings
    setting = "closed" if "closed" in settings else settings[0]
    with Writer("trajectories/negatives") as out:
        windows = load_windows(setting, ["train"]) if params.trajectories.negatives else iter(())
        cut: Counter[str] = Counter()
        while batch := list(islice(windows, BATCH)):
            rows = [row for window in batch for intent in intents for row in window_negatives(window, intent, cut)]
            out.append(out.table.frame(rows))
        print(f"  {out.rows} hard negatives", file=sys.stderr)
        if cut:
            print(
                f"  limit: in {cut['instances']} instances more than {MAX_BASES} candidates fill the climax; no "
                f"negatives were sought for the {cut['bases']} of them that fit the plan least",
                file=sys.stderr,
            )


if __name__ == "__main__":
    run("trajectories", main)
