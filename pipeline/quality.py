"""The data-quality gate: `python -m pipeline.quality STAGE` is the command of the DVC stage check_STAGE.

A check is a stage of its own, so a changed expectation re-checks without re-running what produced the data, and bad
data cannot flow: everything downstream depends on `data/quality/<stage>.json`, which exists only when all passed and
holds only {passed: true, tables: {name: sha256}}. Every single result goes to `<stage>.details.json`, on which
nothing depends.

Row-level expectations run in Great Expectations on pandas frames, in batches of bounded size; keys, references and
rules compare rows across batches and tables and run in DuckDB over the files. See `pipeline.expectations`.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import polars as pl
from safetensors.numpy import load_file

from pipeline import stage, tables, views
from pipeline.errors import ParamError, QualityError, printable
from pipeline.expectations import WARNING, TableExpectations, load
from pipeline.files import COMPLETE, check_complete, sha256_file, write_json
from pipeline.params import Params

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("train", "tune", "audit")
BATCH_ROWS = 65_536
BATCH_BYTES = 64 * 2**20
SAMPLES = 3
"""How many failing rows a failed expectation shows."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """One expectation on one concrete table: rows looked at, rows that fail, a few of these."""

    table: str
    expectation: str
    rows: int
    failing: int = 0
    sample: tuple[Row, ...] = ()

    @property
    def passed(self) -> bool:
        return self.failing == 0 or self.expectation.endswith(WARNING)

    def line(self) -> str:
        """One line: table, expectation, failing count, sample rows; control characters escaped."""
        label = self.expectation.removesuffix(WARNING).rstrip()
        rows = "; ".join(", ".join(f"{k}={_short(v)}" for k, v in row.items()) for row in self.sample)
        return f"{self.table}: {label}: {self.failing} of {self.rows} rows fail, e.g. {rows}"


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def concrete(declared: str, params: Params) -> list[str]:
    """The concrete tables of a declared one which these params build, e.g. one per system and setting."""
    choices = {
        "split": tables.SPLITS,
        "setting": tuple(params.roster.settings),
        "part": PARTS,
        "system": (*params.rank.systems, *params.rank_policy.systems, "oracle"),
        "policy": tuple(params.rank_policy.systems),
    }
    names = [declared]
    for place in views.places(declared):
        names = [name.replace(f"<{place}>", value) for name in names for value in choices[place]]
    return names


def check(stage_name: str, params: Params, root: str | Path = "data", stages: str | Path = "stages") -> list[Result]:
    """Check the tables of a stage.

    Args:
        stage_name: whose tables.
        params: say which settings and systems exist.
        root: data directory.
        stages: where `<stage>/expectations.yaml` stands.

    Returns:
        One result per expectation and concrete table, in the order of the file; none is skipped.

    Raises:
        TableError: a table is missing, truncated or not of its declared schema.
        ParamError: the expectations are wrong.
    """
    expectations = load(stage_name, stages)
    readers = {name: {c: tables.Reader(c, root) for c in concrete(name, params)} for name in expectations.tables_read}
    artifacts = {path: _artifact(Path(root).parent / path) for path in expectations.artifacts}
    results: list[Result] = []
    with duckdb.connect() as connection:
        connection.execute(f"set temp_directory={views.literal((Path(root) / '.work' / 'duckdb').as_posix())}")
        for name, by_table in readers.items():
            views.create(connection, name, list(by_table), root)
        for name, expected in expectations.tables.items():
            print(f"  {name}: {sum(r.rows for r in readers[name].values())} rows", file=sys.stderr, flush=True)
            results += _check_rows(name, expected, readers[name])
            results += _check_sql(connection, name, expected, {c: r.rows for c, r in readers[name].items()})
        for path, file in artifacts.items():
            results += _check_artifact(connection, path, file, expectations.artifacts[path].rules)
    return results


# ---- Great Expectations: row by row ---------------------------------------------------------------------------------

Failing = list[int]
Validate = Callable[["pd.DataFrame", Sequence[tuple[str, Row]]], list[Failing]]
"""Frame and (type, kwargs) of the expectations -> the positions of the failing rows, per expectation."""


@cache
def _great_expectations() -> Validate:
    """Start Great Expectations (seconds to import) with an ephemeral context, no analytics and no progress bars."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of modules that its dependencies import
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig
        from great_expectations.expectations.expectation import (
            ColumnMapExpectation,
            ColumnPairMapExpectation,
            MulticolumnMapExpectation,
        )
        from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    definition = context.data_sources.add_pandas("tables").add_dataframe_asset("batch")
    batches = definition.add_batch_definition_whole_dataframe("whole")
    row_level = (ColumnMapExpectation, ColumnPairMapExpectation, MulticolumnMapExpectation)
    form = {"result_format": "COMPLETE", "return_unexpected_index_query": False}

    def build(kind: str, kwargs: Row) -> Any:
        try:
            expectation = ExpectationConfiguration(type=kind, kwargs=kwargs).to_domain_obj()
        except Exception as error:  # noqa: BLE001 - whatever Great Expectations says about a wrong expectation
            raise ParamError(f"not an expectation of Great Expectations: {error}", field=f"{kind} {kwargs}") from None
        if not isinstance(expectation, row_level):
            raise ParamError("looks at whole columns, which are streamed", field=kind, mend="write it as a rule")
        return expectation

    def validate(frame: pd.DataFrame, expectations: Sequence[tuple[str, Row]]) -> list[Failing]:
        built = [build(*e) for e in expectations]
        # By their own key: the report's order is not promised to be ours.
        positions = {_key(e.expectation_type, e.configuration.kwargs): i for i, e in enumerate(built)}
        failing: list[Failing] = [[] for _ in built]
        suite = gx.ExpectationSuite(name="suite", expectations=built)
        for result in batches.get_batch({"dataframe": frame}).validate(suite, result_format=form).results:
            config = result.expectation_config
            if not result.success:
                assert config is not None  # every result names what it is of
                if "unexpected_index_list" not in result.result:
                    raise ParamError(f"could not be evaluated: {_reason(result.exception_info)}", field=config.type)
                failing[positions.pop(_key(config.type, config.kwargs))] = result.result["unexpected_index_list"]
        return failing

    return validate


