"""From a rollout batch's rewards to advantages and clip widths: everything that one prompt's fate decides for another.

`Facts` of all prompts are gathered over the processes and put in the order of the batch; what is computed here is then
the same everywhere, to the bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import fsum
from typing import Any

import torch
from torch import Tensor

from stages.rl.advantages import Smooth, Tracker, group_advantages, returns, standardised
from stages.rl.controllers import Agpo, Budget, Heat, InertWatch, Multiplier, Width, permuted
from stages.rl.reward import Judged
from stages.rl.rollout import rounded
from stages.rl.settings import SLOT_FLOOR, Decided
from stages.rl.statistics import Statistics, is_flat, statistics, vote_keys


@dataclass(slots=True)
class Facts:
    """What is known of one prompt's train group, in plain numbers.

    Args:
        index: place of the prompt in the batch.
        key: of the instance.
        reach: length of the interval of its rewards.
        gains: [G][K] of every slot.
        acted: [G][K] whether the rollout had a choice in the slot.
        lists: candidate ids of each rollout, None where it is invalid.
        codes: reject codes, None where the text parsed.
        certified, entries, rank: per rollout.
        lengths: tokens of the rollouts; of the probe group in sum.
        entropy: sum over free tokens, and their number.
        drift: of the prompt's last rollout since then (single_stream).
        flips: entries whose gate a later one changed, and entries.
    """

    index: int
    key: str
    reach: float
    gains: list[list[float]]
    acted: list[list[bool]]
    lists: list[tuple[str, ...] | None]
    codes: list[str | None]
    certified: list[int]
    entries: list[int]
    rank: list[float]
    lengths: list[int]
    probe_tokens: int = 0
    entropy: tuple[float, int] = (0.0, 0)
    drift: float = 0.0
    flips: tuple[int, int] = (0, 0)

    @property
    def rewards(self) -> list[float]:
        return [fsum(row) for row in self.gains]

    @property
    def mean_entropy(self) -> float:
        return self.entropy[0] / max(self.entropy[1], 1)

    @property
    def flat(self) -> bool:
        """Whether a comparison within the group says nothing; a single rollout is not compared within it."""
        return len(self.gains) > 1 and is_flat(self.rewards, self.reach)


@dataclass(slots=True)
class Memory:
    """What a run remembers besides weights: checkpointed whole, equal in every process."""

    agpo: Agpo
    budget: Budget
    multiplier: Multiplier
    inert: InertWatch
    smooth: Smooth = field(default_factory=Smooth)
    trackers: dict[str, Tracker] = field(default_factory=dict)
    previous: dict[str, Statistics] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """Plain numbers and names."""
        return {
            "agpo": self.agpo.state(), "budget": asdict(self.budget), "multiplier": self.multiplier.value,
            "inert": self.inert.still, "smooth": self.smooth.state(),
            "trackers": {key: [t.a, t.b] for key, t in self.trackers.items()},
            "previous": {key: [s.dispersion, s.skew, s.votes] for key, s in self.previous.items()},
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.agpo.restore(state["agpo"])
        self.budget.probe, self.budget.train = state["budget"]["probe"], state["budget"]["train"]
        self.multiplier.value, self.inert.still = state["multiplier"], state["inert"]
        self.smooth.restore(state["smooth"])
        self.trackers = {key: Tracker(a, b) for key, (a, b) in state["trackers"].items()}
        self.previous = {key: Statistics(*values) for key, values in state["previous"].items()}


# ---- controllers -----------------------------------------------------------------------------------------------------


def observed(
    decided: Decided, rewards: Sequence[float], lists: Sequence[tuple[str, ...] | None], reach: float
) -> Statistics:
    """Statistics of a group, as the settings want its dispersion and votes.

    Args:
        lists: candidate ids of each rollout, None where it is invalid: no vote, or one of its own.
    """
    own = decided.arm.agpo
    if own.vote_invalid == "unique":
        votes = [listed if listed is not None else (f"invalid {i}",) for i, listed in enumerate(lists)]
    else:
        votes = [listed for listed in lists if listed is not None]
    published = own.preset == "published"
    return statistics(
        rewards, vote_keys(votes, own.vote_key), spread=own.dispersion, reach=1.0 if published else reach,
        skew="published" if published else "g1",
    )  # fmt: skip


def listed_of(judged: Judged) -> tuple[str, ...] | None:
    """A list's candidates, None where it is invalid."""
    return None if judged.invalid else judged.listed


def heats(
    decided: Decided, memory: Memory, told: Sequence[Statistics], step: int, seed: int
) -> tuple[list[float], list[Heat]]:
    """Temperatures of the prompts of a batch, as they are sampled with, and what the controller said."""
    if decided.temperature == "fixed":
        return [decided.arm.tau] * len(told), []
    found = memory.agpo.temperatures(told)
    taus = [heat.tau for heat in found]
    if decided.arm.agpo.shuffle:
        taus = permuted(taus, seed, step)
    return [rounded(tau) for tau in taus], found


def clip_widths(
    decided: Decided, memory: Memory, told: Sequence[Statistics], facts: Sequence[Facts], step: int, seed: int
) -> tuple[list[tuple[float, float]], list[Width]]:
    """Lower and upper clip width of every prompt, fixed until the next rollouts, and what the controller said."""
    if decided.clip == "agpo":
        found = memory.agpo.clips(told, [fact.mean_entropy for fact in facts])
        eps = [width.eps for width in found]
        if decided.arm.agpo.shuffle:
            eps = permuted(eps, seed, step)
        return [(e, e) for e in eps], found
    return [decided.eps] * len(facts), []


# ---- advantages ------------------------------------------------------------------------------------------------------


