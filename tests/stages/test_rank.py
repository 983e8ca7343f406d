"""The baseline systems and the tables they are written to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import certificates, files, tables
from pipeline.certificates import Entry, Limits
from pipeline.errors import ParamError
from pipeline.params import Params, System
from pipeline.rankings import Draft, RankingWriter, judge
from pipeline.skeletons import Intent, Skeleton
from pipeline.windows import Window
from stages.rank import __main__ as stage
from stages.rank.systems import SYSTEMS, Question, shift
from stages.reward.features import Judge
from stages.reward.model import RewardModel
from tests import tiny
from tests.builders import PLAN, build_window, document, random_window, skeleton_of, story

ROOT = Path(__file__).parents[2]
JUDGE = Judge(Limits(), 100_000, 50_000)
MODEL = RewardModel(("filled_confidence", "log_steps"), np.array([1.0, 0.1]), JUDGE, {})
RANDOM_PLAN = skeleton_of(("s1", ["t0"], ["r0", "r1"], 0.5), ("s2", ["t1", "t2"], ["r2"], 0.35),
                          ("s3", ["t0"], ["*", "!r0", "!r1"], 0.15))  # fmt: skip


def ask(window: Window, skeleton: Skeleton = PLAN, seed: int = 1) -> Question:
    intent = Intent("attack", 1, "who attacked?", skeleton, "0" * 64)
    return Question(window, intent, Limits(), 100_000, 50_000, MODEL, seed)


def spans_of(window: Window, candidate_id: str) -> set[str]:
    return {str(s) for step in window.trajectories[candidate_id] for s in (step.trigger, step.mention)}


# ---- systems ------------------------------------------------------------------------------------------------------


def test_rm_attach_orders_by_reward_and_attaches() -> None:
    question = ask(story())
    draft = SYSTEMS["rm_attach"](question)
    assert draft.order == ("Ada", "Cay", "Bob", "Dot")
    assert [entry.candidate_id for entry in draft.emitted] == ["Ada", "Cay"]
    assert judge(question, draft.emitted) == [None, None]
    assert {str(s) for s in draft.emitted[0].spans} == spans_of(question.window, "Ada")


def test_rm_attach_emits_k_entries_empty_ones_included_while_others_stop_early() -> None:
    question = ask(replace(story(), k=4))
    drafts = {name: system(question) for name, system in SYSTEMS.items()}
    assert [len(drafts[name].emitted) for name in SYSTEMS] == [4, 3, 3, 4, 4, 4]
    assert drafts["rm_attach"].emitted[3] == Entry("Dot", ())
    assert judge(question, drafts["rm_attach"].emitted)[3] == "no_slot"
    assert drafts["rule_attach"].order[:3] == ("Ada", "Bob", "Cay")


def test_rule_attach_orders_by_filled_weight_not_by_confidence() -> None:
    draft = SYSTEMS["rule_attach"](ask(story()))
    assert draft.scores == pytest.approx({"Ada": 0.85, "Bob": 0.5, "Cay": 0.5, "Dot": 0.0})
    assert [entry.candidate_id for entry in draft.emitted] == ["Ada", "Bob"]


def test_rm_cert_puts_certifiable_candidates_first() -> None:
    """Two candidates with the very same evidence cannot be told apart, so a third one comes first."""
    question = ask(twins())
    draft = SYSTEMS["rm_cert"](question)
    assert question.rewards["Ann"] > question.rewards["Cyd"]
    assert draft.order[0] == "Cyd"
    assert [entry.candidate_id for entry in draft.emitted] == ["Cyd"]
    assert SYSTEMS["rm_attach"](question).order[0] == "Ann"


def twins() -> Window:
    base = story()
    changed = [replace(s, candidate_id={"Ada": "Ann", "Bob": "Cyd", "Cay": "Dot"}[s.candidate_id]) for s in base.steps]
    copies = [replace(s, candidate_id="Bea") for s in changed if s.candidate_id == "Ann"]
    return build_window(list(base.documents.values()), ["Ann", "Bea", "Cyd", "Eve"],
                        [s for s in [*changed, *copies] if s.candidate_id != "Dot"])  # fmt: skip


def test_cite_all_breaks_the_limits() -> None:
    window = random_window(3, candidates=4, events=12)
    question = ask(window, RANDOM_PLAN)
    draft = SYSTEMS["cite_all"](question)
    codes = judge(question, draft.emitted)
    many = [i for i, entry in enumerate(draft.emitted) if len(entry.spans) > 2]
    assert many
    assert all(codes[i] == "too_many_handles" for i in many)
    assert all(
        {str(s) for s in entry.spans} in (set(), spans_of(window, entry.candidate_id)) for entry in draft.emitted
    )


def test_shuffled_gives_each_entry_the_next_ones_certificate() -> None:
    question = ask(story())
    straight, moved = SYSTEMS["rm_attach"](question), SYSTEMS["shuffled"](question)
    assert moved.order == straight.order
    assert [e.slots for e in moved.emitted] == [straight.emitted[1].slots, straight.emitted[0].slots]
    assert judge(question, moved.emitted) == ["not_recovered", "not_recovered"]
    assert shift(()) == ()
    assert shift(straight.emitted[:1]) == straight.emitted[:1]


def test_random_differs_between_seeds_windows_and_intents_and_repeats_itself() -> None:
    window = random_window(5, candidates=12)
    orders = {
        SYSTEMS["random"](ask(replace(window, window_id=name), RANDOM_PLAN, seed)).order
        for name in ("a", "b", "c")
        for seed in (1, 2)
    }
    assert len(orders) == 6
    assert SYSTEMS["random"](ask(window, RANDOM_PLAN)) == SYSTEMS["random"](ask(window, RANDOM_PLAN))
    assert {order[0] for order in orders} <= {c.candidate_id for c in window.candidates}
    assert len({order[0] for order in orders}) > 1


def test_a_window_without_triggers_gets_an_empty_list_from_everyone() -> None:
    window = build_window([document("d", "Ann and Bea and Cyd and Dan.")], ["Ann", "Bea", "Cyd", "Dan"], [])
    for system in SYSTEMS.values():
        draft = system(ask(window))
        assert draft.emitted == ()
        assert sorted(draft.order) == ["Ann", "Bea", "Cyd", "Dan"]


@pytest.mark.parametrize("name", list(SYSTEMS))
@given(seed=st.integers(0, 300))
@settings(max_examples=12, deadline=None)
def test_every_draft_is_a_prefix_of_an_ordering_of_the_roster(name: str, seed: int) -> None:
    question = ask(random_window(seed, candidates=7, events=6), RANDOM_PLAN)
    draft = SYSTEMS[name](question)
    assert sorted(draft.order) == sorted(question.candidates)
    assert tuple(e.candidate_id for e in draft.emitted) == draft.order[: len(draft.emitted)]
    assert len(draft.emitted) <= question.window.k == 3
    scores = [draft.scores[c] for c in draft.order]
    if name != "rm_cert":
        assert name == "rule_attach" or scores == sorted(scores, reverse=True)
    else:
        shown = scores[: min(len(question.certifiable), len(scores))]
        assert shown == sorted(shown, reverse=True)
        assert len(draft.emitted) == min(question.window.k, len(question.certifiable))
        assert all(code is None or code == "not_recovered" for code in judge(question, draft.emitted))


def test_local_ids_change_nothing() -> None:
    """Relabelling a window permutes names and nothing else."""
    window = random_window(11, candidates=7)
    swapped = [
        replace(c, local_id=d.local_id) for c, d in zip(window.candidates, reversed(window.candidates), strict=True)
    ]
    other = replace(window, candidates=tuple(swapped))
    for system in SYSTEMS.values():
        assert system(ask(window, RANDOM_PLAN)) == system(ask(other, RANDOM_PLAN))


# ---- tables -------------------------------------------------------------------------------------------------------


def written(root: Path, window: Window, system: str = "rm_attach") -> dict[str, pl.DataFrame]:
    question = ask(window)
    with RankingWriter(system, "closed", root) as writer:
        writer.add(question, SYSTEMS[system](question))
    return {
        name: tables.read(f"rank/{system}/closed/{name}", root) for name in ("rankings", "certificates", "generations")
    }


def test_writer_completes_to_k_and_says_why_entries_are_uncertified(tmp_path: Path) -> None:
    window = replace(story(), k=4)
    frames = written(tmp_path, window)
    rows = frames["rankings"].rows(named=True)
    assert [r["candidate_id"] for r in rows] == ["Ada", "Cay", "Bob", "Dot"]
    assert [r["status"] for r in rows] == ["certified"] * 3 + ["uncertified"]
    assert [r["reject_code"] for r in rows] == [None, None, None, "no_slot"]
    assert all(r["emitted"] for r in rows)
    assert {r["local_id"] for r in rows} == {c.local_id for c in window.candidates}
    for row in frames["certificates"].iter_rows(named=True):
        text = window.documents[row["doc_id"]].text
        assert row["end"] <= len(text)
        assert window.by_handle[row["handle_id"]].span.start == row["start"]
    assert frames["certificates"].filter(rank=4).is_empty()


def test_what_is_not_emitted_is_neither_certified_nor_rejected(tmp_path: Path) -> None:
    frames = written(tmp_path, replace(story(), k=4), "rm_cert")
    last = frames["rankings"].row(3, named=True)
    assert (last["candidate_id"], last["emitted"], last["status"], last["reject_code"]) == (
        "Dot",
        False,
        "uncertified",
        None,
    )


def test_generation_is_the_list_in_compact_form(tmp_path: Path) -> None:
    window = story()
    frames = written(tmp_path, window)
    row = frames["generations"].row(0, named=True)
    assert row["status"] == "parsed"
    parsed = certificates.parse(row["text"], window, PLAN, window.k, Limits())
    assert parsed == list(SYSTEMS["rm_attach"](ask(window)).emitted)


def test_generation_of_a_window_without_triggers_is_uncertified(tmp_path: Path) -> None:
    window = build_window([document("d", "Ann and Bea and Cyd and Dan.")], ["Ann", "Bea", "Cyd", "Dan"], [])
    frames = written(tmp_path, window)
    row = frames["generations"].row(0, named=True)
    assert (row["text"], row["status"], row["reject_code"]) == ("", "uncertified", "no_trigger_handle")
    assert frames["rankings"]["emitted"].to_list() == [False, False]


def test_a_policys_raw_text_is_kept_and_judged_by_the_strict_parser(tmp_path: Path) -> None:
    question = ask(story())
    draft = SYSTEMS["rm_attach"](question)
    with RankingWriter("rm_attach", "closed", tmp_path) as writer:
        writer.add(question, Draft(draft.order, draft.scores, (), "C01 s1=E99 ."))
    row = tables.read("rank/rm_attach/closed/generations", tmp_path).row(0, named=True)
    assert (row["text"], row["status"], row["reject_code"]) == ("C01 s1=E99 .", "rejected", "unknown_handle")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: replace(d, emitted=d.emitted[::-1]),
        lambda d: replace(d, order=("Ada", "Ada", "Bob", "Cay")),
        lambda d: replace(d, emitted=tuple(Entry(c) for c in d.order)),
    ],
    ids=["not a prefix", "repeated", "longer than k"],
)
def test_writer_refuses_a_malformed_draft_and_leaves_nothing(tmp_path: Path, change: Callable[[Draft], Draft]) -> None:
    question = ask(story())
    with pytest.raises(ValueError, match="w1, attack"), RankingWriter("random", "closed", tmp_path) as writer:
        writer.add(question, SYSTEMS["rm_attach"](question))
        writer.add(question, change(SYSTEMS["rm_attach"](question)))
    assert not list((tmp_path / "rank").rglob("*.parquet"))


# ---- the stage ----------------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.write(tmp_path / "data")
    with files.publish_directory(tmp_path / "models/reward") as folder:
        MODEL.save(folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def params(**rank: object) -> Params:
    raw = tiny.params().model_dump(by_alias=True)
    raw["rank"] |= rank
    return Params.model_validate(raw)


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_stage_ranks_each_window_on_its_own(workspace: Path, system: str) -> None:
    """Defects 2 and 15: K is smaller than the roster, and no list mixes windows."""
    stage.main(system, "closed", params(splits=["train", "test"]))
    frame = tables.read(f"rank/{system}/closed/rankings")
    assert frame.group_by("window_id", "intent_id").len().sort("window_id").rows() == [
        ("w1", "attack", 2),
        ("w2", "attack", 2),
    ]
    roster = tables.read("roster/closed/candidates").group_by("window_id").len()
    assert (roster["len"] > 2).all()
    assert all(row["candidate_id"].startswith(row["window_id"] + ":") for row in frame.iter_rows(named=True))
    if system == "rm_attach":
        assert frame.filter(rank=1)["name"].to_list() == ["Ann", "Ann"]
        assert frame.filter(rank=1)["status"].to_list() == ["certified", "certified"]


def test_stage_ranks_the_splits_that_params_name(workspace: Path) -> None:
    stage.main("random", "hybrid", params(splits=["test"]))
    assert tables.read("rank/random/hybrid/rankings")["window_id"].unique().to_list() == ["w2"]


def test_stage_names_what_it_does_not_know(workspace: Path) -> None:
    with pytest.raises(ParamError, match=r"unknown system 'rm_atach'; one of rm_attach, rule_attach"):
        stage.main("rm_atach", "closed", params())
    with pytest.raises(ParamError, match=r"unknown roster setting 'open'; one of closed"):
        stage.main("random", "open", params())


def test_stage_repeats_itself_under_another_hash_seed(workspace: Path) -> None:
    (workspace / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    found = []
    for seed in ("0", "4711"):
        subprocess.run(
            [sys.executable, "-m", "stages.rank", "random", "closed"], check=True, capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        found.append({p.name: p.read_bytes() for p in Path("data/rank/random/closed").iterdir()})
    assert found[0] == found[1]
    assert sorted(found[0]) == ["certificates.parquet", "generations.parquet", "rankings.parquet"]


def test_params_and_systems_name_the_same() -> None:
    assert get_args(System) == tuple(SYSTEMS)
