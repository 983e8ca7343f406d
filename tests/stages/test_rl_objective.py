"""Objectives and advantages: golden values and properties of rl-neighbours.md and agpo.md, and what went wrong in
published code. Sections are cited as N (rl-neighbours.md) and A (agpo.md)."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stages.rl import objective as obj
from stages.rl.advantages import (
    Smooth,
    Tracker,
    gae,
    group_advantages,
    returns,
    standardised,
    whitened,
)

close = pytest.approx


def f64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def column(values: Any) -> Tensor:
    return f64(values)[:, None]


def drawn(shape: tuple[int, ...], seed: int = 0, spread: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    x = at.clone().requires_grad_()
    loss(x).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return x.grad


SLOTS = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 0, 0, 1, 2, 2]])
MASK = torch.tensor([[True] * 6, [True, False, True, True, True, False]])
OLD = -drawn((2, 6), 1).abs()
ADVANTAGE = f64([[1.0] * 6, [-0.5] * 6])


def total(
    new: Tensor, old: Tensor = OLD, advantage: Tensor = ADVANTAGE, slots: Tensor = SLOTS, mask: Tensor = MASK, *,
    agg: Any = "seq_mean", unit: Any = "token", clip: Any = "fixed", low: Any = 0.2, high: Any = 0.2,
) -> Tensor:  # fmt: skip
    loss = obj.surrogate(new, old, advantage, slots, mask, unit=unit, clip=clip, low=low, high=high)
    return (obj.weights(agg, slots, mask, 10) * loss).sum()


# ---- slot credit (N 2.1) ---------------------------------------------------------------------------------------------


def test_returns_of_certified_gains() -> None:
    """N 2.1: gains (3, 1, 0, 1), gates (1, 0, 1, 1)."""
    discount = f64([1 / log(k + 1, 2) for k in range(1, 5)])
    gains, gates = f64([3, 1, 0, 1]), f64([1, 0, 1, 1])
    certified = returns((gains * gates * discount)[None], "to_go")[0]
    assert certified.tolist() == close([3.430677, 0.430677, 0.430677, 0.430677], abs=1e-6)
    plain = returns((gains * discount)[None], "to_go")[0]
    assert plain.tolist() == close([4.061606, 1.061606, 0.430677, 0.430677], abs=1e-6)
    assert returns(gains[None], "own").tolist() == [[3, 1, 0, 1]] and returns(gains[None], "list").tolist() == [[5] * 4]


def test_one_slot_is_sequence_credit() -> None:
    """N 2.1, 2.2: with K = 1 slot, sequence and GSPO agree in value and gradient, away from ratio 1."""
    one, new = torch.zeros_like(SLOTS), OLD + drawn((2, 6), 2, 0.3)
    wanted = gradient(lambda x: total(x, slots=one, unit="slot", low=0.05, high=0.05), new)
    for unit, clip in (("sequence", "fixed"), ("sequence", "gspo")):
        found = gradient(lambda x, u=unit, c=clip: total(x, slots=one, unit=u, clip=c, low=0.05, high=0.05), new)  # type: ignore[misc]
        torch.testing.assert_close(found, wanted)


def test_slots_of_equal_length_are_token_grpo_at_the_first_update() -> None:
    """N 2.1; and the same for GSPO with rows of equal length (N 2.2)."""
    slots, mask = torch.tensor([[0, 0, 1, 1, 2, 2]] * 2), torch.ones(2, 6, dtype=torch.bool)
    token = gradient(lambda x: total(x, slots=slots, mask=mask), OLD)
    slot = gradient(lambda x: total(x, slots=slots, mask=mask, unit="slot", agg="slot_mean"), OLD)
    sequence = gradient(lambda x: total(x, slots=slots, mask=mask, unit="sequence", clip="gspo"), OLD)
    torch.testing.assert_close(slot, token)
    torch.testing.assert_close(sequence, token)


@given(st.permutations(range(6)))
def test_a_slot_s_ratio_does_not_know_the_order_of_its_tokens(order: list[int]) -> None:
    """N 2.1; tokens outside the mask do not count."""
    new = OLD + drawn((2, 6), 3)
    found = obj.log_ratio(new, OLD, "slot", SLOTS, MASK)
    moved = obj.log_ratio(new[:, order], OLD[:, order], "slot", SLOTS[:, order], MASK[:, order])
    torch.testing.assert_close(moved, found[:, order])
    assert found[1, 0] == close(float((new - OLD)[1, [0, 2]].mean()))
    assert found[1, 1] == 0 and found[1, 5] == 0


def test_slots_weigh_the_same_however_long_they_are() -> None:
    """N 2.1: slot_mean; a token mean would favour long names."""
    w = obj.weights("slot_mean", SLOTS, MASK, 0)
    for b in range(2):
        assert [float(w[b][SLOTS[b] == k].sum()) for k in range(3)] == close([1 / 6] * 3)


def test_advantages_by_slot_leave_flat_slots_and_absent_rollouts_alone() -> None:
    """N 2.1: the flat rule by slot; who did not act in a slot neither counts nor gets anything."""
    R = f64([[0.9, 0.2, 0.0], [0.5, 0.2, 0.0], [0.1, 0.2, 0.4]])
    acted = torch.tensor([[True, True, False], [True, True, True], [True, True, True]])
    found = group_advantages(R, acted)
    assert found.flat_K.tolist() == [False, True, False]
    assert found.value_GK[:, 0].tolist() == close([0.4 / 0.4001, 0, -0.4 / 0.4001])
    assert found.value_GK[:, 1].tolist() == [0, 0, 0] and found.value_GK[0, 2] == 0
    assert found.value_GK[2, 2] == close(0.2 / (0.2828427 + 1e-4), rel=1e-5) and found.value_GK[1, 2] < 0
    narrow = group_advantages(column([0.5, 0.501, 0.499]), floor=0.05)
    assert narrow.value_GK.abs().max() < 0.021, "a tiny spread is not blown up"


# ---- advantages (N 3, A 6) -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", range(2, 17))
@pytest.mark.parametrize("value", [1 / 3, 0.1, 0.7, 7 / 11, 2 / 3 - 1 / 3])
def test_a_flat_group_has_no_advantage_and_no_gradient(group: int, value: float) -> None:
    """D4, P6: inexact equal rewards, for which the published code has up to ±.968; also equal but for a last bit."""
    noisy = [value if i % 2 else value * (1 + 2e-16) for i in range(group)]
    for rewards in ([value] * group, noisy):
        for normalise in (True, False):
            found = group_advantages(column(rewards), normalise=normalise)
            assert found.value_GK.abs().max() == 0 and bool(found.flat_K.all())
        new = drawn((group, 4), 5)
        mask = torch.ones(group, 4, dtype=torch.bool)
        flat = found.value_GK.expand(-1, 4)
        grad = gradient(lambda x, a=flat, m=mask: total(x, x.detach(), a, torch.zeros(group, 4).long(), m), new)  # type: ignore[misc]
        assert grad.abs().max() == 0


def test_a_group_s_advantages_are_grpo_s() -> None:
    """A 6: (r - mean) / (std + 1e-4), Bessel; without the std; NaN rewards leave; robust spreads fall back (D7)."""
    assert group_advantages(column([1, 1, 0, 0])).value_GK[:, 0].tolist() == close(
        [0.5 / 0.5774503] * 2 + [-0.5 / 0.5774503] * 2
    )
    assert group_advantages(column([1, 0, 0, 0]), normalise=False).value_GK[:, 0].tolist() == [
        0.75,
        -0.25,
        -0.25,
        -0.25,
    ]
    some = group_advantages(column([1, float("nan"), 0]))
    assert some.value_GK[1, 0] == 0 and some.value_GK[0, 0] == close(0.5 / 0.7072068, rel=1e-6)
    one = [1.0] + [0.0] * 7
    for spread in ("mad", "iqr"):
        assert (
            group_advantages(column(one), spread=spread).value_GK.tolist()
            == group_advantages(column(one)).value_GK.tolist()
        )  # type: ignore[arg-type]


def test_smooth_advantages() -> None:
    """N 3.1: three visits of a prompt."""
    smooth = Smooth()
    wanted = ([0.866025] * 2 + [-0.866025] * 2, [0.261116] * 4, [-0.693374] * 3 + [1.014344])
    for rewards, values in zip(((1, 1, 0, 0), (1, 1, 1, 1), (0, 0, 0, 1)), wanted, strict=True):
        found = smooth.advantages("p", column(rewards), eps=0.0)
        assert found.value_GK[:, 0].tolist() == close(values, rel=1e-5)
        again = Smooth()
        again.restore(smooth.state())  # N 3.1: resume equals continuous
        smooth = again
    assert smooth.memory["p"][0].visits == 3


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_the_first_smooth_advantage_is_the_group_s(rewards: list[float]) -> None:
    """N 3.1: t = 1. A flat group says nothing then."""
    found = Smooth().advantages("p", column(rewards)).value_GK
    torch.testing.assert_close(found, group_advantages(column(rewards)).value_GK)


def test_a_flat_group_of_a_known_prompt_has_one_sign() -> None:
    """N 3.1: signal returns, equal for all rollouts; a slot nobody reached is not remembered."""
    smooth = Smooth()
    smooth.advantages("p", f64([[0.2, 0.1], [0.4, 0.0]]), torch.tensor([[True, False], [True, False]]))
    found = smooth.advantages("p", f64([[0.9, 0.0], [0.9, 0.0]]), torch.tensor([[True, False], [True, False]]))
    assert found.flat_K.tolist() == [True, True] and found.value_GK[0, 0] == found.value_GK[1, 0] > 0
    assert smooth.memory["p"][1].visits == 0


def test_a_single_stream() -> None:
    """N 3.2: the baseline is the value before the update."""
    tracker = Tracker.start(4, 8)
    assert (tracker.a, tracker.b) == close((4, 4))
    assert tracker.advantage(1, 0) == close(0.5) and (tracker.a, tracker.b) == close((4.84, 3.84))
    assert tracker.advantage(1, 0.06) == close(0.442396, rel=1e-5) and tracker.value == close(0.609075, rel=1e-5)
    assert tracker.advantage(0, 0.003) == close(-0.609075, rel=1e-5) and tracker.value == close(0.543238, rel=1e-5)
    assert Tracker.start().value == 0.5 and Tracker(1, 0).weight == close(0.05) and Tracker(1, 1).weight == close(0.55)
    assert standardised(f64([0.3, 0.3])).tolist() == [0, 0] and float(standardised(f64([1.0, 0, 0, 1])).sum()) == 0


def test_generalised_advantages_skip_what_is_no_action() -> None:
    """A 14: terminal reward, γ = 1, λ = .95, by hand; tokens outside the mask are not there."""
    values = f64([[0.5, 9.0, 0.2, 0.4], [0.1, 0.3, 9.0, 9.0]])
    mask = torch.tensor([[True, False, True, True], [True, True, False, False]])
    found, targets = gae(f64([1.0, 0.0]), values, mask)
    last = 1 - 0.4
    middle = (0.4 - 0.2) + 0.95 * last
    assert found[0].tolist() == close([(0.2 - 0.5) + 0.95 * middle, 0, middle, last])
    assert found[1].tolist() == close([(0.3 - 0.1) + 0.95 * -0.3, -0.3, 0, 0])
    assert targets[0].tolist() == close([float(found[0, 0]) + 0.5, 0, float(found[0, 2]) + 0.2, 1])
    white = whitened(found, mask)
    assert float(white[mask].mean()) == close(0, abs=1e-12) and float(white[mask].std(unbiased=False)) == close(
        1, rel=1e-6
    )
    exact, _ = gae(f64([1.0]), values[:1], mask[:1], lam=1.0)
    assert exact[0].tolist() == close([0.5, 0, 0.8, 0.6])


def test_a_value_that_runs_away_is_not_pulled_further() -> None:
    old, target, mask = f64([[0.0]]), f64([[1.0]]), torch.tensor([[True]])
    assert float(gradient(lambda v: obj.value_loss(v, old, target, mask).sum(), f64([[0.1]]))) < 0
    assert float(gradient(lambda v: obj.value_loss(v, old, target, mask).sum(), f64([[0.5]]))) == 0
    assert float(gradient(lambda v: obj.value_loss(v, old, target, mask).sum(), f64([[-0.5]]))) < 0


# ---- clips (N 2.3, 2.4; A 9, 18) -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q", "low", "high"),
    [
        (0.9, 0.768742, 1.187184), (0.64, 0.5, None), (0.3, 0.5, None), (0.5, 0.5, 1.306226), (0.1, 0.5, 2.0),
        (0.01, 0.5, 5.0), (0.00222, None, 10.0), (1e-5, 0.5, 10.0),
    ],
)  # fmt: skip
def test_dcpo_s_bounds(q: float, low: float | None, high: float | None) -> None:
    """N 2.3; at the upper bound (r - 1)·r·q is eps, until the cap binds (below q = .00222)."""
    least, most = (float(x) for x in obj.dcpo_bounds(f64([[log(q)]])))
    assert low is None or least == close(low, rel=1e-5)
    assert high is None or most == close(high, rel=1e-3)
    assert (most - 1) * most * q == close(0.20, rel=1e-9) or most == 10
    assert most < 10 or q < 0.002223


def test_dcpo_clips_at_its_bounds() -> None:
    new = OLD + f64([[5.0] * 6, [-5.0] * 6])
    assert gradient(lambda x: total(x, clip="dcpo", low=9, high=9), new).abs().max() == 0


@pytest.mark.parametrize(("heat", "slope", "value"), [(1.0, 0.786448, 2.0), (1.05, 0.768110, 1.904762)])
def test_sapo_s_curve(heat: float, slope: float, value: float) -> None:
    """N 2.4: f'(1) = 1, f'(2) and f(1); the heat is chosen by the advantage's sign."""
    sign = 1.0 if heat == 1.0 else -1.0
    one = f64([[sign]])
    assert float(obj.sapo(f64([[1.0]]), one)) == close(-sign * value, rel=1e-6)
    for at, wanted in ((1.0, 1.0), (2.0, slope)):
        assert float(gradient(lambda r: obj.sapo(r, one).sum(), f64([[at]]))) == close(-sign * wanted, rel=1e-5)


