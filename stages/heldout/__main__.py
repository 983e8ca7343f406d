"""A second opinion that nothing but the audit may hear: the extractor behind verifier level L3.

    python -m stages.heldout

Every other stage believes one extractor: trajectories, evidence and the verifier's atoms are all its word, and a policy
trained against that verifier may learn its errors. Here another linear extractor is fitted on other windows (a share of
the train split, drawn anew) of texts in which names are hidden (masking.py), reads the ranked windows of the audited
splits, and says which roles of the rosters' mentions it believes (reading.py). The audit then asks the same verifier,
with these atoms, about the very spans that systems cited.

It learned from the same annotation as the other one, and where that is linear too the two err alike more often than
readers would who never met: their agreement is a generous figure. Windows of the train split, where they are audited,
are partly those that it was fitted on.

With `extract.from: NAME` the model models/fitted/NAME/heldout is used where it exists. Where it does not, every table
is empty and the audit reports no L3.

A finished shard is kept under data/.work/heldout/<input hash>/ until the stage ends, as in `extract`.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from pipeline import files, stage, tables
from pipeline.errors import DataError
from pipeline.graph import code_closure
from pipeline.params import Params
from pipeline.windows import stable_seed
from stages.extract.annotated import Annotated, add_triggers, drawn, read_annotated, windows_of
from stages.extract.fit import Corpus, fit_extractor
from stages.extract.linear import Floors
from stages.extract.storage import CONFIG, WEIGHTS
from stages.heldout.card import NO_MODEL, write_card
from stages.heldout.masking import common_words, mask
from stages.heldout.model import READING, HeldoutModel, best_decision, load_model, save_model
from stages.heldout.reading import Reader

MODEL = Path("models/heldout")
FITTED = Path("models/fitted")
INPUTS = ("ingest/documents", "ingest/sentences")


def main(params: Params) -> None:
    """Fit or adopt the model, then apply it; without one, write empty tables."""
    floors = Floors(params.extract.trigger_floor, params.extract.mention_floor, params.extract.lattice)
    if params.extract.from_:
        found = adopt(params.extract.from_, floors)
    else:
        fit(params, floors)
        found = True
    settings = params.roster.settings
    if not found:
        print(f"  no held-out extractor is kept under {params.extract.from_!r}: the audit will report no L3",
              file=sys.stderr)  # fmt: skip
        publish([], settings)
        return
    model = load_model(MODEL)
    reader = Reader(model, candidate_kind(params, model), params.roster.merge_iou)
    publish(read_shards(reader, params), settings)
    shutil.rmtree(work_folder(params), ignore_errors=True)


# ---- the model -----------------------------------------------------------------------------------------------------


def adopt(name: str, floors: Floors) -> bool:
    """Publish a model that was kept, with these floors; where none was kept, a card that says so.

    Returns:
        Whether there is one.
    """
    kept = FITTED / name / "heldout"
    found = kept.is_dir()
    if found:
        files.check_complete(kept)
    with files.publish_directory(MODEL) as folder:
        if not found:
            files.write_text(folder / "README.md", NO_MODEL)
            return False
        model = load_model(kept)
        save_model(replace(model, extractor=model.extractor.with_floors(floors)), folder)
        shutil.copyfile(kept / "README.md", folder / "README.md")
    return True


def fit(params: Params, floors: Floors) -> None:
    """Fit on masked train windows, calibrate on masked tune windows (as `extract`, on a tenth of the train windows
    where tune holds no event), publish.

    Raises:
        DataError: no event of the drawn train windows is annotated.
    """
    train, tune = read_splits(params)
    common = common_words(train.documents, train.sentences)
    read = Corpus.read(masked(train, common)), Corpus.read(masked(tune, common))
    extractor = fit_extractor(*read, floors, lambda line: print(f"  {line}", file=sys.stderr, flush=True))
    model = HeldoutModel(extractor, common, best_decision(extractor, read[1], tune))
    with files.publish_directory(MODEL) as folder:
        save_model(model, folder)
        write_card(folder / "README.md", model, *read, share=params.heldout.share)


def read_splits(params: Params) -> tuple[Annotated, Annotated]:
    """What is fitted on and what confidence is calibrated on."""
    train = windows_of("train")
    most = min(params.extract.train_windows, math.ceil(params.heldout.share * len(train)))
    windows = drawn(train, most, params.seed, "heldout")
    tune = read_annotated("tune", drawn(windows_of("tune"), params.extract.train_windows, params.seed, "heldout"))
    if tune.gold["events"].is_empty():
        aside = {w for w in windows if stable_seed("heldout, aside", params.seed, w) % 10 == 0}
        windows -= aside
        tune = read_annotated("train", aside)
    data = read_annotated("train", windows)
    if data.gold["events"].is_empty():
        raise DataError(
            "no event of the drawn train windows is annotated, so no held-out extractor can be fitted",
            file="data/ingest/gold/train",
            mend="raise heldout.share, or set extract.from to a model kept under models/fitted/",
        )
    if params.extract.triggers:
        data = add_triggers(data, params.extract.triggers)
    return data, tune


def masked(data: Annotated, common: frozenset[str]) -> Annotated:
    """The same annotation on texts without names; offsets stay."""
    return Annotated(mask(data.documents, common).documents, data.sentences, data.gold)


def candidate_kind(params: Params, model: HeldoutModel) -> str:
    """`entity` or `event_chain`: by the rule of the stage `roster`."""
    if params.roster.candidate_kind != "auto":
        return params.roster.candidate_kind
    for batch in tables.Reader("ingest/roster").batches(columns=["kind"]):
        return str(batch["kind"][0])
    return model.extractor.candidate_kind


# ---- applying it ---------------------------------------------------------------------------------------------------


def outputs(settings: Sequence[str]) -> list[str]:
    """The stage's concrete tables."""
    return ["heldout/windows", "heldout/events", "heldout/relations", *(f"heldout/{s}/arguments" for s in settings)]


