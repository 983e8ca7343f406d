"""The oracle: gold order under what can be certified, and verified together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import metrics, tables
from pipeline.certificates import Limits, check
from pipeline.errors import ParamError
from pipeline.oracle import alternatives, best, together, verified
from pipeline.rankings import Task, judge
from pipeline.skeletons import Intent, Skeleton, align, grade
from pipeline.windows import Window
from stages.rank_oracle import __main__ as stage
from tests import tiny
from tests.builders import PLAN, act, build_window, document, find, random_window, skeleton_of, story

RANDOM_PLAN = skeleton_of(("s1", ["t0"], ["r0", "r1"], 0.5), ("s2", ["t1", "t2"], ["r2"], 0.35),
                          ("s3", ["t0"], ["*", "!r0", "!r1"], 0.15))  # fmt: skip


def task(window: Window, skeleton: Skeleton = PLAN) -> Task:
    return Task(window, Intent("attack", 1, "who attacked?", skeleton, "0" * 64), Limits(), 100_000, 50_000)


def gold(window: Window, skeleton: Skeleton) -> dict[str, int]:
    """Grades if the trajectories were gold."""
    return {
        c: grade(skeleton, align(skeleton, [(str(s.trigger), s.type, s.role) for s in steps]))
        for c, steps in window.trajectories.items()
    }


def test_orders_by_grade_and_emits_only_what_verifies() -> None:
    asked = task(replace(story(), k=4))
    draft = best(asked, {"Bob": 2, "Cay": 3, "Dot": 2})
    assert draft.order == ("Cay", "Bob", "Ada", "Dot")
    assert judge(asked, draft.emitted) == [None, None, None]
    assert draft.scores == {"Ada": 0.0, "Bob": 2.0, "Cay": 3.0, "Dot": 2.0}


def test_is_the_cap_when_extraction_is_gold() -> None:
    window = story()
    asked, grades = task(window), gold(window, PLAN)
    draft = best(asked, grades)
    gates = [code is None for code in judge(asked, draft.emitted)]
    assert metrics.cert_ndcg([grades[c] for c in draft.order], gates, list(grades.values()), window.k) == 1.0


def shared() -> Window:
    """Ann and Bea do one thing together, with one mention of both as argument; Ann does another on her own."""
    doc = document(
        "d", "They both hit hard.\nAnn bought it.\n" + "Some more words to make this text long enough. \n" * 12
    )
    both, hit, ann, bought = (find(doc, w) for w in ("They both", "hit", "Ann", "bought"))
    steps = [
        act("Ann", "attack", "attacker", hit, both, order=0),
        act("Bea", "attack", "attacker", hit, both, order=0),
        act("Bea", "attack", "target", hit, both, order=0, confidence=0.2),
        act("Ann", "buy", "buyer", bought, ann, order=1),
    ]
    return build_window([doc], ["Ann", "Bea", "Cyd", "Dan"], steps)


def test_candidates_that_share_all_evidence_are_left_out() -> None:
    asked = task(shared())
    draft = best(asked, {"Bea": 3, "Ann": 2})
    assert [e.candidate_id for e in draft.emitted] == ["Ann"]
    assert draft.order[:2] == ("Ann", "Bea")
    assert judge(asked, draft.emitted) == [None]


def test_entries_that_do_not_verify_together_are_repaired_in_order() -> None:
    """A bundle given twice recovers nobody; the second candidate gets another bundle of its own, or none."""
    asked = task(story())
    entries = asked.certifiable
    wrong = replace(entries["Bob"], slots=entries["Ada"].slots)
    assert not verified(asked, [entries["Ada"], wrong])
    mended = together(asked, [entries["Ada"], wrong])
    assert [e.candidate_id for e in mended] == ["Ada", "Bob"]
    assert mended[0] == entries["Ada"]
    assert mended[1] in alternatives(asked, "Bob")
    assert verified(asked, mended)


@given(st.integers(0, 500), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_every_emitted_entry_is_certified_and_best_first(seed: int, salt: int) -> None:
    window = random_window(seed, candidates=7, events=7)
    asked = task(window, RANDOM_PLAN)
    grades = {c: (i * 7 + salt) % 4 for i, c in enumerate(asked.candidates)}
    draft = best(asked, grades)
    assert judge(asked, draft.emitted) == [None] * len(draft.emitted)
    assert sorted(draft.order) == sorted(asked.candidates)
    emitted = [draft.scores[e.candidate_id] for e in draft.emitted]
    rest = [draft.scores[c] for c in draft.order[len(emitted) :]]
    assert emitted == sorted(emitted, reverse=True)
    assert rest == sorted(rest, reverse=True)
    assert len(draft.emitted) <= min(window.k, len(asked.certifiable))


@given(st.integers(0, 300))
@settings(max_examples=15, deadline=None)
def test_alternatives_are_valid(seed: int) -> None:
    asked = task(random_window(seed), RANDOM_PLAN)
    for candidate in asked.candidates:
        for entry in alternatives(asked, candidate):
            assert check(entry, asked.window, asked.skeleton, asked.limits) is None


# ---- the stage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", tables.SETTINGS)
def test_stage_reads_grades_through_the_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    tiny.write(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    stage.main(setting, tiny.params())
    frame = tables.read(f"rank/oracle/{setting}/rankings")
    assert frame["window_id"].unique().to_list() == ["w2"]
    assert frame.row(0, named=True)["name"] == "Ann"
    assert frame.row(0, named=True)["score"] == 3.0
    assert frame.row(0, named=True)["status"] == "certified"


def test_stage_gives_an_unmapped_candidate_grade_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    mapping = tables.read("reference/audit/mapping")
    unmapped = mapping.filter(pl.col("candidate_id") != tiny.candidate("w2", "Ann"))
    tables.write("reference/audit/mapping", unmapped)
    stage.main("closed", tiny.params())
    assert set(tables.read("rank/oracle/closed/rankings")["score"]) == {0.0}


def test_stage_names_what_it_does_not_know() -> None:
    with pytest.raises(ParamError, match="unknown roster setting 'open'"):
        stage.main("open", tiny.params())
