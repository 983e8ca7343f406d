"""`dvc repro`, killed at random times and started again until it is through."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.crash.miniature import environment, half_artifacts, kill_group, mend, outputs


@dataclass(frozen=True)
class Kill:
    """One kill: after how many seconds of a run, in which stage ("" before the first), and what was found.

    Args:
        seconds: how long the run had lasted.
        stage: that DVC had started last.
        half: artifacts that a reader would take and that are not whole.
        mended: what the recovery before the next run had to mend.
    """

    seconds: float
    stage: str
    half: tuple[str, ...]
    mended: str


class FailedError(Exception):
    """A run failed by itself: a kill before it has broken something."""


def kill_again_and_again(
    folder: Path, count: int, random: Random, shortest: float, longest: float, targets: tuple[str, ...] = ()
) -> list[Kill]:
    """Run `dvc repro` to its end, with SIGKILL to its process group at random times, at most `count` times.

    Args:
        folder: workspace in which something is to be built.
        count: most kills; after them the run is left to end.
        random: draws the times, uniformly from `shortest` to `longest` seconds after each start.
        shortest, longest: seconds.
        targets: stages; all of them when empty.

    Raises:
        FailedError: a run ended with an error.
    """
    kills: list[Kill] = []
    while True:
        limit = random.uniform(shortest, longest) if len(kills) < count else None
        started = time.monotonic()
        with (folder.parent / f"{folder.name}.log").open("w+", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dvc", "repro", *targets], cwd=folder, env=environment(folder), text=True,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            kill_group(process)
            log.seek(0)
            said = log.read()
        if code == 0:
            return kills
        if code is not None:
            raise FailedError(said[-3000:])
        stages = [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")]
        # what the kill left is looked at before anything mends it; a broken dvc.lock has no outputs to list
        mended = mend(folder).strip()
        half = half_artifacts(folder, outputs(folder)) if (folder / "dvc.lock").is_file() else []
        seconds = time.monotonic() - started
        kills.append(Kill(round(seconds, 2), stages[-1] if stages else "", tuple(half), mended))
