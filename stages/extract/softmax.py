"""Multinomial logistic regression over hashed features, with forbidden classes and calibrated output.

Some classes are impossible for some items (a role that its event type never takes): they get no probability, in
training as in use, so nothing is learned against them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from stages.extract.hashing import Floats, Ints, Layer, Rows, frequent, to_matrix
from stages.extract.optimise import minimise

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """Labels and the layer that scores them."""

    labels: tuple[str, ...]
    layer: Layer

    def probabilities(self, rows: Rows, allowed: Mask | None = None) -> Floats:
        """[items, F] -> [items, labels]; `allowed` [items, labels] as in training."""
        return normalise(self.layer.scores(rows), allowed)


def normalise(scores: Floats, allowed: Mask | None = None) -> Floats:
    """Softmax of every row; a row must allow at least one label."""
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(scores / scores.sum(axis=1, keepdims=True))


def fit_classifier(
    rows: Rows,
    target: Ints,
    labels: tuple[str, ...],
    l2: float,
    rounds: int,
    least: int = 2,
    allowed: Mask | None = None,
    groups: Sequence[int] = (),
) -> Classifier:
    """Maximise the likelihood by L-BFGS.

    Args:
        rows: [items, F] buckets.
        target: [items] index of the label.
        labels: K names.
        l2: half the inverse variance of the weights.
        rounds: at most so many iterations.
        least: drop features seen in fewer places.
        allowed: [items, K] possible labels, None for all.
        groups: per label the number of its group; a group has weights of its own that its labels share, so that
            rare labels learn from their siblings.
    """
    buckets = frequent(rows, least)
    x = to_matrix(rows, buckets)
    xt = x.T.tocsr()
    size, n = len(rows), len(buckets)
    # Columns of weights: one per label, then one per group; `spread` adds a group's to each of its labels.
    spread = np.eye(len(labels))
    if groups:
        spread = np.vstack([spread, np.equal.outer(np.arange(max(groups) + 1), np.array(groups)).astype(np.float64)])
    k = len(spread)
    at = np.arange(size)

    def loss(theta: Floats) -> tuple[float, Floats]:
        weights, bias = theta[: n * k].reshape(n, k), theta[n * k :]
        scores = (x @ weights + bias) @ spread
        if allowed is not None:
            scores = np.where(allowed, scores, -np.inf)
        top = scores.max(axis=1, keepdims=True)
        p = np.exp(scores - top)
        total = p.sum(axis=1, keepdims=True)
        value = float((np.log(total) + top).sum()) - float(scores[at, target].sum())
        p /= total
        p[at, target] -= 1.0
        p = p @ spread.T
        gradient = np.concatenate([(xt @ p + l2 * weights).ravel(), p.sum(axis=0) + 1e-3 * bias])
        value += 0.5 * l2 * float((weights**2).sum()) + 0.5e-3 * float((bias**2).sum())
        return value, gradient

    theta = minimise(loss, np.zeros((n + 1) * k), rounds)
    return Classifier(labels, Layer.of(buckets, theta[: n * k].reshape(n, k) @ spread, theta[n * k :] @ spread))


@dataclass(frozen=True, slots=True)
class Calibration:
    """p = logistic(bias + sum of weight * logit(part)); weights are not negative, so p rises with every part."""

    weights: tuple[float, ...]
    bias: float

    def apply(self, *parts: Floats) -> Floats:
        """Probabilities of the parts, one array each -> one probability per item, in steps of 1e-6."""
        total = self.bias + sum(w * logit(p) for w, p in zip(self.weights, parts, strict=True))
        return np.round(1.0 / (1.0 + np.exp(-np.asarray(total, dtype=np.float64))), 6)


def logit(p: Floats) -> Floats:
    clipped = np.clip(p, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


def fit_calibration(parts: tuple[Floats, ...], correct: Mask, least: int = 20) -> Calibration:
    """Fit weights >= 0 and a bias on held-out items; with fewer than `least` right or wrong ones, the plain product.

    The plain product is what independence of the parts would give, near enough for small probabilities.
    """
    right = int(correct.sum())
    if min(right, len(correct) - right) < least:
        return Calibration((1.0,) * len(parts), 0.0)
    x = np.stack([logit(p) for p in parts], axis=1)
    y = correct.astype(np.float64)

    def loss(theta: Floats) -> tuple[float, Floats]:
        z = x @ theta[:-1] + theta[-1]
        value = float((np.logaddexp(0, z) - y * z).sum()) + 0.5 * float(((theta[:-1] - 1) ** 2).sum())
        residual = 1 / (1 + np.exp(-z)) - y
        return value, np.append(x.T @ residual + theta[:-1] - 1, residual.sum())

    start = np.append(np.ones(len(parts)), 0.0)
    bounds = [(0.0, None)] * len(parts) + [(None, None)]
    theta = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return Calibration(tuple(float(round(w, 4)) for w in theta[:-1]), float(round(theta[-1], 4)))
