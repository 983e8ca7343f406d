"""Advantages: how much better a rollout, or a slot of it, was than what was to be expected of its prompt.

Pure functions on float64 tensors, and the two trackers that remember a prompt between its visits. A group without
signal gives exactly 0 everywhere, whatever the last bits of its rewards are: the flat rule (AGPO's and other published
code divides by that noise). Flat groups are counted by whoever calls.

Axes: G rollouts of a prompt, K list slots (K = 1: the list as a whole), B rollouts of a batch, T response tokens.

Sources: GRPO arXiv 2402.03300; Rank-GRPO arXiv 2510.20150 (`yaochenzhu/Rank-GRPO@c4071a1`) for returns by slot; DCPO
arXiv 2509.02333 (`lime-RL/DCPO@01787b0`) for the smooth advantage; SPO arXiv 2509.13232 (`verl-recipe@550d42f`) for the
single stream; GAE arXiv 1506.02438.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Literal

import torch
from torch import Tensor

from stages.rl.statistics import Spread, dispersion, is_flat

ADV_EPS = 1e-4
"""Added to the spread, as GRPO's implementations do it."""

DRIFT = 0.06
"""SPO: mean |change of log-probability| at which a prompt's memory is halved."""
RHO_MIN, RHO_MAX = 0.875, 0.96
VISIT_FLOOR = 0.05


def returns(gains_GK: Tensor, kind: Literal["to_go", "own", "list"]) -> Tensor:
    """Return [G, K] of every slot: its own and all later gains, its own gain, or the gain of the whole list.

    To-go is right only where a later entry cannot change an earlier gain; see `gate/late_flip_frac` among the metrics.
    """
    if kind == "own":
        return gains_GK
    if kind == "list":
        return gains_GK.sum(1, keepdim=True).expand_as(gains_GK)
    return gains_GK.flip(1).cumsum(1).flip(1)


@dataclass(frozen=True, slots=True)
class Advantages:
    """Of one group.

    Args:
        value_GK: 0 where a rollout did not act or had no number for a reward.
        flat_K: slots without signal.
    """

    value_GK: Tensor
    flat_K: Tensor


def group_advantages(
    returns_GK: Tensor, acted_GK: Tensor | None = None, *, normalise: bool = True, spread: Spread = "std",
    reach: float = 1.0, floor: float = 0.0, eps: float = ADV_EPS,
) -> Advantages:  # fmt: skip
    """(R - mean) / (spread + eps) over the rollouts of a group, slot by slot.

    Args:
        returns_GK: NaN where there is none.
        acted_GK: which rollouts took an action in which slot; the others neither count nor get any. None: all.
        normalise: divide by the spread (GRPO) or not (Dr.GRPO).
        reach: length of the interval of the returns by definition.
        floor: least spread that is divided by, as a share of `reach`.
    """
    value_GK, flat_K = torch.zeros_like(returns_GK), torch.ones(returns_GK.shape[1], dtype=torch.bool)
    counted_GK = _counted(returns_GK, acted_GK)
    for k in range(returns_GK.shape[1]):
        own = returns_GK[counted_GK[:, k], k]
        values = own.tolist()
        if len(values) < 2 or is_flat(values, reach):
            continue
        flat_K[k] = False
        width = max(dispersion(values, spread), floor * reach) + eps if normalise else 1.0
        value_GK[counted_GK[:, k], k] = (own - own.mean()) / width
    return Advantages(value_GK, flat_K)


def _counted(returns_GK: Tensor, acted_GK: Tensor | None) -> Tensor:
    finite_GK = ~returns_GK.isnan()
    return finite_GK if acted_GK is None else finite_GK & acted_GK


# ---- smooth ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Running:
    """Mean and variance of all returns of a prompt's slot so far, one group after the other."""

    visits: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def add(self, mean: float, variance: float) -> None:
        """Take in another group's mean and variance (Bessel)."""
        before, self.visits = self.visits, self.visits + 1
        shift = before / self.visits * (self.mean - mean) ** 2
        self.variance = (before * self.variance + variance + shift) / self.visits
        self.mean = (before * self.mean + mean) / self.visits


