"""The catalog: views over all tables, their versions; it answers and changes nothing."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

import duckdb
import polars as pl
import pytest

from pipeline import catalog, tables, views
from pipeline.errors import DataError, TableError, TransientError
from pipeline.files import sha256_file
from tests import tiny

LOCK = """\
schema: '2.0'
stages:
  ingest:
    cmd: python -m stages.ingest
    outs:
    - {path: data/ingest/documents.parquet, hash: md5, md5: 0123456789abcdef0123456789abcdef, size: 1}
    - {path: data/ingest/gold/train, hash: md5, md5: fedcba9876543210fedcba9876543210.dir, size: 2, nfiles: 6}
  rank@rm_attach-closed:
    cmd: python -m stages.rank rm_attach closed
    outs:
    - {path: data/rank/rm_attach/closed, hash: md5, md5: 00000000000000000000000000000000.dir, size: 2, nfiles: 3}
"""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data directory with dvc.lock and a catalog, which stays fresh when all is copied."""
    workspace = tmp_path_factory.mktemp("tiny")
    tiny.write(workspace / "data")
    (workspace / "dvc.lock").write_text(LOCK)
    with contextlib.chdir(workspace):
        catalog.build()
    return workspace


@pytest.fixture(autouse=True)
def _workspace(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


BUILT = [table for table in tables.TABLES.values() if "<policy>" not in table.name]
"""The tiny corpus is ranked by no policy, so a policy's tables are not there, and neither are their views."""


def ask(sql: str) -> list[tuple[object, ...]]:
    return catalog.query(sql).rows


def test_every_declared_table_has_a_view_with_all_its_rows() -> None:
    with duckdb.connect("data/catalog.duckdb", read_only=True) as connection:
        for table in BUILT:
            view = views.view_of(table)
            columns = [c[0] for c in connection.execute(f"describe {view}").fetchall()]
            assert columns == [*view.places, *table.schema]
            paths = Path("data").glob("*/" * table.name.count("/") + f"{view.name}.parquet")
            names = [p.relative_to("data").with_suffix("").as_posix() for p in paths]
            rows = sum(tables.Reader(n).rows for n in names if tables.table(n) is table)
            assert connection.execute(f"select count(*) from {view}").fetchone() == (rows,)


def test_what_varies_is_a_column() -> None:
    assert ask("select distinct system, setting from rank.rankings order by all") == [
        (system, setting) for system in sorted(tiny.SYSTEMS) for setting in sorted(tables.SETTINGS)
    ]
    assert ask("select split, count(*) from gold.events group by split order by split") == [("test", 3), ("train", 3)]


def test_views_join_across_stages() -> None:
    rows = ask("""
        select c.slot_id, substring(d.text, c.start + 1, c."end" - c.start)
        from rank.certificates c join ingest.documents d using (doc_id)
        where c.system = 'rm_attach' and c.setting = 'closed' order by c.slot_id, c.start
    """)
    assert rows == [("s1", "Ann"), ("s1", "bought"), ("s2", "Ann"), ("s2", "shot")]


def test_versions_come_from_dvc_lock() -> None:
    rows = {r[0]: r[1:] for r in ask("select name, stage, output, md5, rows, sha256 from versions")}
    documents = rows["ingest/documents"]
    assert documents[:4] == ("ingest", "data/ingest/documents.parquet", "0123456789abcdef0123456789abcdef", 2)
    assert documents[4] == sha256_file("data/ingest/documents.parquet")
    assert rows["ingest/gold/train/events"][1:3] == ("data/ingest/gold/train", "fedcba9876543210fedcba9876543210.dir")
    assert rows["rank/rm_attach/closed/rankings"][0] == "rank@rm_attach-closed"
    assert rows["extract/events"][:3] == (None, None, None)
    assert len(rows) == len(list(Path("data").rglob("*.parquet")))


def test_columns_carry_their_meaning() -> None:
    assert ask("select doc from columns where view = 'rank.rankings' and \"column\" = 'status'") == [
        ("certified (valid and recovered by the verifier) or uncertified",)
    ]
    declared = sum(len(t.columns) + len(views.places(t.name)) for t in BUILT)
    assert ask("select count(*) from columns") == [(declared,)]


def test_the_git_revision_is_noted(tmp_path: Path) -> None:
    def git(*args: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *args], check=True, capture_output=True)

    assert ask("select distinct revision from versions") == [(None,)]
    git("init", "-q")
    git("add", "dvc.lock")
    git("commit", "-q", "-m", "x")
    catalog.build()
    ((clean,),) = ask("select distinct revision from versions")
    assert isinstance(clean, str)
    assert len(clean) == 40
    Path("dvc.lock").write_text(LOCK + "\n")
    catalog.build()
    assert ask("select distinct revision from versions") == [(clean + "+",)]


