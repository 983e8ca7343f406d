"""Parameters, hand-made documents and file contents for the tests of `extract` and `roster`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline import tables
from pipeline.params import Params
from tests.stages.ingesting import ROOT, params_for

WINDOWS = 14


def params(**changes: dict[str, Any]) -> Params:
    """The repository's parameters on a tiny generated corpus; `changes` by section, keys by field name."""
    made = params_for("sample", ROOT / "stages/ingest/sample", sample={"windows": WINDOWS})
    sections = {name: getattr(made, name).model_copy(update=update) for name, update in changes.items()}
    return made.model_copy(update=sections)


def contents(*folders: str) -> dict[str, bytes]:
    """Every file below some folders of the working directory, byte for byte."""
    files = (file for folder in folders for file in Path(folder).rglob("*") if file.is_file())
    return {file.as_posix(): file.read_bytes() for file in sorted(files)}


def clear(*names: str) -> None:
    """Rewrite tables without a row."""
    for name in names:
        tables.write(name, tables.table(name).empty())


def rewrite(name: str, *expressions: pl.Expr) -> None:
    """Rewrite a table with columns replaced; what a test breaks."""
    tables.write(name, tables.read(name).with_columns(*expressions))


def frames_of(documents: dict[str, tuple[str, list[str]]]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows of ingest/documents and ingest/sentences: doc_id -> (window, pieces that follow each other exactly)."""
    rows, bounds = [], []
    for position, (doc_id, (window, pieces)) in enumerate(documents.items()):
        own: dict[str, object] = {"window_id": window, "doc_id": doc_id}
        rows.append({**own, "position": position, "split": "test", "text": "".join(pieces), "sha256": "0" * 64})
        ends = np.cumsum([0, *map(len, pieces)]).tolist()
        pairs = enumerate(itertools.pairwise(ends))
        bounds += [{**own, "sentence": i, "start": a, "end": b} for i, (a, b) in pairs if a < b]
    return tables.table("ingest/documents").frame(rows), tables.table("ingest/sentences").frame(bounds)
