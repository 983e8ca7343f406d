"""From documents to trajectories: seconds and peak memory at 1,000, 10,000 and 100,000 generated documents.

    python benchmarks/data_plane.py [--documents 1000 10000 100000]

Each stage runs as DVC runs it, a process of its own, in an empty workspace. Peak memory is the largest resident set
of the stage or any of its workers. Processor seconds stand beside the wall clock, because they are the same on a busy
machine. Near-linear time means that seconds per document stay level; memory bounded by streaming means that the peak
stays level, too. Fitting the extractor takes at most `extract.train_windows` windows, so it is part of every size and
grows no further from about 3,700 documents on.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe  # noqa: E402

STAGES = ("ingest", "extract", "roster", "trajectories")
PER_WINDOW = 3


def workspace(folder: Path, documents: int) -> None:
    """An empty workspace whose sample corpus has about so many documents."""
    yaml = YAML()
    raw = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["ingest"]["sample"]["windows"] = max(1, documents // PER_WINDOW)
    raw["ingest"]["sample"]["documents"] = PER_WINDOW
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(raw, file)
    for name in ("stages", "intents"):
        (folder / name).symlink_to(ROOT / name)


def run_stage(stage: str, folder: Path) -> tuple[float, float, float]:
    """Run one stage; return (seconds, processor seconds, peak MiB).

    Raises:
        SystemExit: the stage failed.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        os.execve(sys.executable, [sys.executable, "-m", f"stages.{stage}"], environment)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"stage {stage} failed")
    return time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    """Run the sizes given, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--documents", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    sizes = parser.parse_args().documents
    rows: list[dict[str, Any]] = []
    for documents in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            workspace(folder, documents)
            for stage in STAGES:
                seconds, cpu, peak = run_stage(stage, folder)
                rows.append({
                    "documents": documents, "stage": stage, "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2),
                    "peak_mib": round(peak),
                })  # fmt: skip
                print(f"{documents:>8} {stage:<13} {seconds:8.1f} s {cpu:8.1f} CPU s {peak:8.0f} MiB", flush=True)
            size = sum(f.stat().st_size for f in (folder / "data").rglob("*.parquet"))
            total, busy = (sum(r[k] for r in rows if r["documents"] == documents) for k in ("seconds", "cpu_seconds"))
            each = f"{1000 * busy / documents:.2f} CPU ms per document, tables {size / 2**20:.0f} MiB"
            print(f"{documents:>8} total         {total:8.1f} s {busy:8.1f} CPU s, {each}", flush=True)
    results = ROOT / "benchmarks" / "results" / "data_plane.json"
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps({"machine": describe(), "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
