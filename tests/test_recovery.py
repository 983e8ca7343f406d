"""What a killed run leaves broken is mended: dvc.lock, DVC's list of locks, overridden params.yaml."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline import overrides, recovery
from pipeline.errors import ParamError, TransientError
from pipeline.overrides import overridden
from pipeline.secrets import redact
from tests import toy

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # within DVC


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = toy.make(tmp_path_factory.mktemp("built") / "toy")
    toy.dvc(folder, "repro")
    return folder


@pytest.fixture
def place(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = Path(shutil.copytree(built, tmp_path / "toy", symlinks=True))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(toy.ROOT))
    yield folder


def test_a_sound_workspace_is_left_alone(place: Path) -> None:
    before = (place / "dvc.lock").read_bytes()
    assert recovery.mend() == []
    assert (place / "dvc.lock").read_bytes() == before


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 0.5, 0.83, 0.99])
def test_a_truncated_lock_comes_back_from_the_run_cache(place: Path, share: float) -> None:
    whole = (place / "dvc.lock").read_text()
    (place / "dvc.lock").write_text(whole[: int(share * len(whole))])
    recovery.mend()  # a cut between two stages is a sound file that lacks some
    said = toy.dvc(place, "repro")
    ran = {line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")}
    assert ran <= {"report"}, said  # one of its outputs is left to git, so DVC keeps no run of it
    assert toy.lock(place) == YAML(typ="safe").load(whole)["stages"]


def test_a_truncated_lock_comes_back_from_git(place: Path) -> None:
    toy.commit(place)
    whole = (place / "dvc.lock").read_text()
    (place / "dvc.lock").write_text(whole[:-20])
    (line,) = recovery.mend()
    assert "git's version restored" in line
    assert (place / "dvc.lock").read_text() == whole
    assert (place / "dvc.lock.broken").read_text() == whole[:-20]


@pytest.mark.parametrize(
    "text",
    ["", "schema: '2.0'\n", "schema: '2.0'\nstages:\n  a:\n    cmd: x\n", "stages: [", "- a", "\x00",
     "schema: '2.0'\nstages:\n  a:\n    cmd: x\n    outs:\n    - path: y\n      hash: md5\n      md5: 00\n"],
)  # fmt: skip
def test_a_broken_lock_is_recognised(tmp_path: Path, text: str) -> None:
    (tmp_path / "dvc.lock").write_text(text)
    assert not recovery.sound(tmp_path / "dvc.lock")


def test_a_broken_list_of_locks_is_emptied_unless_dvc_runs_here(place: Path) -> None:
    rwlock = place / ".dvc/tmp/rwlock"
    rwlock.write_text('{"write": {"/da')
    assert "corrupted" in toy.dvc(place, "repro", "--force", "--single-item", "first")
    (place / "dvc").write_text("input()\n")
    running = subprocess.Popen([sys.executable, "dvc", "repro"], stdin=subprocess.PIPE)
    try:
        with pytest.raises(TransientError, match=f"process {running.pid} runs DVC here"):
            recovery.mend()
    finally:
        running.communicate(b"\n")
    assert [line for line in recovery.mend() if "emptied" in line]
    assert "Running stage 'first'" in toy.dvc(place, "repro", "--force", "--single-item", "first")


# ---- overrides ------------------------------------------------------------------------------------------------------


def test_overrides_are_taken_back_even_after_an_error(place: Path) -> None:
    before = (place / "params.yaml").read_bytes()
    with pytest.raises(ZeroDivisionError), overridden({"reward.l2": 2.5}, ()):
        assert "l2: 2.5" in (place / "params.yaml").read_text()
        raise ZeroDivisionError
    assert (place / "params.yaml").read_bytes() == before
    assert not overrides.BEFORE.exists()


def test_overrides_of_a_killed_run_are_taken_back_by_the_next(place: Path) -> None:
    before = {name: (place / name).read_bytes() for name in ("params.yaml", "dvc.lock", "data/metrics.json")}
    code = """
import os, signal, subprocess
from pipeline.overrides import overridden
with overridden({"reward.l2": 2.5}, ["data/metrics.json"]):
    subprocess.run(["dvc", "repro", "-q"], check=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], env=toy.environment(), check=False)
    assert "l2: 2.5" in (place / "params.yaml").read_text()
    assert recovery.mend() == ["params.yaml: the overrides of a killed run were taken back"]
    assert {name: (place / name).read_bytes() for name in before} == before
    assert toy.dvc(place, "status").strip() == "Data and pipelines are up to date."
    assert recovery.mend() == []


def test_params_edited_after_a_killed_run_are_left_alone(place: Path) -> None:
    code = "import os; from pipeline.overrides import overridden\nwith overridden({'seed': 4}, ()): os._exit(1)"
    subprocess.run([sys.executable, "-c", code], env=toy.environment(), check=False)
    edited = (place / "params.yaml").read_text().replace("seed: 4", "seed: 5")
    (place / "params.yaml").write_text(edited)
    assert recovery.mend() == []
    assert (place / "params.yaml").read_text() == edited


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"reward.nothing": 1}, "nothing"), ({"reward.l2": "much"}, "reward.l2"), ({"+reward.l2": 1}, "not the name"),
        ({"reward.l2=1 seed": 1}, "not the name"), ({"reward": {"l2": 1}}, "cannot be set"),
        ({"~seed": 1}, "not the name"), ({"ingest.splits": "${seed}"}, "interpret"),
    ],
)  # fmt: skip
def test_overrides_that_do_not_fit_change_nothing(place: Path, values: dict[str, object], what: str) -> None:
    before = (place / "params.yaml").read_bytes()
    with pytest.raises(ParamError, match=what), overridden(values, ()):
        pytest.fail("it must not get here")
    assert (place / "params.yaml").read_bytes() == before
    assert not overrides.BEFORE.exists()


def test_values_arrive_as_they_are(place: Path) -> None:
    from pipeline.params import load_params

    strange = "a 'quoted' path, with [brackets], {braces}: and = $ x"
    with overridden({"ingest.splits": strange, "roster.settings": ["closed"], "trajectories.negatives": False}, ()):
        params = load_params()
        assert params.ingest.splits == strange
        assert list(params.roster.settings) == ["closed"]
        assert params.trajectories.negatives is False


# ---- secrets --------------------------------------------------------------------------------------------------------


def test_secrets_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalr/XUtnFEMI")
    monkeypatch.setenv("MY_TOKEN", "tok-123456")
    monkeypatch.setenv("KEYBOARD", "qwertyuiop")
    monkeypatch.setenv("SHORT_KEY", "1")
    text = "key wJalr/XUtnFEMI, tok-123456 at s3://me:pw@host/x, qwertyuiop 1"
    assert redact(text) == "key [hidden], [hidden] at s3://[hidden]@host/x, qwertyuiop 1"
    pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQ\n-----END PRIVATE KEY-----"
    assert redact(f"a {pem} b {pem[:40]}") == "a [hidden] b [hidden]"
    assert json.dumps(os.environ["SHORT_KEY"]) == '"1"'