# ---- freshness ------------------------------------------------------------------------------------------------------


def test_it_is_built_when_first_asked() -> None:
    Path("data/catalog.duckdb").unlink()
    assert ask("select count(*) from ingest.documents") == [(2,)]
    assert Path("data/catalog.duckdb").is_file()


def test_a_refresh_hashes_only_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def count(path: Path) -> str:
        hashed.append(path.as_posix())
        return sha256_file(path)

    monkeypatch.setattr(catalog, "sha256_file", count)
    before = ask("select path, sha256 from versions order by path")
    tables.write("extract/relations", tables.table("extract/relations").empty())
    after = ask("select path, sha256 from versions order by path")
    assert hashed == ["data/extract/relations.parquet"]
    assert [a[0] for a, b in zip(after, before, strict=True) if a != b] == hashed
    assert all(digest == sha256_file(str(path)) for path, digest in after)
    Path("data/catalog.duckdb").write_bytes(b"broken")
    assert ask("select path, sha256 from versions order by path") == after
    assert len(hashed) == 1 + len(after)


def test_it_is_not_rebuilt_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "build", lambda *_: pytest.fail("rebuilt"))
    assert ask("select count(*) from ingest.documents") == [(2,)]


@pytest.mark.parametrize("what", ["dvc.lock", "new table", "changed table", "removed table", "broken catalog"])
def test_it_refreshes_itself(what: str) -> None:
    if what == "dvc.lock":
        Path("dvc.lock").write_text(LOCK.replace("0123456789abcdef", "aaaaaaaaaaaaaaaa"))
        assert ask("select md5[:16] from versions where name = 'ingest/documents'") == [("a" * 16,)]
    elif what == "new table":
        shutil.copytree("data/rank/rm_attach", "data/rank/random")
        assert ask("select distinct system from rank.rankings order by 1") == [("oracle",), ("random",), ("rm_attach",)]
    elif what == "changed table":
        tiny.change(Path("data"), "rank/oracle/closed/rankings", pl.lit(0.25).alias("score"))
        digest = sha256_file("data/rank/oracle/closed/rankings.parquet")
        assert ask("select sha256 from versions where name = 'rank/oracle/closed/rankings'") == [(digest,)]
    elif what == "removed table":
        shutil.rmtree("data/rank/oracle")
        assert ask("select distinct system from rank.rankings") == [("rm_attach",)]
    else:
        Path("data/catalog.duckdb").write_bytes(b"no database")
        assert ask("select count(*) from ingest.documents") == [(2,)]


def test_undeclared_and_half_written_files_are_left_out() -> None:
    shutil.copy("data/ingest/documents.parquet", "data/ingest/extra.parquet")
    shutil.copy("data/ingest/documents.parquet", "data/ingest/.documents.parquet.7.partial")
    shutil.copytree("data/rank/rm_attach", "data/rank/.rm_attach.7.partial")
    assert ask("select count(*) from versions where name like '%/extra' or path like '%partial%'") == [(0,)]


def test_a_failed_build_keeps_the_old_catalog() -> None:
    before = sha256_file(catalog.build())
    path = Path("data/extract/events.parquet")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(TableError, match=r"events\.parquet: not a readable Parquet file"):
        catalog.build()
    assert sha256_file("data/catalog.duckdb") == before
    assert not [p for p in Path("data").iterdir() if "partial" in p.name]