EVERY: list[tuple[Any, Any]] = [(u, c) for u, clips in obj.CLIPS.items() for c in clips]


@pytest.mark.parametrize(("unit", "clip"), EVERY)
def test_the_first_update_is_plain_reinforce_whatever_clips(unit: Any, clip: Any) -> None:
    """N 10 (2), P8: at ratio 1 no clip acts and no width matters; equal lengths."""
    slots, mask = torch.tensor([[0, 0, 1, 1]] * 2), torch.ones(2, 4, dtype=torch.bool)
    old, adv = OLD[:, :4], ADVANTAGE[:, :4]
    weight = obj.weights("seq_mean", slots, mask, 4)
    wanted = gradient(lambda x: (weight * obj.reinforce(x, adv, mask)).sum(), old)
    for eps in (0.05, 0.4):
        found = gradient(
            lambda x, e=eps: total(x, old, adv, slots, mask, unit=unit, clip=clip, low=e, high=e),
            old,  # type: ignore[misc]
        )
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_widths_matter_once_the_policy_has_moved() -> None:
    """D1: with several updates per rollout batch the width acts."""
    new = OLD + 0.2
    narrow, wide = (gradient(lambda x, e=e: total(x, low=e, high=e), new) for e in (0.05, 0.4))  # type: ignore[misc]
    assert not torch.equal(narrow, wide)


