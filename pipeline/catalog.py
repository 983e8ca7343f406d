"""The catalog: `data/catalog.duckdb`, read-only views over all tables with their DVC versions.

`certrank catalog` builds it, `certrank sql "select ..."` answers from it and refreshes it first when dvc.lock or a
table's file changed. It holds no data of its own but

    <schema>.<table>     the views of `pipeline.views`, e.g. rank.rankings(system, setting, window_id, ...)
    versions             one row per Parquet file: table, path, rows, size, sha256, and what dvc.lock says of it
    columns              every declared column with its meaning

Views name files relative to the root of the repository: open the file from there. Queries run without access to any
other file, network or setting. A refresh hashes only the files whose size or time changed since the last one. Nothing
in the pipeline depends on the catalog.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import tables, views
from pipeline.errors import DataError, TransientError
from pipeline.files import atomic_path, sha256_file

FILE = "catalog.duckdb"
FORMAT = 2

VERSIONS = (
    ("table", "varchar", "declared name"),
    ("name", "varchar", "concrete name: the path below data/ without suffix"),
    ("view", "varchar", "view it is part of"),
    ("path", "varchar", "file"),
    ("rows", "bigint", "number of rows"),
    ("size", "bigint", "bytes"),
    ("sha256", "varchar", "of the file"),
    ("stage", "varchar", "DVC stage that made it; null when dvc.lock does not know it"),
    ("output", "varchar", "DVC output that holds it"),
    ("md5", "varchar", "version in dvc.lock: md5 of the file, or of the directory it stands in (ending .dir)"),
    ("revision", "varchar", "git revision the catalog was built at; ends with + when the work tree had changes"),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a query: column names and rows of plain values."""

    columns: list[str]
    rows: list[tuple[Any, ...]]


def build(root: str | Path = "data", lock: str | Path = "dvc.lock") -> Path:
    """Build the catalog atomically, replacing an older one.

    Raises:
        DataError: there is no table yet, or dvc.lock is broken.
        TableError: a table is truncated or not of its declared schema.
    """
    found = _find(Path(root))
    if not found:
        raise DataError("no table here yet", file=root, mend="run `dvc repro`")
    state = fingerprint(root, lock)  # before anything is read: a change meanwhile makes the catalog stale, not wrong
    outputs = _outputs(Path(lock))
    revision = _revision(Path(root).parent)
    target = Path(root) / FILE
    by_table: dict[str, list[str]] = defaultdict(list)
    rows = []
    known = _hashed(target)
    hashed: list[tuple[str, int, int, str]] = []
    for name in found:
        reader = tables.Reader(name, root)
        declared = reader.table
        by_table[declared.name].append(name)
        stage, output, md5 = _version(reader.path, outputs)
        path, status = reader.path.as_posix(), reader.path.stat()
        version = (path, status.st_size, status.st_mtime_ns)
        hashed.append((*version, known.get(version) or sha256_file(reader.path)))
        rows.append((
            declared.name, name, str(views.view_of(declared)), path, reader.rows, status.st_size, hashed[-1][3],
            stage, output, md5, revision,
        ))  # fmt: skip
    with atomic_path(target) as temporary, duckdb.connect(str(temporary)) as connection:
        for name, names in by_table.items():
            views.create(connection, name, names, root)
        columns = ", ".join(f'"{name}" {kind}' for name, kind, _ in VERSIONS)
        connection.execute(f"create table versions ({columns})")
        connection.executemany(f"insert into versions values ({', '.join('?' * len(VERSIONS))})", rows)
        for name, _, doc in VERSIONS:
            connection.execute(f'comment on column versions."{name}" is {views.literal(doc)}')
        _describe(connection, by_table)
        connection.execute("create table hashed (path varchar, size bigint, modified bigint, sha256 varchar)")
        connection.executemany("insert into hashed values (?, ?, ?, ?)", hashed)
        connection.execute("create table state (format integer, fingerprint varchar)")
        connection.execute("insert into state values (?, ?)", [FORMAT, state])
    return target


def _hashed(catalog: Path) -> dict[tuple[str, int, int], str]:
    """(path, size, time) -> sha256 of the files that an older catalog has hashed; empty where there is none."""
    if not catalog.is_file():
        return {}
    try:
        with duckdb.connect(str(catalog), read_only=True) as connection:
            if connection.execute("select format from state").fetchone() != (FORMAT,):
                return {}
            rows = connection.execute("select path, size, modified, sha256 from hashed").fetchall()
    except duckdb.Error:
        return {}  # broken, or of an older form: everything is hashed anew
    return {(path, size, modified): digest for path, size, modified, digest in rows}


