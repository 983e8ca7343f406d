"""The metric tables of docs/results.md, from the audits of one or more workspaces.

python benchmarks/results_tables.py "Sample=." "CASIE=../certrank-casie" > tables.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

METRICS = ("ndcg", "cert_ndcg", "cert_ndcg_gold", "cert_ndcg_l3", "evid_cons", "feasible", "dec_delta", "dec_tau")
ORDER = ("oracle", "rm_attach", "rule_attach", "rm_cert", "random", "cite_all", "shuffled")
SCORES = ("trigger_exact", "mention_exact", "argument_exact", "argument_overlap")


def cell(metric: dict[str, Any] | None) -> str:
    """`value [low, high]`, a dash where undefined."""
    if metric is None or metric["value"] is None:
        return "–"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def tables(title: str, data: Path) -> list[str]:
    """Markdown lines for one workspace."""
    metrics = json.loads((data / "audit/metrics.json").read_text(encoding="utf-8"))
    extraction = json.loads((data / "audit/extraction.json").read_text(encoding="utf-8"))
    scores = extraction["scores"]
    lines = [f"## {title}", ""]
    for setting in ("closed", "predicted", "hybrid"):
        instances = metrics["oracle"][setting]["cert_ndcg"]["n"]
        lines += [f"### {setting} roster, {instances} test instances", ""]
        lines += ["| system | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
        for system in ORDER:
            if system in metrics:
                row = " | ".join(cell(metrics[system][setting].get(name)) for name in METRICS)
                lines.append(f"| {system} | {row} |")
        lines.append("")
    lines += ["### Extraction, F1 (precision / recall)", "", "| split | " + " | ".join(SCORES) + " |"]
    lines.append("|---" * (len(SCORES) + 1) + "|")
    for split in ("train", "tune", "test"):
        found = [scores[name][split] for name in SCORES]
        row = " | ".join(f"{s['f1']:.3f} ({s['precision']:.3f} / {s['recall']:.3f})" for s in found)
        lines.append(f"| {split} | {row} |")
    return [*lines, "", *official(extraction["official"]), ""]


def official(found: dict[str, Any]) -> list[str]:
    """Every F1 of the corpus' own scorer on test, as a list of `name value`."""
    lines = ["### As the corpus' own scorer counts (test, F1 (precision / recall))", ""]
    for path, score in sorted(leaves(found)):
        if "test" in path and score.get("f1") is not None and "by_distance" not in path:
            name = " ".join(part for part in path if part not in ("test", "splits"))
            lines.append(f"- {name}: {score['f1']:.3f} ({score['precision']:.3f} / {score['recall']:.3f})")
    return lines if len(lines) > 2 else []


def leaves(node: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every object with an `f1` and where it stands."""
    if "f1" in node:
        return [(path, node)]
    return [leaf for key, value in node.items() if isinstance(value, dict) for leaf in leaves(value, (*path, key))]


def main() -> None:
    """Print the tables of every `title=workspace` given."""
    for argument in sys.argv[1:] or ["Sample=."]:
        title, _, workspace = argument.partition("=")
        print("\n".join(tables(title, Path(workspace) / "data")))


if __name__ == "__main__":
    main()
