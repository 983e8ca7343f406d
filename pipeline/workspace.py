"""The workspace as DVC sees it: the resolved DAG, what has changed, and reproducing one stage.

Everything is asked of DVC, which reads dvc.yaml: no edge, path or command of a stage is repeated here. Each stage of
the resolved DAG (a matrix cell is a stage: `rank@random-closed`) is a `Step` with the hints for a scheduler that stand
in its `meta:` in dvc.yaml:

    meta: {retries: 2, retry_delay: 10, timeout: 3600}

`retries` (0 when absent) counts further tries after a transient failure, `retry_delay` is the seconds between two (0
when absent), `timeout` the seconds after which a try is ended (no limit when absent).
"""

from __future__ import annotations

import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast, get_args

from pipeline.errors import CertrankError, DataError, FailureClass, ParamError, TransientError
from pipeline.files import WORK, clear_failure, read_json

GUARD = Path(__file__).with_name("guard.py")
PATIENCE = 10.0
"""Seconds between SIGTERM and SIGKILL when a stage is ended."""

OWNER = "CERTRANK_OWNER"
"""Environment variable: id of the process (`certrank ui`) without which a run of the flow is not to go on."""

ALL = "dvc.yaml"
"""Target of everything, as `dvc repro` understands it."""
HINTS = ("retries", "retry_delay", "timeout")
Outcome = Literal["ran", "restored", "unchanged"]

ADVICE = ("To track the changes with git", "\tgit add", "To enable auto staging", "\tdvc config", "Use `dvc push`")
"""Lines of DVC that tell a person at a terminal what to do next; they say nothing about the stage."""

_BUSY = re.compile(r"Unable to acquire lock|is busy, it is being blocked by")
_SIGNALLED = re.compile(r"exited with (-9|-15|137|143)\b")


@dataclass(frozen=True, slots=True)
class Step:
    """A stage of the resolved DAG.

    Args:
        name: as DVC addresses it.
        upstream: names of the stages whose outputs it reads.
        outs: paths of its outputs.
        retries, retry_delay, timeout: hints, see the module; times in seconds.
    """

    name: str
    upstream: tuple[str, ...]
    outs: tuple[str, ...]
    retries: int = 0
    retry_delay: float = 0.0
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is to do.

    Args:
        steps: the closure of the targets, every stage after those that it reads from.
        uncached: outputs of any stage that DVC leaves to git (`cache: false`).
    """

    steps: tuple[Step, ...]
    uncached: tuple[str, ...]


class StageError(CertrankError):
    """A stage failed or was ended.

    Args:
        stage: its name.
        failure_class: transient, data or bug.
        what: what it said.
    """

    def __init__(self, stage: str, failure_class: FailureClass, what: str) -> None:
        self.stage, self.failure_class = stage, failure_class
        self.exit_code = TransientError.exit_code if failure_class == "transient" else 1
        super().__init__(f"[{failure_class}] {what}", field=stage)


def plan(targets: Sequence[str] = ()) -> Plan:
    """The stages that `dvc repro TARGETS` would look at, in its order; all of them without a target.

    Raises:
        ParamError: dvc.yaml or a hint in it is wrong, or there is no such stage.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.repo.reproduce import plan_repro

    try:
        with Repo() as repo:
            index = repo.index
            wanted = [stage for target in targets or [ALL] for stage in repo.stage.collect(target)]
            ordered = plan_repro(index.graph, wanted)
            steps = tuple(
                Step(
                    stage.addressing, tuple(sorted(up.addressing for up in index.graph.successors(stage))),
                    tuple(out.def_path for out in stage.outs), **_hints(stage.addressing, stage.meta),
                )
                for stage in ordered
            )  # fmt: skip
            uncached = tuple(out.def_path for stage in index.stages for out in stage.outs if not out.use_cache)
            return Plan(steps, uncached)
    except DvcException as error:
        raise ParamError(_first_line(str(error)), file="dvc.yaml") from None


def _hints(stage: str, meta: Any) -> dict[str, Any]:
    """The hints of a stage, checked."""
    if meta is None:
        return {}
    field = f"stages.{stage}.meta"
    if not isinstance(meta, dict) or not set(meta) <= set(HINTS):
        raise ParamError(f"meta holds {', '.join(HINTS)} and nothing else", file="dvc.yaml", field=field)
    for name, value in meta.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or value < 0 or (name == "retries" and not isinstance(value, int)):
            what = "a whole number from 0" if name == "retries" else "a number of seconds"
            raise ParamError(f"{name} is {value!r}, not {what}", file="dvc.yaml", field=field)
    return meta


