"""AGPO's controllers: golden values (agpo.md, section 17), properties (18), and the published defects (13)."""

from __future__ import annotations

import itertools
import subprocess
import sys
import warnings
from dataclasses import replace
from math import inf, isfinite, log, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError, ParamError
from stages.rl.controllers import (
    Agpo,
    AgpoSettings,
    Budget,
    ClipInertWarning,
    InertWatch,
    Multiplier,
    check_inert,
    permuted,
    reachable,
    widths,
)
from stages.rl.statistics import (
    Statistics,
    dispersion,
    flat_share,
    skewness,
    slot_keys,
    statistics,
    text_key,
    vote_entropy,
    vote_keys,
)

PUBLISHED = AgpoSettings(sequential=True, debias=False, u_floor=1e-8)
OURS = AgpoSettings()
NEUTRAL = Statistics()
close = pytest.approx


def u(value: float) -> Statistics:
    return Statistics(dispersion=value)


def agpo(settings: AgpoSettings = OURS, **memory: Any) -> Agpo:
    made = Agpo(settings)
    for name, value in memory.items():
        setattr(made.memory, name, value)
    return made


# ---- golden values (section 17) --------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [PUBLISHED, OURS])
def test_temperatures_one_prompt_at_a_time(settings: AgpoSettings) -> None:
    """Section 17, ATS."""
    own, c, mean, tau = Agpo(settings), [], [], []
    for value in (0, 1, 2, 0, 0.5):
        [heat] = own.temperatures([u(value)])
        c.append(heat.c)
        tau.append(heat.tau)
        mean.append(own.memory.u)
    assert c == close([0, 0, 1, -1, -0.494949], rel=1e-6)
    assert mean == close([0, 1, 1.1, 0.99, 0.941], rel=1e-6)
    assert tau == close([1, 1, 1.15, 0.85, 0.925758], rel=1e-6)


def test_a_clip_with_every_term() -> None:
    """Section 17, ACC, first line."""
    own = agpo(replace(PUBLISHED, zeta=0.2, h_max=2.0), entropy=1.0, entropy_updates=1, kl=0.2, kl_updates=1)
    assert own.width(Statistics(0.4, 0.3, 0.7), 1.5).eps == close(0.2057692, rel=1e-6)


HALF, EIGHTH = [1.0] * 4 + [0.0] * 4, [1.0] + [0.0] * 7


@pytest.mark.parametrize(
    ("found", "entropy", "kl", "eps"),
    [
        (NEUTRAL, 1.0, 0.0, 0.2), (statistics(HALF, [HALF]), 1.0, 0.0, 0.1393677),
        (statistics(EIGHTH, [EIGHTH]), 1.0, 0.0, 0.1533263), (Statistics(votes=log(8)), 9.0, 0.0, 0.3623832),
        (Statistics(0.5345225), 0.0, 0.0, 0.0651669), (Statistics(0.5345225, votes=log(2)), 0.0, 0.0, 0.0696839),
        (Statistics(0.5345225), 0.0, 0.931, 0.05),
    ],
)  # fmt: skip
def test_clips_of_usual_groups(found: Statistics, entropy: float, kl: float, eps: float) -> None:
    """Section 17, ACC, second line."""
    own = agpo(PUBLISHED, entropy=1.0, entropy_updates=1, kl=kl, kl_updates=1)
    assert own.width(found, entropy).eps == close(eps, rel=1e-6)


def test_the_first_clip_is_the_base() -> None:
    """Section 5.1: the reference entropy is the prompt's own on first use."""
    assert Agpo(OURS).clips([NEUTRAL], [1.7])[0].eps == close(0.2 / (1 + 1e-8 / 1.7))


@pytest.mark.parametrize(
    ("values", "kind", "wanted"),
    [
        (EIGHTH, "std", 0.3535534), (HALF, "std", 0.5345225), (HALF, "iqr", 0.7412898), ([2.0], "std", 0.0),
        ([], "iqr", 0.0), ([1.0, 2.0, 4.0, 9.0], "mad", 1.4826 * 1.5),
    ],
)  # fmt: skip
def test_dispersion(values: list[float], kind: Any, wanted: float) -> None:
    """Sections 3 and 17; the median of an even number is the midpoint (D7)."""
    assert dispersion(values, kind) == close(wanted, rel=1e-6)


