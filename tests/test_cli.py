"""The command: verify, export, inspect, catalog, sql, doctor, models keep, on a tiny data directory."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from safetensors.numpy import save_file

from pipeline import doctor, tables
from pipeline import inspect as inspection
from pipeline.certificates import REJECT_CODES
from pipeline.files import COMPLETE, check_complete, publish_directory, read_json
from pipeline.spans import Span
from tests import tiny
from tests.conftest import Run

RANKED = "data/rank/rm_attach/closed"
col, lit = pl.col, pl.lit


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("workspace")
    tiny.write(workspace / "data")
    for name in ("params.yaml", "requirements"):
        source = tiny.ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, workspace / name)
    return workspace


@pytest.fixture(autouse=True)
def _workspace(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CERTRANK_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


def subprocess_run(*args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}
    command = [sys.executable, "-m", "pipeline.cli", *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


# ---- the command itself ---------------------------------------------------------------------------------------------


def test_help_answers_at_once() -> None:
    started = time.process_time()
    before = os.times()
    done = subprocess_run("--help")
    after = os.times()
    assert done.returncode == 0
    for command in (
        "verify",
        "export",
        "inspect",
        "catalog",
        "sql",
        "doctor",
        "models",
        "intents",
        "summary",
        "extract",
    ):
        assert command in done.stdout
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used < 1.0, f"{used:.2f} s of CPU: something heavy is imported at start-up"
    assert time.process_time() - started < 1.0


def test_nothing_heavy_is_imported_at_start() -> None:
    code = "import sys, pipeline.cli; print([m for m in ('polars', 'duckdb', 'pyarrow', 'torch') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_real_command_end_to_end() -> None:
    assert subprocess_run("export", RANKED, "-o", "out.jsonl").returncode == 0
    done = subprocess_run("verify", "out.jsonl", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["passed"] is True
    tiny.change(Path("data"), "ingest/documents", col("text") + "!")
    done = subprocess_run("verify", "out.jsonl")
    assert done.returncode == 1
    assert "[document_changed]" in done.stdout


def test_a_reader_that_goes_away_is_met_with_silence() -> None:
    command = f"{sys.executable} -m pipeline.cli sql 'from range(200000)' --csv | head -1"
    environment = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("range\n", "")


def test_errors_are_one_line_and_debug_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = run("inspect", "w2\x1b[2J", "--system", "nosuch")
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("certrank: error: data/rank/nosuch/closed/rankings.parquet: table not found")
    assert subprocess_run("--debug", "inspect", "w9").stderr.startswith("Traceback")


def test_wrong_usage_exits_2(run: Run) -> None:
    assert run("verify", "--nosuch")[0] == 2
    assert run("sql")[0] == 2
    assert run("nosuch")[0] == 2
    assert run("sql", "select 1", "--rows", "many")[0] == 2


# ---- verify ---------------------------------------------------------------------------------------------------------


def report(run: Run, *args: str) -> tuple[int, dict[str, Any]]:
    code, out, _ = run("verify", *args, "--json")
    answer = json.loads(out)
    assert answer["passed"] is (code == 0)
    return code, answer["reports"][0]


def test_good_certificates_hold(run: Run) -> None:
    code, found = report(run, RANKED)
    assert code == 0
    assert (found["lists"], found["entries"], found["certified"], found["recovered"]) == (1, 1, 1, 1)
    assert found["failures"] == []
    code, out, _ = run("verify", RANKED)
    assert out.splitlines()[-1] == "every certificate holds"
    assert "the verifier was re-run on 1 entries" in out


def test_all_rankings_at_once(run: Run) -> None:
    shutil.copytree(RANKED, "data/rank/.rm_attach.7.partial")
    code, out, _ = run("verify", "--json")
    assert code == 0
    assert len(json.loads(out)["reports"]) == 6


DAMAGE: list[tuple[str, pl.Expr | list[pl.Expr], pl.Expr | None, str]] = [
    # table, change, rows, reject code
    ("ingest/documents", lit(tiny.TEXT.replace("Ann", "Eve")).alias("text"), col("window_id") == "w2",
     "document_changed"),
    (f"{RANKED[5:]}/certificates", lit("0" * 64).alias("sha256"), None, "document_changed"),
    (f"{RANKED[5:]}/certificates", lit("0" * 64).alias("sha256"), col("slot_id") == "s2", "document_changed"),
    (f"{RANKED[5:]}/certificates", col("end") + 900, None, "out_of_text"),
    (f"{RANKED[5:]}/certificates", lit("w1:doc-1").alias("doc_id"), None, "foreign_document"),
    (f"{RANKED[5:]}/certificates", lit("w3:doc-1").alias("doc_id"), None, "unknown_document"),
    (f"{RANKED[5:]}/certificates", lit(0).alias("end"), None, "empty_span"),
    (f"{RANKED[5:]}/certificates", lit(-1).alias("start"), None, "negative_offset"),
    (f"{RANKED[5:]}/certificates", [lit(0).alias("start"), lit(56).alias("end")], None, "repeated_span"),
    (f"{RANKED[5:]}/certificates", lit(2).alias("start"), None, "overlapping_spans"),
    (f"{RANKED[5:]}/certificates", lit("s2").alias("slot_id"), None, "too_many_handles"),
    (f"{RANKED[5:]}/certificates", lit(2).alias("rank"), None, "unknown_candidate"),
    (f"{RANKED[5:]}/rankings", lit(3).alias("rank"), col("emitted"), "rank_order"),
    # found by re-running validity and the verifier
    (f"{RANKED[5:]}/certificates", col("end") - 1, col("slot_id") == "s1", "not_a_handle"),
    (f"{RANKED[5:]}/certificates", lit("s3").alias("slot_id"), col("slot_id") == "s2", "unknown_slot"),
    ("trajectories/closed/steps", lit("victim").alias("role"), None, "not_recovered"),
    ("trajectories/closed/handles", lit("mention").alias("kind"), None, "no_trigger"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("table", "change", "where", "reject"), DAMAGE, ids=[f"{d[3]}-{i}" for i, d in enumerate(DAMAGE)]
)
def test_damage_is_rejected(run: Run, table: str, change: pl.Expr, where: pl.Expr | None, reject: str) -> None:
    assert reject in REJECT_CODES
    tiny.change(Path("data"), table, change, where)
    code, found = report(run, RANKED)
    assert code == 1
    assert reject in [failure["code"] for failure in found["failures"]], found["failures"]
    code, out, _ = run("verify", RANKED)
    assert code == 1
    assert f"[{reject}] {REJECT_CODES[reject]}" in out
    assert out.splitlines()[-1].endswith("do not hold")


def test_what_its_system_calls_uncertified_is_no_failure(run: Run) -> None:
    change = [lit("uncertified").alias("status"), lit("not_recovered").alias("reject_code")]
    tiny.change(Path("data"), f"{RANKED[5:]}/rankings", change, col("emitted"))
    tiny.change(Path("data"), f"{RANKED[5:]}/certificates", col("end") + 900)
    code, found = report(run, RANKED)
    assert code == 0
    assert (found["certified"], found["uncertified"]) == (0, {"not_recovered": 1})


def test_recover_is_a_choice(run: Run) -> None:
    tiny.change(Path("data"), "trajectories/closed/steps", lit("victim").alias("role"))
    assert report(run, RANKED)[0] == 1
    code, found = report(run, RANKED, "--no-recover")
    assert (code, found["recovered"]) == (0, None)
    shutil.rmtree("data/trajectories")
    assert report(run, RANKED)[1]["recovered"] is None
    code, _, err = run("verify", RANKED, "--recover")
    assert code == 1
    assert "no trajectories at hand" in err


def test_a_list_of_another_window_is_counted_as_not_re_run(run: Run) -> None:
    tiny.change(Path("data"), "roster/windows", lit(False).alias("kept"))
    code, found = report(run, RANKED)
    assert (code, found["recovered"], found["skipped"]) == (0, 0, 1)


def test_without_params_the_default_limits_hold(run: Run) -> None:
    Path("params.yaml").unlink()
    code, out, _ = run("verify", RANKED)
    assert code == 0
    assert "limits are the default ones" in out


def test_rows_out_of_order_or_of_nobody_are_an_error(run: Run) -> None:
    name = f"{RANKED[5:]}/rankings"
    frame = tables.read(name, "data")
    with tables.Writer(name, "data") as writer:
        writer.append(frame.with_columns(window_id=lit("w1")))
    code, _, err = run("verify", RANKED)
    assert code == 1
    assert "certificates of ('w2', 'attack'), which is not ranked" in err


@pytest.mark.parametrize("name", ["nosuch", "requirements"])
def test_nothing_to_verify_is_an_error(run: Run, name: str) -> None:
    code, _, err = run("verify", name)
    assert code == 1
    assert len(err.splitlines()) == 1


# ---- the interchange form -------------------------------------------------------------------------------------------


def exported(run: Run) -> dict[str, Any]:
    code, out, _ = run("export", RANKED)
    assert code == 0
    (line,) = out.splitlines()
    value = json.loads(line)
    assert isinstance(value, dict)
    return value


def test_export_round_trips(run: Run) -> None:
    value = exported(run)
    assert value["entries"][0]["slots"][0]["spans"][0]["text"] == "Ann"
    Path("x.jsonl").write_text(json.dumps(value) + "\n\n" + json.dumps(value) + "\n", encoding="utf-8")
    code, found = report(run, "x.jsonl", "--setting", "closed")
    assert (code, found["lists"], found["recovered"]) == (0, 2, 2)
    Path("x.json").write_text(json.dumps(value, indent=2), encoding="utf-8")
    assert report(run, "x.json")[0] == 0


def test_export_leaves_out_what_is_not_certified(run: Run) -> None:
    tiny.change(Path("data"), f"{RANKED[5:]}/rankings", lit("uncertified").alias("status"))
    assert exported(run)["entries"] == []
    out = run("export", RANKED, "--uncertified")[1]
    assert len(json.loads(out)["entries"]) == 1


def test_a_failed_export_leaves_no_file(run: Run) -> None:
    tiny.change(Path("data"), f"{RANKED[5:]}/certificates", col("end") + 900)
    code, _, err = run("export", RANKED, "--out", "x.jsonl")
    assert code == 1
    assert "[out_of_text]" in err
    assert not [p for p in Path().iterdir() if "x.jsonl" in p.name]


def test_a_json_lines_corpus_will_do(run: Run) -> None:
    Path("x.jsonl").write_text(json.dumps(exported(run)), encoding="utf-8")
    documents = [{"doc_id": f"{w}:doc-1", "group": w, "text": tiny.TEXT} for w in ("w1", "w2")]
    lines = "\n".join(json.dumps(d) for d in documents)
    Path("corpus").mkdir()
    Path("corpus/a.jsonl").write_text(lines + "\n", encoding="utf-8")
    shutil.rmtree("data")
    assert report(run, "x.jsonl", "--corpus", "corpus")[0] == 0
    assert report(run, "x.jsonl", "--corpus", "corpus/a.jsonl")[0] == 0
    Path("corpus/a.jsonl").write_text(lines.replace("Ann", "Ama"), encoding="utf-8")
    found = report(run, "x.jsonl", "--corpus", "corpus")[1]
    assert [f["code"] for f in found["failures"]] == ["document_changed"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "corpus.jsonl:1: not JSON"),
        ('{"text": 1}', "corpus.jsonl:1: text: a document needs a text"),
        ('{"text": "a", "doc_id": 7}', "corpus.jsonl:1: doc_id and group are strings"),
        ('{"text": "a", "doc_id": "d"}\n{"text": "b", "doc_id": "d"}', "corpus.jsonl:2: document 'd' stands twice"),
    ],
)
def test_a_broken_corpus_names_its_line(run: Run, text: str, message: str) -> None:
    Path("corpus.jsonl").write_text(text)
    code, _, err = run("verify", RANKED, "--corpus", "corpus.jsonl")
    assert code == 1
    assert message in err
    assert run("verify", RANKED, "--corpus", "nosuch")[0] == 1


TAMPER: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("offset", lambda v: span(v).update(start=3), "text_mismatch"),
    ("text", lambda v: span(v).update(text="Bob"), "text_mismatch"),
    ("bool", lambda v: span(v).update(start=True), "offset_type"),
    ("float", lambda v: span(v).update(end=5.0), "offset_type"),
    ("negative", lambda v: span(v).update(start=-1), "negative_offset"),
    ("hash", lambda v: v["documents"].update({"w2:doc-1": "0" * 64}), "document_changed"),
    ("window", lambda v: v.update(window_id="w1"), "foreign_document"),
    ("rank", lambda v: v["entries"][0].update(rank=2), "rank_order"),
    ("version", lambda v: v.update(version=2), "version"),
    ("key", lambda v: v.update(note="trust me"), "unknown_key"),
    ("more than K", lambda v: v.update(k=0), "too_many_entries"),
]  # fmt: skip


def span(value: dict[str, Any]) -> dict[str, Any]:
    found = value["entries"][0]["slots"][0]["spans"][0]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(("change", "reject"), [t[1:] for t in TAMPER], ids=[t[0] for t in TAMPER])
def test_a_tampered_file_is_rejected(run: Run, change: Callable[[dict[str, Any]], object], reject: str) -> None:
    value = exported(run)
    good = json.dumps(value)
    change(value)
    Path("x.jsonl").write_text(good + "\n" + json.dumps(value) + "\n", encoding="utf-8")
    code, found = report(run, "x.jsonl")
    assert code == 1
    assert [f["code"] for f in found["failures"]] == [reject]


@pytest.mark.parametrize("raw", [b'{"version": 1', b"\xff\xfe{}", b"[]", b'{"k": 1, "k": 2}'])
def test_a_line_that_cannot_be_read_is_a_failure_with_its_place(run: Run, raw: bytes) -> None:
    good = json.dumps(exported(run)).encode()
    Path("x.jsonl").write_bytes(good + b"\n" + raw + b"\n" + good + b"\n")
    code, found = report(run, "x.jsonl")
    assert code == 1
    assert found["certified"] == 2
    (failure,) = found["failures"]
    assert failure["place"] == "x.jsonl:2"


def test_an_empty_file_is_an_error(run: Run) -> None:
    Path("x.jsonl").write_text("\n")
    code, _, err = run("verify", "x.jsonl")
    assert (code, err) == (1, "certrank: error: x.jsonl: no list in this file\n")


# ---- inspect --------------------------------------------------------------------------------------------------------


def test_inspect_shows_ranking_and_highlighted_evidence(run: Run) -> None:
    code, out, _ = run("inspect", "w2")
    assert code == 0
    assert "w2  test, closed roster of 4, K = 2" in out
    assert "rm_attach: Who attacked? (attack)" in out
    assert "s1 Ann, bought; s2 Ann, shot" in out
    assert "[[Ann]]#1 [[bought]]#1 a gun. Bob met Cide\N{COMBINING ACUTE ACCENT}. [[Ann]]#1 [[shot]]#1 Dan" in out
    brief = run("inspect", "w2", "--brief")[1]
    assert "[[shot]]#1" in brief
    assert "Bob met" not in brief


def test_inspect_cuts_an_extremely_long_name(run: Run) -> None:
    table = "rank/rm_attach/closed/rankings"
    tables.write(table, tables.read(table).with_columns(lit("N" * 50_000).alias("name")))
    code, out, _ = run("inspect", "w2")
    assert code == 0
    assert len(out) < 5_000
    assert out.count("N") < 2 * inspection.SHORT + 20


def test_inspect_as_json(run: Run) -> None:
    out = run("inspect", "w2", "--system", "oracle", "--setting", "hybrid", "--json")[1]
    (value,) = json.loads(out)
    assert (value["system"], value["setting"], value["intent_id"]) == ("oracle", "hybrid", "attack")
    first = value["entries"][0]
    assert first["status"] == "certified"
    for cited in first["evidence"]:
        doc_id, _, offsets = cited["span"].rpartition(":")
        start, end = map(int, offsets.split("-"))
        (document,) = [d for d in value["documents"] if d["doc_id"] == doc_id]
        assert document["text"][start:end] == cited["text"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nosuch"], "WINDOW: no window 'nosuch'; for example 'w2'"),
        (["w1"], "window 'w1' is of split train, which was not ranked; add train to rank.splits"),
        (["w2", "--intent", "x"], "--intent: no intent 'x' here; one of attack"),
        (["w2", "--system", "random"], "table not found"),
    ],
)
def test_inspect_says_why_there_is_nothing(run: Run, args: list[str], message: str) -> None:
    code, out, err = run("inspect", *args)
    assert (code, out) == (1, "")
    assert message in err


def test_inspect_takes_the_first_roster_with_a_candidate(run: Run) -> None:
    """Without annotation the closed roster is empty, and nothing is ranked in it."""
    tiny.change(Path("data"), "roster/windows", lit(0).alias("n_closed"))
    rankings = tables.path("rank/rm_attach/closed/rankings")
    tables.write("rank/rm_attach/closed/rankings", tables.read("rank/rm_attach/closed/rankings").clear())
    assert rankings.is_file()
    code, out, _ = run("inspect", "w2")
    assert code == 0
    assert "predicted roster of 4" in out
    code, _, err = run("inspect", "w2", "--setting", "closed")
    assert code == 1
    assert "nobody stands in the closed roster of window 'w2'; one of predicted, hybrid" in err


def test_inspect_says_why_a_window_was_dropped(run: Run) -> None:
    tiny.change(Path("data"), "roster/windows", [lit(False).alias("kept"), lit("too few candidates").alias("dropped")],
                col("window_id") == "w1")  # fmt: skip
    assert "window 'w1' is not ranked: too few candidates" in run("inspect", "w1")[2]


def test_hostile_text_cannot_drive_the_terminal() -> None:
    hostile = "a\x1b[2J\x07\u202eb\r\nc\x7f[bold]d[/bold]"
    safe = inspection.shown(hostile)
    assert len(safe) == len(hostile)
    assert all(c.isprintable() or c == "\n" for c in safe)
    marked = inspection.highlight(hostile, [inspection.Cited(1, "s1", Span("d", 0, 4), "x")], 0, len(hostile))
    assert "\x1b" not in marked.plain
    assert "[bold]" in marked.plain


def test_overlapping_marks_show_every_rank() -> None:
    marks = [inspection.Cited(1, "s1", Span("d", 0, 3), "abc"), inspection.Cited(2, "s1", Span("d", 0, 3), "abc"),
             inspection.Cited(2, "s2", Span("d", 2, 5), "cde")]  # fmt: skip
    assert inspection.highlight("abcdef", marks, 0, 6).plain == "[[abc]]#1,#2def"


# ---- catalog and sql ------------------------------------------------------------------------------------------------


def test_catalog_lists_views(run: Run) -> None:
    code, out, _ = run("catalog")
    assert code == 0
    assert "rank.rankings" in out
    views = {view.pop("view"): view for view in json.loads(run("catalog", "--json")[1])["views"]}
    assert (views["rank.rankings"]["files"], views["rank.rankings"]["rows"]) == (6, 12)


def test_sql_answers_as_table_csv_and_json(run: Run) -> None:
    question = "select system, rank, name from rank.rankings where setting = 'closed' order by all"
    expected = [["oracle", 1, "Ann"], ["oracle", 2, "Dan"], ["rm_attach", 1, "Ann"], ["rm_attach", 2, "Dan"]]
    out = run("sql", question)[1]
    assert [line.split() for line in out.splitlines()[1:]] == [[str(v) for v in row] for row in expected]
    rows = list(csv.reader(io.StringIO(run("sql", question, "--csv")[1])))
    assert rows == [["system", "rank", "name"], *[[str(v) for v in row] for row in expected]]
    assert [list(r.values()) for r in json.loads(run("sql", question, "--json")[1])] == expected
    out, err = run("sql", question, "--rows", "1")[1:]
    assert len(out.splitlines()) == 2
    assert err == "3 more rows: --rows 0 shows all\n"


def test_sql_prints_hostile_values_on_one_line(run: Run) -> None:
    out = run("sql", "select 'a' || chr(27) || '[2J' || chr(10) || '[bold]' as x")[1]
    assert out.splitlines() == ["x".ljust(len(r"a\x1b[2J\n[bold]")), r"a\x1b[2J\n[bold]"]


def test_sql_json_is_valid_json(run: Run) -> None:
    (row,) = json.loads(run("sql", "select 'nan'::double as a, date '2021-03-04' as b, [1, 2] as c, null as d",
                            "--json")[1])  # fmt: skip
    assert row == {"a": "nan", "b": "2021-03-04", "c": [1, 2], "d": None}


def test_sql_cannot_write(run: Run) -> None:
    code, out, err = run("sql", "copy (select 1) to 'data/ingest/documents.parquet'")
    assert (code, out) == (1, "")
    assert err == "certrank: error: sql: the catalog is read-only and answers one SELECT at a time\n"


# ---- models keep ----------------------------------------------------------------------------------------------------


def publish_models() -> None:
    import numpy as np

    for name in ("extract", "reward"):
        with publish_directory(Path("models") / name) as folder:
            save_file({"w": np.ones(2)}, folder / "model.safetensors")
            (folder / "parts").mkdir()
            (folder / "parts" / "a.json").write_text("{}")


def test_models_are_kept_whole(run: Run) -> None:
    publish_models()
    code, out, _ = run("models", "keep", "news-2021")
    assert code == 0
    assert "extract.from: news-2021" in out
    for name in ("extract", "reward"):
        kept = check_complete(Path("models/fitted/news-2021") / name)
        assert read_json(kept / COMPLETE) == read_json(Path("models") / name / COMPLETE)
    code, _, err = run("models", "keep", "news-2021")
    assert code == 1
    assert "is taken" in err
    assert json.loads(run("models", "keep", "news-2021", "--replace", "--json")[1])["name"] == "news-2021"


@pytest.mark.parametrize("name", ["../up", "A", "", "a/b", ".hidden", "a b"])
def test_odd_names_are_refused(run: Run, name: str) -> None:
    publish_models()
    code, _, err = run("models", "keep", name)
    assert code == 1
    assert "is no name for a model" in err


def test_an_incomplete_model_is_not_kept(run: Run) -> None:
    publish_models()
    (Path("models/reward") / COMPLETE).unlink()
    code, _, err = run("models", "keep", "a")
    assert code == 1
    assert "not a complete artifact" in err
    assert not Path("models/fitted/a").exists()


def test_a_list_that_cannot_be_read_is_one_plain_line(run: Run) -> None:
    Path("x.jsonl").write_text('{"window_id": "w", "window_id": "w"}\n', encoding="utf-8")
    code, out, _ = run("verify", "x.jsonl", "--setting", "closed")
    assert code == 1
    assert out.startswith("x.jsonl:1: [duplicate_key] key 'window_id' stands twice")


# ---- doctor ---------------------------------------------------------------------------------------------------------


def findings(run: Run) -> dict[str, list[dict[str, str]]]:
    code, out, _ = run("doctor", "--json")
    answer = json.loads(out)
    assert answer["passed"] is (code == 0)
    by_check: dict[str, list[dict[str, str]]] = {}
    for finding in answer["findings"]:
        by_check.setdefault(finding["check"], []).append(finding)
    return by_check


def test_doctor_names_every_problem_and_its_remedy(run: Run) -> None:
    shutil.copytree(RANKED, "data/rank/leftover/closed")
    Path("data/extract/.events.parquet.7.partial").write_bytes(b"")
    broken = Path("data/extract/events.parquet")
    broken.write_bytes(broken.read_bytes()[:20])
    found = findings(run)
    assert found["python"][0]["level"] == "ok"
    assert found["params"][0]["level"] == "ok"
    assert "stages/ingest/sample does not exist" in found["corpus"][0]["what"]
    what = " | ".join(f["what"] for f in found["data"])
    assert "tables are missing" in what
    assert "not a readable Parquet file" in what
    assert "rankings that params.yaml does not list: rank/leftover/closed" in what
    assert "no .dvc" in found["dvc"][0]["what"]
    assert "half-written" in found["leftovers"][0]["what"]
    problems = [f for group in found.values() for f in group if f["level"] != "ok"]
    assert all(f["mend"] for f in problems)
    code, out, _ = run("doctor")
    assert code == 1
    assert "FAIL  corpus" in out


def test_doctor_sees_wrong_params(run: Run) -> None:
    Path("params.yaml").write_text("seed: 1\n")
    found = findings(run)
    assert found["params"][0]["level"] == "fail"
    assert "data" not in found


def test_doctor_sees_data_changed_after_its_check(run: Run) -> None:
    (Path("data") / "quality").mkdir()
    Path("stages/extract").mkdir(parents=True)
    Path("stages/extract/expectations.yaml").write_text("tables: {}")
    Path("data/quality/extract.json").write_text('{"passed": true, "tables": {"extract/events": "0"}}')
    (finding,) = findings(run)["quality"]
    assert (finding["level"], finding["what"]) == (
        "fail", "1 tables changed after they were checked, first extract/events",
    )  # fmt: skip


def test_doctor_sees_a_model_that_was_changed_or_lost_a_file(run: Run) -> None:
    with publish_directory("models/reward") as folder:
        (folder / "config.json").write_text("{}")
        (folder / "README.md").write_text("A card.")
    (finding,) = findings(run)["models"]
    assert (finding["level"], finding["what"]) == ("ok", "1 models are as they were published")
    Path("models/reward/README.md").write_text("Another card.")
    (finding,) = findings(run)["models"]
    assert finding["level"] == "fail"
    assert finding["what"].startswith("models/reward/README.md: this file was changed after it was published")
    Path("models/reward/README.md").unlink()
    assert "a file of this artifact is missing" in findings(run)["models"][0]["what"]
    Path("models/reward/_COMPLETE").write_text("{")
    assert "models/reward/_COMPLETE: not valid JSON" in findings(run)["models"][0]["what"]


@pytest.mark.parametrize("content", ["[]", "{}", '{"tables": 3}', "{"])
def test_doctor_sees_a_broken_answer_of_a_check(run: Run, content: str) -> None:
    Path("data/quality").mkdir()
    Path("stages/extract").mkdir(parents=True)
    Path("stages/extract/expectations.yaml").write_text("tables: {}")
    Path("data/quality/extract.json").write_text(content)
    (finding,) = findings(run)["quality"]
    assert finding["level"] == "fail"
    assert "data/quality/extract.json" in finding["what"]


def test_doctor_sees_rankings_built_for_another_intent(run: Run) -> None:
    Path("intents/sample").mkdir(parents=True)
    Path("intents/sample/attack.yaml").write_text(
        "id: attack\nversion: 2\ntitle: Who?\nslots: [{id: s1, types: [A], roles: [r], weight: 1.0, climax: true}]\n"
    )
    found = findings(run)["intents"]
    assert [f["level"] for f in found] == ["ok", "warn"]
    assert "another version of attack" in found[1]["what"]


def test_pins_are_read_from_a_lock_file(tmp_path: Path) -> None:
    lock = tmp_path / "main.txt"
    lock.write_text(
        "# comment\nnumpy==1.2.3 \\\n    --hash=sha256:ab\nPy.Yaml[x]==5.0 ; python_version < '4'\n    # via numpy==9\n"
    )
    assert doctor.pins(lock) == {"numpy": "1.2.3", "py.yaml": "5.0"}
    (finding,) = doctor._packages(lock)
    assert finding.level == "fail"
    assert "numpy" in finding.what
    assert finding.mend


def test_the_environment_of_the_tests_is_the_pinned_one() -> None:
    (finding,) = doctor._packages(tiny.ROOT / "requirements/main.txt")
    assert finding.level == "ok", finding.what


# ---- intents and summary --------------------------------------------------------------------------------------------


def test_mining_is_mounted(run: Run) -> None:
    code, out, _ = run("intents", "mine", "--help")
    assert code == 0
    assert "--support" in out
    assert run("intents", "mine", "--nosuch")[0] == 2


def test_mining_without_data_is_one_line(run: Run) -> None:
    shutil.rmtree("data")
    code, _, err = run("intents", "mine", "out")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert err.startswith("certrank: error: ")


def test_summary_before_the_first_run_is_one_line(run: Run) -> None:
    code, _, err = run("summary")
    assert code == 1
    assert "metrics.json: file not found" in err
