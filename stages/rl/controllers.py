"""AGPO's two feedback controllers: sampling temperature and clip width from the uncertainty of a probe group.

    agpo = Agpo(settings)
    heats = agpo.temperatures(found)          # found: Statistics of every prompt's probe group, in global prompt order
    widths = agpo.clips(found, entropies)     # entropies: mean exact token entropy of every prompt's train group
    agpo.observe_kl(step_kl)                  # after the updates; one number per rollout batch
    agpo.state()                              # plain numbers, for the checkpoint

Source: arXiv 2605.20722 in the form of its published code (`wandugu/paper_agpo@11e5596`; not arXiv 2503.15952, which
has the same name). With the preset `published` the arithmetic is that of this code: moving averages one prompt after
the other, no correction of their start, dispersion as it is. `corrected` moves an average once per batch, so neither
the order of prompts nor their layout over processes changes anything, reads the step-KL without the bias of its start,
and keeps a floor under the mean uncertainty, because otherwise any disagreement on easy data heats to the bound.

Everything is a float; no torch. With all gains 0 temperature and clip width are exactly their bases: plain GRPO.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import product
from math import fsum, isfinite, log
from typing import Literal

from pipeline.errors import DataError, ParamError
from pipeline.windows import stable_seed
from stages.rl.statistics import SkewKind, Spread, Statistics, binary_extremes

DENOMINATOR = 0.1
"""The least that a clip width is divided by (a negative alpha could make it 0)."""

EPS_BASE = {"token": 0.2, "slot": 0.07, "sequence": 3.5e-4}
"""Clip width by the unit of the ratio: AGPO's own, Rank-GRPO's and GSPO's. A width is not portable between units."""

INERT = 1e-6
"""A largest |ratio - 1| below which a clip of any width does nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgpoSettings:
    """What the controllers are told; the names are those of `rl.agpo` in params.yaml.

    Args:
        tau_base, tau_min, tau_max, lambda_temp: base, bounds and gain of the temperature.
        w_r, w_e, w_k: weights of dispersion, vote entropy and |skewness| in the uncertainty u.
        eps_base, eps_min, eps_max: base and bounds of the clip width.
        alpha, gamma, zeta: how dispersion, step-KL and |skewness| narrow the clip (alpha may be negative).
        delta: how vote entropy widens it.
        h_min, h_max: bounds of the entropy's ratio to its mean.
        ema_u, ema_kl, ema_h: weights of the newest value in the three moving averages.
        floor: in divisions and tests.
        u_floor: least mean uncertainty that a temperature is computed with.
        sequential: move averages prompt by prompt instead of once per batch.
        debias: read the step-KL's average without the bias of its start.
        match_prompts: a batch of P prompts moves the averages as far as P single ones would.
    """

    tau_base: float = 1.0
    tau_min: float = 0.5
    tau_max: float = 1.5
    lambda_temp: float = 0.15
    w_r: float = 1.0
    w_e: float = 1.0
    w_k: float = 0.0
    eps_base: float = 0.2
    eps_min: float = 0.05
    eps_max: float = 0.4
    alpha: float = 1.0
    gamma: float = 0.5
    zeta: float = 0.0
    delta: float = 0.1
    h_min: float = 0.5
    h_max: float = 1.5
    ema_u: float = 0.1
    ema_kl: float = 0.1
    ema_h: float = 0.01
    floor: float = 1e-8
    u_floor: float = 0.05
    sequential: bool = False
    debias: bool = True
    match_prompts: bool = False

    def __post_init__(self) -> None:
        for low, base, high in (("tau_min", "tau_base", "tau_max"), ("eps_min", "eps_base", "eps_max")):
            bounds = [getattr(self, name) for name in (low, base, high)]
            if not 0 < bounds[0] <= bounds[1] <= bounds[2]:
                raise ParamError(f"must be 0 < {low} <= {base} <= {high}, not {bounds}", field=f"rl.agpo.{base}")
        if not 0 < self.h_min <= self.h_max:
            raise ParamError(f"must be 0 < h_min <= h_max, not {self.h_min}, {self.h_max}", field="rl.agpo.h_min")


@dataclass(frozen=True, slots=True)
class Heat:
    """A prompt's temperature: uncertainty u, its centred value c, tau, and whether tau is at a bound."""

    u: float
    c: float
    tau: float
    bounded: bool


@dataclass(frozen=True, slots=True)
class Width:
    """A prompt's clip width: the bounded entropy ratio h, eps, and whether eps is at a bound."""

    h: float
    eps: float
    bounded: bool


