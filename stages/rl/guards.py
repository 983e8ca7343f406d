"""When a run has collapsed: rules over what is logged every rollout batch, each with a reason a person can act on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from pipeline.errors import DataError

ENTROPY_SHARE = 0.2
"""Of the entropy at the start; less is a collapse."""
INVALID_SHARE, SIGNAL_SHARE = 0.9, 1.0
GRADIENT_RISE = 3.0
EARLY = 10
"""Rollout batches that say what is usual."""

REASONS = {
    "entropy": "the policy has hardly any choice left (entropy below a fifth of its start); raise tau or lower rate",
    "invalid": "nearly every list is invalid; lower rate, raise ref_kl.beta, or decode under the grammar",
    "signal": "no group carries any signal; start from a better policy, use reward graded, or raise group_size",
    "displacement": "good lists become less likely while gradients have trebled; use guard llds, or lower rate",
}


@dataclass(slots=True)
class Watch:
    """Counts for how many rollout batches in a row a rule has been broken.

    Args:
        patience: so many in a row stop the run; 0 never.
        counts: by rule.
        early: entropy and gradient norm of the first rollout batches.
    """

    patience: int
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    early: list[list[float]] = field(default_factory=list)

    def see(self, row: Mapping[str, float]) -> None:
        """Take a rollout batch's metrics in.

        Raises:
            DataError: the run has collapsed.
        """
        if len(self.early) < EARLY:
            self.early.append([row["entropy/all"], row["grad_norm"]])
        entropy, gradient = (median(values) for values in zip(*self.early, strict=True))
        broken = {
            "entropy": row["entropy/all"] < ENTROPY_SHARE * entropy,
            "invalid": row["group/invalid_frac"] >= INVALID_SHARE,
            "signal": row["group/flat_frac"] >= SIGNAL_SHARE,
            "displacement": row["logp/pos_change"] < 0 and row["grad_norm"] > GRADIENT_RISE * gradient,
        }
        for rule, is_broken in broken.items():
            self.counts[rule] = self.counts[rule] + 1 if is_broken else 0
            if self.patience and self.counts[rule] >= self.patience:
                raise DataError(f"stopped after {self.patience} rollout batches in a row: {REASONS[rule]}", field="rl")
