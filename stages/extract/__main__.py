"""The frozen upstream extractor: fitted once on the train split, then applied to every document alike.

    python -m stages.extract

Fit on gold/train, calibrate on gold/tune, publish the model, read the corpus shard by shard. Gold of other splits is
never opened. Train windows are read by models of the other half of them (folds.py). With `extract.from: NAME` the model
models/fitted/NAME/extract is used and nothing is fitted; the floors are those of params.yaml.

A finished shard is kept under data/.work/extract/<input hash>/ until the stage ends, so a run that was killed goes on
where it stopped and gives the same bytes.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import polars as pl

from pipeline import files, stage, tables
from pipeline.errors import DataError, ParamError
from pipeline.graph import code_closure
from pipeline.params import Params
from pipeline.windows import stable_seed
from stages.extract import limits
from stages.extract.annotated import FOLDS, INPUTS, Annotated, add_triggers, drawn, fold_of, read_annotated, windows_of
from stages.extract.card import write_card
from stages.extract.fit import Corpus, cross_fit, fit_extractor
from stages.extract.folds import CrossFitted, Extractor
from stages.extract.linear import Floors, LinearExtractor
from stages.extract.models import load_extractor, model_files, save_extractor
from stages.extract.portions import portions

if TYPE_CHECKING:
    from stages.extract.encoder.fit import Scores
    from stages.extract.encoder.model import EncoderExtractor

MODEL = Path("models/extract")
FITTED = Path("models/fitted")
FLOORS = r"Floors: events [\d.e-]+, mentions [\d.e-]+, roles [\d.e-]+\."
"""The line of a model card that adopting a model changes."""
ADOPTED = """
## Adopted

Taken from models/fitted/{name}, where it was fitted on another corpus: what this card and the audit say of scores on
the train and tune splits is about that corpus.
"""
NO_FOLDS = "a half of the train windows holds no event: no cross-fitting"
OUTPUTS = ("mentions", "events", "arguments", "relations")
LIMITS = "limits.json"
TRAINING = files.WORK / "extract_fit"
"""Checkpoints of the encoder's training."""
Frames = dict[str, pl.DataFrame]


def main(params: Params) -> None:
    """Fit or adopt the model, then apply it."""
    floors = Floors(params.extract.trigger_floor, params.extract.mention_floor, params.extract.lattice)
    if params.extract.from_:
        adopt(params.extract.from_, floors)
    else:
        fit(params, floors)
    apply(load_extractor(MODEL), portions())
    # Only now: a process that is killed while reading must not train again.
    shutil.rmtree(TRAINING, ignore_errors=True)


# ---- the model -----------------------------------------------------------------------------------------------------


def adopt(name: str, floors: Floors) -> None:
    """Publish a model that was fitted before, with these floors.

    Raises:
        ParamError: there is none of that name.
    """
    kept = FITTED / name / "extract"
    if not kept.is_dir():
        raise ParamError("no extractor is kept under this name", file=kept, field="extract.from",
                         mend="`certrank models keep NAME` keeps one")  # fmt: skip
    files.check_complete(kept)
    model = load_extractor(kept).with_floors(floors)
    with files.publish_directory(MODEL) as folder:
        save_extractor(folder, model)
        card = (kept / "README.md").read_text(encoding="utf-8")
        own = f"Floors: events {floors.trigger}, mentions {floors.mention}, roles {floors.role}."
        files.write_text(folder / "README.md", f"{re.sub(FLOORS, own, card)}{ADOPTED.format(name=name)}")


def fit(params: Params, floors: Floors) -> None:
    """Fit on train, calibrate on tune (on a tenth of train where tune holds no event), publish.

    Raises:
        DataError: no event of the train split is annotated.
    """
    data, held_out = read_splits(params)
    if params.extract.triggers:
        data = add_triggers(data, params.extract.triggers)
    FIT[params.extract.model](data, held_out, floors, params)


def read_splits(params: Params) -> tuple[Annotated, Annotated]:
    """What is fitted on and what is held out; at most `extract.train_windows` windows each."""
    most, seed = params.extract.train_windows, params.seed
    windows = drawn(windows_of("train"), most, seed)
    held_out = read_annotated("tune", drawn(windows_of("tune"), most, seed))
    if held_out.gold["events"].is_empty():
        aside = {w for w in windows if stable_seed("held out", seed, w) % 10 == 0}
        windows -= aside
        held_out = read_annotated("train", aside)
    data = read_annotated("train", windows)
    if data.gold["events"].is_empty():
        raise DataError(
            "no event of the train split is annotated, so no extractor can be fitted", file="data/ingest/gold/train",
            mend="set extract.from to a model kept under models/fitted/",
        )  # fmt: skip
    return data, held_out


def fit_linear(data: Annotated, held_out: Annotated, floors: Floors, params: Params) -> None:
    """Fit and publish the linear extractor."""
    train, tune = Corpus.read(data), Corpus.read(held_out)
    whole, *folds = linear_models(train, tune, floors, params)
    publish([whole, *folds], data, lambda file: write_card(file, whole, train, tune, len(folds)))


def fit_encoder(data: Annotated, held_out: Annotated, floors: Floors, params: Params) -> None:
    """Fit and publish the encoder extractor."""
    from stages.extract.encoder import card

    models, scores = encoder_models(data, held_out, floors, params)
    publish(models, data, lambda file: card.write_card(file, models[0], data, held_out, scores, len(models) - 1))