@pytest.mark.parametrize(
    ("ratio", "advantage", "dead"), [(1.5, 1, True), (1.5, -1, False), (0.5, -1, True), (0.5, 1, False)]
)
def test_clipping_kills_a_gradient_in_two_of_four_cases(ratio: float, advantage: float, dead: bool) -> None:
    """P9; and counted in just these, by sign (D13)."""
    old, adv, mask, slot = f64([[0.0]]), f64([[advantage]]), torch.tensor([[True]]), torch.tensor([[0]])
    grad = gradient(lambda x: total(x, old, adv, slot, mask), f64([[log(ratio)]]))
    assert (float(grad) == 0) is dead
    counts = obj.clip_counts(f64([[ratio]]), adv, 0.2, 0.2, mask)
    assert (counts.high, counts.low) == ((1, 0) if dead and advantage > 0 else (0, 1) if dead else (0, 0))
    assert counts.absdev_max == close(0.5) and counts.tokens == 1
    off = obj.clip_counts(f64([[ratio]]), adv, 0.2, 0.2, ~mask)
    assert (off.high, off.low, off.tokens, off.absdev_max) == (0, 0, 0, 0)


@pytest.mark.parametrize("unit", ["token", "slot", "sequence"])
def test_a_width_per_sample_is_the_formula_by_hand(unit: Any) -> None:
    """P10: constant tensor = scalar; a tensor = each row under its own width."""
    new = OLD + drawn((2, 6), 7, 0.5)
    constant = torch.full((2, 1), 0.1, dtype=torch.float64)
    assert torch.equal(gradient(lambda x: total(x, unit=unit, low=constant, high=constant), new),
                       gradient(lambda x: total(x, unit=unit, low=0.1, high=0.1), new))  # fmt: skip
    own = f64([[0.05], [0.3]])
    found = obj.surrogate(new, OLD, ADVANTAGE, SLOTS, MASK, unit=unit, clip="agpo", low=own, high=own)
    for b in range(2):
        eps, a = float(own[b]), float(ADVANTAGE[b, 0])
        for t in range(6):
            if not MASK[b, t]:
                assert found[b, t] == 0
                continue
            same = [s for s in range(6) if MASK[b, s] and (
                s == t if unit == "token" else unit == "sequence" or SLOTS[b, s] == SLOTS[b, t])]  # fmt: skip
            r = exp(float((new - OLD)[b, same].mean()))
            assert float(found[b, t]) == close(-min(r * a, min(max(r, 1 - eps), 1 + eps) * a))