def test_skewness() -> None:
    """Section 17 and D8: corrected once; the published form on request."""
    assert skewness(EIGHTH, "g1") == close(2.8284271, rel=1e-6)
    assert skewness(EIGHTH, "published") == close(2.3150324, rel=1e-6)
    assert skewness(HALF) == close(0, abs=1e-12) and skewness([0.0, 1.0]) == 0 and skewness([0.3] * 8) == 0
    assert skewness([1.0] + [0.0] * 999) == 10


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [("aaaaaaaa", 0.0), ("aaaabbbb", 0.6931472), ("abbbbbbb", 0.3767702), ("abcdefgh", 2.0794415), ("a", 0.0)],
)
def test_votes(keys: str, wanted: float) -> None:
    """Section 17, votes."""
    assert vote_entropy([list(keys)]) == close(wanted, rel=1e-6)


def test_votes_of_lists_are_compared_position_by_position() -> None:
    """Section 17: lists abc, abd, acb, abc."""
    lists = [list("abc"), list("abd"), list("acb"), list("abc")]
    assert [vote_entropy([row]) for row in slot_keys(lists)] == close([0, 0.5623351, 1.0397208], rel=1e-6)
    assert vote_entropy(vote_keys(lists, "slot_mean")) == close(0.5340186, rel=1e-6)
    assert vote_entropy(vote_keys(lists, "list")) == close(1.0397208, rel=1e-6)
    assert vote_entropy(vote_keys(lists, "top1")) == 0
    assert vote_entropy(vote_keys(lists, "set")) == close(0.5623351, rel=1e-6)
    assert vote_entropy(slot_keys([["a", "b"], ["a"]])) == close(log(2) / 2), "an end is a vote"
    assert vote_entropy(slot_keys([])) == 0


def test_averages_by_batch_and_one_after_the_other() -> None:
    """Section 10: from a mean of 1 with u = 0, 1, 2, .5."""
    values = [u(x) for x in (0, 1, 2, 0.5)]
    batch = agpo(OURS, u=1.0, u_updates=1)
    assert [h.c for h in batch.temperatures(values)] == close([-1, 0, 1, -0.5], rel=1e-6)
    assert batch.memory.u == close(0.9875)
    one = agpo(PUBLISHED, u=1.0, u_updates=1)
    assert [h.c for h in one.temperatures(values)] == close([-1, 0.1111, 1.1978, -0.5093], abs=1e-4)
    assert one.memory.u == close(0.9671, abs=1e-4)
    back = agpo(PUBLISHED, u=1.0, u_updates=1)
    assert [h.tau for h in back.temperatures(values[::-1])] == close([0.925, 1.1658, 0.9922, 0.85], abs=1e-4)
    assert back.memory.u == close(0.94455, abs=1e-5)
    matched = agpo(replace(OURS, match_prompts=True), u=1.0, u_updates=1)
    matched.temperatures(values)
    assert matched.memory.u == close(1 + (1 - 0.9**4) * (0.875 - 1))


def test_the_start_of_the_step_kl_s_average_is_corrected() -> None:
    """Section 17, debias; D11."""
    ours, theirs = Agpo(OURS), Agpo(PUBLISHED)
    raw = []
    assert ours.kl_mean == 0
    for _ in range(4):
        ours.observe_kl(0.02)
        theirs.observe_kl(0.02)
        raw.append(theirs.kl_mean)
        assert ours.kl_mean == close(0.02, rel=1e-9)
    assert raw == close([0.002, 0.0038, 0.00542, 0.006878], rel=1e-6)


# ---- properties (section 18) -----------------------------------------------------------------------------------------

number = st.floats(0, 1e6)
found_ = st.builds(Statistics, st.floats(0, 50), st.floats(-10, 10), st.floats(0, 8))
own_settings = st.builds(
    AgpoSettings, alpha=st.floats(-3, 3), gamma=st.floats(0, 3), zeta=st.floats(0, 1), delta=st.floats(0, 2),
    lambda_temp=st.floats(0, 2), w_k=st.floats(0, 1), sequential=st.booleans(), debias=st.booleans(),
    match_prompts=st.booleans(),
)  # fmt: skip