def _key(kind: str, kwargs: Row) -> tuple[str, str]:
    return kind, repr(sorted((k, repr(v)) for k, v in kwargs.items() if k != "batch_id"))


def _reason(exception_info: Row) -> str:
    """The message inside Great Expectations' nested report of an exception."""
    for value in (exception_info, *exception_info.values()):
        if isinstance(value, dict) and value.get("exception_message"):
            return str(value["exception_message"])
    return repr(exception_info)[:300]


def _check_rows(name: str, expected: TableExpectations, readers: dict[str, tables.Reader]) -> Iterator[Result]:
    """Stream all concrete tables of `name` through Great Expectations."""
    table = tables.TABLES[name]
    # A column that may not be null cannot hold nulls, `Reader` has checked its schema; but a float may be NaN.
    listed: list[tuple[str, Row]] = [
        ("expect_column_values_to_not_be_null", {"column": c.name})
        for c in table.columns
        if c.dtype == tables.FLOAT and not c.nullable
    ]
    for column, kinds in expected.columns.items():
        listed += [(kind, {"column": column, **kwargs}) for kind, kwargs in kinds.items()]
    listed += [item for row in expected.rows for item in row.items()]
    counts = {(c, i): 0 for i in range(len(listed)) for c in readers}
    samples: dict[tuple[str, int], list[Row]] = {}
    for frame, owners in _batches(readers) if listed else ():
        for i, positions in enumerate(_great_expectations()(_pandas(frame), listed)):
            for position in positions:
                key = (owners[position], i)
                counts[key] += 1
                if len(rows := samples.setdefault(key, [])) < SAMPLES:
                    rows.append(frame.row(position, named=True))
    for (c, i), failing in counts.items():
        kind, kwargs = listed[i]
        label = f"{kind}({', '.join(f'{k}={v!r}' for k, v in kwargs.items())})"
        yield Result(c, label, readers[c].rows, failing, tuple(samples.get((c, i), ())))