def test_units_and_clips_that_fit() -> None:
    """N 1."""
    assert set(EVERY) == {
        ("token", "fixed"), ("token", "agpo"), ("token", "dcpo"), ("token", "sapo"), ("slot", "fixed"),
        ("slot", "agpo"), ("sequence", "fixed"), ("sequence", "agpo"), ("sequence", "gspo"),
    }  # fmt: skip


# ---- aggregation (N 2.5) ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["slot_mean", "seq_mean", "token_mean", "const"])
def test_a_batch_cut_up_is_the_batch(kind: Any) -> None:
    """N 2.5: weights of the whole batch, so micro-batches add up to one batch; by hand for each kind."""
    loss = drawn((2, 6), 9)
    w = obj.weights(kind, SLOTS, MASK, 10)
    assert float((w[:1] * loss[:1]).sum() + (w[1:] * loss[1:]).sum()) == close(float((w * loss).sum()))
    own = [loss[b][MASK[b]] for b in range(2)]
    slots = [[loss[b][MASK[b] & (SLOTS[b] == k)].mean() for k in range(3)] for b in range(2)]
    wanted = {
        "seq_mean": (own[0].mean() + own[1].mean()) / 2, "token_mean": (own[0].sum() + own[1].sum()) / 10,
        "const": (own[0].sum() + own[1].sum()) / 20,
        "slot_mean": (torch.stack(slots[0]).mean() + torch.stack(slots[1]).mean()) / 2,
    }[kind]  # fmt: skip
    assert float((w * loss).sum()) == close(float(wanted), rel=1e-6)


