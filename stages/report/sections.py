"""The page's sections as data: which system leads, what is compared with what, which cells are best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pipeline import tables
from pipeline.certificates import REJECT_CODES
from pipeline.params import Params
from pipeline.rankings import OVER_BUDGET
from stages.report import charts, words

Figure = dict[str, Any]
CAP, FLOOR, BASELINE = "oracle", "random", "rm_attach"
OTHER_CODES = {OVER_BUDGET: "plan and roster alone, or prompt and answer together, are too long for the policy"}
"""Codes that say nothing of a certificate."""
BROKEN = ("cite_all", "shuffled")
"""Systems that are wrong on purpose: they stand last."""


@dataclass(frozen=True)
class Audit:
    """The audit's files, and what the page derives from all of them.

    Args:
        metrics, differences, counterfactuals, sweep, extraction, policies, summary: the JSON files of data/audit.
        theta, calibration: those of data/reward.
        settings: roster settings, in the page's order.
    """

    metrics: dict[str, dict[str, dict[str, Figure]]]
    differences: dict[str, dict[str, dict[str, Figure]]]
    counterfactuals: dict[str, dict[str, dict[str, dict[str, Any]]]]
    sweep: dict[str, dict[str, list[dict[str, Any]]]]
    extraction: dict[str, Any]
    policies: dict[str, dict[str, dict[str, Any]]]
    summary: dict[str, Any]
    theta: Sequence[dict[str, Any]]
    calibration: Sequence[dict[str, Any]]
    settings: tuple[str, ...]

    def judged(self) -> Audit:
        """The same without roster settings in which no list was judged: without annotation nobody is in the closed one.

        Where no list was judged at all, every setting stays.
        """
        settings = tuple(s for s in self.settings if any(found[s]["evid_cons"]["n"] for found in self.metrics.values()))
        return replace(self, settings=settings or self.settings)

    @property
    def label_free(self) -> bool:
        return bool(self.summary["label_free"])

    @property
    def headline(self) -> str:
        """The metric that systems are ranked by."""
        return "evid_cons" if self.label_free else "cert_ndcg"

    def value(self, system: str, setting: str, metric: str) -> float:
        """A figure's value for sorting; -1 where undefined."""
        value = self.metrics[system][setting][metric]["value"]
        return -1.0 if value is None else float(value)

    @cached_property
    def systems(self) -> list[str]:
        """The cap first, then systems from best to worst in the first setting, those broken on purpose last."""

        def place(system: str) -> tuple[int, float, float, str]:
            group = 0 if system == CAP else 3 if system in BROKEN else 2 if system == FLOOR else 1
            first = self.settings[0]
            # Equal in the headline, the system whose lists keep the rules more often leads.
            return group, -self.value(system, first, self.headline), -self.value(system, first, "feasible"), system

        return sorted(self.metrics, key=place)

    @cached_property
    def contenders(self) -> list[str]:
        """Systems that may win: neither the cap nor broken on purpose."""
        return [s for s in self.systems if s != CAP and s not in BROKEN]

    @property
    def best(self) -> str:
        """The leading system in the first setting."""
        return (self.contenders or self.systems)[0]

    def leaders(self, setting: str, metric: str) -> set[str]:
        """Contenders with the best value of a metric in a setting, as far as three decimals show."""
        if metric in words.NOT_RANKED:
            return set()
        sign = -1 if metric in words.LESS_IS_BETTER else 1
        values = {
            s: round(sign * figure["value"], 3)
            for s in self.contenders
            if (figure := self.metrics[s][setting][metric])["value"] is not None
        }
        top = max(values.values(), default=None)
        return {s for s, value in values.items() if value == top} if len(values) > 1 else set()


def contents(audit: Audit, params: Params) -> dict[str, Any]:
    """Everything the template needs but for the readings and hashes."""
    return {
        "audit": audit,
        "params": params,
        "source": params.ingest.source,
        "cap": {s: cap_of(audit, CAP, s) for s in audit.settings},
        "floor": {s: cap_of(audit, FLOOR, s) for s in audit.settings},
        "forest": forest(audit),
        "tests": test_rows(audit),
        "curves": {s: curves(audit, s, params) for s in audit.settings},
        "f1": extraction_rows(audit),
        "reliability": reliability_rows(audit),
        "diagrams": diagrams(audit),
        "buckets": params.trajectories.buckets,
        "recalls": recall_rows(audit),
        "rejects": reject_rows(audit),
        "policies": policy_tables(audit),
        "attacks": attack_rows(audit),
        "theta_limit": charts.symmetric_limit([_as_figure(row) for row in audit.theta]),
        "theta": [(row, _as_figure(row)) for row in audit.theta],
    }


def cap_of(audit: Audit, system: str, setting: str) -> float | None:
    """CertNDCG of the cap or the floor; None when it was not run or is undefined."""
    found = audit.metrics.get(system, {}).get(setting)
    return found["cert_ndcg"]["value"] if found else None


def forest(audit: Audit) -> dict[str, Any]:
    """Paired differences from the baseline per setting, under one axis."""
    shown = {
        setting: [
            (system, cells[setting]["cert_ndcg"], cells[setting]["cert_ndcg_gold"])
            for system in audit.systems
            if (cells := audit.differences.get(system, {})).get(setting) and system not in (*BROKEN, FLOOR)
        ]
        for setting in audit.settings
    }
    far = {
        setting: [
            (system, cells[setting]["cert_ndcg"])
            for system in audit.systems
            if (cells := audit.differences.get(system, {})).get(setting) and system in (*BROKEN, FLOOR)
        ]
        for setting in audit.settings
    }
    figures = [figure for rows in shown.values() for row in rows for figure in row[1:]]
    return {"rows": shown, "far": far, "limit": charts.symmetric_limit(figures)}


