"""Metrics: worked values, bounds as properties, and a bootstrap that can be checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from pipeline import metrics
from pipeline.metrics import Ratio
from pipeline.skeletons import Slot
from pipeline.spans import Span
from pipeline.windows import Step

settings.register_profile("metrics", deadline=None)  # timings on a shared machine say nothing
settings.load_profile("metrics")

POOLS = st.lists(st.integers(0, 3), min_size=1, max_size=9)


def span(start: int, end: int, doc: str = "d") -> Span:
    return Span(doc, start, end)


# ---- ranking ---------------------------------------------------------------------------------------------------------


def test_worked_value_of_the_task_definition() -> None:
    grades, pool, gates = [2, 1, 0], [2, 1, 0, 2, 1], [True, False, True]
    assert metrics.ndcg(grades, pool, 3) == pytest.approx(0.67329, abs=5e-6)
    assert metrics.cert_ndcg(grades, gates, pool, 3) == pytest.approx(0.55630, abs=5e-6)


@given(st.data(), POOLS, st.integers(1, 7))
def test_cert_ndcg_lies_between_zero_and_ndcg(data: st.DataObject, pool: list[int], k: int) -> None:
    ranking = data.draw(st.permutations(pool))[: data.draw(st.integers(0, len(pool)))]
    gates = data.draw(st.lists(st.booleans(), max_size=len(ranking)))
    plain, certified = metrics.ndcg(ranking, pool, k), metrics.cert_ndcg(ranking, gates, pool, k)
    if max(pool) == 0:
        assert plain is None and certified is None
        return
    assert plain is not None and certified is not None
    assert 0 <= certified <= plain <= 1


@given(POOLS, st.integers(1, 7))
def test_ideal_order_scores_one_and_full_gates_change_nothing(pool: list[int], k: int) -> None:
    ranking = sorted(pool, reverse=True)
    if max(pool):
        assert metrics.ndcg(ranking, pool, k) == 1
        assert metrics.cert_ndcg(ranking, [True] * len(ranking), pool, k) == 1
        assert metrics.cert_ndcg(ranking, [], pool, k) == 0


def test_a_missed_gold_candidate_costs_although_the_list_is_perfect() -> None:
    assert metrics.ndcg([2], [2, 3], 2) == pytest.approx(3 / (7 + 3 / math.log2(3)))


def test_entries_beyond_k_gain_nothing() -> None:
    assert metrics.ndcg([0, 3], [3], 1) == 0


@given(st.lists(st.booleans(), max_size=6), st.integers(1, 5))
def test_evid_cons_counts_empty_places_as_zero(gates: list[bool], k: int) -> None:
    assert metrics.evid_cons(gates, k) == sum(gates[:k]) / k
    assert 0 <= metrics.evid_cons(gates, k) <= 1


def test_rate_of_nothing_is_undefined() -> None:
    assert metrics.rate([]) is None
    assert metrics.rate([True, False]) == 0.5


# ---- coupling --------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=8))
def test_tau_b_equals_scipy(pairs: list[tuple[int, int]]) -> None:
    first, second = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    ours = metrics.kendall_tau_b(first, second)
    if len(pairs) < 2 or len(set(first)) == 1 or len(set(second)) == 1:
        assert ours is None
    else:
        assert ours == pytest.approx(kendalltau(first, second).statistic)


def test_dec_tau_follows_the_lists_order() -> None:
    assert metrics.dec_tau([900, 500, 100]) == 1
    assert metrics.dec_tau([100, 500, 900]) == -1
    assert metrics.dec_tau([500, 500]) is None
    assert metrics.dec_tau([500]) is None


def test_dec_delta_is_a_ratio_of_sums_and_null_without_any_certificate() -> None:
    weights = metrics.window_weights(2, 1000, 1)
    estimate = metrics.dec_delta(np.array([1.0, 3.0]), np.array([0.5, 0.5]), 4, weights)
    assert estimate.value == 1 - 1 / 4
    # Only three resamples of two windows exist: (a, a), (a, b), (b, b).
    assert (estimate.low, estimate.high) == (pytest.approx(0.5), pytest.approx(1 - 0.5 / 3))
    nothing = metrics.dec_delta(np.zeros(2), np.zeros(2), 4, weights)
    assert nothing.json() == {"value": None, "low": None, "high": None, "n": 4}


def mi(claimed: list[int], recovered: list[int], windows: int = 40) -> tuple[metrics.Estimate, metrics.Estimate]:
    window = np.arange(len(claimed)) % windows
    weights = metrics.window_weights(windows, 200, 3)
    return metrics.dec_mi(window, np.array(claimed), np.array(recovered), weights, 100, 5)


def test_dec_mi_is_one_when_evidence_names_the_decision_and_the_null_is_near_zero() -> None:
    claimed = [i % 4 for i in range(400)]
    value, null = mi(claimed, claimed)
    assert value.value == pytest.approx(1) and value.n == 400
    assert null.value is not None and abs(null.value) < 0.01


def test_dec_mi_is_near_zero_for_unrelated_evidence_and_none_is_a_value_of_its_own() -> None:
    generator = np.random.default_rng(0)
    claimed, unrelated = generator.integers(0, 4, 2000), generator.integers(0, 5, 2000)
    value, null = mi(claimed.tolist(), unrelated.tolist())
    assert value.value is not None and abs(value.value) < 0.02
    assert null.low is not None and null.high is not None and null.low <= 0.01 and null.high >= -0.01
    always_none, _ = mi(claimed.tolist(), [4] * 2000)
    assert always_none.value == pytest.approx(0, abs=1e-9)


def test_dec_mi_is_undefined_for_one_claim_or_none_at_all() -> None:
    assert mi([2, 2, 2], [0, 1, 2])[0].json() == {"value": None, "low": None, "high": None, "n": 3}
    assert mi([], [])[0].n == 0


def test_miller_madow_matches_the_textbook_formula() -> None:
    # Joint counts [[3, 1], [0, 2]]: plug-in entropies plus (occupied cells - 1) / 2N each.
    cells, rows, columns = np.array([[3.0, 1.0, 2.0]]), np.array([0, 0, 1]), np.array([0, 1, 1])

    def entropy(counts: list[int]) -> float:
        total = sum(counts)
        return -sum(c / total * math.log(c / total) for c in counts) + (len(counts) - 1) / (2 * total)

    h_row, h_column, h_joint = entropy([4, 2]), entropy([3, 3]), entropy([3, 1, 2])
    expected = (h_row + h_column - h_joint) / h_row
    assert metrics.normalised_information(cells, rows, columns)[0] == pytest.approx(expected)


# ---- evidence --------------------------------------------------------------------------------------------------------

ATTACK = Slot("s1", ("attack",), ("agent",), 600_000)
FLEE = Slot("s2", ("flee",), ("*",), 400_000)
STEPS = (
    Step("c", "e1", "attack", "agent", 0, 1.0, span(0, 6), span(10, 15)),
    Step("c", "e2", "flee", "agent", 1, 1.0, span(20, 24), span(30, 35)),
)


def test_a_slot_is_supported_only_by_trigger_and_mention_together_and_whole() -> None:
    assert metrics.supports([span(0, 6), span(10, 15)], ATTACK, STEPS)
    assert metrics.supports([span(0, 8), span(8, 15)], ATTACK, STEPS), "adjacent citations are one range"
    assert not metrics.supports([span(0, 6)], ATTACK, STEPS)
    assert not metrics.supports([span(1, 6), span(10, 15)], ATTACK, STEPS), "part of a trigger is no trigger"
    assert not metrics.supports([span(0, 6), span(10, 15)], FLEE, STEPS)


def test_citation_recall_counts_unsupported_claims_and_precision_unneeded_spans() -> None:
    good = [span(0, 6), span(10, 15)]
    assert metrics.citation_recall(good, [ATTACK, FLEE], STEPS) == (1, 2)
    assert metrics.citation_precision(good, [ATTACK, FLEE], STEPS) == (2, 2)
    assert metrics.citation_precision([*good, span(40, 44)], [ATTACK], STEPS) == (2, 3)


def test_repeated_evidence_earns_no_precision() -> None:
    twice = (*STEPS, Step("c", "e1", "attack", "agent", 0, 1.0, span(0, 6), span(50, 55)))
    bundle = [span(0, 6), span(10, 15), span(50, 55)]
    assert metrics.citation_precision(bundle, [ATTACK], twice) == (1, 3), "only the trigger cannot be replaced"


def test_gold_gate_needs_every_span_of_one_set() -> None:
    sets = [[span(0, 6), span(10, 15)], [span(20, 24), span(30, 35)]]
    assert metrics.matches_gold([span(0, 6), span(10, 14), span(90, 95)], sets, 0.5)
    assert not metrics.matches_gold([span(0, 6), span(30, 35)], sets, 0.5), "halves of two sets are not a set"
    assert not metrics.matches_gold([span(0, 100)], sets, 0.5), "citing everything matches nothing"
    assert not metrics.matches_gold([span(0, 6)], [], 0.5) and not metrics.matches_gold([span(0, 6)], [[]], 0.5)
    assert not metrics.matches_gold([Span("other", 0, 6), Span("other", 10, 15)], sets, 0.5)


def test_iou_f1_edges() -> None:
    sets = [[span(0, 6), span(10, 15)]]
    assert metrics.iou_f1([span(0, 6), span(10, 15)], sets, 0.5) == 1
    assert metrics.iou_f1([span(0, 6), span(40, 45)], sets, 0.5) == pytest.approx(0.5)
    assert metrics.iou_f1([span(40, 45)], sets, 0.5) == 0, "no division by zero at precision + recall = 0"
    assert metrics.iou_f1([], sets, 0.5) == 0
    assert metrics.iou_f1([span(0, 6)], [], 0.5) is None, "an empty gold group is not a success"
    assert metrics.iou_f1([span(0, 6)], [[]], 0.5) is None


def test_characters_are_counted_once() -> None:
    assert metrics.characters([span(0, 6), span(4, 10), Span("e", 0, 3)]) == 13


# ---- bootstrap -------------------------------------------------------------------------------------------------------


def test_weights_resample_all_windows_and_depend_only_on_the_seed() -> None:
    weights = metrics.window_weights(7, 1000, 11)
    assert weights.shape == (1000, 7)
    assert (weights.sum(axis=1) == 7).all()
    assert (weights == metrics.window_weights(7, 1000, 11)).all()
    assert (weights != metrics.window_weights(7, 1000, 12)).any()


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    inside = 0
    for trial in range(200):
        sample = generator.normal(size=60)
        ratio = Ratio(sample, np.ones(60), 60)
        result = metrics.estimate(ratio, metrics.window_weights(60, 1000, trial))
        assert result.low is not None and result.high is not None
        inside += result.low <= 0 <= result.high
    assert 0.89 <= inside / 200 <= 0.99


def test_windows_are_clusters_instances_within_one_are_not_independent() -> None:
    one = Ratio(np.array([1.0, 0.0] * 10), np.ones(20), 20)
    many = Ratio(one.num * 50, one.den * 50, 1000)
    weights = metrics.window_weights(20, 1000, 4)
    assert metrics.estimate(one, weights).low == metrics.estimate(many, weights).low


def test_the_difference_is_paired() -> None:
    generator = np.random.default_rng(5)
    base = generator.normal(size=50)
    ones = np.ones(50)
    weights = metrics.window_weights(50, 1000, 6)
    shifted = metrics.difference(Ratio(base + 0.1, ones, 50), Ratio(base, ones, 50), weights)
    assert shifted.value == pytest.approx(0.1)
    assert shifted.low == pytest.approx(0.1) and shifted.high == pytest.approx(0.1)
    same = metrics.difference(Ratio(base, ones, 50), Ratio(base, ones, 50), weights)
    assert same.json() == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 50}


def test_undefined_figures_are_null_never_nan() -> None:
    weights = metrics.window_weights(3, 1000, 1)
    empty = Ratio(np.zeros(3), np.zeros(3), 0)
    assert metrics.estimate(empty, weights).json() == {"value": None, "low": None, "high": None, "n": 0}
    one = Ratio(np.ones(3), np.ones(3), 3)
    assert metrics.difference(one, empty, weights).value is None
    assert metrics.rounded(float("nan")) is None
    assert str(metrics.rounded(-0.0)) == "0.0"
