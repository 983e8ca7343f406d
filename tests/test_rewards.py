"""Rewards of a list: worked values, and what no list may gain by."""

from __future__ import annotations

from dataclasses import replace
from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import certificates
from pipeline.certificates import Entry, Limits
from pipeline.rankings import Task
from pipeline.rewards import (
    Outcome,
    additive,
    discount,
    gains,
    gated,
    ideal,
    outcomes,
    r_cert,
    r_cycle,
    r_rank,
    utilities,
)
from pipeline.skeletons import Intent, Skeleton
from pipeline.windows import Window
from tests.builders import PLAN, random_window, skeleton_of, story

RANDOM_PLAN = skeleton_of(("s1", ["t0"], ["r0", "r1"], 0.5), ("s2", ["t1", "t2"], ["r2"], 0.35),
                          ("s3", ["t0"], ["*", "!r0", "!r1"], 0.15))  # fmt: skip
U = {"a": 1.0, "b": 0.5, "c": 0.25, "d": 0.0}
SECOND = 1 / log2(3)


def task_of(window: Window, skeleton: Skeleton = PLAN) -> Task:
    return Task(window, Intent("attack", 1, "who attacked?", skeleton, "0" * 64), Limits(), 100_000, 50_000)


def outcome(candidate: str, valid: bool = True, recovered: bool = True, coverage: float = 1.0) -> Outcome:
    return Outcome(candidate, valid, recovered, coverage)


# ---- worked values --------------------------------------------------------------------------------------------------


def test_utilities_are_scaled_over_the_roster() -> None:
    assert utilities({"a": 3.0, "b": 1.0, "c": -1.0}) == {"a": 1.0, "b": 0.5, "c": 0.0}
    assert utilities({"a": -2.0, "b": -2.0}) == {"a": 1.0, "b": 1.0}
    assert utilities({}) == {}


def test_discounts_and_the_ideal() -> None:
    assert [discount(i) for i in (1, 3)] == [1.0, 0.5]
    assert ideal(U, 3) == pytest.approx(1 + 0.5 * SECOND + 0.125)
    assert ideal(U, 1) == 1.0
    assert ideal({}, 3) == ideal(U, 0) == 0.0


def test_rank_utility_of_a_worked_list() -> None:
    assert r_rank(["a", "b", "c"], U, 3) == 1.0
    assert r_rank(["b", "a"], U, 2) == pytest.approx((0.5 + SECOND) / (1 + 0.5 * SECOND))
    assert r_rank(["d"], U, 1) == 0.0
    assert r_rank([], U, 2) == 0.0


def test_a_roster_smaller_than_k_can_reach_the_ideal() -> None:
    assert r_rank(["a", "b", "c", "d"], U, 9) == 1.0
    assert r_cycle([outcome("a")] * 1, 4) == 0.25


def test_repeating_the_best_candidate_earns_it_once() -> None:
    assert r_rank(["a", "a"], U, 2) == pytest.approx(1 / (1 + 0.5 * SECOND))
    judged = [outcome("a"), outcome("a", valid=False)]
    assert gated(judged, U, 2) == r_rank(["a", "a"], U, 2) == r_rank(["a"], U, 2)


def test_gated_pays_only_what_is_valid_and_recovered() -> None:
    best = 1 + 0.5 * SECOND + 0.125
    judged = [outcome("a"), outcome("b", valid=False), outcome("c")]
    assert gated(judged, U, 3) == pytest.approx((1 + 0.125) / best)
    judged = [outcome("a", recovered=False), outcome("b"), outcome("c", recovered=False)]
    assert gated(judged, U, 3) == pytest.approx(0.5 * SECOND / best)
    assert gains(judged, U, 3) == pytest.approx([0.0, 0.5 * SECOND / best, 0.0])
    assert gated([], U, 3) == gated([], {}, 3) == 0.0
    assert gains([], {}, 3) == []


def test_additive_is_the_sum_of_its_parts() -> None:
    judged = [outcome("a", coverage=0.5), outcome("b", valid=False), outcome("c", recovered=False)]
    assert r_cert(judged, 4) == pytest.approx((0.5 + 1.0) / 4)
    assert r_cycle(judged, 4) == pytest.approx(2 / 4)
    expected = r_rank(["a", "b", "c"], U, 4) + 2 * 0.375 + 3 * 0.5 - 0.1
    assert additive(judged, U, 4, certificate=2, cycle=3) == pytest.approx(expected)
    assert additive([], U, 4, certificate=2, cycle=3) == 0.0
    assert r_cert([], 0) == r_cycle([], 0) == 0.0


