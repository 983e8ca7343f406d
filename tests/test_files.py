"""Files are complete or absent: atomic writes, published directories, locks, failure classes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import files
from pipeline.errors import DataError, TransientError
from pipeline.files import COMPLETE, atomic_path, check_complete, publish_directory, read_json, work_lock, write_json

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    files.write_text(target, "old\n")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "old\n"
    assert [p.name for p in target.parent.iterdir()] == ["a.txt"]


def test_the_target_never_shows_a_part(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert temporary.parent == target.parent  # same file system, or rename is not atomic
    assert target.read_text() == "half"


def test_a_body_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_killed_in_the_middle(tmp_path: Path) -> None:
    """SIGKILL while writing: the old file stays whole; what is left carries a name that no reader takes for data."""
    target = tmp_path / "a.json"
    write_json(target, {"old": 1})
    code = (
        "import sys\nfrom pipeline.files import atomic_path\n"
        f"with atomic_path({str(target)!r}) as t:\n"
        "    f = t.open('w'); f.write('{\"half'); f.flush(); print('ready', flush=True); sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGKILL)
    assert read_json(target) == {"old": 1}
    left = [p.name for p in tmp_path.iterdir() if p != target]
    assert len(left) == 1
    assert left[0].startswith(".a.json.") and left[0].endswith(".partial")
    write_json(target, {"new": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]  # the next writer has swept it


def test_only_the_same_targets_leftovers_of_dead_processes_are_swept(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()  # reaped: nobody has its id now
    dead, alive = f"{child.pid}.partial", f"{os.getppid()}.partial"
    (tmp_path / f".a.{dead}").mkdir()
    (tmp_path / f".a.{dead}" / "half").write_text("x")
    (tmp_path / f".a.{99**9}.partial").write_text("an id that no system can have")
    kept = [f".a.{alive}", f".b.{dead}", f".a.b.{dead}", ".a.x.partial", f"a.{dead}"]
    for name in kept:
        (tmp_path / name).write_text("x")
    with publish_directory(tmp_path / "a") as folder:
        (folder / "new").write_text("y")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "a"])
    check_complete(tmp_path / "a")


def test_a_process_that_nobody_asks_about_is_dead(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and still there as a zombie
    (tmp_path / f".a.{child.pid}.partial").write_text("x")
    with atomic_path(tmp_path / "a") as partial:
        partial.write_text("y")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert child.wait() == 0


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.txt"
    files.write_text(target, "old\n")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(target, "new\n")
    assert target.read_text() == "old\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(
    st.text(), v), max_leaves=10))  # fmt: skip
def test_json_round_trips_and_is_canonical(value: object) -> None:
    path = Path("v.json")
    try:
        write_json(path, value)
    except UnicodeEncodeError:
        assert "\\ud" in json.dumps(value)  # a lone surrogate has no UTF-8 form
        return
    assert read_json(path) == value
    first = path.read_bytes()
    write_json(path, json.loads(json.dumps(value)))
    assert path.read_bytes() == first


def test_json_refuses_nan_before_anything_is_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json("v.json", {"x": float("nan")})
    assert not Path("v.json").exists()


def test_key_order_does_not_change_the_bytes() -> None:
    write_json("a.json", {"b": 1, "a": 2})
    write_json("b.json", {"a": 2, "b": 1})
    assert Path("a.json").read_bytes() == Path("b.json").read_bytes() == b'{\n  "a": 2,\n  "b": 1\n}\n'


def test_read_json_names_the_file() -> None:
    with pytest.raises(DataError, match=r"gone\.json: file not found"):
        read_json("gone.json")
    Path("bad.json").write_text("{")
    with pytest.raises(DataError, match=r"bad\.json: not valid JSON"):
        read_json("bad.json")
    Path("bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"bytes\.json: not valid JSON"):
        read_json("bytes.json")


# ---- published directories ------------------------------------------------------------------------------------------


def publish(final: Path, **contents: str) -> None:
    with publish_directory(final) as folder:
        for name, text in contents.items():
            (folder / name).write_text(text)


def test_a_published_directory_is_complete_and_replaces_the_old_one(tmp_path: Path) -> None:
    final = tmp_path / "model"
    publish(final, old="1")
    publish(final, new="2")
    assert check_complete(final) == final
    assert sorted(p.name for p in final.iterdir()) == [COMPLETE, "new"]
    assert read_json(final / COMPLETE) == {"new": files.sha256_file(final / "new")}


def test_nested_files_are_in_the_marker(tmp_path: Path) -> None:
    with publish_directory(tmp_path / "m") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "w").write_text("x")
    assert list(read_json(tmp_path / "m" / COMPLETE)) == ["sub/w"]


def test_a_failure_keeps_the_old_directory(tmp_path: Path) -> None:
    final = tmp_path / "model"
    publish(final, old="1")
    with pytest.raises(ZeroDivisionError), publish_directory(final) as folder:
        (folder / "new").write_text("2")
        raise ZeroDivisionError
    assert (check_complete(final) / "old").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / COMPLETE).unlink(), "no _COMPLETE marker"),
        (lambda d: (d / "w").unlink(), "a file of this artifact is missing"),
        (lambda d: (d / "w").write_text("y"), "was changed after it was published"),
        (lambda d: (d / COMPLETE).write_text('{"w": "ab'), "not valid JSON"),
        (lambda d: (d / COMPLETE).write_text("[]"), "marker is broken"),
    ],
)
def test_damage_is_found(tmp_path: Path, damage: object, message: str) -> None:
    publish(tmp_path / "m", w="x")
    assert callable(damage)
    damage(tmp_path / "m")
    with pytest.raises(DataError, match=message):
        check_complete(tmp_path / "m")


def test_a_missing_directory_is_not_complete(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a complete artifact"):
        check_complete(tmp_path / "none")


# ---- locks and failure classes --------------------------------------------------------------------------------------


def test_the_lock_is_released_and_can_be_taken_again() -> None:
    for _ in range(2):
        with work_lock("ingest") as directory:
            assert directory == Path("data/.work/ingest")
            assert directory.is_dir()


def test_a_lock_held_by_another_process(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pipeline.files import work_lock\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "with work_lock('ingest'):\n    print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(TransientError, match="stage ingest is already running"), work_lock("ingest"):
            pass
        with work_lock("extract"):
            pass  # another stage is not concerned
        child.kill()
        child.wait()
        with work_lock("ingest"):
            pass  # a killed process holds nothing


def test_failure_class_is_recorded() -> None:
    files.write_failure("rank@random-closed", "transient", "held")
    assert read_json("data/.work/failures/rank@random-closed.json") == {
        "class": "transient", "message": "held", "stage": "rank@random-closed",
    }  # fmt: skip
