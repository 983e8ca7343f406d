"""What policies wrote and what it cost: texts by what the strict parser says of them, tokens and seconds.

Counts are over everything that was asked. Costs are over the windows that have a judged list, their judged lists alone,
and per *certified* window: one all of whose judged lists keep every rule (metric `feasible`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline import metrics
from pipeline.metrics import Floats, Ratio
from pipeline.tables import Reader
from stages.audit.inputs import Key
from stages.audit.summary import Cell

Feasible = Mapping[Key, bool]
"""Judged list -> whether it keeps every rule."""

SPENT = ("tokens", "prompt_tokens", "seconds")


def feasible(cells: Collection[Cell], root: str | Path = "data") -> dict[Cell, dict[Key, bool]]:
    """What the audit found of the lists of these (system, setting)."""
    out: dict[Cell, dict[Key, bool]] = {cell: {} for cell in cells}
    for batch in Reader("audit/instances", root).batches():
        rows = batch.filter((pl.col("metric") == "feasible") & pl.col("system").is_in(sorted({s for s, _ in cells})))
        for system, setting, window_id, intent_id, value in rows.select(
            "system", "setting", "window_id", "intent_id", "value"
        ).iter_rows():
            if (system, setting) in out:
                out[system, setting][window_id, intent_id] = value == 1.0
    return out


def outputs(system: str, setting: str, root: str | Path = "data") -> dict[str, Any]:
    """Texts of one (system, setting) by what became of them.

    Returns:
        `texts` written, of which `parsed`, `cut_off` (the end was not reached) and `rejected` by code; `lists`, of
        which `rejected_lists` by the code of the text that counts and `unasked` by the reason why nothing was asked.
    """
    texts, rejected, refused, unasked = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for batch in Reader(f"rank/{system}/{setting}/generations", root).batches():
        for status, code, chosen, finish in batch.select("status", "reject_code", "chosen", "finish").iter_rows():
            texts["lists"] += chosen
            if finish is None:
                unasked[str(code)] += 1
                continue
            texts["texts"] += 1
            texts["parsed"] += status == "parsed"
            texts["cut_off"] += finish == "length"
            if status == "rejected":
                rejected[code] += 1
                refused[code] += chosen
    return {
        **{name: texts[name] for name in ("lists", "texts", "parsed", "cut_off")},
        "rejected": dict(sorted(rejected.items())),
        "rejected_lists": dict(sorted(item for item in refused.items() if item[1])),
        "unasked": dict(sorted(unasked.items())),
    }


def costs(
    system: str, setting: str, judged: Feasible, windows: Mapping[str, int], weights: Floats, root: str | Path = "data"
) -> dict[str, Any]:
    """Tokens written, tokens read and seconds of one (system, setting), per window and per certified window.

    Args:
        judged: its lists.
        windows: window_id -> index, of all windows of the bootstrap.
        weights: (D, W) of `metrics.window_weights`.

    Returns:
        `certified` (share of windows) and, per kind of cost, the mean and `<kind>_per_certified`; each
        {value, low, high, n}, n in windows. Per certified window is null where there is none.
    """
    spent = {name: np.zeros(len(windows)) for name in SPENT}
    for table, names in (("generations", SPENT[:2]), ("timings", SPENT[2:])):
        for batch in Reader(f"rank/{system}/{setting}/{table}", root).batches():
            for window_id, intent_id, *values in batch.select("window_id", "intent_id", *names).iter_rows():
                if (window_id, intent_id) in judged:
                    for name, value in zip(names, values, strict=True):
                        spent[name][windows[window_id]] += value
    lists: dict[str, list[bool]] = defaultdict(list)
    for (window_id, _), holds in judged.items():
        lists[window_id].append(holds)
    present, certified = np.zeros(len(windows)), np.zeros(len(windows))
    for window_id, all_hold in lists.items():
        present[windows[window_id]], certified[windows[window_id]] = 1.0, all(all_hold)
    n = len(lists)
    out = {"certified": metrics.share(Ratio(certified, present, n), weights).json()}
    for name, sums in spent.items():
        out[name] = metrics.estimate(Ratio(sums, present, n), weights).json()
        out[f"{name}_per_certified"] = metrics.estimate(Ratio(sums, certified, n), weights).json()
    return out
