"""How a stage starts and ends: one line on stderr, an exit code, a recorded failure class."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from pipeline import stage
from pipeline.errors import DataError, TransientError
from pipeline.files import read_json
from pipeline.params import Params

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CERTRANK_DEBUG", raising=False)
    shutil.copy(ROOT / "params.yaml", tmp_path)


def fail(error: BaseException) -> Callable[[Params], None]:
    def main(params: Params) -> None:
        raise error

    return main


def outcome(name: str, main: Callable[[Params], None]) -> tuple[int, dict[str, str]]:
    with pytest.raises(SystemExit) as caught:
        stage.run(name, main)
    assert isinstance(caught.value.code, int)
    return caught.value.code, read_json(f"data/.work/failures/{name.replace('/', '_')}.json")


def test_success_says_how_long_and_leaves_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Params] = []
    stage.run("ingest", seen.append)
    assert seen[0].ingest.source == "sample"
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ingest: done in ")
    assert not Path("data/.work/failures").exists()


def test_a_success_clears_the_failure_of_an_earlier_run() -> None:
    outcome("ingest", fail(DataError("bad")))
    stage.run("ingest", lambda params: None)
    assert not Path("data/.work/failures/ingest.json").exists()


def test_bad_input_is_one_line_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    code, record = outcome("ingest", fail(DataError("offset outside the text", file="a.jsonl", line=3)))
    assert code == 1
    assert record["class"] == "data"
    assert capsys.readouterr().err == "ingest: error: a.jsonl:3: offset outside the text\n"


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CERTRANK_DEBUG", "1")
    outcome("ingest", fail(DataError("bad")))
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_transient_error_exits_75() -> None:
    code, record = outcome("rank@random-closed", fail(TransientError("the server died")))
    assert (code, record["class"]) == (75, "transient")


def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, record = outcome("extract", fail(OSError(errno.ENOSPC, "x", "data/extract/events.parquet")))
    assert (code, record["class"]) == (75, "transient")
    err = capsys.readouterr().err
    place = f"data/extract/events.parquet: {os.strerror(errno.ENOSPC)}"
    assert err == f"extract: error: {place}; free some space, then run it again\n"


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.OperationalError("database or disk is full"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_under_a_library_with_errors_of_its_own(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    code, record = outcome("reward", fail(error))
    assert (code, record["class"]) == (75, "transient")
    expected = f"reward: error: disk: {os.strerror(errno.ENOSPC)}; free some space, then run it again\n"
    assert capsys.readouterr().err == expected


def test_other_errors_of_these_libraries_are_bugs() -> None:
    assert outcome("reward", fail(sqlite3.OperationalError("no such table: line")))[1]["class"] == "bug"


def test_a_disk_too_full_to_record_the_failure_is_still_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stage, "write_failure", full)
    with pytest.raises(SystemExit) as caught:
        stage.run("extract", fail(OSError(errno.ENOSPC, "x")))
    assert caught.value.code == 75
    assert capsys.readouterr().err.count("\n") == 1


def test_a_full_disk_under_arrow_is_recognised() -> None:
    """pyarrow's own error carries the errno."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, which always answers that the disk is full")

    def main(params: Params) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"a": list(range(1000))}), "/dev/full")

    code, record = outcome("extract", main)
    assert (code, record["class"]) == (75, "transient")


def test_missing_rights_are_one_line_and_no_retry(capsys: pytest.CaptureFixture[str]) -> None:
    code, record = outcome("extract", fail(PermissionError(errno.EACCES, "x", "data/extract")))
    assert (code, record["class"]) == (1, "data")
    assert capsys.readouterr().err == f"extract: error: data/extract: {os.strerror(errno.EACCES)}\n"


def test_anything_else_is_a_bug_with_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    code, record = outcome("extract", fail(KeyError("entity")))
    assert (code, record["class"]) == (1, "bug")
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1] == "extract: error: KeyError: 'entity'"


def test_a_hostile_message_of_a_bug_stays_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    outcome("extract", fail(RuntimeError("a\x1b[2J\nb")))
    assert capsys.readouterr().err.splitlines()[-1] == r"extract: error: RuntimeError: a\x1b[2J\nb"


def test_wrong_params_stop_before_the_stage_runs() -> None:
    Path("params.yaml").write_text("seed: 1\n")
    seen: list[Params] = []
    code, record = outcome("ingest", seen.append)
    assert (code, seen) == (1, [])
    assert record["message"] == "params.yaml: ingest: missing key"


def test_the_exit_code_survives_an_unwritable_work_directory(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stage, "write_failure", full)
    with pytest.raises(SystemExit) as caught:
        stage.run("ingest", fail(DataError("bad")))
    assert caught.value.code == 1
    assert "the failure class could not be recorded" in capsys.readouterr().err


def test_an_interrupt_is_not_swallowed() -> None:
    with pytest.raises(KeyboardInterrupt):
        stage.run("ingest", fail(KeyboardInterrupt()))


def test_progress_yields_everything_and_speaks_only_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 100, 2))
    monkeypatch.setattr(stage.time, "monotonic", lambda: next(clock))
    assert list(stage.progress("abcd", "shards", 4)) == list("abcd")
    out, err = capsys.readouterr()
    assert out == ""
    assert "shards: 1/4" in err
