"""The assignment of bundles to candidates, against all permutations."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from pipeline import assignment
from pipeline.assignment import assign, distinct_maxima


def by_definition(rows: list[dict[int, int]]) -> list[int | None]:
    """Best total over all one-to-one choices; among equals the smallest column in the first row, then the second."""
    best: tuple[int, list[float]] | None = None
    result: list[int | None] = []
    for chosen in product(*([None, *sorted(row)] for row in rows)):
        taken = [c for c in chosen if c is not None]
        values = [rows[i][c] for i, c in enumerate(chosen) if c is not None]
        if len(set(taken)) < len(taken) or any(v <= 0 for v in values):
            continue
        key = (sum(values), [-c if c is not None else float("-inf") for c in chosen])
        if best is None or key > best:
            best, result = key, list(chosen)
    return result


ROWS = st.lists(st.dictionaries(st.integers(0, 4), st.integers(-1, 3), max_size=5), max_size=5)
"""Few distinct values, so that ties are the rule."""


@given(ROWS)
@settings(max_examples=150, deadline=None)
def test_assignment_is_optimal_and_breaks_ties_by_row_and_column(rows: list[dict[int, int]]) -> None:
    assert assign(rows) == by_definition(rows)


@given(ROWS)
@settings(max_examples=100, deadline=None)
def test_fast_path_agrees_with_the_exact_one(rows: list[dict[int, int]]) -> None:
    fast = distinct_maxima(rows)
    if fast is not None:
        assert fast == by_definition(rows)


@given(st.integers(1, 12), st.integers(1, 15), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_total_equals_scipy(n: int, m: int, rng: object) -> None:
    rows = [{c: rng.randint(1, 1_000_000) for c in range(m) if rng.random() < 0.7} for _ in range(n)]  # type: ignore[attr-defined]
    cost = [[-row.get(c, 0) for c in range(m)] + [0] * n for row in rows]
    expected = -sum(cost[i][c] for i, c in zip(*linear_sum_assignment(cost), strict=True))
    assert sum(row[c] for row, c in zip(rows, assign(rows), strict=True) if c is not None) == expected


def test_contested_list_beyond_the_cap_is_left_unassigned(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{0: 5, 1: 4}, {0: 5, 1: 1}, {2: 1}]
    assert assign(rows) == [1, 0, 2]
    monkeypatch.setattr(assignment, "MAX_CONTESTED", 2)
    assert assign(rows) == [None, None, None]
    assert assign([{i: 1} for i in range(50)]) == list(range(50)), "an uncontested list has no cap"


def test_nothing_to_assign() -> None:
    assert assign([]) == []
    assert assign([{}, {3: 0}, {3: -7}]) == [None, None, None]