@dataclass(slots=True)
class Memory:
    """What the controllers remember: the three averages and how often each was moved; what was generated.

    Averages are of uncertainty, of the reference entropy, and of the step-KL (raw).
    """

    u: float = 0.0
    u_updates: int = 0
    entropy: float = 0.0
    entropy_updates: int = 0
    kl: float = 0.0
    kl_updates: int = 0
    probe_tokens: int = 0
    train_tokens: int = 0


class Agpo:
    """Both controllers; either may be used without the other."""

    VERSION = 1

    def __init__(self, settings: AgpoSettings) -> None:
        self.settings, self.memory = settings, Memory()

    # temperature

    def temperatures(self, groups: Sequence[Statistics]) -> list[Heat]:
        """The prompts' temperatures from their probe groups, in global prompt order; moves the mean uncertainty."""
        out = []
        told = [self._uncertainty(group) for group in groups]
        for u in told:
            out.append(self.heat(u))
            if self.settings.sequential:
                self._move_u(u, 1)
        if told and not self.settings.sequential:
            self._move_u(fsum(told) / len(told), len(told))
        return out

    def _uncertainty(self, group: Statistics) -> float:
        s = self.settings
        return s.w_r * group.dispersion + s.w_e * group.votes + s.w_k * abs(group.skew)

    def heat(self, u: float) -> Heat:
        """The temperature for one uncertainty at the present mean."""
        s, mean = self.settings, self.memory.u
        c = 0.0 if mean <= s.floor else (u - mean) / (max(mean, s.u_floor) + s.floor)
        wanted = s.tau_base * (1 + s.lambda_temp * c)
        tau = min(max(wanted, s.tau_min), s.tau_max)
        return Heat(u, c, tau, tau != wanted)

    def _move_u(self, u: float, prompts: int) -> None:
        memory = self.memory
        memory.u = u if memory.u <= self.settings.floor else self._moved(memory.u, u, self.settings.ema_u, prompts)
        memory.u_updates += 1

    def _moved(self, old: float, new: float, weight: float, prompts: int) -> float:
        if self.settings.match_prompts:
            weight = 1 - (1 - weight) ** prompts
        return weight * new + (1 - weight) * old

    # clip

    @property
    def kl_mean(self) -> float:
        """Moving average of the step-KL of the rollout batches so far; 0 before the first."""
        memory = self.memory
        if not memory.kl_updates or not self.settings.debias:
            return memory.kl
        return memory.kl / (1 - (1 - self.settings.ema_kl) ** memory.kl_updates)

    def clips(self, groups: Sequence[Statistics], entropies: Sequence[float]) -> list[Width]:
        """The prompts' clip widths from their probe groups and the entropies of their train groups; moves the mean
        entropy afterwards."""
        out = []
        for group, entropy in zip(groups, entropies, strict=True):
            out.append(self.width(group, entropy))
            if self.settings.sequential:
                self._move_entropy(entropy, 1)
        if out and not self.settings.sequential:
            self._move_entropy(fsum(entropies) / len(entropies), len(entropies))
        return out

    def width(self, group: Statistics, entropy: float) -> Width:
        """One prompt's clip width at the present averages."""
        s = self.settings
        usual = self.memory.entropy if self.memory.entropy_updates else entropy
        h = min(max(max(entropy, s.floor) / (max(usual, s.floor) + s.floor), s.h_min), s.h_max)
        below = 1 + s.alpha * group.dispersion + s.gamma * self.kl_mean + s.zeta * abs(group.skew)
        wanted = s.eps_base * h * (1 + s.delta * group.votes) / max(below, DENOMINATOR)
        eps = min(max(wanted, s.eps_min), s.eps_max)
        return Width(h, eps, eps != wanted)

    def _move_entropy(self, entropy: float, prompts: int) -> None:
        memory = self.memory
        first = not memory.entropy_updates
        memory.entropy = entropy if first else self._moved(memory.entropy, entropy, self.settings.ema_h, prompts)
        memory.entropy_updates += 1

    def observe_kl(self, kl: float) -> None:
        """Take the step-KL of a rollout batch in: one number for all prompts and processes."""
        weight = self.settings.ema_kl
        self.memory.kl = weight * kl + (1 - weight) * self.memory.kl
        self.memory.kl_updates += 1

    # state

    def state(self) -> dict[str, float | int]:
        """Everything that the next decision depends on."""
        return {"version": self.VERSION, **{f.name: getattr(self.memory, f.name) for f in fields(Memory)}}

    def restore(self, state: dict[str, float | int]) -> None:
        """Go on from `state()`.

        Raises:
            DataError: another version, or an entry is missing, unknown or no finite number.
        """
        names = {f.name for f in fields(Memory)}
        if state.get("version") != self.VERSION or set(state) != {"version", *names}:
            raise DataError("not a state of these controllers", field="controllers", mend="train from the start")
        for name in sorted(names):
            if not isinstance(state[name], int | float) or not isfinite(state[name]):
                raise DataError(f"not a number: {state[name]!r}", field=f"controllers.{name}")
        self.memory = Memory(**{name: state[name] for name in names})  # type: ignore[arg-type]