@given(own_settings, st.lists(found_, min_size=1, max_size=5), number, st.floats(0, 10), st.integers(0, 3))
def test_decisions_keep_their_bounds(
    settings: AgpoSettings, groups: list[Statistics], kl: float, entropy: float, kls: int
) -> None:
    """P1 and P2."""
    own = Agpo(settings)
    for _ in range(kls):
        own.observe_kl(kl)
    for _ in range(3):
        for heat in own.temperatures(groups):
            assert 0.5 <= heat.tau <= 1.5 and heat.c >= -1
            assert heat.tau >= min(max(0.5, 1 - settings.lambda_temp), 1) - 1e-12
        for width in own.clips(groups, [entropy] * len(groups)):
            assert 0.05 <= width.eps <= 0.4 and isfinite(width.eps)
    assert all(isfinite(x) for x in own.state().values())


def test_nothing_to_go_by_gives_neutral_values() -> None:
    """P1: group of one, rewards that are no numbers, no entropy."""
    assert statistics([nan] * 8, []) == NEUTRAL and statistics([0.7], [["a"]]) == NEUTRAL
    assert statistics([nan, 1.0, 0.0], []).dispersion == close(0.5**0.5)
    own = Agpo(OURS)
    assert own.temperatures([NEUTRAL])[0].tau == 1
    assert own.clips([NEUTRAL], [0.0])[0].eps == close(0.1), "no entropy at all: the ratio's lower bound"
    own.observe_kl(1e6)
    assert own.width(NEUTRAL, 0.0).eps == 0.05


@given(st.floats(0.06, 5), st.floats(0, 5))
def test_a_temperature_is_the_base_where_nothing_is_unusual(mean: float, value: float) -> None:
    """P2, and P3: it rises with uncertainty."""
    own = agpo(OURS, u=mean, u_updates=1)
    heat = own.heat(value)
    assert (heat.c == 0) == (value == mean) and (heat.tau == 1) == (abs(heat.c) < 1e-15)
    assert own.heat(value + 0.1).tau >= heat.tau
    if not own.heat(value + 0.1).bounded:
        assert own.heat(value + 0.1).tau > heat.tau


@given(found_, st.floats(0.6, 1.4), st.sampled_from(["dispersion", "votes", "skew", "entropy", "kl"]))
def test_a_clip_is_monotone_in_each_input(found: Statistics, entropy: float, name: str) -> None:
    """P3."""
    wide = replace(OURS, zeta=0.3, eps_min=1e-9, eps_max=1e9, eps_base=1.0)

    def eps(settings: AgpoSettings, by: float) -> float:
        kl = 0.1 + (by if name == "kl" else 0)
        own = agpo(settings, entropy=1.0, entropy_updates=1, kl=kl, kl_updates=500)
        if name in ("dispersion", "votes", "skew"):
            value = getattr(found, name)
            moved = replace(found, **{name: value + by if value >= 0 else value - by})
        else:
            moved = found
        return own.width(moved, entropy + (by if name == "entropy" else 0)).eps

    sign = 1 if name in ("votes", "entropy") else -1
    assert sign * (eps(wide, 0.05) - eps(wide, 0)) > 0
    if name == "dispersion":
        assert eps(replace(wide, alpha=-0.01), 0.05) > eps(replace(wide, alpha=-0.01), 0)


rewards_ = st.lists(st.floats(0, 1), min_size=2, max_size=9)


@given(rewards_, st.floats(-5, 5), st.floats(0.1, 100))
def test_decisions_do_not_depend_on_sign_shift_or_scale_of_rewards(
    rewards: list[float], shift: float, scale: float
) -> None:
    """P4."""
    plain = statistics(rewards, [])
    for other, reach in (
        ([-r for r in rewards], 1.0), ([r + shift for r in rewards], 1.0), ([r * scale for r in rewards], scale)
    ):  # fmt: skip
        found = statistics(other, [], reach=reach)
        assert found.dispersion == close(plain.dispersion, rel=1e-6, abs=1e-9)
        if plain.dispersion > 1e-3:
            assert abs(found.skew) == close(abs(plain.skew), rel=1e-5, abs=1e-6)
    assert statistics([r * 3 for r in rewards], []).dispersion == close(3 * plain.dispersion, abs=1e-12)


@given(st.lists(st.tuples(st.floats(0, 1), st.permutations("abc")), min_size=2, max_size=8), st.randoms())
def test_order_within_a_group_and_names_do_not_matter(group: list[tuple[float, list[str]]], random: Any) -> None:
    """P5."""
    mixed = group[:]
    random.shuffle(mixed)
    names = dict(zip("abc", random.sample(range(100), 3), strict=True))
    renamed = [(r, [str(names[c]) for c in listed]) for r, listed in mixed]
    one, two = (statistics([r for r, _ in g], slot_keys([x for _, x in g])) for g in (group, renamed))
    for name in ("dispersion", "skew", "votes"):
        assert getattr(one, name) == close(getattr(two, name), rel=1e-9, abs=1e-9)


