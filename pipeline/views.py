"""DuckDB views over the tables: what quality rules and `certrank sql` are written in.

A declared table becomes one view. Its schema is the last directory of its name that does not vary, and every part
that varies becomes a leading column, so one query sees all splits, settings or systems at once:

    ingest/documents                 -> ingest.documents
    ingest/gold/<split>/events       -> gold.events(split, ...)
    rank/<system>/<setting>/rankings -> rank.rankings(system, setting, ...)
    rank/<policy>/<setting>/probes   -> rank.probes(policy, setting, ...)

DuckDB's `length` and `substring` count Unicode code points (not graphemes, not bytes), so `text[start:end]` is
`substring(text, start + 1, "end" - start)`; a test compares the two on combining marks, emoji sequences and CRLF.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from pipeline import tables
from pipeline.tables import Table

SQL = {
    tables.STR: "varchar", tables.INT: "bigint", tables.FLOAT: "double", tables.BOOL: "boolean",
    tables.STRS: "varchar[]",
}  # fmt: skip
"""Types of columns in DuckDB."""


@dataclass(frozen=True, slots=True)
class View:
    """One declared table seen from SQL: `schema.name`, with `places` as its leading columns."""

    schema: str
    name: str
    places: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


def view_of(table: Table) -> View:
    """The view of a declared table."""
    *folders, name = table.name.split("/")
    fixed = [folder for folder in folders if not folder.startswith("<")]
    return View(fixed[-1], name, places(table.name))


def places(declared: str) -> tuple[str, ...]:
    """The varying parts of a declared name: `rank/<system>/<setting>/rankings` -> (system, setting)."""
    return tuple(re.findall(r"<(\w+)>", declared))


def values(declared: str, concrete: str) -> dict[str, str]:
    """What the varying parts are in a concrete name: {system: random, setting: closed}."""
    pairs = zip(declared.split("/"), concrete.split("/"), strict=True)
    return {pattern.strip("<>"): part for pattern, part in pairs if pattern.startswith("<")}


def fill(declared: str, by_place: Mapping[str, str]) -> str:
    """The concrete name: the inverse of `values`."""
    return re.sub(r"<(\w+)>", lambda match: by_place[match[1]], declared)


def literal(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def exact(path: str) -> str:
    """The path as DuckDB must be given it, or `*`, `?` and `[` in it would be a pattern."""
    return re.sub(r"([*?[])", r"[\1]", path)


def select(declared: str, concrete: Iterable[str], root: str | Path = "data") -> str:
    """`select` over the union of the concrete tables of one declared table, in the given order; without rows where
    there is none."""
    parts = []
    for name in concrete:
        columns = [f'{literal(value)} as "{place}"' for place, value in values(declared, name).items()]
        file = literal(exact(tables.path(name, root).as_posix()))
        parts.append(f"select {', '.join([*columns, '*'])} from read_parquet({file})")
    return " union all ".join(parts) or _nothing(tables.TABLES[declared])


def _nothing(table: Table) -> str:
    """`select` of a declared table's columns without any row."""
    kinds = {**dict.fromkeys(places(table.name), "varchar"), **{c.name: SQL[c.dtype] for c in table.columns}}
    columns = (f'cast(null as {kind}) as "{name}"' for name, kind in kinds.items())
    return f"select {', '.join(columns)} where false"


def create(
    connection: duckdb.DuckDBPyConnection, declared: str, concrete: Sequence[str], root: str | Path = "data"
) -> View:
    """Create (or replace) the view of a declared table over its concrete tables."""
    view = view_of(tables.TABLES[declared])
    connection.execute(f'create schema if not exists "{view.schema}"')
    connection.execute(f'create or replace view "{view.schema}"."{view.name}" as {select(declared, concrete, root)}')
    return view


def mentioned(sql: str) -> list[str]:
    """The declared tables whose views a query names, in declared order."""
    return [
        table.name
        for table in tables.TABLES.values()
        if re.search(rf"\b{re.escape(str(view_of(table)))}\b", sql) is not None
    ]
