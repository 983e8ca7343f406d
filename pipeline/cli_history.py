"""`certrank history`, `certrank diff`, `certrank show`: tables, metrics and rankings across revisions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from pipeline.cli_output import print_json, print_table, records
from pipeline.errors import ParamError

Json = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Most = Annotated[int, typer.Option("--rows", min=0, help="Most rows that are printed; 0 = all.")]


def history(limit: Annotated[int, typer.Option(min=1, help="Most revisions.")] = 20, as_json: Json = False) -> None:
    """The revisions at which dvc.lock changed: their tables and rows in the cache, and the best system."""
    from pipeline.history import history as revisions

    found = revisions(limit)
    if as_json:
        print_json(found)
    elif found:
        print_table(list(found[0]), [tuple(row.values()) for row in found])
    else:
        print("no revision has a dvc.lock yet: commit it")


def diff(
    then: Annotated[str, typer.Argument(help="Revision, e.g. HEAD~1.")],
    now: Annotated[str, typer.Argument(help="Revision; . = the workspace's dvc.lock.")] = ".",
    rows: Most = 20,
    as_json: Json = False,
) -> None:
    """What changed between two revisions: rows and schema of tables, metrics, and the rankings of each window."""
    from pipeline.history import diff as difference

    found = difference(then, now)
    if as_json:
        answer = asdict(found)
        answer["metrics"] = [[".".join(key), *values] for key, *values in found.metrics]
        print_json(answer)
        return
    _part("tables", ("table", "rows then", "rows now", "schema"), found.tables, rows)
    metrics = [
        (".".join(key), a, b, None if a is None or b is None else round(b - a, 6)) for key, a, b in found.metrics
    ]
    metrics.sort(key=lambda row: -abs(row[3] or 0))
    _part("metrics", ("metric", "then", "now", "difference"), metrics, rows)
    rankings = [(s, r, w, i, " ".join(a), " ".join(b)) for s, r, w, i, a, b in found.rankings]
    _part("rankings", ("system", "setting", "window", "intent", "then", "now"), rankings, rows)
    if found.lacking:
        print(f"not in the cache and not compared: {', '.join(found.lacking)}", file=sys.stderr)


def _part(title: str, columns: tuple[str, ...], lines: Sequence[tuple[object, ...]], most: int) -> None:
    print(f"{title}: {len(lines) or 'nothing'} changed")
    if lines:
        shown = lines[:most] if most else lines
        print_table(list(columns), list(shown))
        if len(shown) < len(lines):
            print(f"{len(lines) - len(shown)} more: --rows 0 shows all")
        print()


def show(
    table: Annotated[str, typer.Argument(metavar="TABLE@REV", help="E.g. rank.rankings@HEAD~1; without @: HEAD.")],
    rows: Most = 50,
    as_json: Json = False,
) -> None:
    """Rows of a table as it was at a revision; nothing is checked out."""
    from pipeline.history import show as rows_at

    # A cell of a matrix has an @ in the stage's name, never in a table's: the first one ends the table.
    name, _, revision = table.partition("@")
    if not name:
        raise ParamError("no table named", field="TABLE@REV")
    answer = rows_at(name, revision or "HEAD", rows)
    if as_json:
        print_json(records(answer.columns, answer.rows))
    else:
        print_table(answer.columns, answer.rows)
