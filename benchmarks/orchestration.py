"""What the flow costs over bare DVC, and whether both leave the same dvc.lock.

    python benchmarks/orchestration.py [--miniature]

Two fresh clones of the working tree are built from nothing: one by `dvc repro`, one by `certrank flow run` (with the
start of its temporary server). Then the flow runs again, with nothing to do. Bars: the flow takes at most 1.3 times as
long as bare DVC, a run with nothing to do at most 30 s, and dvc.lock is the same. --miniature takes a corpus of 16
windows, one system and one setting instead of the committed sample, on which the flow's fixed cost weighs more. Exits 1
when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe  # noqa: E402
from pipeline.files import write_json  # noqa: E402
from tests.crash import miniature  # noqa: E402
from tests.test_pipeline import clone  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "orchestration.json"
OVERHEAD, CACHED_SECONDS = 1.3, 30.0


def timed(folder: Path, *command: str) -> tuple[float, str]:
    """Seconds that a command takes, and what it prints.

    Raises:
        SystemExit: it fails.
    """
    environment = {**miniature.environment(folder), "PYTHONPATH": str(folder)}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    return time.monotonic() - started, done.stdout


def make(folder: Path, small: bool) -> Path:
    """A clone without anything built."""
    if small:
        return miniature.make(folder, built=False)
    folder.mkdir()
    clone(folder)
    # the committed parameters: `clone` makes the corpus small for tests
    (folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    return folder


def stages(folder: Path) -> Any:
    return YAML(typ="safe", pure=True).load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--miniature", action="store_true")
    small = parser.parse_args().miniature
    with tempfile.TemporaryDirectory() as name:
        bare, flow = make(Path(name) / "bare", small), make(Path(name) / "flow", small)
        by_dvc, _ = timed(bare, "dvc", "repro")
        print(f"dvc repro            {by_dvc:8.1f} s", flush=True)
        by_flow, said = timed(flow, "pipeline.cli", "flow", "run", "--json")
        ran = json.loads(said)["stages"]
        print(f"certrank flow run    {by_flow:8.1f} s   {by_flow / by_dvc:.2f} times", flush=True)
        cached, said = timed(flow, "pipeline.cli", "flow", "run", "--json")
        print(f"with nothing to do   {cached:8.1f} s", flush=True)
        same = stages(bare) == stages(flow)
        print(f"{len(ran)} stages; dvc.lock is {'the same' if same else 'DIFFERENT'}")
        idle = set(json.loads(said)["stages"].values()) == {"Cached"}
    measured = {
        "machine": describe(), "load": round(os.getloadavg()[0], 1), "stages": len(ran),
        "dvc_repro_seconds": round(by_dvc, 1), "flow_seconds": round(by_flow, 1),
        "overhead": round(by_flow / by_dvc, 3), "cached_seconds": round(cached, 1), "same_lock": same,
    }  # fmt: skip
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    write_json(RESULTS, {**results, "miniature" if small else "sample": measured})
    sys.exit(not (same and idle and by_flow <= OVERHEAD * by_dvc and cached <= CACHED_SECONDS))


if __name__ == "__main__":
    main()
