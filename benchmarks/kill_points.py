"""Random SIGKILLs over a miniature corpus: is anything lost, half-made or different afterwards?

    python benchmarks/kill_points.py [--kills 100] [--seed 20250521]

The pipeline is built once without interruption. Then, in fresh workspaces, `dvc repro` is killed with its whole process
group after a random time, recovered as a run of the flow would (`pipeline.recovery`) and started again, over and over,
until it is through; a new workspace follows until there were enough kills. Counted are artifacts that a reader would
take and that are not whole, runs that fail after a kill, and files whose bytes differ from the uninterrupted run. Exits
1 when any of them is not 0.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe  # noqa: E402
from pipeline.files import write_json  # noqa: E402
from tests.crash import miniature  # noqa: E402
from tests.crash.killing import FailedError, Kill, kill_again_and_again  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "kill_points.json"
SHORTEST, LONGEST = 0.2, 9.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=20250521)
    options = parser.parse_args()
    random = Random(options.seed)
    kills: list[Kill] = []
    failed: list[str] = []
    differing: list[str] = []
    workspaces = 0
    with tempfile.TemporaryDirectory() as name:
        started = time.monotonic()
        whole = miniature.make(Path(name) / "whole")
        seconds = time.monotonic() - started
        expected = miniature.digests(whole, miniature.outputs(whole))
        while len(kills) < options.kills:
            folder = miniature.make(Path(name) / f"killed{workspaces}", built=False)
            workspaces += 1
            try:
                kills += kill_again_and_again(folder, options.kills - len(kills), random, SHORTEST, LONGEST)
                found = miniature.digests(folder, miniature.outputs(folder))
                differing += sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
            except FailedError as error:
                failed.append(str(error)[-500:])
            miniature.remove(folder)
            print(f"{len(kills)} kills in {workspaces} workspaces", file=sys.stderr, flush=True)
    half = [path for kill in kills for path in kill.half]
    by_stage = Counter(kill.stage or "(before the first stage)" for kill in kills)
    mended = Counter(line for kill in kills for line in kill.mended.splitlines())
    write_json(RESULTS, {
        "machine": describe(), "seed": options.seed, "kills": len(kills), "workspaces": workspaces,
        "uninterrupted_seconds": round(seconds, 1), "by_stage": dict(by_stage), "mended": dict(mended),
        "half_artifacts": half, "failed_reruns": failed, "differing_files": differing,
    })  # fmt: skip
    print(f"{'stage at work':<28}kills")
    for stage, count in sorted(by_stage.items()):
        print(f"{stage:<28}{count:>5}")
    print(f"\nuninterrupted run {seconds:.1f} s; {len(kills)} kills in {workspaces} workspaces")
    print(f"half artifacts {len(half)}, failed reruns {len(failed)}, differing files {len(differing)}")
    for line, count in mended.items():
        print(f"recovery, {count} times: {line}")
    sys.exit(bool(half or failed or differing))


if __name__ == "__main__":
    main()
