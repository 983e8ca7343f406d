"""The frozen upstream extractor: fitted once on the train split, then applied to every document alike.

    python -m stages.extract

Fit on gold/train, calibrate on gold/tune, publish the model, read the corpus shard by shard. Gold of other splits is
never opened. With `extract.from: NAME` the model models/fitted/NAME/extract is used as it is and nothing is fitted.

A finished shard is kept under data/.work/extract/<input hash>/ until the stage ends, so a run that was killed goes on
where it stopped and gives the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from pipeline import files, stage, tables
from pipeline.errors import DataError, ParamError
from pipeline.graph import code_closure
from pipeline.params import Params
from pipeline.windows import stable_seed
from stages.extract.card import write_card
from stages.extract.fit import Corpus, fit_extractor
from stages.extract.linear import Floors, LinearExtractor
from stages.extract.storage import CONFIG, WEIGHTS, load_extractor, save_extractor

MODEL = Path("models/extract")
FITTED = Path("models/fitted")
OUTPUTS = ("mentions", "events", "arguments", "relations")
INPUTS = ("ingest/documents", "ingest/sentences")
Frames = dict[str, pl.DataFrame]


def main(params: Params) -> None:
    """Fit or adopt the model, then apply it."""
    if params.extract.from_:
        adopt(params.extract.from_)
    else:
        fit(params)
    apply(load_extractor(MODEL), tables.shards("ingest/documents"))


# ---- the model -----------------------------------------------------------------------------------------------------


def adopt(name: str) -> None:
    """Publish a model that was fitted before, unchanged.

    Raises:
        ParamError: there is none of that name.
    """
    kept = FITTED / name / "extract"
    if not kept.is_dir():
        raise ParamError("no extractor is kept under this name", file=kept, field="extract.from",
                         mend="`certrank models keep NAME` keeps one")  # fmt: skip
    files.check_complete(kept)
    load_extractor(kept)
    with files.publish_directory(MODEL) as folder:
        for file in (WEIGHTS, CONFIG, "README.md"):
            shutil.copyfile(kept / file, folder / file)


def fit(params: Params) -> None:
    """Fit on train, calibrate on tune (on a tenth of train where tune holds no event), publish.

    Raises:
        DataError: no event of the train split is annotated.
    """
    windows = drawn(windows_of("train"), params.extract.train_windows, params.seed)
    held_out = drawn(windows_of("tune"), params.extract.train_windows, params.seed)
    gold = read_gold("tune", held_out)
    if gold["events"].is_empty():
        held_out = {w for w in windows if stable_seed("held out", params.seed, w) % 10 == 0}
        windows -= held_out
        gold = read_gold("train", held_out)
    train_gold = read_gold("train", windows)
    if train_gold["events"].is_empty():
        raise DataError(
            "no event of the train split is annotated, so no extractor can be fitted", file="data/ingest/gold/train",
            mend="set extract.from to a model kept under models/fitted/",
        )  # fmt: skip
    train, tune = corpus(windows, train_gold), corpus(held_out, gold)
    floors = Floors(params.extract.trigger_floor, params.extract.mention_floor, params.extract.lattice)
    model = fit_extractor(train, tune, floors, lambda line: print(f"  {line}", file=sys.stderr))
    with files.publish_directory(MODEL) as folder:
        save_extractor(model, folder)
        write_card(folder / "README.md", model, train, tune)


def windows_of(split: str) -> set[str]:
    """Ids of the windows of a split."""
    found: set[str] = set()
    for batch in tables.Reader("ingest/documents").batches(4096):
        found.update(batch.filter(pl.col("split") == split)["window_id"].to_list())
    return found


def drawn(windows: set[str], most: int, seed: int) -> set[str]:
    """At most so many windows, drawn by hash, so that adding a window moves no other in."""
    return set(sorted(windows, key=lambda w: (stable_seed("train", seed, w), w))[:most])


def read_gold(split: str, windows: Iterable[str]) -> Frames:
    """Gold tables of some windows of a split."""
    wanted = pl.Series(sorted(windows), dtype=pl.String).implode()
    return {
        name: tables.read(f"ingest/gold/{split}/{name}").filter(pl.col("window_id").is_in(wanted))
        for name in tables.GOLD
    }


def corpus(windows: Iterable[str], gold: Frames) -> Corpus:
    """The documents of some windows with their gold."""
    wanted = pl.Series(sorted(windows), dtype=pl.String).implode()
    documents, sentences = (
        pl.concat(
            [tables.table(name).empty(),
             *(b.filter(pl.col("window_id").is_in(wanted)) for b in tables.Reader(name).batches(4096))]
        )
        for name in INPUTS
    )  # fmt: skip
    return Corpus.of(documents, sentences, gold)


# ---- applying it ---------------------------------------------------------------------------------------------------


def apply(model: LinearExtractor, shards: list[tuple[str, str]]) -> None:
    """Read every shard, keep its rows, then publish the four tables."""
    work = files.WORK / "extract" / input_hash()
    for stale in work.parent.glob("*/"):
        if stale != work:
            shutil.rmtree(stale)
    readers = {name: tables.Reader(name) for name in INPUTS}
    for number, bounds in stage.progress(list(enumerate(shards)), "shards read", len(shards)):
        folder = work / f"{number:06d}"
        if not (folder / files.COMPLETE).is_file():
            frames = read_shard(model, *(reader.frame(bounds) for reader in readers.values()))
            with files.publish_directory(folder) as partial:
                for name, frame in frames.items():
                    with tables.Writer(f"extract/{name}", file=partial / f"{name}.parquet") as writer:
                        writer.append(frame)
    with contextlib.ExitStack() as stack:
        writers = {name: stack.enter_context(tables.Writer(f"extract/{name}")) for name in OUTPUTS}
        for number in range(len(shards)):
            for name, writer in writers.items():
                file = work / f"{number:06d}" / f"{name}.parquet"
                writer.append(tables.Reader(f"extract/{name}", file=file).frame())
    shutil.rmtree(work, ignore_errors=True)


def read_shard(model: LinearExtractor, documents: pl.DataFrame, sentences: pl.DataFrame) -> Frames:
    """What the model finds in a shard: rows of the four tables."""
    analysis = model.analyse(documents, sentences)
    events, relations = model.events(analysis)
    mentions = model.mentions(analysis)
    arguments = model.arguments(analysis, events, mentions)
    return {"mentions": mentions, "events": events, "arguments": arguments, "relations": relations}


def input_hash() -> str:
    """What the shards depend on: the model, the texts and the code that reads them."""
    digest = hashlib.sha256()
    for path in (MODEL / WEIGHTS, MODEL / CONFIG, *(tables.path(name) for name in INPUTS)):
        digest.update(files.sha256_file(path).encode())
    root = Path(__file__).resolve().parents[2]
    for code in code_closure("stages.extract", root):
        digest.update(files.sha256_file(root / code).encode())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    stage.run("extract", main)
