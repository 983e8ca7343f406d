"""Weights of an answer's tokens, and the wrong twins that FAIT goes by."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import certificates, tables
from pipeline.certificates import Entry
from pipeline.errors import ParamError
from pipeline.policies import Policy
from stages.sft.lessons import Example
from stages.sft.likelihood import log_probs
from stages.sft.packing import pack, plan_rows
from stages.sft.twins import BORROWED, Wrong, read_wrongs, twin, twin_example
from stages.sft.weighting import aligned, answers, by_progress, by_twins, fait, laid_out, sstoken
from tests import tiny
from tests.stages.test_sft import lesson, llama, mla, policy, teacher

__all__ = ["policy"]

LOGS = st.lists(st.floats(-20, 0), min_size=1, max_size=40)
TOKENS = st.lists(st.integers(0, 6), max_size=20)


def numbers(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ---- FAIT -----------------------------------------------------------------------------------------------------------


@given(TOKENS, TOKENS)
def test_pairs_are_of_different_tokens_in_order(right: list[int], wrong: list[int]) -> None:
    pairs = aligned(right, wrong)
    assert all(right[i] != wrong[j] for i, j in pairs)
    for one, two in pairwise(pairs):
        assert one[0] < two[0] and one[1] < two[1]
    assert aligned(right, right) == []


def test_pairs_of_an_answer_and_its_twin_are_ids_and_handles() -> None:
    c01, c04, s1, e02, e03, e09, end = range(7)
    assert aligned([c01, s1, e02, e03, end], [c04, s1, e02, e09, end]) == [(0, 0), (3, 3)]
    assert aligned([1, 2, 3, 9], [1, 7, 9]) == [(1, 1)], "nothing stands in for what is longer"


@given(LOGS, st.data())
def test_weights_have_mean_one_and_those_of_pairs_are_the_larger(logs: list[float], data: st.DataObject) -> None:
    n = len(logs)
    places = sorted(data.draw(st.sets(st.integers(0, n - 1))))
    wrong = numbers(data.draw(st.lists(st.floats(-20, 0), min_size=n, max_size=n)))
    weights = fait(numbers(logs), wrong, [(i, i) for i in places])
    assert weights.mean().item() == pytest.approx(1.0) and (weights > 0).all()
    others = [i for i in range(n) if i not in places]
    if places and others:
        assert weights[places].min() >= weights[others].max() and weights.max() / weights.min() <= 3 + 1e-9
    elif not places:
        assert weights.equal(torch.ones(n, dtype=torch.float64)), "nothing to go by: exactly 1"


def test_the_weight_falls_as_the_margin_grows_and_is_what_the_formula_says() -> None:
    wrong = numbers([-1.0])
    found = [fait(numbers([-5.0, -1.0 + m]), wrong, [(1, 0)])[1].item() for m in (-9.0, -1.0, 0.0, 0.5, 1.0)]
    assert found == sorted(found, reverse=True) and found[0] > found[-1]
    raw = 1 + 2 * 0.5  # at margin 0
    assert fait(numbers([-5.0, -1.0]), wrong, [(1, 0)]).tolist() == pytest.approx([2 / (1 + raw), 2 * raw / (1 + raw)])
    assert fait(numbers([-5.0, -1.0]), wrong, [(1, 0)], most=1.0).tolist() == [1.0, 1.0]
    with pytest.raises(ParamError, match="at least 1"):
        fait(wrong, wrong, [], most=0.5)


def test_no_gradient_flows_through_weights() -> None:
    right = numbers([-1.0, -2.0]).requires_grad_()
    wrong = numbers([-1.5, -0.5]).requires_grad_()
    weights = fait(right, wrong, [(1, 1)])
    (weights * right).sum().backward()  # type: ignore[no-untyped-call]
    assert right.grad is not None and right.grad.equal(weights) and wrong.grad is None


# ---- ssToken --------------------------------------------------------------------------------------------------------


@given(LOGS, st.floats(0.01, 1.0), st.data())
def test_the_tokens_that_improved_most_count_and_the_others_have_no_gradient(
    logs: list[float], share: float, data: st.DataObject
) -> None:
    n = len(logs)
    former = numbers(data.draw(st.lists(st.floats(-20, 0), min_size=n, max_size=n)))
    now = numbers(logs).requires_grad_()
    weights = sstoken(now, former, share)
    (-(weights * now).sum() / n).backward()  # type: ignore[no-untyped-call]
    assert now.grad is not None
    kept, gain = weights > 0, (now - former).detach()
    assert weights.mean().item() == pytest.approx(1.0) and 0 < kept.sum() <= n
    assert (now.grad[~kept] == 0).all() and (now.grad[kept] < 0).all()
    if not kept.all():
        assert gain[kept].min() >= gain[~kept].max()


def test_the_whole_share_is_plain_training_and_bounds_are_checked() -> None:
    now, former = numbers([-1.0, -2.0, -3.0, -4.0, -5.0]), numbers([-1.0] * 5)
    assert sstoken(now, former, 1.0).equal(torch.ones(5, dtype=torch.float64))
    assert sstoken(now, former).tolist() == pytest.approx([5 / 3] * 3 + [0.0] * 2)
    assert sstoken(former, former, 0.4).tolist() == [2.5, 2.5, 0.0, 0.0, 0.0], "of equals the earlier"
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(ParamError, match="above 0 and at most 1"):
            sstoken(now, former, share)


# ---- in packed rows -------------------------------------------------------------------------------------------------


def test_what_is_cut_out_of_rows_is_laid_out_in_its_place_again() -> None:
    model, random = mla(), torch.Generator().manual_seed(0)
    examples = [
        Example(tuple(torch.randint(1, 50, (n,), generator=random).tolist()), n // 2) for n in (5, 17, 9, 3, 12)
    ]
    rows = plan_rows([len(e) for e in examples], 24)
    packed = pack(examples, rows)
    labels_BT = packed.labels_BT.masked_fill(~packed.answer_BT, -100)
    found_BT = log_probs(model, packed.ids_BT, labels_BT, packed.segments_BT)
    cut = answers(found_BT, examples, rows)
    assert {i: len(values) for i, values in cut.items()} == {i: len(e) - e.prompt for i, e in enumerate(examples)}
    assert not any(values.requires_grad for values in cut.values())
    again_BT = laid_out(cut, examples, rows, torch.zeros_like(found_BT))
    assert again_BT[packed.answer_BT].equal(found_BT.detach()[packed.answer_BT])
    assert (again_BT[~packed.answer_BT] == 1).all()
    plain = -found_BT[packed.answer_BT].sum()
    ones = {i: fait(values, values, []) for i, values in cut.items()}
    weighted = -(laid_out(ones, examples, rows, found_BT) * found_BT)[packed.answer_BT].sum()
    assert weighted.equal(plain), "without a twin: plain training to the bit"


def random_examples() -> list[Example]:
    random = torch.Generator().manual_seed(2)
    return [Example(tuple(torch.randint(1, 50, (n,), generator=random).tolist()), n - 4) for n in (9, 14, 7)]


def test_in_rows_each_example_is_weighted_by_its_own_twin() -> None:
    model, examples = mla(), random_examples()
    rows = plan_rows([len(e) for e in examples], 24)
    packed = pack(examples, rows)
    found_BT = log_probs(model, packed.ids_BT, packed.labels_BT, packed.segments_BT)
    other = Example((*examples[1].ids[:-2], 49, examples[1].ids[-1]), examples[1].prompt)
    assert other.ids != examples[1].ids
    weights_BT = by_twins(model, examples, rows, found_BT, {1: other})
    alone = pack([other], [[0]])
    with torch.no_grad():
        told = log_probs(model, alone.ids_BT, alone.labels_BT, alone.segments_BT)[0][alone.answer_BT[0]]
    cut = answers(weights_BT, examples, rows)
    right = answers(found_BT, examples, rows)[1]
    torch.testing.assert_close(cut[1], fait(right, told, [(2, 2)]), atol=1e-5, rtol=1e-4)
    assert cut[1].argmax() == 2 and (cut[0] == 1).all() and (cut[2] == 1).all() and not weights_BT.requires_grad
    assert by_twins(model, examples, rows, found_BT, {}).equal(torch.ones_like(found_BT))


def test_in_rows_progress_is_measured_against_former_weights() -> None:
    examples = random_examples()
    rows = plan_rows([len(e) for e in examples], 24)
    packed = pack(examples, rows)
    former_BT, found_BT = (
        log_probs(model, packed.ids_BT, packed.labels_BT, packed.segments_BT) for model in (mla(), llama())
    )
    former = answers(former_BT, examples, rows)
    weights_BT = by_progress(examples, rows, found_BT, {0: former[0], 2: former[2]}, share=0.5)
    cut = answers(weights_BT, examples, rows)
    now = answers(found_BT, examples, rows)
    for i in (0, 2):
        assert cut[i].equal(sstoken(now[i], former[i], 0.5)) and sorted(cut[i].tolist()) == [0.0, 0.0, 2.0, 2.0]
    assert (cut[1] == 1).all() and (weights_BT[~packed.answer_BT] == 1).all()


# ---- twins ----------------------------------------------------------------------------------------------------------


def test_a_twin_differs_in_one_entry_and_the_draw_settles_which() -> None:
    own = lesson()
    entries = list(own.entries)
    listed = [entry.candidate_id for entry in entries]
    others = {c: Entry(c) for c in ("Cay", "Dot", *listed)}
    wrongs = [Wrong(BORROWED, listed[0], "Dot"), Wrong(BORROWED, listed[1], "Cay"), Wrong(BORROWED, "Dot", "Cay"),
              Wrong("same_type", listed[0], listed[1])]  # fmt: skip
    for draw, place, name in ((0, 0, "Dot"), (1, 1, "Cay"), (2, 0, "Dot")):
        found = twin(entries, wrongs, others, draw)
        assert found is not None
        assert [i for i, (a, b) in enumerate(zip(found, entries, strict=True)) if a != b] == [place]
        assert found[place] == Entry(name, entries[place].slots), "with the right one's evidence"
    assert twin(entries, wrongs[2:], others, 0) is None and twin([], wrongs, others, 0) is None
    assert twin(entries, wrongs[:1], {}, 0) is None, "nobody who is not in the roster"
    evidence = Entry("Dot", (("s1", entries[1].slots[0][1]),))
    mine = twin(entries, [Wrong("same_head", listed[0], "Dot")], {"Dot": evidence}, 5)
    assert mine is not None and mine[0] == evidence, "with evidence of one's own"


def test_a_twin_stands_behind_the_same_prompt_and_parses(policy: Policy) -> None:
    own, teach = lesson(), teacher(policy)
    rendered = teach.render(own, 3)
    first = own.entries[0].candidate_id
    outside = next(c for c in own.task.candidates if c not in {e.candidate_id for e in own.entries})
    example = twin_example(teach, own, rendered, [Wrong(BORROWED, first, outside)], 3)
    assert example is not None and example.prompt == rendered.example.prompt
    assert example.ids[: example.prompt] == rendered.example.ids[: example.prompt]
    window = rendered.prompt.window
    written = policy.decode(list(example.ids[example.prompt : -1]))
    parsed = certificates.parse(written, window, own.task.skeleton, window.k, own.task.limits)
    assert parsed[0] == replace(own.entries[0], candidate_id=outside) and tuple(parsed[1:]) == own.entries[1:]
    right = rendered.example.ids[rendered.example.prompt :]
    assert aligned(right, example.ids[example.prompt :]), "something for FAIT to weigh"
    assert twin_example(teach, own, rendered, [], 3) is None
    assert twin_example(teach, own, rendered, [Wrong(BORROWED, first, "nobody")], 3) is None


def test_negatives_that_name_nobody_else_make_no_twin(tmp_path: Path) -> None:
    tiny.write(tmp_path / "data")
    name = "trajectories/negatives"
    before = tables.read(name, tmp_path / "data")
    assert read_wrongs(tmp_path / "data") == {}, "the one there is alters a trajectory"
    ann, dan = tiny.candidate("w1", "Ann"), tiny.candidate("w1", "Dan")
    row = {**before.row(0, named=True), "negative_id": "w1|attack|same_type|0", "kind": "same_type",
           "candidate_id": ann, "other_id": dan, "steps": None, "spans": None}  # fmt: skip
    tables.write(name, tables.table(name).frame([*before.to_dicts(), row]), tmp_path / "data")
    assert read_wrongs(tmp_path / "data") == {("w1", "attack"): [Wrong("same_type", ann, dan)]}