def test_order_of_prompts_matters_only_where_averages_are_moved_one_by_one() -> None:
    """P5 and D9: whatever the layout over processes, gathered groups are in one order and the batch has one mean."""
    groups = [u(0.2), u(0.9), u(0.4), u(0.0)]
    for settings, equal in ((OURS, True), (PUBLISHED, False)):
        states = []
        for order in itertools.permutations(range(4)):
            own = agpo(settings, u=0.5, u_updates=1)
            heats = own.temperatures([groups[i] for i in order])
            states.append((own.memory.u, tuple(heats[order.index(i)].tau for i in range(4))))
        assert (len(set(states)) == 1) is equal


@given(st.lists(st.tuples(st.lists(found_, min_size=2, max_size=4), number), min_size=2, max_size=6))
def test_saved_and_restored_controllers_decide_the_same(batches: list[tuple[list[Statistics], float]]) -> None:
    """P13, D10: to the bit, through JSON."""
    import json

    whole, parts = Agpo(OURS), Agpo(OURS)
    for groups, kl in batches:
        wanted = whole.temperatures(groups), whole.clips(groups, [x.votes for x in groups])
        whole.observe_kl(kl)
        fresh = Agpo(OURS)
        fresh.restore(json.loads(json.dumps(parts.state())))
        parts = fresh
        assert (parts.temperatures(groups), parts.clips(groups, [x.votes for x in groups])) == wanted
        parts.observe_kl(kl)
    assert parts.state() == whole.state()


def test_a_foreign_state_is_refused() -> None:
    """Section 11: never a silent fresh start."""
    state = Agpo(OURS).state()
    for broken in ({}, {**state, "version": 0}, {**state, "more": 1}, {**state, "u": nan}, {**state, "kl": inf}):
        with pytest.raises(DataError):
            Agpo(OURS).restore(broken)


def test_controllers_need_no_torch() -> None:
    """P15."""
    code = "import sys, stages.rl.controllers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- exact reduction (section 14) ------------------------------------------------------------------------------------

OFF = AgpoSettings(alpha=0, gamma=0, delta=0, zeta=0, h_min=1, h_max=1, lambda_temp=0)


@given(st.lists(st.lists(found_, min_size=1, max_size=3), min_size=1, max_size=4), st.floats(0, 9), number)
def test_with_all_gains_off_it_is_grpo_to_the_bit(batches: list[list[Statistics]], entropy: float, kl: float) -> None:
    """P7: not the last bit differs from fixed temperature and clip."""
    own = Agpo(OFF)
    for groups in batches:
        assert all(heat.tau == 1.0 for heat in own.temperatures(groups))
        assert all(width.eps == 0.2 for width in own.clips(groups, [entropy] * len(groups)))
        own.observe_kl(kl)


# ---- the other published defects (section 13) ------------------------------------------------------------------------


def test_an_inert_clip_is_said() -> None:
    """D1, P14: a single update per rollout batch leaves every ratio at 1."""
    with pytest.warns(ClipInertWarning, match=r"updates_per_rollout.*minibatches_per_rollout"):
        check_inert("agpo", 1, 1)
    with pytest.raises(ParamError, match="cannot act"):
        check_inert("agpo", 1, 1, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_inert("fixed", 1, 1)
        check_inert("agpo", 4, 1)
        check_inert("agpo", 1, 2)


def test_a_clip_that_stays_inert_is_said_once() -> None:
    """Section 9, at run time."""
    watch = InertWatch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(19):
            watch.see("agpo", 0.0)
        watch.see("agpo", 1e-3)
        for _ in range(19):
            watch.see("agpo", 0.0)
    with pytest.warns(ClipInertWarning, match="20 rollout batches"):
        watch.see("agpo", 1e-7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.see("agpo", 0.0)


@pytest.mark.parametrize("kind", ["std", "mad", "iqr"])
@pytest.mark.parametrize("values", [EIGHTH, HALF])
def test_no_spread_of_a_group_with_signal_is_zero(kind: Any, values: list[float]) -> None:
    """D7."""
    assert dispersion(values, kind) > 0


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (r"so \boxed{\frac{1}{2}}", r"\frac{1}{2}"), (r"\boxed{1,024}", 1024), (r"\boxed{1024.0}", 1024),
        ("The answer\n42.", 42), ("because\n3.50", 3.5), (r"\boxed{\frac{1}{2", None), ("", None), ("  \n ", None),
        ("答案是\n四十二", "四十二"), (r"\boxed{1} no, \boxed{2}", 2), ("see e.g. above", "see e.g. above"),
    ],
)  # fmt: skip
def test_text_votes(text: str, key: object) -> None:
    """D6, and D5 (no letter is fished out of prose)."""
    assert text_key(text) == key