def environment() -> dict[str, str]:
    """The environment of a stage: this one, with this interpreter's programs first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONUNBUFFERED": "1"}


def dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a DVC command that starts no stage, waiting for the lock of the repository."""
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)


def changed(targets: Sequence[str] = ()) -> dict[str, Any]:
    """`dvc status --json` of the targets and everything upstream: stage -> what changed; empty when nothing did.

    Raises:
        DataError: DVC refuses, e.g. because dvc.lock is broken.
    """
    done = dvc("status", "--json", "--with-deps", *(targets or [ALL]))
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        raise DataError(
            f"dvc status failed: {_last_line(done.stderr)}", mend="`certrank doctor` may know more"
        ) from None


def metrics() -> dict[str, Any]:
    """File -> its content, of every metrics file that dvc.yaml lists and that exists (`dvc metrics show`)."""
    from dvc.repo import Repo

    with Repo() as repo:
        shown = repo.metrics.show().get("", {})
    return {file: found["data"] for file, found in shown.get("data", {}).items() if "data" in found}


def dirty(steps: Sequence[Step], changes: dict[str, Any]) -> set[str]:
    """The steps that have changed or that stand downstream of one that has."""
    found: set[str] = set()
    for step in steps:
        if step.name in changes or found.intersection(step.upstream):
            found.add(step.name)
    return found


def reproduce(step: Step, say: Callable[[str], None]) -> Outcome:
    """Reproduce one stage by DVC, in a process group of its own that ends with this call, however it ends.

    Args:
        step: the stage.
        say: is given each line that DVC and the stage print.

    Raises:
        StageError: the stage failed, or took longer than its `timeout`.
    """
    clear_failure(step.name)
    repro = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", step.name]
    guarded = [sys.executable, "-I", str(GUARD), str(os.getpid()), str(PATIENCE), *repro]
    deadline = None if step.timeout is None else time.monotonic() + step.timeout
    said: list[str] = []
    process = subprocess.Popen(
        guarded, env=environment(), start_new_session=True, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        lines = _lines(cast(IO[str], process.stdout))
        while (line := _next(lines, deadline, step)) is not None:
            said.append(line)
            if line and not line.startswith(ADVICE):
                say(line)
        code = process.wait()
    finally:
        stop(process)
    if code:
        raise failure(step.name, said)
    if any(line.startswith(f"Running stage '{step.name}'") for line in said):
        return "ran"
    return "restored" if any("is cached - skipping run" in line for line in said) else "unchanged"


def _lines(stream: IO[str]) -> queue.Queue[str | None]:
    """The lines of a pipe as they come, then None. A thread reads, so that waiting for a line can be interrupted."""
    found: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        with stream:
            for line in stream:
                found.put(line.rstrip())
        found.put(None)

    threading.Thread(target=read, daemon=True).start()
    return found


def _next(lines: queue.Queue[str | None], deadline: float | None, step: Step) -> str | None:
    """The next line.

    Raises:
        StageError: the deadline has passed.
    """
    try:
        return lines.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        # Not transient: the same work would take as long again.
        raise StageError(step.name, "data", f"ended after its timeout of {step.timeout:g} s") from None


def stop(process: subprocess.Popen[str]) -> None:
    """End a guarded command with everything in its process group; does nothing once all of it has ended."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(PATIENCE + 5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    try:
        os.killpg(process.pid, 9)  # what is left where the guard itself was killed
    except ProcessLookupError:
        return


def failure(stage: str, said: Sequence[str]) -> StageError:
    """Why a stage failed: what it recorded itself, or else what DVC said."""
    file = WORK / "failures" / f"{stage}.json"
    if file.is_file():
        recorded = read_json(file)
        if recorded.get("class") in get_args(FailureClass):
            return StageError(stage, recorded["class"], str(recorded.get("message")))
    text = "\n".join(said)
    last = next((line for line in reversed(said) if line.startswith("ERROR")), said[-1] if said else "no word")
    if _BUSY.search(text):
        return StageError(stage, "transient", "another DVC command holds the lock")
    if _SIGNALLED.search(text):
        return StageError(stage, "transient", "its process was killed from outside (out of memory?)")
    return StageError(stage, "bug", last.removeprefix("ERROR: "))


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no word"


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else "no word"