def read_shards(reader: Reader, params: Params) -> list[Path]:
    """Read every shard that holds a ranked window of the audited splits; the folders with their tables, in order."""
    work = work_folder(params)
    for stale in work.parent.glob("*/"):
        if stale != work:
            shutil.rmtree(stale)
    windows = tables.Reader("roster/windows")
    documents, sentences = (tables.Reader(name) for name in INPUTS)
    rosters = {setting: tables.Reader(f"roster/{setting}/mentions") for setting in params.roster.settings}
    shards = tables.shards("roster/windows")
    folders = []
    for number, bounds in stage.progress(list(enumerate(shards)), "shards read", len(shards)):
        ranked = windows.frame(bounds).filter(pl.col("kept") & pl.col("split").is_in(list(params.rank.splits)))
        if ranked.is_empty():
            continue
        folder = work / f"{number:06d}"
        folders.append(folder)
        if (folder / files.COMPLETE).is_file():
            continue
        ids = ranked.select("window_id")

        def rows(table: tables.Reader, bounds: tuple[str, str] = bounds, ids: pl.DataFrame = ids) -> pl.DataFrame:
            return table.frame(bounds).join(ids, on="window_id", how="semi", maintain_order="left")

        mentions: dict[str, pl.DataFrame] = {setting: rows(roster) for setting, roster in rosters.items()}
        frames = reader.read(rows(documents), rows(sentences), mentions)
        with files.publish_directory(folder) as partial:
            for name, frame in frames.items():
                with tables.Writer(f"heldout/{name}", file=partial / f"{name}.parquet") as writer:
                    writer.append(frame)
    return folders


def publish(folders: Sequence[Path], settings: Sequence[str]) -> None:
    """Join the shards' tables."""
    with tables.writers(outputs(settings)) as writers:
        for folder in folders:
            for name, writer in writers.items():
                file = folder / f"{name.removeprefix('heldout/')}.parquet"
                writer.append(tables.Reader(name, file=file).frame())


def work_folder(params: Params) -> Path:
    """Where finished shards wait; its name is the hash of all that they depend on."""
    digest = hashlib.sha256()
    rosters = (f"roster/{setting}/mentions" for setting in params.roster.settings)
    inputs = (*INPUTS, "ingest/roster", "roster/windows", *rosters)
    for path in (*(MODEL / name for name in (WEIGHTS, CONFIG, READING)), *(tables.path(name) for name in inputs)):
        digest.update(files.sha256_file(path).encode())
    for value in (params.roster.settings, params.roster.candidate_kind, params.roster.merge_iou, params.rank.splits):
        digest.update(repr(value).encode())
    root = Path(__file__).resolve().parents[2]
    for code in code_closure("stages.heldout", root):
        digest.update(files.sha256_file(root / code).encode())
    return files.WORK / "heldout" / digest.hexdigest()[:16]


if __name__ == "__main__":
    stage.run("heldout", main)
