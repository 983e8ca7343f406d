"""Limited-memory BFGS for smooth convex losses of millions of weights.

scipy's L-BFGS-B spends most of its time on bounds that these losses do not have. The two-loop recursion with a
backtracking line search takes a few vector operations per iteration (Nocedal and Wright, "Numerical Optimization",
algorithms 7.4 and 3.1). Sums run in a fixed order, so equal inputs give equal results.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from scipy.linalg.blas import daxpy

from stages.extract.hashing import Floats

Loss = Callable[[Floats], tuple[float, Floats]]

HISTORY = 7
SUFFICIENT = 1e-4
"""Share of the decrease promised by the gradient that a step must bring."""
HALVINGS = 25


def minimise(loss: Loss, start: Floats, rounds: int, tolerance: float = 1e-5) -> Floats:
    """The minimiser, approximately.

    Args:
        loss: value and gradient; convex.
        start: first parameters.
        rounds: at most so many iterations.
        tolerance: stop when an iteration lowers the value by less than this share of it.
    """
    theta = start.copy()
    value, gradient = loss(theta)
    pairs: deque[tuple[Floats, Floats, float]] = deque(maxlen=HISTORY)
    for _ in range(rounds):
        step = _times_inverse_hessian(pairs, gradient)
        step *= -1.0
        slope = float(gradient @ step)
        if not slope < 0:
            break
        length = 1.0 if pairs else min(1.0, 1.0 / max(float(np.abs(gradient).sum()), 1e-12))
        for _ in range(HALVINGS):
            moved = theta + length * step
            new_value, new_gradient = loss(moved)
            if new_value <= value + SUFFICIENT * length * slope:
                break
            length *= 0.5
        else:
            break
        change, turn = moved - theta, new_gradient - gradient
        curvature = float(change @ turn)
        if curvature > 1e-10 * float(turn @ turn):
            pairs.append((change, turn, curvature))
        small = value - new_value <= tolerance * max(abs(value), 1.0)
        theta, value, gradient = moved, new_value, new_gradient
        if small and len(pairs) > 1:
            break
    return theta


def _times_inverse_hessian(pairs: deque[tuple[Floats, Floats, float]], gradient: Floats) -> Floats:
    """The two-loop recursion; in place, because fresh arrays of this size cost more than the arithmetic."""
    out = gradient.copy()
    shares = []
    for change, turn, curvature in reversed(pairs):
        share = float(change @ out) / curvature
        daxpy(turn, out, a=-share)
        shares.append(share)
    if pairs:
        _, turn, curvature = pairs[-1]
        out *= curvature / float(turn @ turn)
    for (change, turn, curvature), share in zip(pairs, reversed(shares), strict=True):
        daxpy(change, out, a=share - float(turn @ out) / curvature)
    return out
