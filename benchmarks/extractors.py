"""Two extractors on one corpus: extraction F1 and what it does to the rankings, with paired intervals over windows.

    python benchmarks/extractors.py LINEAR=../certrank-linear ENCODER=../certrank-encoder [--name rams]

Both arguments are workspaces in which `dvc repro` has been run on the same corpus. Thresholds are chosen on tune for
each extractor by itself; F1 is of exact spans (stages/extract/scores.py); rankings are those of the audited split.
Every figure of the second extractor stands beside that of the first and their difference over the same resamples.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe  # noqa: E402
from pipeline import metrics, tables  # noqa: E402
from pipeline.errors import DataError  # noqa: E402
from stages.extract.scores import Decision, score_extraction  # noqa: E402

SCORES = ("trigger_exact", "mention_exact", "argument_exact", "argument_overlap")
METRICS = ("ndcg", "cert_ndcg", "cert_ndcg_gold", "cert_ndcg_l3", "evid_cons")
SYSTEMS = ("oracle", "rm_attach", "rule_attach")
DRAWS, SEED = 2000, 20250521

Ratios = dict[str, metrics.Ratio]


def counts(data: Path, split: str, windows: list[str]) -> Ratios:
    """F1 of every kind as a ratio of sums over windows: 2 right / (found + gold)."""
    thresholds = json.loads((data / "audit/extraction.json").read_text(encoding="utf-8"))["thresholds"]
    decision = Decision(thresholds["event"], thresholds["argument"])
    gold = {n: by_window(f"ingest/gold/{split}/{n}", data) for n in ("events", "mentions", "arguments", "labelled")}
    found = {n: by_window(f"extract/{n}", data) for n in ("events", "mentions", "arguments")}
    sentences = by_window("ingest/sentences", data)
    right, total = (np.zeros((len(SCORES), len(windows))) for _ in range(2))
    for w, window in enumerate(windows):
        scores = score_extraction(
            {n: rows(frames, window, f"ingest/gold/{split}/{n}") for n, frames in gold.items()},
            {n: rows(frames, window, f"extract/{n}") for n, frames in found.items()},
            rows(sentences, window, "ingest/sentences"), decision,
        )  # fmt: skip
        for i, name in enumerate(SCORES):
            right[i, w] = scores[name].right_found + scores[name].right_gold
            total[i, w] = scores[name].found + scores[name].gold
    return {f"F1 {name}": metrics.Ratio(right[i], total[i], len(windows)) for i, name in enumerate(SCORES)}


def by_window(name: str, data: Path) -> dict[str, pl.DataFrame]:
    return {str(key[0]): part for key, part in tables.read(name, data).partition_by("window_id", as_dict=True).items()}


def rows(frames: dict[str, pl.DataFrame], window: str, name: str) -> pl.DataFrame:
    return frames.get(window, tables.table(name).empty())


def rankings(data: Path, windows: list[str]) -> Iterator[tuple[str, metrics.Ratio]]:
    """Means over instances of the audit's metrics, by `system setting metric`."""
    index = {window: w for w, window in enumerate(windows)}
    found = tables.read("audit/instances", data).filter(
        pl.col("system").is_in(SYSTEMS) & pl.col("metric").is_in(METRICS) & pl.col("value").is_not_null()
    )
    for (system, setting, metric), part in sorted(
        found.partition_by(["system", "setting", "metric"], as_dict=True).items()
    ):
        num, den = np.zeros(len(windows)), np.zeros(len(windows))
        at = [index[window] for window in part["window_id"].to_list()]
        np.add.at(num, at, part["value"].to_numpy())
        np.add.at(den, at, 1.0)
        yield f"{system} {setting} {metric}", metrics.Ratio(num, den, part.height)


def windows_of(data: Path, split: str) -> list[str]:
    frame = tables.read("ingest/documents", data)
    return frame.filter(pl.col("split") == split)["window_id"].unique().sort().to_list()


def figures(data: Path, split: str, windows: list[str]) -> Ratios:
    return {**counts(data, split, windows), **dict(rankings(data, windows))}


def main() -> None:
    """Print the table and write benchmarks/results/extractors_<name>.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("workspaces", nargs=2, metavar="NAME=FOLDER")
    parser.add_argument("--name", default="corpus")
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    named = dict(item.split("=", 1) for item in options.workspaces)
    folders = [Path(folder) / "data" for folder in named.values()]
    windows = windows_of(folders[0], options.split)
    if windows != windows_of(folders[1], options.split):
        raise DataError("the workspaces hold different windows", file=folders[1])
    first, second = (figures(folder, options.split, windows) for folder in folders)
    weights = metrics.window_weights(len(windows), DRAWS, SEED)
    out: dict[str, Any] = {}
    print(f"| {options.name}, {options.split} | {' | '.join(named)} | difference |")
    print("|---|---|---|---|")
    for name in [key for key in first if key in second]:
        cells = [metrics.estimate(side[name], weights) for side in (first, second)]
        cells.append(metrics.difference(second[name], first[name], weights))
        print(f"| {name} | " + " | ".join(show(cell.json()) for cell in cells) + " |")
        out[name] = dict(zip((*named, "difference"), (cell.json() for cell in cells), strict=True))
    results = ROOT / "benchmarks/results" / f"extractors_{options.name}.json"
    results.parent.mkdir(exist_ok=True)
    written = {"machine": describe(), "draws": DRAWS, "split": options.split, "figures": out}
    results.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def show(cell: dict[str, Any]) -> str:
    if cell["value"] is None:
        return "–"
    return f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"


if __name__ == "__main__":
    main()