def test_a_token_s_weight_does_not_depend_on_its_row_s_length() -> None:
    """N 2.5, Dr.GRPO; a row without any action weighs nothing and divides by nothing."""
    mask = torch.tensor([[True] * 6, [True] + [False] * 5, [False] * 6])
    slots = torch.zeros(3, 6).long()
    assert obj.weights("const", slots, mask, 10)[0, 0] == obj.weights("const", slots, mask, 10)[1, 0]
    for kind in ("slot_mean", "seq_mean", "token_mean", "const"):
        w = obj.weights(kind, slots, mask, 10)  # type: ignore[arg-type]
        assert w.isfinite().all() and w[2].sum() == 0


# ---- anchor and drift (A 6) ------------------------------------------------------------------------------------------


def anchored(kind: Any, logits: Tensor, reference: Tensor) -> Tensor:
    """Expected gradient of an estimator on-policy, by enumeration of a categorical."""
    p = logits.softmax(0).detach()
    old, ref = logits.log_softmax(0).detach(), reference.log_softmax(0)
    return gradient(lambda z: (p * obj.anchor(z.log_softmax(0), old, ref, kind)).sum(), logits)


def test_the_anchor_has_the_gradient_of_the_divergence() -> None:
    """D3, T-kl: `k3_is` and `k2` do, `k1` as a loss has none, plain `k3` has another."""
    logits, reference = drawn((6,), 11), drawn((6,), 12)
    p_log = reference.log_softmax(0)
    true = gradient(lambda z: (z.softmax(0) * (z.log_softmax(0) - p_log)).sum(), logits)
    assert true.norm() > 0.1
    for kind in ("k3_is", "k2"):
        assert (anchored(kind, logits, reference) - true).norm() < 1e-15
    assert anchored("k1_parity", logits, reference).norm() < 1e-15
    assert (anchored("k3", logits, reference) - true).norm() > 0.05


