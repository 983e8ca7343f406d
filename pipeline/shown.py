"""What a run of the flow shows besides its states: artifacts of Prefect, made from what DVC recorded.

- per stage, Markdown: parameters, rows of its tables, verdicts of checks, hashes of its outputs (`stage-<name>`);
- a table of every metric with the difference to the last run (`metrics`);
- links to the pages among the outputs (`page-<stage>`), by HTTP where `certrank ui` serves them, else as files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from pyarrow.lib import ArrowInvalid
from ruamel.yaml import YAML

from pipeline.secrets import redact
from pipeline.workspace import Plan, Step

PAGES = "CERTRANK_PAGES"
"""Environment variable: where `certrank ui` serves the outputs' pages, e.g. http://127.0.0.1:4201."""
PAGE = "index.html"


def key(text: str) -> str:
    """A key as Prefect allows it: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# ---- a stage --------------------------------------------------------------------------------------------------------


def show_stage(step: Step, message: str) -> None:
    """Create the stage's Markdown artifact."""
    text = redact(stage_markdown(step.name, message, locked(step.name)))
    create_markdown_artifact(text, key=key(f"stage-{step.name}"), description=f"{step.name}: {message}")


def locked(stage: str) -> dict[str, Any]:
    """What dvc.lock says of a stage; empty before its first run."""
    text = Path("dvc.lock").read_text(encoding="utf-8") if Path("dvc.lock").is_file() else ""
    block = re.search(rf"^  {re.escape(stage)}:\n(?:    .*\n|\n)+", text, re.MULTILINE)
    return dict(YAML(typ="safe", pure=True).load(block[0])[stage]) if block else {}


def stage_markdown(name: str, message: str, entry: Mapping[str, Any]) -> str:
    """The page of a stage.

    Args:
        name: the stage.
        message: how it ended.
        entry: its entry in dvc.lock.
    """
    paths = [str(out["path"]) for out in entry.get("outs", ())]
    parameters = [(name, value) for file in entry.get("params", {}).values() for name, value in _flat(file)]
    return "\n".join([
        f"# {_text(name)}", "", _text(message), "",
        *_section("Checks", ("table", "passed"), verdicts(paths)),
        *_section("Rows", ("table", "rows"), rows(paths)),
        *_section("Outputs", ("path", "md5", "bytes"), [
            (out["path"], out.get("md5", ""), out.get("size", "")) for out in entry.get("outs", ())
        ]),
        *_section("Parameters", ("parameter", "value"), parameters),
    ])  # fmt: skip


def rows(paths: Iterable[str]) -> Iterator[tuple[str, int]]:
    """(Parquet file, number of rows) among outputs and inside those that are folders."""
    for path in map(Path, paths):
        for file in sorted(path.rglob("*.parquet")) if path.is_dir() else [path]:
            if file.suffix == ".parquet" and file.is_file():
                try:
                    yield file.as_posix(), pq.read_metadata(file).num_rows
                except ArrowInvalid:
                    continue  # no Parquet file, whatever its name says: the quality gate speaks of it


def verdicts(paths: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """(what was checked, whether it passed) from JSON outputs of the form {"passed": ..., "tables": {name: ...}}."""
    for path in map(Path, paths):
        if path.suffix == ".json" and path.is_file():
            value = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(value, dict) and isinstance(value.get("passed"), bool):
                yield path.as_posix(), value["passed"]


def _section(title: str, heads: Sequence[str], lines: Iterable[Sequence[object]]) -> list[str]:
    """A Markdown table under a heading; nothing without rows."""
    body = [f"| {' | '.join(_text(cell) for cell in line)} |" for line in lines]
    return [f"## {title}", "", f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}", *body, ""] if body else []


def _text(value: object) -> str:
    """A value as plain text in Markdown: nothing in it is markup."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#!])", r"\\\1", " ".join(text.split()))


# ---- metrics --------------------------------------------------------------------------------------------------------


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """`file: dotted name` -> number, of the contents of metrics files; other values are left out."""
    return {
        f"{Path(file).stem}: {name}": float(value)
        for file, content in metrics.items() for name, value in _flat(content)
        if isinstance(value, int | float) and not isinstance(value, bool)
    }  # fmt: skip


def metric_rows(before: Mapping[str, float], now: Mapping[str, float]) -> list[dict[str, Any]]:
    """A row per metric of now or before; the difference where it has both. Changed ones first, the largest on top."""
    rows = []
    for name in sorted({*before, *now}):
        difference = now[name] - before[name] if name in now and name in before else None
        rows.append({"metric": name, "value": now.get(name), "last run": before.get(name), "difference": difference})
    return sorted(rows, key=lambda row: -abs(row["difference"] or 0.0))


def show_metrics(before: Mapping[str, float], now: Mapping[str, float]) -> None:
    """Create the table of metrics; nothing where there are none."""
    if table := metric_rows(before, now):
        create_table_artifact(table, key="metrics", description="Metrics, and their difference to the last run")


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every leaf of nested objects."""
    if isinstance(value, dict):
        for part, inner in value.items():
            yield from _flat(inner, f"{name}.{part}" if name else str(part))
    else:
        yield name, value


# ---- pages ----------------------------------------------------------------------------------------------------------


def show_pages(plan: Plan) -> None:
    """Create a link to each output that is a folder with an index.html."""
    for step in plan.steps:
        for out in map(Path, step.outs):
            if (out / PAGE).is_file():
                base = os.environ.get(PAGES)
                link = f"{base}/{out.as_posix()}/{PAGE}" if base else (out / PAGE).resolve().as_uri()
                create_link_artifact(link, link_text=f"{step.name}: {out / PAGE}", key=key(f"page-{step.name}"),
                                     description=f"What {step.name} made")  # fmt: skip