def test_rows(audit: Audit) -> list[dict[str, Any]]:
    """Counterfactual tests: one row per test, per setting and system the figure, what it costs and a shade 0-5."""
    metric = audit.headline
    rows = []
    for test, (title, expectation) in words.TESTS.items():
        cells: dict[str, dict[str, Any]] = {}
        for setting in audit.settings:
            for system in audit.systems:
                found = audit.counterfactuals[system][setting][test]
                value = found[metric]["value"]
                cells.setdefault(setting, {})[system] = {
                    "figure": found[metric],
                    "lost": found[f"{metric}_lost"],
                    "shade": 0 if value is None else min(5, round(5 * value)),
                    "changed": found["changed"],
                }
        rows.append({"test": test, "title": title, "expectation": expectation, "cells": cells})
    return rows


def curves(audit: Audit, setting: str, params: Params) -> dict[str, list[tuple[float, float | None]]]:
    """The headline metric by acceptance threshold at the margin in use (else the first swept), per contender."""
    margins = sorted({point["margin"] for point in audit.sweep[audit.best][setting]})
    if not margins:
        return {}
    margin = params.verifier.margin if params.verifier.margin in margins else margins[0]
    return {
        system: sorted(
            (point["accept"], point[audit.headline]["value"])
            for point in audit.sweep[system][setting]
            if point["margin"] == margin
        )
        for system in [s for s in audit.systems if s not in BROKEN]
    }


def extraction_rows(audit: Audit) -> list[dict[str, Any]]:
    """Extraction scores by kind and split, splits without gold left out."""
    scores = audit.extraction["scores"]
    return [
        {"kind": kind, "split": split, "overlap": scores[f"{kind}_overlap"][split]["f1"], **found}
        for kind in ("trigger", "argument", "mention")
        for split in tables.SPLITS
        if (found := scores.get(f"{kind}_exact", {}).get(split)) and found["gold"]
    ]


def reliability_rows(audit: Audit) -> list[dict[str, Any]]:
    """Calibration error and shares right per bucket by split and kind, those without a judged hypothesis left out."""
    return [
        {"kind": kind, "split": split, **found}
        for split in ("test", "tune")
        for table, kind in words.HYPOTHESES.items()
        if (found := audit.extraction["reliability"][split][table])["n"]
    ]


def diagrams(audit: Audit) -> dict[str, dict[str, list[tuple[float, float, int]]]]:
    """Reliability diagrams: split -> kind -> (mean confidence, share right, hypotheses) per bin."""
    found = {
        split: {
            kind: [(row["confidence"], row["right"], row["n"]) for row in bins]
            for table, kind in words.HYPOTHESES.items()
            if table != "handles" and (bins := audit.extraction["reliability"][split][table]["bins"])
        }
        for split in ("test", "tune")
    }
    return {split: series for split, series in found.items() if series}


def recall_rows(audit: Audit) -> list[dict[str, Any]]:
    """Roster recall by setting and split, splits without gold left out."""
    return [
        {"setting": setting, "split": split, **found}
        for setting in audit.settings
        for split in tables.SPLITS
        if (found := audit.extraction["roster"][setting][split])["found"]["n"]
    ]


def reject_rows(audit: Audit) -> list[dict[str, Any]]:
    """Reject codes with their meaning and, per setting and system, how often."""
    counts: dict[str, dict[tuple[str, str], int]] = {}
    for system, settings in audit.summary["lists"].items():
        for setting, found in settings.items():
            for code, n in found["reject_codes"].items():
                counts.setdefault(code, {})[setting, system] = n
    return [{"code": code, "meaning": REJECT_CODES[code], "counts": found} for code, found in sorted(counts.items())]


def policy_tables(audit: Audit) -> dict[str, dict[str, Any]]:
    """Per setting: the policies in the page's order, what is said of each, and the codes by which their texts fell."""
    systems = [system for system in audit.systems if system in audit.policies]
    if not systems:
        return {}
    return {
        setting: {
            "systems": systems,
            "cells": (cells := {system: audit.policies[system][setting] for system in systems}),
            "codes": [
                (
                    code,
                    "nothing asked" if kind == "unasked" else "rejected",
                    OTHER_CODES.get(code) or REJECT_CODES[code],
                )
                for kind in ("rejected", "unasked")
                for code in sorted({code for cell in cells.values() for code in cell["outputs"][kind]})
            ],
        }
        for setting in audit.settings
    }


def attack_rows(audit: Audit) -> list[dict[str, Any]]:
    """Attacks by kind, all settings together: successes and trials per policy."""
    systems = [system for system in audit.systems if system in audit.policies]
    counts: dict[str, dict[str, tuple[int, int]]] = {}
    for system in systems:
        for setting in audit.settings:
            for kind, found in audit.policies[system][setting]["attacks"]["kinds"].items():
                successes, trials = counts.setdefault(kind, {}).get(system, (0, 0))
                counts[kind][system] = (successes + found["successes"], trials + found["trials"])
    return [{"kind": kind.replace("_", " "), "counts": found} for kind, found in sorted(counts.items())]


def _as_figure(row: Mapping[str, Any]) -> Figure:
    return {"value": row["theta"], "low": row["low"], "high": row["high"], "n": None}