@dataclass(slots=True)
class Smooth:
    """DCPO's smooth advantage: a group's own advantage and the one over all visits, whichever mix is smaller.

    A flat group keeps the part that compares it with earlier visits, so an always right (or wrong) prompt still says
    something; all its rollouts get the same sign then.

    Args:
        memory: by prompt, one entry per slot; the prompt's name is its instance, not its text, which is drawn anew.
    """

    memory: dict[str, list[Running]] = field(default_factory=dict)

    def advantages(
        self, key: str, returns_GK: Tensor, acted_GK: Tensor | None = None, *, reach: float = 1.0, floor: float = 0.0,
        eps: float = ADV_EPS,
    ) -> Advantages:  # fmt: skip
        """As `group_advantages`; the group is remembered."""
        step = group_advantages(returns_GK, acted_GK, reach=reach, floor=floor, eps=eps)
        value_GK, counted_GK = torch.zeros_like(returns_GK), _counted(returns_GK, acted_GK)
        slots = self.memory.setdefault(key, [])
        slots += [Running() for _ in range(returns_GK.shape[1] - len(slots))]
        for k in range(returns_GK.shape[1]):
            own = returns_GK[counted_GK[:, k], k]
            if not len(own):
                continue
            running = slots[k]
            running.add(float(own.mean()), 0.0 if step.flat_K[k] else float(own.var()))
            t = running.visits
            whole = torch.zeros_like(own)
            if running.variance > (1e-6 * reach) ** 2:
                whole = (own - running.mean) / (max(sqrt(running.variance), floor * reach) + eps)
            new = step.value_GK[counted_GK[:, k], k]
            early, late = ((t - 1) * new + whole) / t, (new + (t - 1) * whole) / t
            value_GK[counted_GK[:, k], k] = torch.where(early.abs() < late.abs(), early, late)
        return Advantages(value_GK, step.flat_K)

    def state(self) -> dict[str, list[list[float]]]:
        """Plain numbers, for a checkpoint."""
        return {key: [[r.visits, r.mean, r.variance] for r in slots] for key, slots in self.memory.items()}

    def restore(self, state: dict[str, list[list[float]]]) -> None:
        self.memory = {key: [Running(int(n), m, v) for n, m, v in slots] for key, slots in state.items()}


# ---- single stream ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Tracker:
    """SPO: what a prompt is worth, as counts of success a and failure b that fade as the policy moves away."""

    a: float
    b: float

    @classmethod
    def start(cls, successes: float = 0.0, tries: int = 0) -> Tracker:
        """From some earlier tries; without any, one half."""
        weight = 1 / (1 - RHO_MIN)
        return cls(weight * (successes + 0.5) / (tries + 1), weight * (tries - successes + 0.5) / (tries + 1))

    @property
    def value(self) -> float:
        """Expected reward."""
        return self.a / (self.a + self.b)

    @property
    def weight(self) -> float:
        """How much the prompt should be visited."""
        return sqrt(self.value * (1 - self.value)) + VISIT_FLOOR

    def advantage(self, reward: float, drift: float) -> float:
        """reward - value as it was before; then the reward is remembered.

        Args:
            reward: in [0, 1]; fractions count as fractions of a success.
            drift: mean |change of log-probability| of the prompt's last rollout since then (no divergence).
        """
        before = self.value
        rho = min(max(2 ** (-drift / DRIFT), RHO_MIN), RHO_MAX)
        self.a, self.b = rho * self.a + reward, rho * self.b + (1 - reward)
        return reward - before


def standardised(values_B: Tensor, eps: float = ADV_EPS) -> Tensor:
    """(x - mean) / (std + eps) over a batch; 0 where it is flat."""
    if len(values_B) < 2 or is_flat(values_B.tolist()):
        return torch.zeros_like(values_B)
    return (values_B - values_B.mean()) / (values_B.std() + eps)


# ---- PPO -------------------------------------------------------------------------------------------------------------


def gae(rewards_B: Tensor, values_BT: Tensor, mask_BT: Tensor, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation [B, T] with a terminal reward and no discount, and the value targets [B, T].

    Args:
        rewards_B: of whole rollouts, paid at the last token of the mask.
        values_BT: expected reward before each token.
        mask_BT: tokens that are actions; the others are skipped as if they were not there.
    """
    advantage_BT = torch.zeros_like(values_BT)
    after_B, running_B = rewards_B.to(values_BT.dtype), torch.zeros_like(values_BT[:, 0])
    last_B = torch.ones_like(mask_BT[:, 0])
    for t in reversed(range(values_BT.shape[1])):
        own_B = mask_BT[:, t]
        delta_B = after_B - values_BT[:, t]
        new_B = delta_B + torch.where(last_B, 0.0, lam * running_B)
        running_B = torch.where(own_B, new_B, running_B)
        after_B = torch.where(own_B, values_BT[:, t], after_B)
        last_B = last_B & ~own_B
        advantage_BT[:, t] = torch.where(own_B, running_B, 0.0)
    return advantage_BT, (advantage_BT + values_BT) * mask_BT


Total = Callable[[Sequence[float]], list[float]]
"""Sums over processes."""


def whitened(x_BT: Tensor, mask_BT: Tensor, total: Total = list) -> Tensor:
    """Mean 0 and variance 1 over the tokens of the mask, those of all processes."""
    own = x_BT[mask_BT].double()
    whole, squares, n = total([float(own.sum()), float((own**2).sum()), float(len(own))])
    mean = whole / max(n, 1)
    std = sqrt(max(squares / max(n, 1) - mean**2, 0.0))
    return torch.where(mask_BT, (x_BT - mean) / (std + 1e-8), 0.0)