def test_more_than_k_entries_are_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="3 entries, at most 2"):
        r_rank(["a", "b", "c"], U, 2)


# ---- judging real lists ---------------------------------------------------------------------------------------------


def test_outcomes_of_the_story() -> None:
    """Ada fills the climax, Cay none of the required slots, Bob's spans are cited for Dot and once more for Bob."""
    task = task_of(replace(story(), k=4))
    entries = task.certifiable
    stolen = Entry("Dot", entries["Bob"].slots)
    judged = outcomes(task, [entries["Ada"], entries["Cay"], stolen])
    assert judged == [outcome("Ada"), outcome("Cay", coverage=0.0), outcome("Dot", recovered=False, coverage=0.0)]
    judged = outcomes(task, [entries["Ada"], Entry("Bob"), entries["Ada"]])
    assert [(o.valid, o.recovered) for o in judged[1:]] == [(False, False), (False, False)]
    assert judged[0] == replace(outcome("Ada"), recovered=False), "equal bundles recover nobody"
    assert outcomes(task, []) == []


def test_coverage_is_zero_where_the_plan_requires_nothing() -> None:
    window = story()
    loose = Skeleton(tuple(replace(slot, required=False) for slot in PLAN.slots))
    entry = task_of(window).certifiable["Ada"]
    assert outcomes(task_of(window, loose), [entry])[0].coverage == 0.0


# ---- properties -----------------------------------------------------------------------------------------------------


@st.composite
def lists(draw: st.DrawFn) -> tuple[list[Outcome], dict[str, float], int]:
    """Outcomes of a list over a random roster; repeated candidates are invalid, as `outcomes` has them."""
    n = draw(st.integers(1, 6))
    score = st.floats(-5, 5, allow_nan=False)
    u = utilities({f"c{i}": draw(score) for i in range(n)})
    k = draw(st.integers(1, 8))
    listed = draw(st.lists(st.sampled_from(sorted(u)), max_size=k))
    judged = [
        Outcome(c, draw(st.booleans()) and c not in listed[:i], draw(st.booleans()), draw(st.sampled_from([0, 0.5, 1])))
        for i, c in enumerate(listed)
    ]
    return judged, u, k


@given(lists())
def test_rewards_keep_their_bounds(drawn: tuple[list[Outcome], dict[str, float], int]) -> None:
    judged, u, k = drawn
    ranked = r_rank([o.candidate_id for o in judged], u, k)
    assert 0.0 <= gated(judged, u, k) <= ranked <= 1.0
    assert 0.0 <= r_cert(judged, k) <= 1.0 and 0.0 <= r_cycle(judged, k) <= 1.0
    assert sum(gains(judged, u, k)) == pytest.approx(gated(judged, u, k))
    assert additive(judged, u, k, certificate=0, cycle=0) <= ranked
    certified = [replace(o, valid=True, recovered=True) for o in judged]
    assert gated(certified, u, k) == ranked


@given(lists(), st.integers(0, 7))
def test_losing_a_certificate_never_pays(drawn: tuple[list[Outcome], dict[str, float], int], place: int) -> None:
    judged, u, k = drawn
    worse = [replace(o, valid=False) if i == place else o for i, o in enumerate(judged)]
    assert gated(worse, u, k) <= gated(judged, u, k)
    weights = {"certificate": 0.7, "cycle": 0.3}
    assert additive(worse, u, k, **weights) <= additive(judged, u, k, **weights)


@given(st.integers(0, 300), st.integers(1, 3))
def test_moving_certificates_cyclically_never_pays_more_than_the_ranking(seed: int, by: int) -> None:
    """On a list of which everything verifies, the gated reward is r_rank and any shift of the certificates loses."""
    task = task_of(random_window(seed, candidates=7, events=6), RANDOM_PLAN)
    u = utilities({c: float(i) for i, c in enumerate(task.candidates)})
    entries: list[Entry] = []
    for entry in list(task.certifiable.values())[:3]:
        if all(o.certified for o in outcomes(task, [*entries, entry])):
            entries.append(entry)
    k = task.window.k
    straight = outcomes(task, entries)
    listed = [e.candidate_id for e in entries]
    assert gated(straight, u, k) == r_rank(listed, u, k)
    moved = [Entry(c, entries[(i + by) % len(entries)].slots) for i, c in enumerate(listed)]
    judged = outcomes(task, moved)
    assert gated(judged, u, k) <= gated(straight, u, k)
    if by % max(len(entries), 1):
        assert gated(judged, u, k) == 0.0, "what proves one candidate proves no other"
    assert all(certificates.check(e, task.window, task.skeleton, task.limits) is None for e in entries)
