"""The policy objectives as pure functions on tensors: one function per axis, put together by `surrogate`.

    ratio_BT  = exp(unit_mean(lp_new - lp_old))          credit unit: token, slot or sequence
    loss_BT   = clip(ratio_BT, advantage_BT)             fixed (also agpo, gspo: other widths), dcpo, sapo; or reinforce
    loss      = Σ weights_BT · loss_BT                   aggregation, then the anchor and the guards in the same way

All log-probabilities of a sample are under the distribution it was drawn from: its own temperature, its grammar. A
token with a single legal continuation is no action and stands outside `mask_BT`.

At the first update after a rollout all ratios are 1, and then every clip has the gradient of plain REINFORCE: clips
differ only with several updates per rollout batch, or a rollout engine that differs from the trainer.

Axes: B rollouts, T response tokens, U units of credit. `unit_BT` numbers a token's unit within its rollout.

Sources: GRPO arXiv 2402.03300, Rank-GRPO 2510.20150, GSPO 2507.18071, DCPO 2509.02333, SAPO 2511.20347, DAPO
2503.14476, Dr.GRPO 2503.20783, IcePop 2510.18855, truncated importance sampling 1606.02647, PPO 1707.06347, GTPO
2508.03772, LLDS 2512.04220; the anchors: 2512.02556.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Unit = Literal["token", "slot", "sequence"]
Clip = Literal["fixed", "agpo", "dcpo", "sapo", "gspo"]
Aggregation = Literal["slot_mean", "seq_mean", "token_mean", "const"]
Anchor = Literal["k3_is", "k2", "k3", "k1_parity"]

CLIPS: dict[Unit, tuple[Clip, ...]] = {
    "token": ("fixed", "agpo", "dcpo", "sapo"), "slot": ("fixed", "agpo"), "sequence": ("fixed", "agpo", "gspo"),
}  # fmt: skip
"""Which clips fit which unit: each assumes the statistics of one kind of ratio."""

EPS: dict[Unit, tuple[float, float]] = {"token": (0.2, 0.2), "slot": (0.06, 0.08), "sequence": (3e-4, 4e-4)}
"""Lower and upper clip width of `fixed` and `gspo`, by unit (PPO; Rank-GRPO's code; GSPO)."""

DCPO_EPS, DCPO_CAP = (0.16, 0.20), 10.0
SAPO_HEAT = (1.0, 1.05)
"""SAPO: heat of the sigmoid for a positive, and for any other advantage."""
ICEPOP, TIS = (0.5, 5.0), 2.0
"""Bounds of the ratio between trainer and rollout engine."""


# ---- units -----------------------------------------------------------------------------------------------------------


def units(kind: Unit, slot_BT: Tensor) -> Tensor:
    """Number [B, T] of every token's unit: the token itself, its list slot, or 0 for the whole rollout."""
    if kind == "slot":
        return slot_BT
    if kind == "sequence":
        return torch.zeros_like(slot_BT)
    return torch.arange(slot_BT.shape[1], device=slot_BT.device).expand_as(slot_BT)


def unit_mean(x_BT: Tensor, unit_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """At every token of the mask the mean of x over the masked tokens of its unit; 0 elsewhere."""
    sums_BU, counts_BU = _sums(x_BT, unit_BT, mask_BT), _sums(torch.ones_like(x_BT), unit_BT, mask_BT)
    return (sums_BU / counts_BU.clamp(min=1)).gather(1, unit_BT.clamp(min=0)) * mask_BT


def _sums(x_BT: Tensor, unit_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sums [B, U] of x over the masked tokens of every unit."""
    width = int(unit_BT.max()) + 1 if unit_BT.numel() else 1
    out_BU = torch.zeros(x_BT.shape[0], max(width, 1), dtype=x_BT.dtype, device=x_BT.device)
    return out_BU.scatter_add(1, unit_BT.clamp(min=0), torch.where(mask_BT, x_BT, 0.0))


def log_ratio(new_BT: Tensor, old_BT: Tensor, unit: Unit, slot_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean log-ratio of every token's unit: the logarithm of the geometric-mean ratio."""
    change_BT = torch.where(mask_BT, new_BT - old_BT, 0.0)
    return change_BT if unit == "token" else unit_mean(change_BT, units(unit, slot_BT), mask_BT)


# ---- clips -----------------------------------------------------------------------------------------------------------


def clipped(ratio_BT: Tensor, advantage_BT: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """-min(r·A, clip(r, 1 - low, 1 + high)·A); the widths may differ by token."""
    return -torch.minimum(ratio_BT * advantage_BT, _clamp(ratio_BT, 1 - low, 1 + high) * advantage_BT)


def _clamp(x_BT: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    return torch.minimum(torch.maximum(x_BT, _like(low, x_BT)), _like(high, x_BT))


def _like(value: Tensor | float, x_BT: Tensor) -> Tensor:
    return value.to(x_BT.dtype) if isinstance(value, Tensor) else torch.full_like(x_BT, value)


def dcpo_bounds(old_BT: Tensor, eps: tuple[float, float] = DCPO_EPS) -> tuple[Tensor, Tensor]:
    """Bounds of the ratio by the token's old probability q, so that |(r - 1)·r·q| <= eps; at most 10."""
    q_BT = old_BT.exp()
    low_BT = 0.5 + 0.5 * (1 - 4 * eps[0] / q_BT).clamp(min=0).sqrt()
    return low_BT, (0.5 + 0.5 * (1 + 4 * eps[1] / q_BT).sqrt()).clamp(max=DCPO_CAP)


def sapo(ratio_BT: Tensor, advantage_BT: Tensor, heat: tuple[float, float] = SAPO_HEAT) -> Tensor:
    """-(4 / T)·sigmoid(T·(r - 1))·A: slope 1 at r = 1, falling smoothly on either side. Its values compare with those
    of no other clip."""
    heat_BT = torch.where(advantage_BT > 0, _like(heat[0], ratio_BT), _like(heat[1], ratio_BT))
    return -(4 / heat_BT) * torch.sigmoid(heat_BT * (ratio_BT - 1)) * advantage_BT


def surrogate(
    new_BT: Tensor, old_BT: Tensor, advantage_BT: Tensor, slot_BT: Tensor, mask_BT: Tensor, *, unit: Unit, clip: Clip,
    low: Tensor | float, high: Tensor | float,
) -> Tensor:  # fmt: skip
    """Loss [B, T] per token, 0 outside the mask; a unit's loss stands at each of its tokens.

    Args:
        new_BT, old_BT: log-probabilities under the policy and under the one at rollout.
        advantage_BT: equal within a unit.
        low, high: clip widths of `fixed`, `agpo` and `gspo`; of `dcpo` the bounds on probability.
    """
    ratio_BT = log_ratio(new_BT, old_BT, unit, slot_BT, mask_BT).exp()
    if clip == "sapo":
        loss_BT = sapo(ratio_BT, advantage_BT)
    elif clip == "dcpo":
        least_BT, most_BT = dcpo_bounds(old_BT)
        loss_BT = clipped(ratio_BT, advantage_BT, 1 - least_BT, most_BT - 1)
    else:
        loss_BT = clipped(ratio_BT, advantage_BT, low, high)
    return torch.where(mask_BT, loss_BT, 0.0)


def reinforce(new_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """-A·log π: no ratio, no clip."""
    return torch.where(mask_BT, -advantage_BT * new_BT, 0.0)


# ---- aggregation -----------------------------------------------------------------------------------------------------


def weights(kind: Aggregation, slot_BT: Tensor, mask_BT: Tensor, longest: int) -> Tensor:
    """Weight [B, T] of every token in the loss; a loss is then Σ weight · loss, however the batch is cut up.

    `slot_mean`: slots of a rollout weigh the same, rollouts weigh the same. `seq_mean`: tokens of a rollout, rollouts
    (GRPO). `token_mean`: all tokens (DAPO). `const`: all tokens, over a constant (Dr.GRPO).

    Args:
        longest: tokens that a rollout could have had at most; of `const`.
    """
    own_BT = mask_BT.float()
    rows = max(len(mask_BT), 1)
    if kind == "token_mean":
        return own_BT / own_BT.sum().clamp(min=1)
    if kind == "const":
        return own_BT / (rows * longest)
    if kind == "seq_mean":
        return own_BT / own_BT.sum(1, keepdim=True).clamp(min=1) / rows
    counts_BU = _sums(own_BT, slot_BT, mask_BT)
    slots_B1 = (counts_BU > 0).sum(1, keepdim=True).clamp(min=1)
    return own_BT / counts_BU.gather(1, slot_BT.clamp(min=0)).clamp(min=1) / slots_B1 / rows


# ---- anchor and drift ------------------------------------------------------------------------------------------------


def anchor(new_BT: Tensor, old_BT: Tensor, ref_BT: Tensor, kind: Anchor) -> Tensor:
    """Per-token estimate of KL(policy || reference), to be minimised.

    `k3_is` (ρ·k3, ρ = π/π_old with its gradient) and `k2` have the gradient of the divergence in expectation; plain
    `k3` has another one, and `k1_parity` (log π - log π_ref as a loss) has none at all: it is there for comparisons.
    """
    gap_BT = ref_BT - new_BT
    if kind == "k2":
        return 0.5 * gap_BT**2
    if kind == "k1_parity":
        return -gap_BT
    k3_BT = gap_BT.exp() - gap_BT - 1
    return (new_BT - old_BT).exp() * k3_BT if kind == "k3_is" else k3_BT


def step_kl(new_BT: Tensor, old_BT: Tensor) -> Tensor:
    """Per-token estimate of KL(old || new) on samples of the old policy: ρ - 1 - ln ρ, never negative."""
    change_BT = new_BT - old_BT
    return change_BT.expm1() - change_BT


# ---- another engine's samples ----------------------------------------------------------------------------------------


def mismatch(
    old_BT: Tensor, engine_BT: Tensor, mask_BT: Tensor, kind: Literal["icepop", "tis"],
    level: Literal["token", "sequence"],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Importance weights [B, T] between trainer and engine, without gradient, and the mask that is left.

    `tis`: min(k, 2). `icepop`: k where 0.5 <= k <= 5; other tokens leave the loss, the slot means and the normalisers.

    Args:
        old_BT: log-probabilities by the trainer before any update.
        engine_BT: by the engine that drew the samples, at the same temperature.
        level: by token (biased, little variance) or by whole rollout (the reverse; drops long ones).
    """
    gap_BT = torch.where(mask_BT, old_BT - engine_BT, 0.0).detach()
    if level == "sequence":
        gap_BT = gap_BT.sum(1, keepdim=True).expand_as(gap_BT)
    k_BT = gap_BT.exp()
    if kind == "tis":
        return k_BT.clamp(max=TIS), mask_BT
    kept_BT = mask_BT & (k_BT >= ICEPOP[0]) & (k_BT <= ICEPOP[1])
    return torch.where(kept_BT, k_BT, 0.0), kept_BT


# ---- guards ----------------------------------------------------------------------------------------------------------

GTPO_ENTROPY, GTPO_WEIGHT = 0.7, 0.1
"""GTPO: mean entropy (nats) of a rollout above which it is left out, and what entropy takes from an advantage."""


def conflicts(keys: Sequence[Sequence[Hashable]], advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """GTPO: which tokens [B, T] of the rollouts of one group are not to be punished.

    A token that stands at the same aligned place in a rollout with a positive and in one with a negative advantage is a
    conflict; those in the unbroken leading and trailing run of conflicts of a rollout are protected.

    Args:
        keys: per rollout and token: aligned place and token id.
    """
    sign_BT = (torch.sign(advantage_BT) * mask_BT).tolist()
    praised: set[Hashable] = set()
    blamed: set[Hashable] = set()
    for row, signs in zip(keys, sign_BT, strict=True):
        praised.update(key for key, sign in zip(row, signs, strict=False) if sign > 0)
        blamed.update(key for key, sign in zip(row, signs, strict=False) if sign < 0)
    both = praised & blamed
    out_BT = torch.zeros_like(mask_BT)
    for b, (row, own) in enumerate(zip(keys, mask_BT.tolist(), strict=True)):
        places = [t for t in range(len(row)) if own[t]]
        for order in (places, places[::-1]):
            for t in order:
                if row[t] not in both:
                    break
                out_BT[b, t] = True
    return out_BT


def gtpo_advantages(advantage_BT: Tensor, protected_BT: Tensor, entropy_B: Tensor) -> Tensor:
    """GTPO: no negative advantage at protected tokens, nothing from very uncertain rollouts, a little less from
    uncertain ones."""
    shifted_BT = advantage_BT - GTPO_WEIGHT * entropy_B[:, None] * (advantage_BT != 0)
    kept_BT = torch.where(entropy_B[:, None] > GTPO_ENTROPY, 0.0, shifted_BT)
    return torch.where(protected_BT & (advantage_BT < 0), 0.0, kept_BT)


def llds(
    new_BT: Tensor, old_BT: Tensor, keep_BT: Tensor, unit_BT: Tensor, mask_BT: Tensor, threshold: float = 0.0
) -> Tensor:  # fmt: skip
    """LLDS: penalty [B, T] on tokens that have become less likely, in units that should be kept and have fallen as a
    whole by more than the threshold. 0 at the first update after a rollout.

    Args:
        keep_BT: tokens of units with a positive advantage.
    """
    fall_BT = torch.where(mask_BT, old_BT - new_BT, 0.0)
    fell_BU = _sums(fall_BT.detach(), unit_BT, mask_BT) > threshold
    gate_BT = keep_BT & mask_BT & fell_BU.gather(1, unit_BT.clamp(min=0))
    return torch.where(gate_BT, fall_BT.clamp(min=0), 0.0)


# ---- PPO -------------------------------------------------------------------------------------------------------------


def value_loss(values_BT: Tensor, old_BT: Tensor, targets_BT: Tensor, mask_BT: Tensor, width: float = 0.2) -> Tensor:
    """Squared error [B, T] of the values, halved; a value that left its old one by more than the width gains nothing by
    it."""
    near_BT = old_BT + (values_BT - old_BT).clamp(-width, width)
    worst_BT = torch.maximum((values_BT - targets_BT) ** 2, (near_BT - targets_BT) ** 2)
    return torch.where(mask_BT, 0.5 * worst_BT, 0.0)


# ---- what is logged --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClipCounts:
    """Sums over tokens, so that micro-batches and processes can be added up.

    Args:
        high, low: tokens whose gradient the clip kills: ratio above it and A > 0, below it and A < 0.
        tokens: in the mask.
        absdev_max: largest |ratio - 1|.
    """

    high: int
    low: int
    tokens: int
    absdev_max: float


def clip_counts(
    ratio_BT: Tensor, advantage_BT: Tensor, low: Tensor | float, high: Tensor | float, mask_BT: Tensor
) -> ClipCounts:
    """Where the clip acts, by sign of the advantage; a ratio outside the band with a gradient is not clipped."""
    over_BT = (ratio_BT > 1 + high) & (advantage_BT > 0) & mask_BT
    under_BT = (ratio_BT < 1 - low) & (advantage_BT < 0) & mask_BT
    apart = torch.where(mask_BT, ratio_BT - 1, 0.0).abs().max() if ratio_BT.numel() else torch.tensor(0.0)
    return ClipCounts(int(over_BT.sum()), int(under_BT.sum()), int(mask_BT.sum()), float(apart))