def _batches(readers: dict[str, tables.Reader]) -> Iterator[tuple[pl.DataFrame, list[str]]]:
    """Row groups of all these tables joined into frames of bounded size, with each row's table: few, large batches."""
    frames: list[pl.DataFrame] = []
    owners: list[str] = []
    size = 0
    for c, reader in readers.items():
        for frame in reader.batches(BATCH_ROWS):
            if frames and (len(owners) + frame.height > BATCH_ROWS or size + frame.estimated_size() > BATCH_BYTES):
                yield pl.concat(frames), owners
                frames, owners, size = [], [], 0
            frames.append(frame)
            owners += [c] * frame.height
            size += int(frame.estimated_size())
    if owners:
        yield pl.concat(frames), owners


def _pandas(frame: pl.DataFrame) -> pd.DataFrame:
    """Great Expectations refuses polars frames. Strings become `object`: pandas' own string type matches regular
    expressions with another engine, in which `\\Z` means something else."""
    strings = [name for name, dtype in frame.schema.items() if dtype == tables.STR]
    return frame.to_pandas().astype(dict.fromkeys(strings, object))


# ---- DuckDB: keys, references and rules -----------------------------------------------------------------------------


def _check_sql(
    connection: duckdb.DuckDBPyConnection, name: str, expected: TableExpectations, rows: dict[str, int]
) -> Iterator[Result]:
    view, own = views.view_of(tables.TABLES[name]), views.places(name)
    for key in [list(tables.TABLES[name].key), *expected.unique]:
        columns = _names([*own, *(c for c in key if c not in own)])
        yield from _run(
            connection, name, f"unique({', '.join(key)})",
            f"select {columns}, count(*) as times from {view} group by {columns} having count(*) > 1", rows,
        )  # fmt: skip
    for reference in expected.references:
        # Parts that vary in both tables (the split of gold, the setting of a roster) must be the same in both.
        shared = [place for place in own if place in views.places(reference.of)]
        pairs = [*zip(shared, shared, strict=True), *zip(reference.columns, reference.targets, strict=True)]
        other = views.view_of(tables.TABLES[reference.of])
        on = " and ".join(f'a."{a}" = b."{b}"' for a, b in pairs)
        present = " and ".join(f'a."{c}" is not null' for c in reference.columns)
        yield from _run(
            connection, name, f"references({', '.join(reference.columns)} -> {reference.of})",
            f"select a.* from {view} a anti join {other} b on {on} where {present}", rows,
        )  # fmt: skip
    for label, sql in expected.rules.items():
        yield from _run(connection, name, label, sql, rows)


def _run(
    connection: duckdb.DuckDBPyConnection, name: str, label: str, sql: str, rows: dict[str, int]
) -> Iterator[Result]:
    """Run a query that returns failing rows; attribute them to concrete tables by the columns that vary."""
    own = views.places(name)
    try:
        connection.execute(f"create or replace temp table failing as {sql.strip().rstrip(';')}")
        grouped = f"select {_names(own)}, count(*) from failing group by all" if own else "select count(*) from failing"
        counts = {views.fill(name, dict(zip(own, r[:-1], strict=True))): r[-1] for r in _fetch(connection, grouped)}
        for c in rows:
            failing = counts.get(c, 0)
            sample: tuple[Row, ...] = ()
            if failing:
                where = " and ".join(f'"{p}" = {views.literal(v)}' for p, v in views.values(name, c).items()) or "true"
                shown = connection.execute(f"select * from failing where {where} order by all limit {SAMPLES}")
                names = [column[0] for column in shown.description]
                sample = tuple(dict(zip(names, r, strict=True)) for r in shown.fetchall())
            yield Result(c, label, rows[c], failing, sample)
    except duckdb.Error as error:
        raise ParamError(f"the rule does not run: {error}", field=f"{name}: {label}") from None


def _artifact(path: Path) -> Path:
    """The artifact's path, once it exists and, if it is a directory, is complete."""
    if path.is_file():
        return path
    return check_complete(path)


