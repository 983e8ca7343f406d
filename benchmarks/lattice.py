"""What the lattice is worth: certified rankings of the tune split for several values of one floor of the extractor.

    python benchmarks/lattice.py NAME=WORKSPACE [...] [--floor lattice] [--values 0.5 0.2 0.1 0.05 0.02] [--split tune]

Each workspace has been built by `dvc repro` on some corpus. Its fitted models are used as they are on the windows of
one split alone; only the floor changes (`lattice`, `trigger_floor` or `mention_floor`), and with it what can be cited.
The default is chosen from this curve on tune; the test split is not looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe  # noqa: E402
from pipeline import tables  # noqa: E402

SETTINGS = ("closed", "predicted", "hybrid")
SYSTEMS = ("oracle", "rm_attach")
METRICS = ("ndcg", "cert_ndcg", "cert_ndcg_gold", "evid_cons")
KEPT = "measured"


def prepare(folder: Path, source: Path, split: str) -> None:
    """A workspace with the models of `source`, kept, and the windows of one split of its corpus."""
    for name in ("stages", "intents"):
        (folder / name).symlink_to(ROOT / name)
    for model in ("extract", "reward"):
        shutil.copytree(source / "models" / model, folder / "models/fitted" / KEPT / model)
    data = source / "data"
    (folder / "data/ingest").mkdir(parents=True)
    for file in (data / "ingest").iterdir():
        if file.suffix in (".json", ".jsonl"):
            shutil.copyfile(file, folder / "data/ingest" / file.name)
    documents = tables.read("ingest/documents", data).filter(pl.col("split") == split)
    windows = documents["window_id"].unique().implode()
    gold = [f"ingest/gold/{part}/{name}" for part in tables.SPLITS for name in tables.GOLD]
    for name in ("ingest/documents", "ingest/sentences", "ingest/roster", *gold):
        frame = tables.read(name, data)
        tables.write(name, frame.filter(pl.col("window_id").is_in(windows)), folder / "data")


def build(folder: Path, source: Path, split: str, changes: dict[str, float]) -> dict[str, Any]:
    """Run the stages with other floors; the audit's metrics, and counts of what was extracted."""
    yaml = YAML()
    raw = yaml.load((source / "params.yaml").read_text(encoding="utf-8"))
    raw["extract"].update({"from": KEPT, **changes})
    raw["reward"]["from"] = KEPT
    raw["roster"]["settings"] = list(SETTINGS)
    raw["rank"].update({"systems": ["rm_attach"], "splits": [split]})
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(raw, file)
    steps = [["extract"], ["roster"], ["trajectories"], ["reference"], ["reward"]]
    steps += [step for setting in SETTINGS for step in (["rank", "rm_attach", setting], ["rank_oracle", setting])]
    for step in [*steps, ["heldout"], ["audit"]]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
        command = [sys.executable, "-m", f"stages.{step[0]}", *step[1:]]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(step)} failed:\n{done.stderr}")
    found = json.loads((folder / "data/audit/metrics.json").read_text(encoding="utf-8"))
    rows = {name: tables.Reader(f"extract/{name}", folder / "data").rows for name in ("events", "arguments")}
    return {"rows": rows, "metrics": {
        system: {setting: {m: found[system][setting][m] for m in METRICS} for setting in SETTINGS} for system in SYSTEMS
    }}  # fmt: skip


def main() -> None:
    """Print one line per value, write benchmarks/results/<floor>_<name>.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("workspaces", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--floor", default="lattice", choices=["lattice", "trigger_floor", "mention_floor"])
    parser.add_argument("--values", type=float, nargs="+", default=[0.5, 0.2, 0.1, 0.05, 0.02])
    parser.add_argument("--split", default="tune")
    options = parser.parse_args()
    for item in options.workspaces:
        name, source = item.split("=", 1)
        curve = measure(Path(source).resolve(), options.split, options.floor, options.values, name)
        results = ROOT / "benchmarks/results" / f"{options.floor}_{name}.json"
        results.parent.mkdir(exist_ok=True)
        written = {"machine": describe(), "split": options.split, "floor": options.floor, "curve": curve}
        results.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def measure(source: Path, split: str, floor: str, values: Sequence[float], name: str) -> list[dict[str, Any]]:
    columns = [f"{system} {setting} {m}" for system in SYSTEMS for setting in SETTINGS for m in METRICS[1:3]]
    print(f"| {name}: {floor} | events | arguments | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 3) + "|")
    curve = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder, source, split)
        for value in values:
            point = build(folder, source, split, {floor: value})
            curve.append({floor: value, **point})
            cells = [point["metrics"][s][t][m] for s in SYSTEMS for t in SETTINGS for m in METRICS[1:3]]
            shown = [f"{c['value']:.3f}" if c["value"] is not None else "–" for c in cells]
            rows = point["rows"]
            print(f"| {value} | {rows['events']} | {rows['arguments']} | {' | '.join(shown)} |", flush=True)
    return curve


if __name__ == "__main__":
    main()