@pytest.mark.parametrize("group", [2, 3, 8, 9, 28, 29])
@pytest.mark.parametrize("alpha", [1.0, 0.0, -0.5])
def test_the_reachable_interval_is_that_of_all_groups(group: int, alpha: float) -> None:
    """D15: closed form against every group of 0/1 rewards, on a grid of votes and entropies."""
    own = replace(OURS, alpha=alpha)
    reach = reachable(own, group)
    seen = []
    for ones in range(group + 1):
        sigma = dispersion([1.0] * ones + [0.0] * (group - ones))
        for e, h in itertools.product((0, 0.3, 0.7, 1), (0.0, 0.5, 1, 1.5, 9.0)):
            found = Statistics(sigma, votes=e * log(group))
            seen.append(agpo(own, entropy=1.0, entropy_updates=1).width(found, h).eps)
    assert (min(seen), max(seen)) == close(reach.eps, rel=1e-6)
    if alpha == 1:
        assert (reach.eps[1] < 0.4) == (group <= 28), "eps_max cannot be met by groups of up to 28"
    assert reach.tau == (0.85, 1.5)
    assert reachable(replace(OURS, lambda_temp=0.6), 8).tau == (0.5, 1.5)


def test_a_mean_uncertainty_near_nothing_does_not_heat_to_the_bound() -> None:
    """Section 4: on easy data any disagreement would, without `u_floor`."""
    tame, wild = agpo(OURS, u=1e-4, u_updates=9), agpo(PUBLISHED, u=1e-4, u_updates=9)
    assert tame.heat(0.05).tau == close(1.1497, rel=1e-6) and wild.heat(0.05).tau == 1.5


def test_a_budget_counts_probes_and_ends() -> None:
    """D16: stop at the first boundary past the limit, overshoot told."""
    budget = Budget(100)
    for _ in range(3):
        assert not budget.over
        budget.probe += 20
        budget.train += 20
    assert budget.over and budget.spent == 120 and budget.overshoot == 20
    assert not Budget(0, 10**9).over and Budget(0, 10**9).overshoot == 0


def test_widths_are_scaled_to_the_unit() -> None:
    """Section 5.2."""
    assert widths("token") == (0.05, 0.2, 0.4)
    assert widths("slot")[1] == 0.07 and widths("sequence")[1] == 3.5e-4
    assert widths("slot", 0.1) == (0.025, 0.1, 0.2)


@pytest.mark.parametrize("change", [{"eps_min": 0.3}, {"tau_max": 0.9}, {"h_min": 2.0}, {"eps_min": 0.0}])
def test_bounds_that_exclude_their_base_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ParamError, match=r"rl\.agpo"):
        replace(OURS, **change)


def test_shuffled_values_are_the_same_values() -> None:
    """Section 15 (4)."""
    items = [0.1, 0.2, 0.3, 0.4, 0.5]
    mixed = [permuted(items, 1, step) for step in range(20)]
    assert all(sorted(m) == items for m in mixed) and len({tuple(m) for m in mixed}) > 5
    assert permuted(items, 1, 3) == permuted(items, 1, 3)


def test_the_multiplier_rises_while_too_much_is_invalid_and_never_falls_below_zero() -> None:
    dual = Multiplier()
    for _ in range(5):
        dual.see(0.5)
    assert dual.value == close(5 * 0.1 * 0.48)
    for _ in range(500):
        dual.see(0.0)
    assert dual.value == 0


@pytest.mark.parametrize(
    ("p", "shares"), [(0.05, (0.815, 0.663, 0.440)), (0.1, (0.656, 0.430, 0.185)), (0.02, (0.922, 0.851, 0.724))]
)
def test_share_of_groups_without_signal(p: float, shares: tuple[float, ...]) -> None:
    """rl-neighbours.md, section 10 (1)."""
    assert [flat_share(p, g) for g in (4, 8, 16)] == close(shares, abs=5e-4)
