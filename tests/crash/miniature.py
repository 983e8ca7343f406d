"""The real pipeline over a miniature corpus, and what must hold in it whenever it is looked at."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
from ruamel.yaml import YAML

from pipeline.errors import DataError
from pipeline.files import COMPLETE, check_complete, sha256_file
from tests.test_pipeline import change_params, clone

ROOT = Path(__file__).resolve().parents[2]
FAILPOINTS = Path(__file__).with_name("failpoints")


def environment(folder: Path, **extra: str) -> dict[str, str]:
    """That of a user in `folder`; the failpoints are at hand, and armed by CERTRANK_FAILPOINT alone."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("GIT_", "DVC_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {
        **kept,
        "PATH": path,
        "DVC_NO_ANALYTICS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(FAILPOINTS),
        **extra,
    }


def make(folder: Path, *, built: bool = True) -> Path:
    """A clone of the working tree with a corpus of a few windows, one system and one setting; built unless told not to.

    Raises:
        RuntimeError: the pipeline fails.
    """
    folder.mkdir(parents=True)
    clone(folder)
    change_params(
        folder, ingest={"sample": {"windows": 16, "documents": 2}}, roster={"settings": ["closed"]},
        rank={"systems": ["rm_attach"]}, reward={"bootstrap": 5}, report={"windows": 1},
        audit={"sweep_accept": [0.1], "sweep_margin": [0.05]},
    )  # fmt: skip
    if built:
        done = repro(folder)
        if done.returncode:
            raise RuntimeError(done.stdout[-3000:] + done.stderr[-3000:])
    return folder


def repro(folder: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """`dvc repro` in a process group of its own."""
    return subprocess.run(
        [sys.executable, "-m", "dvc", "repro", *arguments], cwd=folder, env=environment(folder, **extra),
        capture_output=True, text=True, check=False, start_new_session=True,
    )  # fmt: skip


def mend(folder: Path) -> str:
    """The recovery that the next run of the flow starts with."""
    command = [sys.executable, "-m", "pipeline.recovery"]
    return subprocess.check_output(command, cwd=folder, env=environment(folder), text=True)


def copy(built: Path, target: Path) -> Path:
    """A copy of a built workspace. Cached files are read-only and linked; everything else is copied."""
    subprocess.run(["cp", "-a", str(built), str(target)], check=True)
    return target


def outputs(folder: Path) -> list[str]:
    """Paths of all outputs in dvc.lock."""
    stages = YAML(typ="safe", pure=True).load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    return [out["path"] for entry in stages.values() for out in entry.get("outs", ())]


def digests(folder: Path, paths: list[str]) -> dict[str, str]:
    """File -> sha256 of everything in these outputs."""
    found = {}
    for path in paths:
        target = folder / path
        files = [target] if target.is_file() else [p for p in target.rglob("*") if p.is_file()]
        found.update({p.relative_to(folder).as_posix(): sha256_file(p) for p in files})
    return found


def half_artifacts(folder: Path, paths: list[str]) -> list[str]:
    """Files of outputs that a reader would take and that are not whole: broken Parquet or JSON; models without all of
    what their marker lists are left out, as `check_complete` refuses them."""
    found = []
    for path in paths:
        target = folder / path
        for file in [target] if target.is_file() else sorted(target.rglob("*")):
            if not file.is_file() or file.name.startswith(".") or refused(file.parent):
                continue
            try:
                if file.suffix == ".parquet":
                    pq.read_table(file)
                elif file.suffix == ".json":
                    json.loads(file.read_text(encoding="utf-8"))
                elif file.suffix == ".jsonl":
                    [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            except (OSError, ValueError) as error:
                found.append(f"{file.relative_to(folder)}: {error}")
    return found


def refused(folder: Path) -> bool:
    """Whether a folder with a marker is refused by those who read it."""
    if not (folder / COMPLETE).is_file():
        return False
    try:
        check_complete(folder)
    except DataError:
        return True
    return False


def left_over(folder: Path) -> list[str]:
    """Temporary files in the folders of outputs."""
    found = [p for root in ("data", "models") for p in (folder / root).rglob("*.partial")]
    return [str(p) for p in found if ".work" not in p.parts]


def kill_group(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
