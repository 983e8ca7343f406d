"""`certrank summary`: the headline numbers of the last run and where everything is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.files import read_json

LABELLED = ("ndcg", "cert_ndcg", "cert_ndcg_gold")
LABEL_FREE = ("evid_cons", "feasible", "dec_tau")
PLACES = (
    ("report", "data/report/index.html", "open it in a browser"),
    ("metrics", "data/audit/metrics.json", "`dvc metrics show`, `dvc metrics diff`"),
    ("rankings", "data/rank/<system>/<setting>/rankings.parquet", "`certrank inspect WINDOW`, `certrank verify`"),
)


WIDE = 150
"""Columns of the terminal from which intervals are shown beside the values."""


def cell(metric: dict[str, Any] | None, interval: bool = True) -> str:
    """`value [low, high]` to three decimals; a dash where the metric is undefined or absent."""
    if metric is None or metric["value"] is None:
        return "–"
    if not interval or metric["low"] is None or metric["high"] is None:
        return f"{metric['value']:.3f}"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def print_summary(root: str | Path = "data", console: Console | None = None) -> None:
    """Print the headline metrics per system and roster setting, and where report, metrics and rankings are.

    Of a corpus without annotation only those that need no label; of a setting without any list, that it has none.

    Raises:
        DataError: the pipeline has not been run.
    """
    console = console or Console()
    metrics = read_json(Path(root) / "audit" / "metrics.json")
    settings = list(dict.fromkeys(setting for by_setting in metrics.values() for setting in by_setting))
    label_free = not any(_known(metrics, setting, LABELLED) for setting in settings)
    names = LABEL_FREE if label_free else LABELLED + LABEL_FREE
    if label_free:
        console.print("no annotation in the audited splits: these metrics need no label and do not say what is right")
        console.print()
    for setting in settings:
        if not _known(metrics, setting, names):
            console.print(f"{setting} roster: no list to judge", end="\n\n")
            continue
        table = Table(title=f"{setting} roster", title_justify="left", box=None, pad_edge=False)
        table.add_column("system", no_wrap=True)
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        first = "evid_cons" if label_free else "cert_ndcg"
        best_first = sorted(metrics.items(), key=lambda item: (-_value(item[1].get(setting), first), item[0]))
        for system, by_setting in best_first:
            if setting in by_setting:
                cells = [cell(by_setting[setting].get(name), console.width >= WIDE) for name in names]
                table.add_row(system, *cells)
        console.print(table)
        console.print()
    for what, where, how in PLACES:
        console.print(f"{what:<9} {where}  ({how})", markup=False, highlight=False, soft_wrap=True)


def _known(metrics: dict[str, dict[str, Any]], setting: str, names: Sequence[str]) -> bool:
    """Whether any system has a value for any of these metrics in a setting."""
    return any(
        (by_setting.get(setting, {}).get(name) or {}).get("value") is not None
        for by_setting in metrics.values() for name in names
    )  # fmt: skip


def _value(values: dict[str, Any] | None, name: str) -> float:
    """A metric, to order by; -1 where it is undefined."""
    value = values[name]["value"] if values else None
    return -1.0 if value is None else float(value)
