"""ingest: a corpus becomes tables of exact texts and, kept apart by split, their gold annotation.

Whatever the source, an importer yields windows in the order of their ids, every one of them checked; they are written
shard by shard, so memory is bounded by a shard. Inputs that any stage may read (texts, sentences, images, and who the
candidates of the closed roster are) go to data/ingest/, annotation goes to data/ingest/gold/<split>/, where only the
stages that may see that split's labels read it. A broken record stops the run with its file, line and field, or is
set aside in data/ingest/quarantine.jsonl when `ingest.on_error` is quarantine; either way nothing is half-written.

    python -m stages.ingest            # reads params.yaml: ingest, seed
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import DataError, ParamError
from pipeline.files import WORK, write_json
from pipeline.params import Params
from pipeline.stage import run
from pipeline.tables import GOLD, SPLITS
from stages.ingest import casie, generator, jsonl, maven_ere, rams
from stages.ingest.lines import Index
from stages.ingest.output import INPUTS, Tables
from stages.ingest.problems import Problems
from stages.ingest.records import Window

IMPORTERS: dict[str, Callable[[Params, Index, Problems], Iterator[Window]]] = {
    "casie": casie.windows,
    "jsonl": jsonl.windows,
    "maven_ere": maven_ere.windows,
    "rams": rams.windows,
    "sample": generator.windows,
}

OUT = Path("data/ingest")


def main(params: Params) -> None:
    """Import the corpus that params.ingest names."""
    if params.ingest.splits and params.ingest.source != "jsonl":
        raise ParamError(
            "only the jsonl source reads it", file="params.yaml", field="ingest.splits", mend='set it to ""'
        )
    problems = Problems(OUT / "quarantine.jsonl", params.ingest.on_error)
    with Index(WORK / "ingest") as index, problems, Tables() as tables:
        for window in IMPORTERS[params.ingest.source](params, index, problems):
            tables.add(window)
        if not tables.counts:
            raise DataError("the corpus holds no usable document", file=params.ingest.path, field="ingest.path")
    write_json(OUT / "summary.json", summarise(params, tables, problems))


def summarise(params: Params, tables: Tables, problems: Problems) -> dict[str, object]:
    """Rows per table and split, records set aside by reason, and annotation that an importer leaves out by kind."""
    rows = {
        name: {split: tables.counts[name, split] for split in SPLITS}
        for name in ("windows", *INPUTS, *GOLD)
    }  # fmt: skip
    return {
        "source": params.ingest.source, "rows": rows, "dropped": dict(problems.dropped),
        "left_out": dict(problems.left_out),
    }  # fmt: skip


if __name__ == "__main__":
    run("ingest", main)