def test_the_step_s_divergence_is_never_negative() -> None:
    """D12, T-stepkl: 0 where nothing moved; a two-token value; the exact KL in expectation."""
    assert obj.step_kl(OLD, OLD).abs().max() == 0
    assert obj.step_kl(f64([log(0.5), log(0.2)]), f64([log(0.25), log(0.4)])).tolist() == close(
        [2 - 1 - log(2), 0.5 - 1 - log(0.5)]
    )
    assert (obj.step_kl(drawn((999,), 1), drawn((999,), 2)) >= 0).all()
    p, q = drawn((6,), 3).log_softmax(0), drawn((6,), 4).log_softmax(0)
    assert float((p.exp() * obj.step_kl(q, p)).sum()) == close(float((p.exp() * (p - q)).sum()))


# ---- another engine's samples (N 4) ----------------------------------------------------------------------------------


def test_one_engine_needs_no_correction() -> None:
    """N 4: k = 1, bit for bit."""
    for kind in ("icepop", "tis"):
        for level in ("token", "sequence"):
            w, kept = obj.mismatch(OLD, OLD, MASK, kind, level)  # type: ignore[arg-type]
            assert torch.equal(kept, MASK) and (w[MASK] == 1).all()


def test_tokens_of_another_distribution_leave() -> None:
    """N 4: exactly those outside [.5, 5]; the weight is detached; they leave slot means and normalisers too."""
    gaps = f64([[0.0, log(0.49), log(0.51), log(4.9), log(5.1), -9.0], [0.0] * 6])
    new = (OLD + 0.01).requires_grad_()
    w, kept = obj.mismatch(OLD, OLD - gaps, MASK, "icepop", "token")
    assert kept[0].tolist() == [True, False, True, True, False, False] and torch.equal(kept[1], MASK[1])
    assert w[0].tolist() == close([1, 0, 0.51, 4.9, 0, 0]) and not w.requires_grad
    loss = obj.surrogate(new, OLD, ADVANTAGE, SLOTS, kept, unit="token", clip="fixed", low=0.2, high=0.2)
    (obj.weights("slot_mean", SLOTS, kept, 6) * w * loss).sum().backward()  # type: ignore[no-untyped-call]
    assert new.grad is not None and torch.equal(new.grad != 0, kept)
    tis, all_kept = obj.mismatch(OLD, OLD - gaps, MASK, "tis", "token")
    assert torch.equal(all_kept, MASK) and tis[0].tolist() == close([1, 0.49, 0.51, 2, 2, exp(-9)])
    whole, none = obj.mismatch(OLD, OLD - gaps, MASK, "icepop", "sequence")
    assert not none[0].any() and torch.equal(none[1], MASK[1]) and (whole[1][MASK[1]] == 1).all()


