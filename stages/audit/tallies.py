"""Sums per window, from which figures, intervals and paired differences are computed once everything has been seen."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from pipeline import metrics
from pipeline.metrics import Estimate, Floats, Ratio
from pipeline.params import Audit
from stages.audit.lists import MEANS, RATIOS, Judged

COMPARED = ("cert_ndcg", "evid_cons")
"""What counterfactual tests and thresholds are judged by; the second needs no gold."""

Scores = Mapping[str, float | None]


class Tally:
    """Per-window numerators and denominators of many figures of one (system, setting)."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0.0]))
        self._n: Counter[str] = Counter()

    def add(self, name: str, window_id: str, num: float | None, den: float | None = 1.0) -> None:
        """Count one instance; an undefined one leaves no trace."""
        if num is None or den is None:
            return
        sums = self._sums[name][window_id]
        sums[0] += num
        sums[1] += den
        self._n[name] += 1

    def ratio(self, name: str, windows: dict[str, int]) -> Ratio:
        """The figure as (W,) sums in the order of `windows` (window_id -> index)."""
        num, den = np.zeros(len(windows)), np.zeros(len(windows))
        for window_id, (a, b) in self._sums[name].items() if name in self._sums else ():
            num[windows[window_id]], den[windows[window_id]] = a, b
        return Ratio(num, den, self._n[name])


@dataclass(slots=True)
class Results:
    """Everything counted for one (system, setting).

    Args:
        tally: metrics under their names; counterfactual tests under `<metric>_<test>`, with the list's own figure on
            the same instances under `<metric>_<test>/before`; thresholds under `<metric>@<accept>@<margin>`.
        windows, claimed, recovered: one item per emitted entry, for DEC-MI.
        excluded: lists for which DEC-tau is undefined, and lists without the two entries that DEC-delta needs.
        codes: reject codes of emitted entries.
        disagreements: entries whose status as written by the system's stage is not what the audit finds.
        uncertified: empty lists.
        lists: all lists.
        changed: lists in which a counterfactual test changed what is certified, by test.
    """

    tally: Tally = field(default_factory=Tally)
    windows: list[str] = field(default_factory=list)
    claimed: list[str] = field(default_factory=list)
    recovered: list[str] = field(default_factory=list)
    excluded: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    disagreements: int = 0
    uncertified: int = 0
    lists: int = 0
    changed: Counter[str] = field(default_factory=Counter)

    def add(self, window_id: str, judged: Judged) -> None:
        """Count one judged list."""
        values, tally = judged.values, self.tally
        for name in MEANS:
            tally.add(name, window_id, values[name])
        for name, (num, den) in RATIOS.items():
            tally.add(name, window_id, values[num], values[den])
        for claimed, recovered in judged.claims:
            self.windows.append(window_id)
            self.claimed.append(claimed)
            self.recovered.append(recovered)
        self.excluded["dec_tau"] += values["dec_tau"] is None
        self.excluded["dec_delta"] += not judged.coupled
        self.codes.update(f.code for f in judged.facts if f.code is not None)
        self.disagreements += judged.disagreements
        self.lists += 1
        self.uncertified += not judged.facts

    def add_test(self, test: str, window_id: str, before: Scores, after: Scores, changed: bool) -> None:
        """Count one list under a counterfactual test."""
        for metric in COMPARED:
            if before[metric] is not None:
                self.tally.add(f"{metric}_{test}", window_id, after[metric])
                self.tally.add(f"{metric}_{test}/before", window_id, before[metric])
        self.changed[test] += changed

    def add_thresholds(self, accept: float, margin: float, window_id: str, scores: Scores) -> None:
        """Count one list under other verifier thresholds."""
        for metric in COMPARED:
            self.tally.add(f"{metric}@{accept}@{margin}", window_id, scores[metric])

    def estimates(self, windows: dict[str, int], weights: Floats, params: Audit, seed: int) -> dict[str, Estimate]:
        """Every metric with its interval, by name."""
        out = {name: metrics.estimate(self.tally.ratio(name, windows), weights) for name in (*MEANS, *RATIOS)}
        codes = {name: i for i, name in enumerate(sorted({*self.claimed, *self.recovered}))}
        out["dec_mi"], out["dec_mi_null"] = metrics.dec_mi(
            np.array([windows[w] for w in self.windows], dtype=np.int64),
            np.array([codes[c] for c in self.claimed], dtype=np.int64),
            np.array([codes[c] for c in self.recovered], dtype=np.int64),
            weights,
            params.permutations,
            seed,
        )
        return dict(sorted(out.items()))