def _describe(connection: duckdb.DuckDBPyConnection, by_table: dict[str, list[str]]) -> None:
    """The meaning of every table and column, as `columns` and as comments on the views."""
    connection.execute(
        "create table columns "
        '("view" varchar, "column" varchar, type varchar, nullable boolean, doc varchar, table_doc varchar)'
    )
    rows = []
    for name in by_table:
        declared = tables.TABLES[name]
        view = views.view_of(declared)
        rows += [(str(view), place, "VARCHAR", False, f"from the path {name}", declared.doc) for place in view.places]
        types = {tables.STR: "VARCHAR", tables.INT: "BIGINT", tables.FLOAT: "DOUBLE", tables.BOOL: "BOOLEAN",
                 tables.STRS: "VARCHAR[]"}  # fmt: skip
        rows += [(str(view), c.name, types[c.dtype], c.nullable, c.doc, declared.doc) for c in declared.columns]
        connection.execute(f'comment on view "{view.schema}"."{view.name}" is {views.literal(declared.doc)}')
    connection.executemany("insert into columns values (?, ?, ?, ?, ?, ?)", rows)


def query(sql: str, root: str | Path = "data", lock: str | Path = "dvc.lock") -> Answer:
    """Answer one SELECT (or DESCRIBE, SHOW, SUMMARIZE) from the catalog, refreshed when it is older than the data.

    Raises:
        DataError: not a single SELECT statement, or DuckDB refuses it.
    """
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise DataError(_first_line(error), field="sql") from None
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise DataError("the catalog is read-only and answers one SELECT at a time", field="sql")
    path = refresh(root, lock)
    try:
        with duckdb.connect(str(path), read_only=True) as connection:
            files = connection.execute("select path from versions").fetchall()
            allowed = sorted({form for (file,) in files for form in (file, views.exact(file))})
            connection.execute(f"set allowed_paths=[{', '.join(views.literal(p) for p in allowed)}]")
            connection.execute("set enable_external_access=false")
            connection.execute("set lock_configuration=true")
            result = connection.execute(sql)
            return Answer([column[0] for column in result.description], result.fetchall())
    except duckdb.IOException as error:
        raise TransientError(_first_line(error), file=path, mend="close the program that writes to it") from None
    except duckdb.Error as error:
        raise DataError(_first_line(error), field="sql", mend="`certrank sql 'from columns'`") from None


def refresh(root: str | Path = "data", lock: str | Path = "dvc.lock") -> Path:
    """The catalog's path, built anew when it is missing, of another format, or older than dvc.lock or a table."""
    path = Path(root) / FILE
    if path.is_file():
        try:
            with duckdb.connect(str(path), read_only=True) as connection:
                state = connection.execute("select format, fingerprint from state").fetchone()
        except duckdb.Error:
            state = None  # not a catalog, or one of an older form: building it anew loses nothing
        if state == (FORMAT, fingerprint(root, lock)):
            return path
    return build(root, lock)


def fingerprint(root: str | Path = "data", lock: str | Path = "dvc.lock") -> str:
    """Changes when dvc.lock or the set, size or time of the tables' files changes; reads no table."""
    digest = hashlib.sha256(Path(lock).read_bytes() if Path(lock).is_file() else b"")
    for name in _find(Path(root)):
        status = tables.path(name, root).stat()
        digest.update(json.dumps([name, status.st_size, status.st_mtime_ns]).encode())
    return digest.hexdigest()


def _find(root: Path) -> list[str]:
    """Concrete names of the declared tables that exist, in declared order, then by name."""
    found = []
    for declared in tables.TABLES.values():
        pattern = views.fill(declared.name, defaultdict(lambda: "[!.]*"))
        paths = sorted(root.glob(f"{pattern}.parquet"))
        names = [p.relative_to(root).with_suffix("").as_posix() for p in paths if p.is_file()]
        found += [name for name in names if tables.table(name) is declared]
    return found


def _outputs(lock: Path) -> dict[str, tuple[str, str]]:
    """Path of an output -> (stage, md5), from dvc.lock; empty before the first `dvc repro`."""
    if not lock.is_file():
        return {}
    try:
        raw = YAML(typ="safe", pure=True).load(lock.read_text(encoding="utf-8"))
        return {
            out["path"]: (stage, out["md5"])
            for stage, entry in raw["stages"].items() for out in entry.get("outs", [])
        }  # fmt: skip
    except (YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        mend = "`git checkout dvc.lock`, or delete it and run `dvc repro`"
        raise DataError("dvc.lock is truncated or broken", file=lock, mend=mend) from None


def _version(path: Path, outputs: dict[str, tuple[str, str]]) -> tuple[str | None, str | None, str | None]:
    """(stage, output, md5) of the output that is this file or holds it."""
    for candidate in (path, *path.parents):
        if candidate.as_posix() in outputs:
            stage, md5 = outputs[candidate.as_posix()]
            return stage, candidate.as_posix(), md5
    return None, None, None


def _revision(folder: Path) -> str | None:
    """`git rev-parse HEAD`, with + when tracked files are changed; None outside a repository or without a commit."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=folder, capture_output=True, check=False)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.returncode else "")


def _first_line(error: Exception) -> str:
    """DuckDB's message without its picture of the query."""
    return str(error).split("\n\n")[0].replace("\n", " ")
