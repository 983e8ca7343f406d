"""Tables: declared schemas, deterministic bytes, nothing half-written, streaming by windows."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import tables
from pipeline.errors import TableError
from pipeline.files import sha256_file
from pipeline.tables import Reader, Writer

ROOT = Path(__file__).parent.parent
NAME = "ingest/gold/train/labelled"


def rows(*windows: str) -> pl.DataFrame:
    return tables.table(NAME).frame(
        {"window_id": w, "doc_id": f"{w}:d", "sentence": i} for w in windows for i in range(2)
    )


# ---- declarations ---------------------------------------------------------------------------------------------------


def test_every_table_is_declared_consistently() -> None:
    for name, table in tables.TABLES.items():
        columns = [c.name for c in table.columns]
        assert len(set(columns)) == len(columns), name
        assert set(table.sort) <= set(columns), name
        assert set(table.key) <= set(columns), name
        assert not any(c.nullable for c in table.columns if c.name in (*table.sort, *table.key)), name
        assert all(c.doc for c in table.columns), name
        assert table.doc.endswith("."), name
        if "window_id" in columns and not name.startswith("audit/"):
            assert table.sort[0] == "window_id", name


def test_concrete_names_find_their_declaration() -> None:
    assert tables.table("roster/closed/mentions") is tables.TABLES["roster/<setting>/mentions"]
    assert tables.table("rank/random/hybrid/rankings") is tables.TABLES["rank/<system>/<setting>/rankings"]
    assert tables.path("extract/events", "d") == Path("d/extract/events.parquet")


@pytest.mark.parametrize("name", ["roster/closed", "ingest/documents/x", "rank/rankings", "", "nosuch"])
def test_undeclared_names_are_refused(name: str) -> None:
    with pytest.raises(TableError, match="no table is declared"):
        tables.table(name)


# ---- writing --------------------------------------------------------------------------------------------------------


def test_round_trip_and_empty_table(tmp_path: Path) -> None:
    tables.write(NAME, rows("a", "b"), tmp_path)
    assert tables.read(NAME, tmp_path).equals(rows("a", "b"))
    tables.write(NAME, tables.table(NAME).empty(), tmp_path)
    empty = tables.read(NAME, tmp_path)
    assert empty.height == 0
    assert empty.schema == tables.table(NAME).schema
    assert tables.shards(NAME, tmp_path) == []
    assert list(Reader(NAME, tmp_path).batches()) == [] or sum(f.height for f in Reader(NAME, tmp_path).batches()) == 0


@pytest.mark.parametrize("name", [n.replace("<split>", "train").replace("<system>", "random")
                                  .replace("<setting>", "closed").replace("<part>", "audit")
                                  for n in tables.TABLES])  # fmt: skip
def test_every_declared_schema_can_be_written_and_read(tmp_path: Path, name: str) -> None:
    table = tables.table(name)
    value = {tables.STR: "x", tables.INT: 1, tables.FLOAT: 0.5, tables.BOOL: True, tables.STRS: ["a", "b"]}
    filled = {c.name: value[c.dtype] for c in table.columns}
    bare = {**filled, **{c.name: None for c in table.columns if c.nullable}}
    frame = table.frame([filled, bare])
    tables.write(name, frame, tmp_path)
    assert tables.read(name, tmp_path).equals(frame)
    written = pq.read_schema(tables.path(name, tmp_path))
    assert [written.field(c.name).nullable for c in table.columns] == [c.nullable for c in table.columns]


@given(st.permutations(range(12)))
@settings(max_examples=20)
def test_row_order_of_the_input_does_not_change_the_bytes(
    tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    root = tmp_path_factory.mktemp("t")
    frame = rows("a", "b", "c", "d", "e", "f")
    tables.write(NAME, frame, root / "one")
    tables.write(NAME, frame[order], root / "two")
    assert sha256_file(tables.path(NAME, root / "one")) == sha256_file(tables.path(NAME, root / "two"))


def test_a_failure_keeps_the_old_table(tmp_path: Path) -> None:
    tables.write(NAME, rows("a"), tmp_path)
    before = sha256_file(tables.path(NAME, tmp_path))
    with pytest.raises(ZeroDivisionError), Writer(NAME, tmp_path) as writer:
        writer.append(rows("b"))
        raise ZeroDivisionError
    assert sha256_file(tables.path(NAME, tmp_path)) == before
    assert [p.name for p in tables.path(NAME, tmp_path).parent.iterdir()] == ["labelled.parquet"]


def test_killed_in_the_middle(tmp_path: Path) -> None:
    """A process killed between two shards leaves no table under the final name."""
    code = (
        "import sys\nfrom pipeline.tables import Writer, table\n"
        f"f = table({NAME!r}).frame([{{'window_id': 'a', 'doc_id': 'a', 'sentence': 0}}])\n"
        f"with Writer({NAME!r}, {str(tmp_path)!r}) as w:\n"
        "    w.append(f); print('ready', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGKILL)
    with pytest.raises(TableError, match="table not found"):
        Reader(NAME, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop("sentence"), "columns"),
        (lambda f: f.with_columns(extra=1), "columns"),
        (lambda f: f.with_columns(sentence=pl.lit("x")), "wrong type"),
        (lambda f: f.with_columns(doc_id=pl.lit(None, pl.String)), "null in a column that may not be null"),
    ],
)
def test_wrong_rows_are_refused(tmp_path: Path, change: object, message: str) -> None:
    assert callable(change)
    with pytest.raises(TableError, match=message):
        tables.write(NAME, change(rows("a")), tmp_path)
    assert not tables.path(NAME, tmp_path).exists()


def test_shards_out_of_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="out of order"), Writer(NAME, tmp_path) as writer:
        writer.append(rows("b"))
        writer.append(rows("a"))
    assert not tables.path(NAME, tmp_path).exists()


def test_order_is_that_of_code_points(tmp_path: Path) -> None:
    """Case, accents and characters beyond the BMP: Python, polars and Parquet statistics agree on the order."""
    names = ["Z", "a", "\N{LATIN SMALL LETTER E WITH ACUTE}", "\uffee", "\N{SLIGHTLY SMILING FACE}"]
    with Writer(NAME, tmp_path) as writer:
        for name in sorted(names):
            writer.append(rows(name))
    assert tables.read(NAME, tmp_path)["window_id"].unique(maintain_order=True).to_list() == sorted(names)
    for name in names:
        assert tables.read(NAME, tmp_path, (name, name)).equals(rows(name))


# ---- reading --------------------------------------------------------------------------------------------------------


def test_missing_truncated_and_foreign_files(tmp_path: Path) -> None:
    path = tables.path(NAME, tmp_path)
    with pytest.raises(TableError, match=r"labelled\.parquet: table not found; run `dvc repro`"):
        Reader(NAME, tmp_path)
    tables.write(NAME, rows("a", "b"), tmp_path)
    whole = path.read_bytes()
    for cut in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(TableError, match="not a readable Parquet file"):
            Reader(NAME, tmp_path)
    path.write_bytes(b"PAR1 this is not Parquet at all PAR1")
    with pytest.raises(TableError, match="not a readable Parquet file"):
        Reader(NAME, tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(TableError, match="table not found"):
        Reader(NAME, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.rename_columns(["window_id", "doc_id", "phrase"]),
        lambda t: t.drop_columns(["sentence"]),
        lambda t: t.append_column("extra", pa.array([1] * len(t))),
        lambda t: t.select(["doc_id", "window_id", "sentence"]),
        lambda t: t.cast(pa.schema([("window_id", pa.string()), ("doc_id", pa.string()), ("sentence", pa.int32())])),
        lambda t: t.cast(pa.schema([(f.name, f.type) for f in t.schema])),  # nullable where it must not be
    ],
)
def test_another_schema_is_refused(tmp_path: Path, change: object) -> None:
    tables.write(NAME, rows("a"), tmp_path)
    path = tables.path(NAME, tmp_path)
    assert callable(change)
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(TableError, match="the schema is not the declared one"):
        Reader(NAME, tmp_path)


def test_damage_inside_a_column_is_one_error(tmp_path: Path) -> None:
    """The footer is whole, a data page is not: found when the rows are read."""
    big = tables.table(NAME).frame({"window_id": f"w{i:05d}", "doc_id": "d", "sentence": i} for i in range(5000))
    tables.write(NAME, big, tmp_path)
    path = tables.path(NAME, tmp_path)
    data = bytearray(path.read_bytes())
    data[40 : len(data) // 2] = b"\0" * (len(data) // 2 - 40)
    path.write_bytes(bytes(data))
    reader = Reader(NAME, tmp_path)
    for read in (reader.frame, lambda: list(reader.batches()), lambda: reader.frame(("w00000", "w00001"))):
        with pytest.raises(TableError, match="not a readable Parquet file"):
            read()
    with pytest.raises(TableError, match="not a readable Parquet file"):
        tables.shards(NAME, tmp_path)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12, unique=True), st.integers(1, 5))
@settings(max_examples=25)
def test_shards_partition_the_table(tmp_path_factory: pytest.TempPathFactory, ids: list[int], size: int) -> None:
    root = tmp_path_factory.mktemp("t")
    names = sorted(f"w{i:02d}" for i in ids)
    with Writer(NAME, root) as writer:
        for name in names:
            writer.append(rows(name))
    shards = tables.shards(NAME, root, size)
    assert len(shards) == -(-len(names) // size)
    parts = [Reader(NAME, root).frame(shard) for shard in shards]
    assert all(p["window_id"].n_unique() <= size for p in parts)
    assert pl.concat(parts).equals(tables.read(NAME, root))


def test_a_shard_reads_its_row_groups_only(tmp_path: Path) -> None:
    with Writer(NAME, tmp_path) as writer:
        for name in ("a", "b", "c"):
            writer.append(rows(name))
    assert Reader(NAME, tmp_path).row_groups(("b", "b")) == [1]
    assert Reader(NAME, tmp_path).row_groups(("bb", "z")) == [2]
    assert Reader(NAME, tmp_path).frame(("x", "z")).height == 0


def test_a_window_id_too_long_for_statistics(tmp_path: Path) -> None:
    """Parquet leaves out statistics of very long values; such row groups must still be found."""
    long = "u" * 10_000
    with Writer(NAME, tmp_path) as writer:
        writer.append(rows("a"))
        writer.append(rows(long))
    assert tables.read(NAME, tmp_path, (long, long)).equals(rows(long))
    assert tables.read(NAME, tmp_path, ("a", "b")).equals(rows("a"))


def test_tables_that_are_not_sorted_by_window_are_not_read_by_window(tmp_path: Path) -> None:
    table = tables.table("audit/instances")
    frame = table.frame([{"system": "random", "setting": "closed", "window_id": "a", "intent_id": "i", "metric": "ndcg",
                          "value": 0.5}])  # fmt: skip
    tables.write("audit/instances", frame, tmp_path)
    with pytest.raises(TableError, match="not sorted by window"):
        tables.read("audit/instances", tmp_path, ("a", "a"))


def test_batches_are_bounded(tmp_path: Path) -> None:
    tables.write(NAME, rows(*[f"w{i}" for i in range(10)]), tmp_path)
    batches = list(Reader(NAME, tmp_path).batches(7))
    assert [b.height for b in batches] == [7, 7, 6]
    assert pl.concat(batches).equals(tables.read(NAME, tmp_path))


def test_a_shard_has_as_many_windows_as_the_constant_says_when_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables.write(NAME, rows("a", "b", "c"), tmp_path)
    assert tables.shards(NAME, tmp_path) == [("a", "c")]
    monkeypatch.setattr(tables, "SHARD_WINDOWS", 2)
    assert tables.shards(NAME, tmp_path) == [("a", "b"), ("c", "c")]


def test_what_a_killed_writer_left_is_swept_by_the_next_one(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()  # reaped: nobody has its id now
    path = tables.path(NAME, tmp_path)
    path.parent.mkdir(parents=True)
    path.with_name(f".{path.name}.{child.pid}.partial").write_bytes(b"PAR1 half")
    tables.write(NAME, rows("a"), tmp_path)
    assert list(path.parent.iterdir()) == [path]


def test_no_table_of_a_group_appears_before_all_are_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up at the last footer must not leave the tables before it as if the stage had succeeded."""
    names = [f"ingest/gold/{split}/labelled" for split in ("train", "tune", "test")]
    finish = Writer.finish

    def full(writer: Writer) -> None:
        if writer.name == names[-1]:
            raise OSError(errno.ENOSPC, "No space left on device")
        finish(writer)

    monkeypatch.setattr(Writer, "finish", full)
    with pytest.raises(OSError, match="No space left"), tables.writers(names, tmp_path) as opened:
        for name in names:
            opened[name].append(rows("a"))
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    monkeypatch.undo()
    with tables.writers(names, tmp_path) as opened:
        for name in names:
            opened[name].append(rows("a"))
    assert all(tables.read(name, tmp_path).equals(rows("a")) for name in names)


def test_a_table_that_cannot_even_be_begun_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        path.write_bytes(b"PAR1")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "ParquetWriter", full)
    with pytest.raises(OSError, match="No space left"), Writer(NAME, tmp_path):
        pass
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
