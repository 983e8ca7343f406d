"""The workspace as DVC sees it: plan, what is dirty, reproducing a stage, failure classes, and nothing left running."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import workspace
from pipeline.errors import ParamError
from pipeline.workspace import StageError, Step, dirty, failure, plan, reproduce
from tests import toy

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # within DVC

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy pipeline with its first two stages built."""
    folder = toy.make(tmp_path_factory.mktemp("begun") / "toy")
    toy.dvc(folder, "repro", "check_first")
    return folder


@pytest.fixture
def place(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = Path(shutil.copytree(begun, tmp_path / "toy", symlinks=True))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(toy.ROOT))
    yield folder


def step(name: str) -> Step:
    return next(s for s in plan().steps if s.name == name)


def test_the_plan_of_this_repository_is_dvcs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = plan()
    names = [s.name for s in done.steps]
    assert names.index("ingest") == 0 and {"report", "rank@rm_attach-closed", "rank_oracle@hybrid"} <= set(names)
    place_of = {name: i for i, name in enumerate(names)}
    for s in done.steps:
        assert all(place_of[up] < place_of[s.name] for up in s.upstream), s
    assert "check_ingest" in next(s for s in done.steps if s.name == "extract").upstream
    assert {"data/audit/metrics.json", "data/audit/extraction.json"} <= set(done.uncached)
    assert plan(["check_roster"]).steps == done.steps[: names.index("check_roster") + 1]
    extract = next(s for s in done.steps if s.name == "extract")
    assert extract.retries > 0 and extract.timeout is not None and extract.timeout > 3600


def test_an_unknown_target_is_named(place: Path) -> None:
    with pytest.raises(ParamError, match="nowhere"):
        plan(["nowhere"])


@pytest.mark.parametrize(
    ("meta", "what"),
    [
        ("{retries: -1}", "whole number"), ("{retries: 1.5}", "whole number"), ("{timeout: soon}", "seconds"),
        ("{timeout: true}", "seconds"), ("{tries: 3}", "nothing else"), ("[3]", "nothing else"),
    ],
)  # fmt: skip
def test_a_wrong_hint_is_named(place: Path, meta: str, what: str) -> None:
    text = (place / "dvc.yaml").read_text()
    (place / "dvc.yaml").write_text(text.replace("{retries: 1, retry_delay: 0, timeout: 60}", meta))
    with pytest.raises(ParamError, match=f"stages.first.meta: .*{what}"):
        plan()


def test_a_stage_without_hints_is_run_once_and_without_limit(place: Path) -> None:
    assert (step("report").retries, step("report").retry_delay, step("report").timeout) == (0, 0.0, None)
    assert (step("train").retries, step("train").retry_delay, step("train").timeout) == (2, 0.1, 60)


def test_what_stands_downstream_of_a_change_is_dirty() -> None:
    steps = [Step("a", (), ()), Step("b", ("a",), ()), Step("c", (), ()), Step("d", ("b", "c"), ())]
    assert dirty(steps, {}) == set()
    assert dirty(steps, {"b": []}) == {"b", "d"}
    assert dirty(steps, {"c": []}) == {"c", "d"}


def test_a_stage_is_run_then_unchanged_then_restored(place: Path) -> None:
    said: list[str] = []
    assert reproduce(step("train"), said.append) == "ran"
    assert any(line.startswith("train: done in") for line in said)
    assert not any("git add" in line or "auto staging" in line for line in said)
    assert reproduce(step("train"), said.append) == "unchanged"
    (place / "dvc.lock").unlink()
    assert set(workspace.changed(["train"])) == {"first", "check_first", "train"}
    assert reproduce(step("first"), said.append) == "restored"
    assert set(workspace.changed(["train"])) == {"check_first", "train"}


@pytest.mark.parametrize(
    ("mode", "failure_class", "what"),
    [
        ("data", "data", "corpus.jsonl:3: a broken record"), ("bug", "bug", "ZeroDivisionError: as planned"),
        ("transient", "transient", "the first try fails"), ("killed", "transient", "killed from outside"),
    ],
)  # fmt: skip
def test_a_failed_stage_says_its_class(place: Path, mode: str, failure_class: str, what: str) -> None:
    (place / "mode.txt").write_text(mode)
    with pytest.raises(StageError, match=what) as caught:
        reproduce(step("train"), lambda line: None)
    assert caught.value.failure_class == failure_class
    assert caught.value.stage == "train"


def test_an_old_failure_file_is_not_believed(place: Path) -> None:
    from pipeline.files import write_failure

    write_failure("first", "transient", "of last week")
    (place / "toy.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(StageError, match="failed to reproduce") as caught:
        reproduce(step("first"), lambda line: None)
    assert caught.value.failure_class == "bug"


def test_another_dvc_command_in_the_way_is_transient() -> None:
    error = failure("x", ["ERROR: 'data/x' is busy, it is being blocked by:", "  (PID 4): dvc repro"])
    assert (error.failure_class, error.exit_code) == ("transient", 75)


def test_a_timeout_ends_everything_the_stage_started(place: Path) -> None:
    (place / "mode.txt").write_text("sleep")
    limited = Step("train", (), (), timeout=6.0)
    with pytest.raises(StageError, match="timeout of 6 s") as caught:
        reproduce(limited, lambda line: None)
    assert caught.value.failure_class == "data"  # not tried again
    pids = json.loads((place / "data/.work/pids").read_text())
    assert len(pids) == 3 and not any(toy.alive(pid) for pid in pids)
    assert not (place / "models/train").exists()


def test_sigkill_of_the_flow_ends_its_stage(place: Path) -> None:
    (place / "mode.txt").write_text("sleep")
    code = "from pipeline import workspace as w; w.reproduce(w.Step('train', (), ()), print)"
    flow = subprocess.Popen([sys.executable, "-c", code], env=toy.environment(), stdout=subprocess.DEVNULL)
    pids = wait_for_pids(place)
    os.kill(flow.pid, signal.SIGKILL)
    flow.wait()
    deadline = time.monotonic() + 20
    while any(toy.alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(toy.alive(pid) for pid in pids)


def wait_for_pids(place: Path) -> list[int]:
    deadline = time.monotonic() + 60
    while not (place / "data/.work/pids").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return list(json.loads((place / "data/.work/pids").read_text()))
