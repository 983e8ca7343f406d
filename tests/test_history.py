"""Tables, metrics and rankings across revisions, from DVC's cache alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import history, tables
from pipeline.errors import DataError
from tests import toy
from tests.conftest import Run

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # within DVC

RANKINGS = "rank/random/closed/rankings"
DVC_YAML = """
stages:
  rank:
    cmd: cp -r made/rank made/ingest made/audit data/
    deps: [made]
    outs: [data/rank, data/ingest/sentences.parquet, {data/audit/metrics.json: {cache: false}}]
"""


def ranking(window: str, candidates: list[str]) -> list[dict[str, Any]]:
    return [
        {"window_id": window, "intent_id": "theft", "split": "test", "rank": i, "candidate_id": c, "local_id": f"C{i}",
         "name": c, "score": 1 / i, "emitted": True, "status": "certified", "reject_code": None}
        for i, c in enumerate(candidates, 1)
    ]  # fmt: skip


def write(rankings: dict[str, list[str]], sentences: int, ndcg: float, page: bool = False) -> None:
    rows = [row for window, candidates in rankings.items() for row in ranking(window, candidates)]
    for name, frame in {
        RANKINGS: tables.TABLES["rank/<system>/<setting>/rankings"].frame(rows),
        "ingest/sentences": pl.DataFrame({"window_id": ["w"] * sentences, "start": list(range(sentences))}),
    }.items():
        file = Path("made") / f"{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        table = frame.to_arrow()
        if page and name == "ingest/sentences":
            table = table.append_column("page", pa.array(["1"] * sentences))
        pq.write_table(table, file)
    metrics = {s: {"closed": {"cert_ndcg": {"value": v}}} for s, v in (("random", ndcg), ("oracle", 1.0))}
    Path("made/audit").mkdir(exist_ok=True)
    Path("made/audit/metrics.json").write_text(json.dumps(metrics))
    Path("data").mkdir(exist_ok=True)
    toy.dvc(Path(), "repro", "-q")
    toy.commit(Path())


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = toy.make(tmp_path_factory.mktemp("history") / "repo")
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / ".gitignore").write_text("/data/*\n/made\n/pipeline\n!/data/audit\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write({"w1": ["ada", "bob"], "w2": ["cay", "dot"]}, sentences=3, ndcg=0.5)
        subprocess.run(["git", "tag", "first"], check=True)
        write({"w1": ["bob", "ada"], "w2": ["cay", "dot"], "w3": ["eve"]}, sentences=3, ndcg=0.75, page=True)
    yield folder


@pytest.fixture(autouse=True)
def _there(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)


def test_history_lists_the_revisions_of_the_lock() -> None:
    rows = history.history()
    assert [(r["tables"], r["rows"], r["cert_ndcg"]) for r in rows] == [
        (2, 8, "0.7500 random closed"), (2, 7, "0.5000 random closed"),
    ]  # fmt: skip


def test_a_table_is_shown_as_it_was() -> None:
    then = history.show(RANKINGS, "first")
    assert [row[then.columns.index("candidate_id")] for row in then.rows] == ["ada", "bob", "cay", "dot"]
    by_view = history.show("rank.rankings", "first", rows=2)
    assert by_view.columns[:2] == ["system", "setting"] and len(by_view.rows) == 2
    assert "page" in history.show("ingest.sentences", "HEAD").columns
    assert "page" not in history.show("ingest.sentences", "HEAD~1").columns
    assert history.query("select count(*) as n from rank.rankings", "first").rows == [(4,)]


def test_the_difference_names_rows_schema_metrics_and_rankings() -> None:
    found = history.diff("first", "HEAD")
    assert found.tables == [("ingest/sentences", 3, 3, "+ page string"), (RANKINGS, 4, 5, "")]
    assert found.metrics == [(("random", "closed", "cert_ndcg"), 0.5, 0.75)]
    assert found.rankings == [
        ("random", "closed", "w1", "theft", ["ada", "bob"], ["bob", "ada"]),
        ("random", "closed", "w3", "theft", [], ["eve"]),
    ]
    assert found.lacking == []
    same = history.diff("HEAD", ".")
    assert (same.tables, same.metrics, same.rankings) == ([], [], [])


@pytest.mark.parametrize("revision", ["nowhere", "--output=x", "-1", "HEAD~9"])
def test_an_unknown_revision_is_named(revision: str) -> None:
    with pytest.raises(DataError, match="no such revision"):
        history.At(revision)


def test_an_unknown_table_and_a_revision_without_a_lock_are_named() -> None:
    with pytest.raises(DataError, match=r"no table 'rank\.nothing'.*ingest\.sentences, rank\.rankings"):
        history.show("rank.nothing", "HEAD")
    with pytest.raises(DataError, match=r"no dvc\.lock"):
        history.At("HEAD~2")


def test_a_query_reads_the_revision_and_nothing_else(repository: Path) -> None:
    for sql in (
        "select * from read_text('params.yaml')", "copy (select 1) to 'x.csv'", "attach 'x.duckdb'",
        "set enable_external_access=true", "select * from 'data/rank/random/closed/rankings.parquet'",
    ):  # fmt: skip
        with pytest.raises(DataError):
            history.query(sql, "HEAD")
    assert not (repository / "x.csv").exists() and not (repository / "x.duckdb").exists()


def test_the_commands(run: Run) -> None:
    code, out, _ = run("history", "--json")
    assert code == 0 and len(json.loads(out)) == 2
    code, out, _ = run("diff", "first", "HEAD")
    assert code == 0 and "+ page string" in out and "0.25" in out and "rankings: 2 changed" in out
    code, out, _ = run("diff", "first", "HEAD", "--json")
    assert json.loads(out)["metrics"] == [["random.closed.cert_ndcg", 0.5, 0.75]]
    code, out, _ = run("show", f"{RANKINGS}@first", "--json")
    assert code == 0 and [row["candidate_id"] for row in json.loads(out)] == ["ada", "bob", "cay", "dot"]
    code, out, _ = run("sql", "select count(*) as n from rank.rankings", "--at", "first", "--json")
    assert json.loads(out) == [{"n": 4}]
    code, _, err = run("show", "rank.rankings@nowhere")
    assert code == 1 and err.count("\n") == 1


def test_what_the_cache_lacks_is_said(repository: Path) -> None:
    at = history.At("first")
    file = at.tables()["ingest/sentences"].file
    assert file is not None
    kept = file.with_suffix(".kept")
    file.rename(kept)
    try:
        assert history.diff("first", "HEAD").lacking == ["data/ingest/sentences.parquet"]
        assert history.diff("first", "HEAD").tables[0] == ("ingest/sentences", None, 3, "?")
        with pytest.raises(DataError, match="not in the cache: ingest/sentences"):
            history.show("ingest.sentences", "first")
    finally:
        kept.rename(file)
