"""Tables for `dvc plots`: one row per bar or point, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.metrics import Estimate
from stages.audit.reliability import BINS
from stages.audit.summary import Cell, Figures

SHOWN = ("ndcg", "cert_ndcg", "cert_ndcg_gold", "cert_ndcg_l3", "evid_cons", "feasible", "dec_tau", "dec_mi")
BARS = ("cert_ndcg", "cert_ndcg_gold", "evid_cons")
"""Metrics that have a bar chart of their own."""

Row = Sequence[Any]


def comparison(figures: Mapping[Cell, Mapping[str, Estimate]]) -> str:
    """Headline metrics: setting, system, metric, value, low, high, n."""
    rows = [
        (setting, system, metric, *_numbers(cells[metric].json()))
        for (system, setting), cells in figures.items() for metric in SHOWN
    ]  # fmt: skip
    return _csv(("setting", "system", "metric", "value", "low", "high", "n"), sorted(rows))


def single(figures: Mapping[Cell, Mapping[str, Estimate]], metric: str) -> str:
    """One metric with one label per (setting, system), which is what dvc's bar chart takes: list, value."""
    rows = [
        (f"{setting}: {system}", cells[metric].json()["value"]) for (system, setting), cells in figures.items()
    ]  # fmt: skip
    return _csv(("list", metric), sorted(rows))


def differences(figures: Figures) -> str:
    """Paired differences from the baseline, same columns."""
    rows = [
        (setting, system, metric, *_numbers(cell[metric]))
        for system, settings in figures.items() for setting, cell in settings.items() for metric in SHOWN
        if metric in cell
    ]  # fmt: skip
    return _csv(("setting", "system", "metric", "value", "low", "high", "n"), sorted(rows))


def counterfactuals(figures: Figures) -> str:
    """CertNDCG under each test: setting, system, test, value, low, high, n."""
    rows = [
        (setting, system, test, *_numbers(found["cert_ndcg"]))
        for system, settings in figures.items() for setting, cell in settings.items() for test, found in cell.items()
    ]  # fmt: skip
    return _csv(("setting", "system", "test", "value", "low", "high", "n"), sorted(rows))


def sweep(figures: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> str:
    """CertNDCG by thresholds: setting, system, margin, accept, value, low, high, n."""
    rows = [
        (setting, system, point["margin"], point["accept"], *_numbers(point["cert_ndcg"]))
        for system, settings in figures.items() for setting, points in settings.items() for point in points
    ]  # fmt: skip
    return _csv(("setting", "system", "margin", "accept", "value", "low", "high", "n"), sorted(rows))


def reliability(figures: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Share right by confidence: one row per bin of its middle, then one column per split and table.

    `calibrated` is what a calibrated extractor would have: the middle itself. A bin without hypotheses is empty.
    """
    places = [(split, table) for split, found in figures.items() for table in found]
    right = {
        (split, table, round(row["low"] * BINS)): row["right"]
        for split, table in places for row in figures[split][table]["bins"]
    }  # fmt: skip
    rows = [
        (middle, middle, *(right.get((*place, b)) for place in places))
        for b in range(BINS) for middle in [round((b + 0.5) / BINS, 6)]
    ]  # fmt: skip
    return _csv(("confidence", "calibrated", *(f"{split}_{table}" for split, table in places)), rows)


def _numbers(figure: Mapping[str, Any]) -> tuple[Any, ...]:
    return figure["value"], figure["low"], figure["high"], figure["n"]


def _csv(header: Sequence[str], rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return out.getvalue()