def penalise(fact: Facts, price: float) -> None:
    """Take the price of an invalid list off its last slot, so that every return to go feels it."""
    for gains, acted, listed in zip(fact.gains, fact.acted, fact.lists, strict=True):
        if listed is None and price:
            last = max((k for k, own in enumerate(acted) if own), default=0)
            gains[last] -= price


def advantages(decided: Decided, memory: Memory, facts: Sequence[Facts]) -> list[Tensor]:
    """Advantages [G, K] of every prompt's group; K = 1 where the list as a whole is credited."""
    kind = decided.advantage
    if kind == "gae":
        return [torch.tensor(fact.rewards, dtype=torch.float64)[:, None] for fact in facts]
    if kind == "single_stream":
        found = [
            memory.trackers.setdefault(fact.key, Tracker.start()).advantage(
                min(max(fact.rewards[0] / fact.reach, 0.0), 1.0), fact.drift
            )
            for fact in facts
        ]
        return list(standardised(torch.tensor(found, dtype=torch.float64))[:, None, None])
    return [_group(decided, memory, fact) for fact in facts]


def _group(decided: Decided, memory: Memory, fact: Facts) -> Tensor:
    gains_GK = torch.tensor(fact.gains, dtype=torch.float64)
    acted_GK: Tensor | None = torch.tensor(fact.acted)
    floor = 0.0
    if decided.unit == "slot":
        returns_GK = returns(gains_GK, decided.arm.slot_return)
        floor = SLOT_FLOOR
    else:
        returns_GK, acted_GK = gains_GK.sum(1, keepdim=True), None
    if decided.advantage == "smooth":
        return memory.smooth.advantages(fact.key, returns_GK, acted_GK, reach=fact.reach, floor=floor).value_GK
    return group_advantages(
        returns_GK, acted_GK, normalise=decided.advantage == "group", spread=decided.arm.agpo.dispersion,
        reach=fact.reach, floor=floor,
    ).value_GK  # fmt: skip


# ---- what is logged --------------------------------------------------------------------------------------------------


def group_metrics(facts: Sequence[Facts], found: Sequence[Tensor], unit: str) -> dict[str, float]:
    """Of a rollout batch: rewards with their spread within groups, validity, signal, lengths."""
    rows = [r for fact in facts for r in fact.rewards]
    count = len(rows)
    within = {
        "reward": [fact.rewards for fact in facts], "rank": [fact.rank for fact in facts],
        "certified": [[c / max(e, 1) for c, e in zip(f.certified, f.entries, strict=True)] for f in facts],
    }  # fmt: skip
    out = {
        "group/flat_frac": _mean([float(fact.flat) for fact in facts]),
        "group/invalid_frac": sum(listed is None for fact in facts for listed in fact.lists) / count,
        "group/rejected_frac": sum(code is not None for fact in facts for code in fact.codes) / count,
        "group/distinct_lists": _mean([len({str(x) for x in fact.lists}) / len(fact.lists) for fact in facts]),
        "length/mean": sum(n for fact in facts for n in fact.lengths) / count,
        "length/max": float(max(n for fact in facts for n in fact.lengths)),
        "entries/mean": sum(n for fact in facts for n in fact.entries) / count,
        "entries/certified": sum(n for fact in facts for n in fact.certified) / count,
        "adv/absmax": max(float(a.abs().max()) for a in found),
        "adv/mean_in_flat": _mean([float(a.mean()) for a, f in zip(found, facts, strict=True) if f.flat]),
        "gate/late_flip_frac": sum(f.flips[0] for f in facts) / max(sum(f.flips[1] for f in facts), 1),
        "entropy/all": fsum(f.entropy[0] for f in facts) / max(sum(f.entropy[1] for f in facts), 1),
    }
    for name, groups in within.items():
        out[f"{name}/mean"] = _mean([value for group in groups for value in group])
        out[f"{name}/within_var"] = _mean([_variance(group) for group in groups])
    if unit == "slot":
        most = max(a.shape[1] for a in found)
        for k in range(most):
            flat = [float(not bool(a[:, k].any())) for a in found if a.shape[1] > k]
            out[f"slot_{k + 1}/flat_frac"] = _mean(flat)
    codes = Counter(code for fact in facts for code in fact.codes if code is not None)
    return out | {f"reject/{code}": n / count for code, n in sorted(codes.items())}


def controller_metrics(memory: Memory, told: Sequence[Statistics], warm: Sequence[Heat]) -> dict[str, float]:
    """The controllers' inputs and the temperature's trace, means over the prompts of a batch."""
    out = {
        "agpo/sigma": _mean([s.dispersion for s in told]), "agpo/skew": _mean([s.skew for s in told]),
        "agpo/vote_entropy": _mean([s.votes for s in told]), "agpo/kl_ema": memory.agpo.kl_mean,
    }  # fmt: skip
    if warm:
        out |= {
            "agpo/u": _mean([h.u for h in warm]), "agpo/u_ema": memory.agpo.memory.u,
            "agpo/c": _mean([h.c for h in warm]), "agpo/tau": _mean([h.tau for h in warm]),
            "agpo/tau_bounded": _mean([float(h.bounded) for h in warm]),
        }  # fmt: skip
    return out


def width_metrics(wide: Sequence[Width]) -> dict[str, float]:
    """The clip width's trace."""
    if not wide:
        return {}
    return {
        "agpo/eps": _mean([w.eps for w in wide]), "agpo/entropy_ratio": _mean([w.h for w in wide]),
        "agpo/eps_bounded": _mean([float(w.bounded) for w in wide]),
    }  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values) if values else 0.0


def _variance(values: Sequence[float]) -> float:
    middle = _mean(values)
    return _mean([(value - middle) ** 2 for value in values])