# ---- guards (N 5) ----------------------------------------------------------------------------------------------------

KEYS = [[(t, token) for t, token in enumerate(row)] for row in ("abcdef", "abXdef", "uvwxyz")]
FULL = torch.ones(3, 6, dtype=torch.bool)


def test_tokens_that_good_and_bad_rollouts_share_are_not_punished() -> None:
    """N 5.1: two rollouts that differ in one id; the third shares no aligned token."""
    adv = f64([[1.0] * 6, [-1.0] * 6, [-1.0] * 6])
    found = obj.conflicts(KEYS, adv, FULL)
    assert found[1].tolist() == [True, True, False, True, True, True] == found[0].tolist() and not found[2].any()
    changed = obj.gtpo_advantages(adv, found, f64([0.0, 0.0, 0.0]))
    assert changed[1].tolist() == [0, 0, -1, 0, 0, 0] and torch.equal(changed[[0, 2]], adv[[0, 2]])


def test_without_a_bad_rollout_nothing_is_protected() -> None:
    """N 5.1; a conflict in the middle of a rollout is none of the two runs; forced tokens are stepped over."""
    assert not obj.conflicts(KEYS, torch.ones_like(f64([[1.0] * 6] * 3)), FULL).any()
    inner = [[(t, token) for t, token in enumerate(row)] for row in ("abcdef", "XbcdeY")]
    adv = f64([[1.0] * 6, [-1.0] * 6])
    assert not obj.conflicts(inner, adv, FULL[:2]).any()
    forced = torch.tensor([[True] * 6, [False, True, True, True, True, False]])
    assert obj.conflicts(inner, adv, forced)[1].tolist() == [False, True, True, True, True, False]


def test_uncertain_rollouts_count_less() -> None:
    """N 5.1: above .7 nats not at all, below a tenth of the entropy is taken off."""
    adv = f64([[1.0, 0.0], [1.0, 0.0], [-1.0, -1.0]])
    found = obj.gtpo_advantages(adv, torch.zeros(3, 2, dtype=torch.bool), f64([0.5, 0.71, 0.2]))
    assert found.tolist() == [close([0.95, 0]), close([0, 0]), close([-1.02, -1.02])]


def test_likelihood_of_good_slots_is_held() -> None:
    """N 5.2: 0 when likelihoods rise and at the first update; gradient on falling tokens of gated units alone."""
    keep = torch.tensor([[True] * 6, [False] * 6])
    assert obj.llds(OLD + 0.1, OLD, keep, SLOTS, MASK).abs().max() == 0
    assert obj.llds(OLD, OLD, keep, SLOTS, MASK).abs().max() == 0
    change = f64([[-0.3, 0.1, 0.3, -0.1, 0.0, -0.2], [-1.0] * 6])
    found = obj.llds(OLD + change, OLD, keep, SLOTS, MASK)
    assert found[0].tolist() == close([0.3, 0, 0, 0, 0, 0.2]) and found[1].abs().max() == 0
    grad = gradient(lambda x: obj.llds(x, OLD, keep, SLOTS, MASK).sum(), OLD + change)
    assert (grad != 0).tolist() == [[True, False, False, False, False, True], [False] * 6]
    assert obj.llds(OLD + change, OLD, keep, SLOTS, MASK, threshold=0.25).abs().max() == 0


# ---- what no token can do --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "clip"), EVERY)
def test_tokens_outside_the_mask_get_no_gradient(unit: Any, clip: Any) -> None:
    """Forced and padded tokens leave the loss, the means and the normalisers, even where their numbers are infinite."""
    new, old = OLD.clone(), OLD.clone()
    new[~MASK] = 0.0
    old[~MASK] = -torch.inf
    grad = gradient(lambda x: total(x, old, unit=unit, clip=clip, agg="slot_mean"), new)
    assert (grad[~MASK] == 0).all() and grad[MASK].isfinite().all() and (grad[MASK] != 0).all()