def test_no_tables_and_a_broken_lock(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no table here yet; run `dvc repro`"):
        catalog.build(tmp_path / "none")
    Path("dvc.lock").write_text(LOCK[:-60])
    with pytest.raises(DataError, match=r"dvc\.lock: dvc\.lock is truncated or broken"):
        catalog.build()
    Path("dvc.lock").write_text("[]")
    with pytest.raises(DataError, match="truncated or broken"):
        catalog.build()
    Path("dvc.lock").unlink()
    assert ask("select count(*) from versions where md5 is not null") == [(0,)]


# ---- nothing but answers --------------------------------------------------------------------------------------------

DOCUMENTS = "data/ingest/documents.parquet"


@pytest.mark.parametrize(
    "sql",
    [
        "create table x as select 1",
        "create temp table x as select 1",
        "insert into versions select * from versions",
        "drop view ingest.documents",
        f"copy (select 1) to '{DOCUMENTS}'",
        f"copy (select 1) to '{DOCUMENTS}' (use_tmp_file false)",
        f"explain analyze copy (select 1) to '{DOCUMENTS}' (use_tmp_file false)",
        "export database 'data/x'",
        "attach 'data/x.duckdb'",
        "install httpfs",
        "load httpfs",
        "set enable_external_access = true",
        "pragma database_list",
        "call pragma_version()",
        "select 1; select 2",
        "",
    ],
)
def test_only_a_single_select_is_answered(sql: str) -> None:
    before = sha256_file(DOCUMENTS)
    with pytest.raises(DataError, match="read-only and answers one SELECT"):
        catalog.query(sql)
    assert sha256_file(DOCUMENTS) == before


@pytest.mark.parametrize(
    "sql",
    [
        "select * from read_text('/etc/passwd')",
        "select * from read_csv('dvc.lock')",
        "select * from read_parquet('data/ingest/*.parquet')",
        "select * from glob('/etc/*')",
        "select * from read_parquet('https://example.org/x.parquet')",
    ],
)
def test_no_other_file_and_no_network(sql: str) -> None:
    with pytest.raises(DataError, match="Permission Error"):
        catalog.query(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "describe rank.rankings", "show all tables", "summarize ingest.roster", "from versions", "values (1)",
        "with a as (select 1 as x) select x from a",
    ],
)  # fmt: skip
def test_every_kind_of_question_is_answered(sql: str) -> None:
    assert catalog.query(sql).rows


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("selec 1", "sql: Parser Error"),
        ("select nosuch from ingest.documents", "sql: Binder Error"),
        ("select * from nosuch", "sql: Catalog Error"),
        ("select 1 / 'x'", "sql: Conversion Error"),
    ],
)
def test_a_wrong_query_is_one_line(sql: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        catalog.query(sql)
    assert "\n" not in str(caught.value)


def test_names_that_look_like_patterns(tmp_path: Path) -> None:
    """A folder with brackets: DuckDB would read its name as a glob."""
    root = tmp_path / "da[t]a"
    shutil.copytree("data", root)
    assert catalog.query("select count(*) from ingest.documents", root).rows == [(2,)]
    odd = tmp_path / "it's"
    shutil.copytree("data", odd)
    assert catalog.query("select count(*) from ingest.documents", odd).rows == [(2,)]


def test_a_catalog_that_is_being_written_to_is_a_transient_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program has the file open for writing; in the tests' own process that would be another error."""
    path = Path("data/catalog.duckdb")
    real = duckdb.connect

    def connect(file: str, *, read_only: bool = False) -> duckdb.DuckDBPyConnection:
        raise duckdb.IOException("Could not set lock on file: Conflicting lock is held")

    monkeypatch.setattr(catalog, "refresh", lambda *_: path)
    monkeypatch.setattr(catalog.duckdb, "connect", connect)
    with pytest.raises(TransientError, match="Conflicting lock is held"):
        catalog.query("select 1")
    monkeypatch.setattr(catalog.duckdb, "connect", real)