def _check_artifact(
    connection: duckdb.DuckDBPyConnection, name: str, path: Path, rules: dict[str, str]
) -> Iterator[Result]:
    """A model's tensors are finite; the rules hold."""
    files = sorted(path.glob("*.safetensors"))
    if files:
        broken = [
            {"file": file.name, "tensor": key} for file in files for key, tensor in load_file(file).items()
            if tensor.dtype.kind == "f" and not np.isfinite(tensor).all()
        ]  # fmt: skip
        yield Result(name, "tensors are finite", len(files), len(broken), tuple(broken[:SAMPLES]))
    for label, sql in rules.items():
        yield from _run(connection, name, label, sql.replace("{}", views.literal(path.as_posix())), {name: 1})


def _fetch(connection: duckdb.DuckDBPyConnection, sql: str) -> list[tuple[Any, ...]]:
    return connection.execute(sql).fetchall()


def _names(columns: Sequence[str]) -> str:
    return ", ".join(f'"{c}"' for c in columns)


# ---- the gate -------------------------------------------------------------------------------------------------------


def gate(stage_name: str, params: Params, root: str | Path = "data", stages: str | Path = "stages") -> None:
    """Check a stage and write `data/quality/<stage>.json`, or raise and leave none.

    Raises:
        QualityError: an expectation failed; each failure has been printed on a line of its own.
    """
    passed = Path(root) / "quality" / f"{stage_name}.json"
    passed.unlink(missing_ok=True)
    if stage_name == "rank":
        remove_leftovers(params, root)
    results = check(stage_name, params, root, stages)
    expectations = load(stage_name, stages)
    hashes = {c: sha256_file(tables.path(c, root)) for name in expectations.tables for c in concrete(name, params)}
    for path in expectations.artifacts:
        file = Path(root).parent / path
        hashes[path] = sha256_file(file / COMPLETE if file.is_dir() else file)
    write_json(
        passed.with_suffix(".details.json"),
        {
            "stage": stage_name,
            "results": [{**asdict(r), "passed": r.passed, "sample": _json(r.sample)} for r in results],
        },
    )
    for result in results:
        if result.failing:
            kind = "warning" if result.passed else "failed"
            print(f"check_{stage_name}: {kind}: {printable(result.line())}", file=sys.stderr)
    failed = [result for result in results if not result.passed]
    if failed:
        raise QualityError(
            f"{len(failed)} of {len(results)} expectations on the tables of {stage_name} failed",
            file=passed.with_suffix(".details.json"), mend="mend the data, or the expectation if it is wrong",
        )  # fmt: skip
    write_json(passed, {"passed": True, "tables": hashes})


def remove_leftovers(params: Params, root: str | Path = "data") -> list[Path]:
    """Remove directories of data/rank which params no longer list (they stay in the DVC cache), and say so.

    Otherwise the hash of data/rank would depend on which systems were built here before.
    """
    kept = {Path(c).parent for c in concrete("rank/<system>/<setting>/rankings", params)}
    kept |= {path.parent for path in kept}
    removed = []
    for path in sorted([*Path(root).glob("rank/*"), *Path(root).glob("rank/*/*")]):
        if path.is_dir() and not path.is_symlink() and path.relative_to(root) not in kept:
            print(f"check_rank: removed {path}, which params.yaml does not list", file=sys.stderr)
            shutil.rmtree(path)
            removed.append(path)
    return removed


def _json(sample: tuple[Row, ...]) -> list[Row]:
    """Rows with JSON values only: NaN and other rare types as their text."""
    plain = (str, int, bool, type(None))
    return [{k: v if isinstance(v, plain) else repr(v) for k, v in row.items()} for row in sample]


def main() -> None:
    """`python -m pipeline.quality STAGE`."""
    names = sorted(path.parent.name for path in Path("stages").glob("*/expectations.yaml"))
    if len(sys.argv) != 2 or sys.argv[1] not in names:
        print(f"usage: python -m pipeline.quality STAGE, STAGE one of {', '.join(names)}", file=sys.stderr)
        raise SystemExit(2)
    stage.run(f"check_{sys.argv[1]}", lambda params: gate(sys.argv[1], params))


if __name__ == "__main__":
    main()
