"""Killed anywhere, the pipeline leaves nothing half-made, and the next run gives the bytes of an uninterrupted one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.crash import miniature
from tests.crash.killing import kill_again_and_again
from tests.crash.miniature import digests, environment, half_artifacts, left_over, mend, outputs, repro

pytestmark = pytest.mark.timeout(900)  # the first test builds the miniature, on a machine that may be busy

POINTS = ("before_write", "mid_write", "before_rename", "after_rename")
STAGES = {"ingest": 2, "reward": 1, "rank@rm_attach-closed": 2}
"""Stage -> the how many-th arrival at the point kills it: tables one by one, a model as a folder, rankings in pairs."""


def program(stage: str) -> str:
    return f"stages.{stage.split('@')[0]}"


def outs_of(built: Path, stage: str) -> list[str]:
    from ruamel.yaml import YAML

    entry = YAML(typ="safe", pure=True).load((built / "dvc.lock").read_text(encoding="utf-8"))["stages"][stage]
    return [out["path"] for out in entry["outs"]]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_leaves_nothing_half_made(built: Path, place: Path, stage: str, point: str) -> None:
    outs = outs_of(built, stage)
    killed = repro(place, "--force", "--single-item", stage,
                   CERTRANK_FAILPOINT=f"{point}:{program(stage)}:{STAGES[stage]}")  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    assert half_artifacts(place, outs) == []
    assert mend(place).strip() == "nothing was broken"
    again = repro(place, "--force", "--single-item", stage)
    assert again.returncode == 0, again.stderr
    assert digests(place, outs) == digests(built, outs)
    assert (place / "dvc.lock").read_bytes() == (built / "dvc.lock").read_bytes()
    assert left_over(place) == []


def test_a_kill_after_a_checkpoint_resumes_to_the_same_bytes(built: Path, place: Path) -> None:
    outs = outs_of(built, "extract")
    killed = repro(place, "--force", "--single-item", "extract",
                   CERTRANK_FAILPOINT="after_checkpoint:stages.extract:1")  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    assert list((place / "data/.work/extract").glob("*/*/_COMPLETE")), "no shard was kept"
    again = repro(place, "--force", "--single-item", "extract")
    assert again.returncode == 0, again.stderr
    assert digests(place, outs) == digests(built, outs)
    assert (place / "dvc.lock").read_bytes() == (built / "dvc.lock").read_bytes()


@pytest.mark.parametrize("stage", ["ingest", "reward"])
def test_a_kill_while_dvc_writes_its_lock_is_recovered(built: Path, place: Path, stage: str) -> None:
    path = place / "params.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("seed: 20250521", "seed: 7"), encoding="utf-8")
    killed = repro(place, "--single-item", stage, CERTRANK_FAILPOINT="in_dvc_lock:dvc:1")
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    whole = (built / "dvc.lock").read_bytes()
    cut = (place / "dvc.lock").read_bytes()
    assert cut == whole[: len(cut)] and len(cut) < len(whole)
    mend(place)
    path.write_text(path.read_text(encoding="utf-8").replace("seed: 7", "seed: 20250521"), encoding="utf-8")
    again = repro(place, stage)
    assert again.returncode == 0, again.stderr
    assert "Running stage" not in again.stdout, again.stdout  # everything comes out of the run cache
    assert digests(place, outs_of(built, stage)) == digests(built, outs_of(built, stage))


def test_ten_random_kills_lose_and_corrupt_nothing(built: Path, tmp_path: Path) -> None:
    folder = miniature.make(tmp_path / "killed", built=False)
    kills = kill_again_and_again(folder, 10, Random(20250521), 0.5, 5.0, ("roster",))
    assert len(kills) == 10
    assert [kill for kill in kills if kill.half] == []
    paths = outputs(folder)
    assert "data/roster" in paths
    assert digests(folder, paths) == digests(built, paths)
    assert left_over(folder) == []


# ---- full disk, read-only folder, two at a time ---------------------------------------------------------------------


def stage_process(place: Path, module: str) -> subprocess.CompletedProcess[str]:
    """A stage without DVC."""
    command = [sys.executable, "-m", *module.split()]
    return subprocess.run(command, cwd=place, env=environment(place), capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting needs root")
def test_a_full_disk_is_transient_and_one_clear_line(built: Path, place: Path) -> None:
    folder = place / "data/rank/rm_attach/closed"
    before = digests(place, ["data/rank/rm_attach/closed"])
    parent = folder.parent
    shutil.rmtree(parent)
    parent.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(parent)], check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        done = stage_process(place, "stages.rank rm_attach closed")
        assert done.returncode == 75, done.stderr
        assert "No space left on device; free some space" in done.stderr
        assert half_artifacts(place, ["data/rank/rm_attach"]) == []
    finally:
        subprocess.run(["umount", str(parent)], check=True)
    assert stage_process(place, "stages.rank rm_attach closed").returncode == 0
    assert digests(place, ["data/rank/rm_attach/closed"]) == before


def test_a_read_only_folder_is_one_clear_line(place: Path) -> None:
    """A file where the folder should be stands for one that cannot be written, as root may write anywhere."""
    shutil.rmtree(place / "models/reward")
    shutil.rmtree(place / "data/reward")
    (place / "models").chmod(0o555)
    try:
        root = os.geteuid() == 0
        if root:
            subprocess.run(["mount", "--bind", "-o", "ro", "models", "models"], cwd=place, check=False)
        done = stage_process(place, "stages.reward")
        if root and (place / "models/reward").exists():
            pytest.skip("root may write here")
        assert done.returncode == 1
        assert "ead-only" in done.stderr or "ermission denied" in done.stderr, done.stderr
        assert done.stderr.count("reward: error: ") == 1
    finally:
        subprocess.run(["umount", str(place / "models")], check=False, capture_output=True)
        (place / "models").chmod(0o755)


def test_two_runs_at_a_time_never_both_write(place: Path) -> None:
    """While one process of a stage is at work, another one ends at once as transient and touches nothing."""
    from ruamel.yaml import YAML

    code = "from pipeline.files import work_lock\nwith work_lock('reward'): print('held', flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=place, env=environment(place), text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    before = {p: p.stat().st_mtime_ns for p in (place / "models/reward").iterdir()}
    second = stage_process(place, "stages.reward")
    assert second.returncode == 75 and "already running in this workspace" in second.stderr
    assert {p: p.stat().st_mtime_ns for p in (place / "models/reward").iterdir()} == before
    holder.communicate("\n")
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--force", "--single-item", "reward"], cwd=place,
            env=environment(place), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [run.communicate()[0] for run in runs]
    assert any(run.returncode == 0 for run in runs), said
    for run, text in zip(runs, said, strict=True):
        assert run.returncode == 0 or "already running" in text or "is busy" in text, text
    assert half_artifacts(place, ["models/reward", "data/reward"]) == []
    again = repro(place, "--single-item", "reward")
    assert again.returncode == 0, again.stderr
    stages = YAML(typ="safe").load((place / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    assert "reward" in stages
