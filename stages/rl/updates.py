"""The learner: the model with its optimiser, its frozen reference and critic, and the updates of one rollout batch."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import DataError
from stages.rl import objective
from stages.rl.advantages import whitened
from stages.rl.rollout import Asked
from stages.rl.scoring import Scorer, Table, ValueHead
from stages.rl.settings import Decided
from stages.rl.world import World

CLIP_NORM, BETAS = 1.0, (0.9, 0.95)
VALUE_WEIGHT, LLDS_WEIGHT = 0.1, 0.01


@dataclass(slots=True, eq=False)
class Lot:
    """One prompt's group, as it goes through the updates.

    Args:
        mask_GT: tokens in the loss.
        old_GT, ref_GT: log-probabilities at rollout, and under the supervised policy (zeros without an anchor).
        advantage_GT, weight_GT, engine_GT: of each token: advantage, weight in the loss, importance weight.
        low, high: clip widths.
        values_GT, targets_GT: of PPO's critic, at rollout and wanted.
    """

    asked: Asked
    table: Table
    mask_GT: Tensor
    old_GT: Tensor
    ref_GT: Tensor
    engine_GT: Tensor
    entropy_GT: Tensor
    values_GT: Tensor
    advantage_GT: Tensor = field(default_factory=lambda: torch.zeros(0))
    weight_GT: Tensor = field(default_factory=lambda: torch.zeros(0))
    targets_GT: Tensor = field(default_factory=lambda: torch.zeros(0))
    low: float = 0.0
    high: float = 0.0


class Learner:
    """One model in training.

    Args:
        decided: the run's switches.
        model: trained in place; parameters that require no gradient stay as they are.
        world: this process among others.
    """

    def __init__(self, decided: Decided, model: nn.Module, world: World) -> None:
        self.decided, self.arm, self.model, self.world = decided, decided.arm, model, world
        self.scorer = Scorer(model, self.arm.prefix_sharing)
        self.reference: Scorer | None = None
        if decided.beta:
            self.reference = Scorer(copy.deepcopy(model).requires_grad_(False), self.arm.prefix_sharing)
        self.critic: ValueHead | None = None
        self.critic_trunk: Scorer | None = None
        if self.arm.objective == "ppo":
            config: Any = model.config
            with torch.random.fork_rng(devices=[]):
                self.critic = ValueHead(config.hidden_size)
            if self.arm.value_trunk == "separate":
                self.critic_trunk = Scorer(copy.deepcopy(model), self.arm.prefix_sharing)
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if self.critic is not None:
            self.trained |= {f"critic.{name}": p for name, p in self.critic.named_parameters()}
        if self.critic_trunk is not None:
            self.trained |= {f"critic.trunk.{name}": p for name, p in self.critic_trunk.model.named_parameters()}
        self.optimiser = torch.optim.AdamW(
            list(self.trained.values()), lr=self.arm.rate, betas=BETAS, weight_decay=0.0, fused=True
        )
        self.steps = 0
        """Optimiser steps done."""

    @torch.no_grad()
    def lot(self, one: Asked, width: int) -> Lot:
        """A group with what the present weights, the supervised policy and the critic say of it."""
        table = Table.of(one.ids, one.rollouts, one.heat, width)
        scores = self.scorer.score(table)
        zeros_GT = torch.zeros_like(scores.log_probs_GT)
        ref_GT = self.reference.score(table).log_probs_GT if self.reference else zeros_GT
        mask_GT, engine_GT = table.free_GT, torch.ones_like(zeros_GT)
        if self.arm.mismatch != "off":
            engine_GT, mask_GT = objective.mismatch(
                scores.log_probs_GT, table.engine_GT, mask_GT, self.arm.mismatch, self.arm.mismatch_level
            )
        values_GT = table.spread(self._values(table, scores.states_FD)) if self.critic is not None else zeros_GT
        return Lot(
            one, table, mask_GT, scores.log_probs_GT, ref_GT, engine_GT, scores.entropy_GT, values_GT
        )  # fmt: skip

    def _values(self, table: Table, states_FD: Tensor) -> Tensor:
        assert self.critic is not None
        values_F: Tensor = self.critic(self.critic_trunk.states(table) if self.critic_trunk else states_FD)
        return values_F

    # updates

    def updates(self, lots: Sequence[Lot]) -> dict[str, float]:
        """All optimiser steps of a rollout batch."""
        arm, parts = self.arm, self.arm.minibatches_per_rollout
        rows: list[dict[str, float]] = []
        for _ in range(arm.updates_per_rollout):
            for part in range(parts):
                rows.append(self._update([lot for lot in lots if lot.asked.index % parts == part]))
        absdev = max(row["absdev"] for row in rows)
        mean = {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]}
        return {
            "loss": mean["loss"], "grad_norm": mean["norm"], "rate": rows[-1]["rate"], "ref_kl": mean["kl"],
            "clip/frac_hi_pos": mean["high"], "clip/frac_lo_neg": mean["low"], "clip/ratio_absdev_max": absdev,
            "clip/first_absdev": rows[0]["absdev"], "mismatch/absdlogp_mean": self._gap(lots),
        }  # fmt: skip

    def _gap(self, lots: Sequence[Lot]) -> float:
        """Mean |log-probability by the trainer - by the engine| of the free tokens."""
        apart = [(lot.old_GT - lot.table.engine_GT)[lot.table.free_GT].abs() for lot in lots]
        whole, n = self.world.total([float(sum(a.sum() for a in apart)), float(sum(a.numel() for a in apart))])
        return whole / max(n, 1)

    def _weigh(self, lots: Sequence[Lot]) -> None:
        """Weights of all tokens of a minibatch, those of other processes counted."""
        rows = float(sum(len(lot.mask_GT) for lot in lots))
        tokens = float(sum(int(lot.mask_GT.sum()) for lot in lots))
        rows, tokens = self.world.total([rows, tokens])
        longest = max(self.world.gather([lot.asked.room for lot in lots]), default=1)
        for lot in lots:
            own = objective.weights(self.decided.loss_agg, lot.table.slot_GT, lot.mask_GT, longest)
            share = len(lot.mask_GT) / max(rows, 1)
            if self.decided.loss_agg == "token_mean":
                share = int(lot.mask_GT.sum()) / max(tokens, 1)
            lot.weight_GT = own * share

    def _update(self, lots: Sequence[Lot]) -> dict[str, float]:
        self._weigh(lots)
        self.optimiser.zero_grad()
        sums = dict.fromkeys(("loss", "kl", "high", "low", "tokens"), 0.0)
        absdev = 0.0
        for lot in lots:
            if not bool(lot.mask_GT.any()):
                continue
            loss, kl, counts = self._loss(lot)
            loss.backward()  # type: ignore[no-untyped-call]
            absdev = max(absdev, counts.absdev_max)
            found = (float(loss.detach()), kl, float(counts.high), float(counts.low), float(counts.tokens))
            for name, value in zip(sums, found, strict=True):
                sums[name] += value
        self.world.add_gradients(self.trained.values())
        sums = dict(zip(sums, self.world.total(list(sums.values())), strict=True))
        norm = float(nn.utils.clip_grad_norm_(self.trained.values(), CLIP_NORM))
        if not math.isfinite(norm):
            raise DataError(f"the gradient is not finite in optimiser step {self.steps + 1}", mend="lower rl.rate")
        rate = self.arm.rate * min(1.0, (self.steps + 1) / max(self.arm.warm_up, 1))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.steps += 1
        tokens = max(sums["tokens"], 1)
        return {"loss": sums["loss"], "norm": norm, "rate": rate, "kl": sums["kl"], "high": sums["high"] / tokens,
                "low": sums["low"] / tokens, "absdev": max(self.world.gather([absdev]))}  # fmt: skip

    def _loss(self, lot: Lot) -> tuple[Tensor, float, objective.ClipCounts]:
        """A group's part of the loss; its anchor's part, as it is logged; where the clip acts."""
        decided, table, mask_GT = self.decided, lot.table, lot.mask_GT
        scores = self.scorer.score(table)
        new_GT, slot_GT = scores.log_probs_GT, table.slot_GT
        if self.arm.objective == "reinforce":
            token_GT = objective.reinforce(new_GT, lot.advantage_GT, mask_GT)
        else:
            token_GT = objective.surrogate(
                new_GT, lot.old_GT, lot.advantage_GT, slot_GT, mask_GT, unit=decided.unit, clip=decided.clip,
                low=lot.low, high=lot.high,
            )  # fmt: skip
        token_GT = lot.engine_GT * token_GT
        kl = 0.0
        if decided.beta:
            kl_GT = torch.where(
                mask_GT, objective.anchor(new_GT, lot.old_GT, lot.ref_GT, self.arm.ref_kl.estimator), 0.0
            )
            token_GT = token_GT + decided.beta * kl_GT
            kl = float((lot.weight_GT * kl_GT.detach()).sum())
        if "llds" in self.arm.guard:
            unit_GT = objective.units("slot" if decided.unit == "slot" else "sequence", slot_GT)
            token_GT = token_GT + LLDS_WEIGHT * objective.llds(
                new_GT, lot.old_GT, lot.advantage_GT > 0, unit_GT, mask_GT
            )
        if self.critic is not None:
            values_GT = table.spread(self._values(table, scores.states_FD))
            token_GT = token_GT + VALUE_WEIGHT * objective.value_loss(values_GT, lot.values_GT, lot.targets_GT, mask_GT)
        ratio_GT = objective.log_ratio(new_GT.detach(), lot.old_GT, decided.unit, slot_GT, mask_GT).exp()
        counts = objective.clip_counts(ratio_GT, lot.advantage_GT, *self._bounds(lot), mask_GT)
        return (lot.weight_GT * token_GT).sum(), kl, counts

    def _bounds(self, lot: Lot) -> tuple[Tensor | float, Tensor | float]:
        """Widths beyond which the clip kills a gradient; a soft gate, or none, never does."""
        if self.arm.objective == "reinforce" or self.decided.clip == "sapo":
            return math.inf, math.inf
        if self.decided.clip == "dcpo":
            least_GT, most_GT = objective.dcpo_bounds(lot.old_GT)
            return 1 - least_GT, most_GT - 1
        return lot.low, lot.high

    @torch.no_grad()
    def moved(self, lots: Sequence[Lot]) -> dict[str, float]:
        """How far the updates took the policy: step-KL, and the likelihood of what was good."""
        sums = [0.0] * 5
        for lot in lots:
            new_GT, mask_GT = self.scorer.score(lot.table).log_probs_GT, lot.mask_GT
            good_GT = mask_GT & (lot.advantage_GT > 0)
            kl_GT = objective.step_kl(new_GT, lot.old_GT)[mask_GT]
            parts = (kl_GT.double().sum(), mask_GT.sum(), (new_GT - lot.old_GT)[good_GT].double().sum(), good_GT.sum(),
                     new_GT[good_GT].double().sum())  # fmt: skip
            sums = [a + float(b) for a, b in zip(sums, parts, strict=True)]
        kl, tokens, change, good, level = self.world.total(sums)
        step_kl = kl / max(tokens, 1)
        return {"kl_step": step_kl, "logp/pos_change": change / max(good, 1), "logp/pos_rows": level / max(good, 1)}

    # weights

    def weights(self) -> dict[str, Tensor]:
        """A copy of everything that is trained."""
        return {name: p.detach().clone() for name, p in self.trained.items()}

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take weights back."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(weights[name])

    def moments(self) -> dict[str, Tensor]:
        """A copy of the optimiser's state."""
        return {
            f"{name}:{part}": value.detach().clone()
            for name, p in self.trained.items()
            for part, value in sorted(self.optimiser.state[p].items())
        }

    def load_moments(self, moments: dict[str, Tensor]) -> None:
        """Take the optimiser's state back."""
        for entry, value in moments.items():
            name, part = entry.rsplit(":", 1)
            self.optimiser.state[self.trained[name]][part] = value


def whiten(lots: Sequence[Lot], world: World) -> None:
    """Advantages of all processes' tokens at mean 0 and variance 1."""
    rows = [lot.advantage_GT[lot.mask_GT] for lot in lots]
    flat = torch.cat(rows) if rows else torch.zeros(0)
    white = whitened(flat, torch.ones_like(flat, dtype=torch.bool), world.total)
    at = 0
    for lot, row in zip(lots, rows, strict=True):
        own = white[at : at + len(row)].float()
        lot.advantage_GT, at = torch.zeros_like(lot.old_GT).masked_scatter(lot.mask_GT, own), at + len(row)
