"""`certrank summary`: the headline numbers of the last run and where everything is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.files import read_json

HEADLINE = ("ndcg", "cert_ndcg", "cert_ndcg_gold", "evid_cons", "feasible", "dec_tau")
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

    Raises:
        DataError: the pipeline has not been run.
    """
    console = console or Console()
    metrics = read_json(Path(root) / "audit" / "metrics.json")
    settings = list(dict.fromkeys(setting for by_setting in metrics.values() for setting in by_setting))
    for setting in settings:
        table = Table(title=f"{setting} roster", title_justify="left", box=None, pad_edge=False)
        table.add_column("system", no_wrap=True)
        for name in HEADLINE:
            table.add_column(name, justify="right", no_wrap=True)
        best_first = sorted(metrics.items(), key=lambda item: (-_certified(item[1].get(setting)), item[0]))
        for system, by_setting in best_first:
            if setting in by_setting:
                cells = [cell(by_setting[setting].get(name), console.width >= WIDE) for name in HEADLINE]
                table.add_row(system, *cells)
        console.print(table)
        console.print()
    for what, where, how in PLACES:
        console.print(f"{what:<9} {where}  ({how})", markup=False, highlight=False)


def _certified(values: dict[str, Any] | None) -> float:
    """CertNDCG, to order by; -1 where it is undefined."""
    value = values["cert_ndcg"]["value"] if values else None
    return -1.0 if value is None else float(value)
