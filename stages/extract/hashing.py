"""Hashed features and the linear layer over them.

A feature is a bucket number in 0 .. BUCKETS - 1; an item (token, span or pair) has a row of F of them, NONE where a
template does not apply. A layer keeps weights only for buckets that were seen often enough in training; buckets may
collide, which is the usual price of hashing and small at this width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Hashes = NDArray[np.uint64]
Rows = NDArray[np.int32]
"""[items, F] buckets."""

BUCKETS = 1 << 21
NONE = -1
_A, _B = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_SHIFT, _KEEP = np.uint64(29), np.uint64(64 - 21)


def join(*parts: Hashes | int) -> Hashes:
    """One hash out of several, order-sensitive; an int stands for a constant of all items."""
    total: Hashes = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            value = np.uint64(part) if isinstance(part, int) else part
            total = (total ^ value) * _A
            total = (total ^ (total >> _SHIFT)) * _B
    return total


def to_rows(columns: Sequence[Hashes], masks: Sequence[NDArray[np.bool_] | None] | None = None) -> Rows:
    """Hashes, one array per template, as rows of buckets; the template's number is hashed in.

    Args:
        columns: F arrays of one length.
        masks: per template where it applies, None for everywhere.
    """
    size = len(columns[0]) if columns else 0
    out = np.empty((size, len(columns)), dtype=np.int32)
    for f, column in enumerate(columns):
        bucket = (join(column, f + 1) >> _KEEP).astype(np.int32)
        mask = None if masks is None else masks[f]
        out[:, f] = bucket if mask is None else np.where(mask, bucket, NONE)
    return out


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Linear scores over hashed features.

    Args:
        buckets_N: the buckets that have a weight, ascending.
        weights_NK: their weights for K outputs.
        bias_K: constant part.
        column_B: bucket -> row of weights, N for "no weight"; derived.
    """

    buckets_N: Ints
    weights_NK: Floats
    bias_K: Floats
    column_B: NDArray[np.int32]

    @classmethod
    def of(cls, buckets_N: Ints, weights_NK: Floats, bias_K: Floats) -> Layer:
        """Build the look-up; weights gain a row of zeros for unknown buckets."""
        column = np.full(BUCKETS + 1, len(buckets_N), dtype=np.int32)
        column[buckets_N] = np.arange(len(buckets_N), dtype=np.int32)
        padded = np.vstack([weights_NK, np.zeros((1, len(bias_K)))])
        return cls(buckets_N, padded, bias_K, column)

    def scores(self, rows: Rows) -> Floats:
        """[items, F] -> [items, K]."""
        out = np.tile(self.bias_K, (len(rows), 1))
        for f in range(rows.shape[1]):
            out += self.weights_NK[self.column_B[rows[:, f]]]
        return out


def frequent(rows: Rows, least: int) -> Ints:
    """Buckets that occur in at least `least` places of the training rows, ascending."""
    counts = np.bincount(rows.ravel() + 1, minlength=BUCKETS + 1)[1:]
    return np.flatnonzero(counts >= least).astype(np.int64)


def to_matrix(rows: Rows, buckets_N: Ints) -> sparse.csr_array:
    """Training rows as a sparse 0/1 matrix over the kept buckets."""
    column = np.full(BUCKETS + 1, -1, dtype=np.int32)
    column[buckets_N] = np.arange(len(buckets_N), dtype=np.int32)
    kept = column[rows]
    mask = kept >= 0
    pointer = np.concatenate([[0], np.cumsum(mask.sum(axis=1))])
    data = np.ones(int(pointer[-1]))
    return sparse.csr_array((data, kept[mask], pointer.astype(np.int32)), shape=(len(rows), len(buckets_N)))