def fit_stacked(data: Annotated, held_out: Annotated, floors: Floors, params: Params) -> None:
    """Fit both and weigh them."""
    from stages.extract.encoder import card
    from stages.extract.stacking import fit_stack

    ones = linear_models(Corpus.read(data), Corpus.read(held_out), floors, params)
    others, scores = encoder_models(data, held_out, floors, params)
    stacks = [fit_stack(one, other, held_out, floors) for one, other in zip(ones, others, strict=True)]
    models = [model for model, _ in stacks]
    publish(
        models, data, lambda file: card.write_stacked(file, *stacks[0], data, held_out, scores, len(models) - 1)
    )  # fmt: skip


def linear_models(train: Corpus, tune: Corpus, floors: Floors, params: Params) -> list[LinearExtractor]:
    """The model of all train windows, then those of the folds, if any."""
    if not params.extract.cross_fit:
        return [fit_extractor(train, tune, floors, say)]
    whole, folds = cross_fit(train, tune, floors, say)
    if not folds:
        say(NO_FOLDS)
    return [whole, *folds]


def encoder_models(
    data: Annotated, held_out: Annotated, floors: Floors, params: Params
) -> tuple[list[EncoderExtractor], Scores]:
    """The same, and what was measured of the first; a training that was killed goes on from its last checkpoint."""
    # Imported here because torch takes seconds, and the linear model does without.
    from stages.extract.encoder import fit

    parts = {"whole": data}
    if params.extract.cross_fit:
        parts |= {str(fold): data.without(fold) for fold in FOLDS}
    if any(part.gold["events"].is_empty() for part in parts.values()):
        say(NO_FOLDS)
        parts = {"whole": data}
    models: list[EncoderExtractor] = []
    scores: list[Scores] = []
    for name, part in parts.items():
        if len(parts) > 1:
            say(f"model {len(models) + 1} of {len(parts)}: " + (name if name == "whole" else f"reads half {name}"))
        model, score = fit.fit_encoder(
            part, held_out, floors, params.extract.encoder, params.seed, TRAINING / name, say
        )
        models.append(model)
        scores.append(score)
    return models, scores[0]


def publish(models: Sequence[Extractor], data: Annotated, write: Callable[[Path], None]) -> None:
    """Publish the model of all train windows, with those of the folds, and its card."""
    whole, *folds = models
    model = CrossFitted(whole, tuple(folds), read_by(data)) if folds else whole
    with files.publish_directory(MODEL) as folder:
        save_extractor(folder, model)
        write(folder / "README.md")


FIT = {"linear": fit_linear, "encoder": fit_encoder, "stacked": fit_stacked}


def read_by(data: Annotated) -> Mapping[str, int]:
    """The fold of every document, by the sha256 of its text."""
    rows = data.documents.select("sha256", "window_id").iter_rows()
    return {digest: fold_of(window_id) for digest, window_id in rows}


def say(line: str) -> None:
    """Progress goes to stderr."""
    print(f"  {line}", file=sys.stderr, flush=True)


# ---- applying it ---------------------------------------------------------------------------------------------------


def apply(model: Extractor, shards: list[tuple[str, str]]) -> None:
    """Read every shard, keep its rows, then publish the four tables."""
    work = files.WORK / "extract" / input_hash()
    for stale in work.parent.glob("*/"):
        if stale != work:
            shutil.rmtree(stale)
    readers = {name: tables.Reader(name) for name in INPUTS}
    watched = limits.Watched(model)
    for number, bounds in stage.progress(list(enumerate(shards)), "shards read", len(shards)):
        folder = work / f"{number:06d}"
        if not (folder / files.COMPLETE).is_file():
            frames = read_shard(cast(Extractor, watched), *(reader.frame(bounds) for reader in readers.values()))
            with files.publish_directory(folder) as partial:
                files.write_json(partial / LIMITS, dict(watched.met))
                for name, frame in frames.items():
                    with tables.Writer(f"extract/{name}", file=partial / f"{name}.parquet") as writer:
                        writer.append(frame)
    with tables.writers([f"extract/{name}" for name in OUTPUTS]) as writers:
        for number in range(len(shards)):
            for name in OUTPUTS:
                file = work / f"{number:06d}" / f"{name}.parquet"
                writers[f"extract/{name}"].append(tables.Reader(f"extract/{name}", file=file).frame())
    met = sum((Counter(files.read_json(work / f"{n:06d}" / LIMITS)) for n in range(len(shards))), Counter[str]())
    for what in sorted(+met):
        say(f"limit: {met[what]} {limits.SAID[what]}")
    shutil.rmtree(work, ignore_errors=True)


def read_shard(model: Extractor, documents: pl.DataFrame, sentences: pl.DataFrame) -> Frames:
    """What the model finds in a shard: rows of the four tables."""
    analysis = model.analyse(documents, sentences)
    events, relations = model.events(analysis)
    mentions = model.mentions(analysis)
    arguments = model.arguments(analysis, events, mentions)
    return {"mentions": mentions, "events": events, "arguments": arguments, "relations": relations}


def input_hash() -> str:
    """What the shards depend on: the model, the texts and the code that reads them."""
    digest = hashlib.sha256()
    for path in (*model_files(MODEL), *(tables.path(name) for name in INPUTS)):
        digest.update(files.sha256_file(path).encode())
    root = Path(__file__).resolve().parents[2]
    for code in code_closure("stages.extract", root):
        digest.update(files.sha256_file(root / code).encode())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    stage.run("extract", main)
