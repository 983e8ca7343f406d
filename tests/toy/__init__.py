"""A pipeline of five small stages under DVC, in a folder of its own: what the flow, the server and recovery are tested
on. It uses the project's own `pipeline.stage` and params.yaml, and takes seconds where the real one takes minutes.

The stage `train` behaves as the file `mode.txt` says: ok | transient | data | bug | killed | sleep. With `sleep` it
starts a child and a grandchild, notes the ids of all three in data/.work/pids, and waits to be ended.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
STAGES = ["first", "check_first", "train", "rank@b", "rank@a", "report"]


def environment(**extra: str) -> dict[str, str]:
    """That of a user in a fresh shell, with this checkout's modules."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "PREFECT_", "DVC_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1", **extra}


def make(folder: Path, mode: str = "ok") -> Path:
    """The pipeline in a git repository with one commit; nothing is built."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "stages.yaml", folder / "dvc.yaml")  # under its own name DVC would take it for a part of ours
    shutil.copy(HERE / "toy.py", folder / "toy.py")
    for name in ("params.yaml", "prefect.yaml"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "pipeline").symlink_to(ROOT / "pipeline")  # prefect.yaml names the flow by its file
    (folder / "mode.txt").write_text(mode)
    (folder / ".gitignore").write_text("/data/*\n!/data/metrics.json\n/pipeline\n/dvc.lock.broken\n")
    for command in (
        ["git", "init", "-q"], ["git", "config", "user.name", "t"], ["git", "config", "user.email", "t@example.org"],
        ["dvc", "init", "-q"], ["dvc", "config", "core.analytics", "false"],
    ):  # fmt: skip
        subprocess.run(command, cwd=folder, check=True, env=environment())
    commit(folder)
    return folder


def commit(folder: Path) -> None:
    subprocess.run("git add -A && git commit -qm state --allow-empty", cwd=folder, check=True, shell=True)


def certrank(folder: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(**extra), capture_output=True, text=True, check=False, timeout=280
    )


def dvc(folder: Path, *arguments: str) -> str:
    command = ["dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def lock(folder: Path) -> Any:
    return YAML(typ="safe").load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended and is not yet reaped does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
