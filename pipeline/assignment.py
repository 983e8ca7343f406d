"""Exact, order-free assignment of the bundles of one list to candidates. Pure; integers only.

Maximises the total support; a bundle may stay unassigned, a pair with support <= 0 is never assigned. Among equally
good assignments the one is taken in which the first row in the given order has its smallest possible column, then the
second row, and so on: callers order rows and columns by content, and nothing else decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import nsmallest

MAX_CONTESTED = 100
"""A list in which bundles compete for candidates is assigned exactly up to this length, in well under a second; the
rows of a longer one stay unassigned (lists hold K entries, five by default)."""


def distinct_maxima(rows: Sequence[Mapping[int, int]]) -> list[int | None] | None:
    """Every row's best column where these are unique in their row and distinct: then the only optimum; else None.

    Args:
        rows: column -> support; columns without support are absent.
    """
    chosen: list[int | None] = []
    taken: set[int] = set()
    for row in rows:
        best, column, ties = 0, None, 0
        for c, value in row.items():
            if value > best:
                best, column, ties = value, c, 0
            elif value == best:
                ties += 1
        if column is not None:
            if ties or column in taken:
                return None
            taken.add(column)
        chosen.append(column)
    return chosen


def assign(rows: Sequence[Mapping[int, int]]) -> list[int | None]:
    """The assignment of greatest total support, ties broken by row and column order.

    Args:
        rows: column -> support, in tie-breaking order.

    Returns:
        A column or None per row; all None when more than `MAX_CONTESTED` rows compete.
    """
    fast = distinct_maxima(rows)
    if fast is not None:
        return fast
    n = len(rows)
    if n > MAX_CONTESTED:
        return [None] * n
    # No row needs more than its n first choices: the other rows cannot take all of them. So the work does not grow with
    # the roster, and the optimum, unique by the tie-breaking below, is the same.
    rows = [dict(nsmallest(n, ((c, v) for c, v in row.items() if v > 0), key=lambda cv: (-cv[1], cv[0])))
            for row in rows]  # fmt: skip
    columns = sorted({c for row in rows for c in row})
    place = {c: r for r, c in enumerate(columns)}
    m = len(columns)
    # Tie-breaking is part of the objective: digits in base m + 1, one per row, the first row's the most significant,
    # larger for smaller columns, all of them together worth less than one unit of support.
    base = (m + 1) ** n
    costs = []
    for i, row in enumerate(rows):
        cost = [0] * (m + n)  # a column worth 0 means unassigned; n more of these, so that every row can be
        digit = (m + 1) ** (n - 1 - i)
        for c, value in row.items():
            cost[place[c]] = -(value * base + (m - place[c]) * digit)
        costs.append(cost)
    return [columns[c] if cost[c] else None for cost, c in zip(costs, _hungarian(costs), strict=True)]


def _hungarian(costs: Sequence[Sequence[int]]) -> list[int]:
    """Column of each row in an assignment of least total cost, by shortest augmenting paths with dual potentials.

    Args:
        costs: n rows of at least n integers, so every row gets a column. O(n^2 * columns).
    """
    n, m = len(costs), len(costs[0])
    row_price, column_price = [0] * (n + 1), [0] * (m + 1)
    row_of = [n] * (m + 1)  # row_of[c]: the row that holds column c, n = free; column m is the path's virtual start
    for start in range(n):
        row_of[m] = start
        current = m
        slack: list[int | None] = [None] * m
        previous = [m] * m
        visited = [False] * (m + 1)
        while row_of[current] != n:
            visited[current] = True
            row = row_of[current]
            step: int | None = None
            following = m
            for c in range(m):
                if visited[c]:
                    continue
                reduced = costs[row][c] - row_price[row] - column_price[c]
                known = slack[c]
                if known is None or reduced < known:
                    slack[c], previous[c] = reduced, current
                    known = reduced
                if step is None or known < step:
                    step, following = known, c
            assert step is not None  # there are more columns than rows, so an unvisited one is left
            for c in range(m + 1):
                if visited[c]:
                    row_price[row_of[c]] += step
                    column_price[c] -= step
                elif c < m:
                    known = slack[c]
                    if known is not None:
                        slack[c] = known - step
            current = following
        while current != m:
            row_of[current] = row_of[previous[current]]
            current = previous[current]
    column_of = [0] * n
    for c in range(m):
        if row_of[c] != n:
            column_of[row_of[c]] = c
    return column_of
