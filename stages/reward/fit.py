"""Fitting θ: listwise softmax cross-entropy against normalised gains, pairwise logistic loss on hard pairs, L2.

    J(θ) = mean over instances of −Σ_c g_c·log softmax(θ·φ)_c  +  pair_weight · mean over pairs of log(1 + e^−θ·Δφ)
           + l2 / (2 · instances) · |θ|²

with g_c = (2^grade − 1) / Σ (2^grade − 1). J is convex, strictly so for l2 > 0, and has few parameters, so Newton's
method with exact derivatives finds its minimum in a handful of steps: in float64, on one thread, to a gradient below
1e-9, the same bytes every time. Intervals come from a bootstrap over windows: every draw weights the windows' instances
and pairs by multinomial counts and is *refitted* from the estimate (no one-step approximation).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.windows import stable_seed
from stages.reward.features import FloatArray

IntArray = NDArray[np.int64]

TOLERANCE = 1e-9
"""Largest component of the gradient at a minimum."""

MAX_STEPS = 100
MAX_HALVINGS = 40
DECIMALS = 9


@dataclass(frozen=True, slots=True)
class Examples:
    """Training examples, ragged lists laid end to end. R rows, I instances, P pairs, F features, W windows.

    Args:
        rows: (R, F) standardised features of candidates.
        gains: (R,) normalised gains; those of an instance sum to 1.
        instance: (R,) ascending instance index of each row.
        window: (I,) window index of each instance.
        pairs: (P, F) φ(better) − φ(worse) of hard pairs, standardised like their instance.
        pair_window: (P,) window index of each pair.
        windows: W.
    """

    rows: FloatArray
    gains: FloatArray
    instance: IntArray
    window: IntArray
    pairs: FloatArray
    pair_window: IntArray
    windows: int


@dataclass(frozen=True, slots=True)
class Fit:
    """θ, its 2.5 % and 97.5 % bootstrap percentiles, each (F,); the loss J at θ; the Newton steps that led there."""

    theta: FloatArray
    low: FloatArray
    high: FloatArray
    loss: float
    steps: int


def fit(examples: Examples, l2: float, pair_weight: float, draws: int, seed: int) -> Fit:
    """Estimate θ and its bootstrap intervals over windows.

    Args:
        examples: at least one instance.
        l2: prior precision of θ, above 0.
        pair_weight: weight of the pairwise loss beside the listwise one.
        draws: bootstrap refits.
        seed: of the draws.
    """
    torch.set_num_threads(1)
    objective = _Objective(examples, l2, pair_weight)
    once_W = torch.ones(examples.windows, dtype=torch.float64)
    theta_F, loss, steps = objective.minimise(once_W, torch.zeros(examples.rows.shape[1], dtype=torch.float64))
    samples = np.empty((draws, len(theta_F)), dtype=np.float64)
    for draw in range(draws):
        generator = np.random.default_rng(stable_seed(seed, "reward", draw))
        counts = generator.multinomial(examples.windows, np.full(examples.windows, 1 / examples.windows))
        samples[draw] = objective.minimise(torch.from_numpy(counts.astype(np.float64)), theta_F)[0].numpy()
    low, high = np.quantile(samples, [0.025, 0.975], axis=0)
    # Rounded, so that the last bits of a machine's arithmetic stay out of the model.
    return Fit(np.round(theta_F.numpy(), DECIMALS), low, high, loss, steps)


class _Objective:
    """J with its derivatives, for any weighting of the windows."""

    def __init__(self, examples: Examples, l2: float, pair_weight: float) -> None:
        self.rows_RF, self.gains_R = torch.from_numpy(examples.rows), torch.from_numpy(examples.gains)
        self.instance_R = torch.from_numpy(examples.instance)
        self.window_I, self.window_P = torch.from_numpy(examples.window), torch.from_numpy(examples.pair_window)
        self.pairs_PF = torch.from_numpy(examples.pairs)
        self.l2, self.pair_weight = l2, pair_weight

    def minimise(self, counts_W: Tensor, theta_F: Tensor) -> tuple[Tensor, float, int]:
        """The θ of least J with window w counted `counts_W[w]` times, that J, and the steps taken from `theta_F`."""
        loss, gradient_F, hessian_FF = self.derivatives(counts_W, theta_F)
        for step in range(MAX_STEPS):
            if float(gradient_F.abs().max()) < TOLERANCE:
                return theta_F, loss, step
            direction_F = -torch.linalg.solve(hessian_FF, gradient_F)
            slope, before = float(gradient_F @ direction_F), loss
            for halvings in range(MAX_HALVINGS):
                following_F = theta_F + direction_F / 2**halvings
                loss, gradient_F, hessian_FF = self.derivatives(counts_W, following_F)
                # The last steps change J by less than its last bit.
                if loss <= before + 1e-4 * slope / 2**halvings + 1e-14 * abs(before):
                    break
            theta_F = following_F
        raise ArithmeticError(f"no minimum after {MAX_STEPS} Newton steps: are all features finite?")

    def derivatives(self, counts_W: Tensor, theta_F: Tensor) -> tuple[float, Tensor, Tensor]:
        """J, its gradient and its Hessian."""
        weight_I, weight_P = counts_W[self.window_I], counts_W[self.window_P]
        total_I = weight_I.sum().clamp(min=1)
        weight_I = weight_I / total_I
        log_softmax_R = self._log_softmax(self.rows_RF @ theta_F, len(weight_I))
        weight_R, chance_R = weight_I[self.instance_R], log_softmax_R.exp()
        mean_IF = torch.zeros(len(weight_I), len(theta_F), dtype=torch.float64)
        mean_IF = mean_IF.index_add(0, self.instance_R, chance_R[:, None] * self.rows_RF)
        ridge = self.l2 / total_I
        loss = -(weight_R * self.gains_R * log_softmax_R).sum() + ridge / 2 * (theta_F @ theta_F)
        gradient_F = self.rows_RF.T @ (weight_R * (chance_R - self.gains_R)) + ridge * theta_F
        hessian_FF = self.rows_RF.T @ ((weight_R * chance_R)[:, None] * self.rows_RF)
        hessian_FF -= mean_IF.T @ (weight_I[:, None] * mean_IF)
        hessian_FF += ridge * torch.eye(len(theta_F), dtype=torch.float64)
        if len(self.pairs_PF):
            weight_P = self.pair_weight * weight_P / weight_P.sum().clamp(min=1)
            gap_P = self.pairs_PF @ theta_F
            lost_P = torch.sigmoid(-gap_P)
            loss += (weight_P * torch.nn.functional.softplus(-gap_P)).sum()
            gradient_F -= self.pairs_PF.T @ (weight_P * lost_P)
            hessian_FF += self.pairs_PF.T @ ((weight_P * lost_P * (1 - lost_P))[:, None] * self.pairs_PF)
        return float(loss), gradient_F, hessian_FF

    def _log_softmax(self, scores_R: Tensor, instances: int) -> Tensor:
        """(R,) log softmax within each instance, over ragged lists."""
        peak_I = torch.full((instances,), -torch.inf, dtype=torch.float64)
        shifted_R = scores_R - peak_I.scatter_reduce(0, self.instance_R, scores_R, "amax")[self.instance_R]
        mass_I = torch.zeros(instances, dtype=torch.float64).index_add(0, self.instance_R, shifted_R.exp())
        return shifted_R - mass_I.log()[self.instance_R]