def widths(unit: Literal["token", "slot", "sequence"], base: float | None = None) -> tuple[float, float, float]:
    """Least, base and largest clip width for a credit unit: a quarter of the base, the base, and twice of it."""
    base = EPS_BASE[unit] if base is None else base
    return base / 4, base, 2 * base


def permuted(items: Sequence[float], seed: int, step: int) -> list[float]:
    """Items in another order, drawn from (seed, step): the ablation in which prompts get each other's values."""
    order = sorted(range(len(items)), key=lambda i: stable_seed("shuffle", seed, step, i))
    return [items[i] for i in order]


# ---- what a controller can reach -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reach:
    """Least and largest clip width and temperature for 0/1 rewards, before any drift of the policy."""

    eps: tuple[float, float]
    tau: tuple[float, float]


def reachable(settings: AgpoSettings, group: int, spread: Spread = "std", skew: SkewKind = "g1") -> Reach:
    """What bounds are worth: some look active and cannot be met.

    The clip width is monotone in each of its inputs, so its extremes are at corners; the uncertainty's centred value is
    at least -1 and has no upper bound.
    """
    s, votes = settings, (0.0, log(group) if group > 1 else 0.0)
    corners = [
        s.eps_base * h * (1 + s.delta * e) / max(1 + s.alpha * sigma + s.zeta * k, DENOMINATOR)
        for h, e, (sigma, k) in product((s.h_min, s.h_max), votes, binary_extremes(group, spread, skew))
    ]
    low, high = (min(max(x, s.eps_min), s.eps_max) for x in (min(corners), max(corners)))
    coolest, hottest = (s.tau_base * (1 - s.lambda_temp), s.tau_max) if s.lambda_temp > 0 else (s.tau_base, s.tau_base)
    return Reach((low, high), (max(coolest, s.tau_min), hottest))


# ---- guards ----------------------------------------------------------------------------------------------------------


class ClipInertWarning(UserWarning):
    """The ratio is always 1, so whatever sets the clip has no effect."""


def check_inert(clip: str, updates: int, minibatches: int, *, strict: bool = False) -> None:
    """Warn where a rollout batch is used for a single update and yet something sets the clip.

    Raises:
        ParamError: with `strict`.
    """
    if clip == "fixed" or updates * minibatches > 1:
        return
    what = f"the clip ({clip}) cannot act: every rollout batch is used for one update only, so all ratios are 1"
    mend = "raise rl.updates_per_rollout or rl.minibatches_per_rollout"
    if strict:
        raise ParamError(what, field="rl.clip", mend=mend)
    warnings.warn(f"{what}; {mend}", ClipInertWarning, stacklevel=2)


@dataclass(slots=True)
class InertWatch:
    """Counts rollout batches in a row whose ratios were all 1; warns at the limit, once."""

    limit: int = 20
    still: int = 0

    def see(self, clip: str, absdev_max: float) -> None:
        """Take in the largest |ratio - 1| of a rollout batch."""
        self.still = self.still + 1 if absdev_max < INERT else 0
        if clip != "fixed" and self.still == self.limit:
            warnings.warn(
                f"the clip ({clip}) was inert for {self.limit} rollout batches: no ratio left 1; raise "
                "rl.updates_per_rollout, rl.minibatches_per_rollout or rl.rate",
                ClipInertWarning, stacklevel=2,
            )  # fmt: skip


@dataclass(slots=True)
class Budget:
    """Generated tokens, those of probes included; a run stops at the first rollout batch that ends past the limit.

    Args:
        limit: 0 is none.
    """

    limit: int
    probe: int = 0
    train: int = 0

    @property
    def spent(self) -> int:
        return self.probe + self.train

    @property
    def over(self) -> bool:
        return bool(self.limit) and self.spent >= self.limit

    @property
    def overshoot(self) -> int:
        """Tokens past the limit."""
        return max(0, self.spent - self.limit) if self.limit else 0


@dataclass(slots=True)
class Multiplier:
    """Lagrange multiplier of the constraint P(invalid) <= target, moved by dual ascent; never below 0."""

    target: float = 0.02
    rate: float = 0.1
    value: float = 0.0

    def see(self, invalid_share: float) -> None:
        """Take in the share of invalid rollouts of a batch."""
        self.value = max(0.0, self.value + self.rate * (invalid_share - self.target))
