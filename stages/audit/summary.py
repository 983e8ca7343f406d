"""From what was counted to the JSON files of data/audit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import metrics
from pipeline.metrics import Estimate, Floats, Ratio
from pipeline.params import Audit
from pipeline.tables import Reader
from stages.audit.counterfactuals import TESTS
from stages.audit.lists import MEANS, RATIOS
from stages.audit.tallies import COMPARED, Results

BASELINE = "rm_attach"
"""What every other system is compared with."""

Cell = tuple[str, str]
"""(system, setting)."""

Figures = dict[str, dict[str, dict[str, Any]]]
"""system -> setting -> name -> figure, as in the files."""


def nested(cells: Iterable[tuple[Cell, dict[str, Any]]]) -> Figures:
    """{(system, setting): figures} as nested objects."""
    out: Figures = {}
    for (system, setting), figures in cells:
        out.setdefault(system, {})[setting] = figures
    return out


def metric_figures(
    results: Mapping[Cell, Results], windows: dict[str, int], weights: Floats, params: Audit, seed: int
) -> dict[Cell, dict[str, Estimate]]:
    """Every metric of every (system, setting)."""
    return {cell: found.estimates(windows, weights, params, seed) for cell, found in results.items()}


def differences(results: Mapping[Cell, Results], windows: dict[str, int], weights: Floats) -> Figures:
    """Paired differences system - `BASELINE` in the same setting; empty when the baseline was not run."""
    names = sorted((*MEANS, *RATIOS))
    return nested(
        (
            (system, setting),
            {
                name: metrics.difference(
                    found.tally.ratio(name, windows), results[BASELINE, setting].tally.ratio(name, windows), weights
                ).json()
                for name in names
            },
        )
        for (system, setting), found in results.items()
        if system != BASELINE and (BASELINE, setting) in results
    )


def counterfactuals(results: Mapping[Cell, Results], windows: dict[str, int], weights: Floats) -> Figures:
    """Per test: CertNDCG and EvidCons under it, and what it costs on the same lists (`*_lost`, paired)."""

    def figures(found: Results) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for test in TESTS:
            out[test] = {"changed": found.changed[test]}
            for metric in COMPARED:
                after = found.tally.ratio(f"{metric}_{test}", windows)
                before = found.tally.ratio(f"{metric}_{test}/before", windows)
                lost = Ratio(before.num - after.num, after.den, after.n)
                out[test][metric] = metrics.estimate(after, weights).json()
                out[test][f"{metric}_lost"] = metrics.estimate(lost, weights).json()
        return out

    return nested((cell, figures(found)) for cell, found in results.items())


def sweep(results: Mapping[Cell, Results], windows: dict[str, int], weights: Floats, params: Audit) -> dict[str, Any]:
    """CertNDCG and EvidCons at every pair of verifier thresholds."""

    def points(found: Results) -> list[dict[str, Any]]:
        return [
            {
                "accept": accept,
                "margin": margin,
                **{
                    metric: metrics.estimate(found.tally.ratio(f"{metric}@{accept}@{margin}", windows), weights).json()
                    for metric in COMPARED
                },
            }
            for accept in params.sweep_accept
            for margin in params.sweep_margin
        ]

    out: dict[str, Any] = {}
    for (system, setting), found in results.items():
        out.setdefault(system, {})[setting] = points(found)
    return out


def window_counts(splits: Sequence[str], root: str | Path = "data") -> dict[str, int]:
    """Windows of the audited splits by the reason why they are not ranked; `kept` counts those that are."""
    counts: Counter[str] = Counter()
    for batch in Reader("roster/windows", root).batches():
        rows = batch.filter(pl.col("split").is_in(list(splits))).select("kept", "dropped")
        counts.update("kept" if kept else str(reason) for kept, reason in rows.iter_rows())
    return dict(sorted(counts.items()))


def list_counts(results: Mapping[Cell, Results]) -> Figures:
    """Per (system, setting): lists, empty lists, exclusions, reject codes, disagreements with the system's stage."""
    return nested(
        (
            cell,
            {
                "lists": found.lists,
                "uncertified": found.uncertified,
                "excluded": {name: found.excluded[name] for name in ("dec_delta", "dec_tau")},
                "reject_codes": dict(sorted(found.codes.items())),
                "status_disagreements": found.disagreements,
            },
        )
        for cell, found in results.items()
    )
