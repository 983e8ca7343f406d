"""Stage `trajectories`: steps, handles, hard negatives, the stage itself, and mined and frozen intents."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

from pipeline import tables
from pipeline.errors import ParamError, TableError
from pipeline.params import Params
from pipeline.skeletons import MICRO, Intent, Skeleton, Slot, load_intents, parse_intent
from pipeline.spans import Span
from pipeline.windows import Window, load_windows
from stages.trajectories import mine
from stages.trajectories.__main__ import main
from stages.trajectories.annotated import order_events
from stages.trajectories.handles import attach_handles, build_handles
from stages.trajectories.negatives import PER_KIND, head_noun, window_negatives
from stages.trajectories.steps import build_steps
from tests import tiny
from tests.builders import PLAN, act, build_window, document, find, random_window, skeleton_of, story
from tests.stages.annotation import annotated
from tests.stages.ingesting import ingest

INTENTS = tiny.ROOT / "intents"
Row = dict[str, Any]


def frame(name: str, rows: list[Row]) -> pl.DataFrame:
    return tables.table(name).frame(rows)


def event(event_id: str, start: int, end: int, type_: str = "Attack", order: int = 0, **other: Any) -> Row:
    return {
        "window_id": "w1", "event_id": event_id, "chain_id": event_id, "doc_id": "d1", "start": start, "end": end,
        "surface": f"t{start}", "type": type_, "confidence": 0.8, "order": order, **other,
    }  # fmt: skip


def mention(mention_id: str, candidate: str, start: int, end: int, **other: Any) -> Row:
    return {
        "window_id": "w1", "candidate_id": candidate, "mention_id": mention_id, "doc_id": "d1", "start": start,
        "end": end, "surface": f"m{start}", "confidence": 1.0, **other,
    }  # fmt: skip


def argument(event_id: str, mention_id: str, role: str = "attacker", confidence: float = 0.5) -> Row:
    return {
        "window_id": "w1", "event_id": event_id, "mention_id": mention_id, "role": role, "confidence": confidence,
    }  # fmt: skip


def relation(head: str, tail: str, type_: str, confidence: float = 1.0) -> Row:
    return {
        "window_id": "w1", "head_event_id": head, "tail_event_id": tail, "type": type_, "confidence": confidence,
    }  # fmt: skip


def steps_of(events: list[Row], mentions: list[Row], arguments: list[Row], relations: list[Row] = []) -> pl.DataFrame:  # noqa: B006 - never changed
    return build_steps(
        frame("extract/events", events), frame("extract/relations", relations),
        frame("roster/closed/mentions", mentions), frame("roster/closed/arguments", arguments), "closed",
    )  # fmt: skip


# ---- steps ----------------------------------------------------------------------------------------------------------


def test_steps_join_hypotheses_with_spans_and_follow_extracted_order():
    steps = steps_of(
        [event("e1", 0, 3, "Attack", 1), event("e2", 10, 14, "Buy", 0)],
        [mention("m1", "Ann", 4, 7), mention("m2", "Ann", 20, 23), mention("m3", "Bob", 30, 33)],
        [
            argument("e1", "m1"),
            argument("e1", "m2", "target"),
            argument("e2", "m2", "buyer"),
            argument("e2", "m3", "x"),
        ],
    )
    ann = steps.filter(pl.col("candidate_id") == "Ann")
    assert ann["step"].to_list() == [0, 1, 2]
    assert ann["event_id"].to_list() == ["e2", "e1", "e1"]  # order 0 comes before order 1, whatever the text says
    assert ann["mention_start"].to_list() == [20, 4, 20]
    assert steps.filter(pl.col("candidate_id") == "Bob")["step"].to_list() == [0]
    assert steps["confidence"].to_list() == [0.5] * 4


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"arguments": [argument("e9", "m1")]}, "unknown event: event 'e9'"),
        ({"arguments": [argument("e1", "m9")]}, "unknown mention: event 'e1', mention 'm9'"),
        ({"mentions": [mention("m1", "Ann", 4, 7, doc_id="d2")]}, "trigger and argument in different documents"),
    ],
)
def test_a_broken_roster_is_one_clear_error(changed: dict[str, list[Row]], what: str):
    good = {
        "events": [event("e1", 0, 3)],
        "mentions": [mention("m1", "Ann", 4, 7)],
        "arguments": [argument("e1", "m1")],
    }
    with pytest.raises(TableError, match=what) as caught:
        steps_of(**{**good, **changed})
    assert caught.value.field == "roster/closed/arguments"


def test_event_chains_lead_to_other_events_by_relations():
    events = [event(f"e{i}", 10 * i, 10 * i + 3, "War" if i == 4 else "Raid", i) for i in range(5)]
    events.append(event("far", 0, 3, "War", 9, doc_id="d2"))
    events.append(event("own", 60, 63, "War", 5))
    mentions = [mention(f"m{i}", f"chain{i}", 10 * i, 10 * i + 3) for i in range(5)]
    mentions.append(mention("again", "chain4", 60, 63))
    relations = [
        relation("e0", "e4", "CAUSE", 0.5), relation("e1", "e4", "PRECONDITION"), relation("e2", "e4", "BEFORE"),
        relation("e4", "e3", "SUBEVENT"), relation("e0", "far", "CAUSE"), relation("e4", "own", "BEFORE"),
    ]  # fmt: skip
    own = [argument(f"e{i}", f"m{i}", "self", 1.0) for i in range(5)] + [argument("own", "again", "self", 1.0)]
    steps = steps_of(events, mentions, own, relations)
    led = steps.filter((pl.col("event_id") == "e4") & (pl.col("candidate_id") != "chain4"))
    assert dict(led.select("candidate_id", "role").iter_rows()) == {
        "chain0": "cause", "chain1": "precondition", "chain2": "before", "chain3": "subevent",
    }  # fmt: skip
    # The argument span is the chain's own trigger; confidence is that of relation, self and target event together.
    assert led["mention_start"].to_list() == [0, 10, 20, 30]
    assert led["confidence"].to_list() == pytest.approx([0.4, 0.8, 0.8, 0.8])
    assert "far" not in steps["event_id"].to_list()  # a step's two spans stand in one document
    # A chain leads to other events, not to its own.
    assert set(steps.filter(pl.col("candidate_id") == "chain4")["role"]) == {"self"}


def test_relations_make_no_steps_where_candidates_are_entities():
    steps = steps_of(
        [event("e1", 0, 3), event("e2", 10, 13)], [mention("m1", "Ann", 4, 7)], [argument("e1", "m1")],
        [relation("e1", "e2", "CAUSE")],
    )  # fmt: skip
    assert steps["event_id"].to_list() == ["e1"]


# ---- handles --------------------------------------------------------------------------------------------------------


def handles_of(events: list[Row], mentions: list[Row], arguments: list[Row], borders: list[int]) -> pl.DataFrame:
    sentences = [
        {"window_id": "w1", "doc_id": "d1", "sentence": i, "start": a, "end": b - 1}
        for i, (a, b) in enumerate(pairwise(borders))
    ]
    return build_handles(
        frame("extract/events", events), frame("roster/closed/mentions", mentions),
        frame("roster/closed/arguments", arguments), frame("ingest/sentences", sentences), 7, [0.5, 0.2],
    )  # fmt: skip


def test_handles_are_the_union_of_spans_with_their_best_hypothesis():
    handles = handles_of(
        [event("e1", 0, 3, "Attack", confidence=0.2), event("e2", 0, 3, "Buy", confidence=0.6), event("e3", 40, 44)],
        [mention("m1", "Ann", 0, 3), mention("m2", "Ann", 4, 7), mention("m3", "Bob", 20, 30)],
        [argument("e1", "m2", "a", 0.1), argument("e2", "m2", "b", 0.3), argument("e1", "m1", "a", 0.9)],
        [0, 25, 50],
    )
    rows = {(r["start"], r["end"]): r for r in handles.iter_rows(named=True)}
    assert {k: (r["kind"], r["confidence"], r["bucket"], r["sentence"]) for k, r in rows.items()} == {
        (0, 3): ("both", 0.9, "high", 0),
        (4, 7): ("mention", 0.3, "medium", 0),
        (20, 30): ("mention", 0.0, "low", 0),  # no role at all; it crosses into sentence 1 and keeps its handle
        (40, 44): ("trigger", 0.8, "high", 1),
    }
    assert sorted(r["handle_id"] for r in rows.values()) == ["E01", "E02", "E03", "E04"]


def test_handles_do_not_tell_where_a_mention_came_from():
    mentions = [mention("m1", "Ann", 4, 7), mention("m2", "Bob", 8, 11)]
    doubted = [{**m, "confidence": c} for m, c in zip(mentions, (0.3, 1.0), strict=True)]
    one, two = (
        handles_of([event("e1", 0, 3)], m, [argument("e1", "m1"), argument("e1", "m2")], [0, 50])
        for m in (mentions, doubted)
    )
    assert_frame_equal(one, two)


def test_a_span_outside_every_sentence_is_an_error():
    with pytest.raises(TableError, match="d1:2-5 begins in no sentence"):
        handles_of([event("e1", 2, 5)], [], [], [10, 50])


@given(st.sets(st.tuples(st.integers(0, 300), st.integers(1, 20)), min_size=1, max_size=130))
def test_handle_ids_are_a_permutation_that_says_nothing_about_position(spans: set[tuple[int, int]]):
    events = [event(f"e{a}-{n}", a, a + n) for a, n in sorted(spans)]
    handles = handles_of(events, [], [], [0, 400])
    width = max(2, len(str(len(spans))))
    assert sorted(handles["handle_id"]) == [f"E{i:0{width}d}" for i in range(1, len(spans) + 1)]
    assert handles.select("start", "end").rows() == sorted((a, a + n) for a, n in spans)
    assert handles.equals(handles_of(list(reversed(events)), [], [], [0, 400]))


def test_steps_name_the_handles_of_their_spans():
    events, mentions = [event("e1", 0, 3)], [mention("m1", "Ann", 4, 7)]
    handles = handles_of(events, mentions, [argument("e1", "m1")], [0, 50])
    step = attach_handles(steps_of(events, mentions, [argument("e1", "m1")]), handles).row(0, named=True)
    names = dict(handles.select("start", "handle_id").iter_rows())
    assert (step["trigger_handle"], step["mention_handle"]) == (names[0], names[4])


# ---- event order ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.randoms(use_true_random=False))
def test_event_order_is_topological_with_ties_by_text(n: int, rng: Random):
    text = [f"e{i}" for i in range(n)]
    hidden = rng.sample(text, n)
    before = [(a, b) for i, a in enumerate(hidden) for b in hidden[i + 1 :] if rng.random() < 0.3]
    order = order_events(text, before)
    assert sorted(order) == sorted(text)
    assert all(order.index(a) < order.index(b) for a, b in before)
    assert order_events(text, []) == text


def test_a_cycle_of_before_is_broken_at_the_first_event_of_the_text():
    assert order_events(["a", "b", "c"], [("a", "b"), ("b", "a"), ("c", "a")]) == ["c", "a", "b"]
    assert order_events(["a", "b"], [("a", "b"), ("b", "a"), ("a", "ghost")]) == ["a", "b"]


# ---- hard negatives -------------------------------------------------------------------------------------------------

INTENT = Intent("attacks", 1, "Who attacked?", PLAN, "0" * 64)


def negatives_of(kind: str, window: Window, intent: Intent = INTENT) -> list[Row]:
    return [row for row in window_negatives(window, intent) if row["kind"] == kind]


def the(kind: str, window: Window | None = None, base: str = "Ada") -> Row:
    return next(row for row in negatives_of(kind, window or story()) if row["candidate_id"] == base)


def test_drop_climax_removes_every_step_that_fills_it():
    assert json.loads(str(the("drop_climax")["steps"])) == [["buy", "buyer", 0]]
    assert json.loads(str(the("drop_climax", base="Bob")["steps"])) == []


def test_swap_steps_exchanges_the_ends_of_a_precedence_edge():
    assert json.loads(str(the("swap_steps")["steps"])) == [["attack", "attacker", 0], ["buy", "buyer", 2]]
    assert [row["candidate_id"] for row in negatives_of("swap_steps", story())] == ["Ada"]  # Bob bought nothing


def test_swap_role_takes_a_companions_role_in_the_climax():
    steps = json.loads(str(the("swap_role")["steps"]))
    assert steps == [["buy", "buyer", 0], ["attack", "target", 2]]
    assert not any(PLAN.slots[0].fits(type_, role) for type_, role, _ in steps)


def test_co_participant_was_there_in_another_role():
    assert the("co_participant")["other_id"] == "Cay"
    assert not [row for row in negatives_of("co_participant", story()) if row["candidate_id"] == "Bob"]


def test_same_type_is_another_event_of_the_climax_type():
    assert the("same_type")["other_id"] == "Bob"  # he attacked elsewhere, and bought nothing
    assert [row["other_id"] for row in negatives_of("same_type", story()) if row["candidate_id"] == "Bob"] == []


def named(*names: str) -> Window:
    text = "\n".join(f"{name} attacked it." for name in names[:-1]) + f"\n{names[-1]} slept."
    doc = document("d", text)
    steps = [
        act(name, "attack", "attacker" if i == 0 else "target", find(doc, "attacked", i), find(doc, name), order=i)
        for i, name in enumerate(names[:-1])
    ]
    return build_window([doc], names, steps)


def test_same_head_ends_in_the_same_word_and_fits_less():
    window = named("Ann Smith", "Bob Smith", "Cay Jones", "Dot SMITH!")
    assert {row["other_id"] for row in negatives_of("same_head", window)} == {"Bob Smith", "Dot SMITH!"}
    assert head_noun("the Dutch banks'") == "banks"
    assert head_noun("Al Qa") == ""


def test_shifted_spans_are_like_handles_of_the_next_sentence():
    doc = document("d", "Ada attacked Bob.\nCay met Dot.\nNobody slept.")
    steps = [
        act("Ada", "attack", "attacker", find(doc, "attacked"), find(doc, "Ada")),
        act("Cay", "meet", "host", find(doc, "met"), find(doc, "Cay"), order=1),
    ]
    window = build_window([doc], ["Ada", "Bob", "Cay", "Dot"], steps, extra=[find(doc, "Bob"), find(doc, "Dot")])
    assert the("shifted_spans", window)["spans"] == [str(find(doc, "Cay")), str(find(doc, "met"))]
    # A lone sentence has no neighbour: then there is no such negative.
    alone = build_window({"d": "Ada attacked Bob."}, ["Ada"], steps[:1])
    assert negatives_of("shifted_spans", alone) == []


def test_other_candidate_gets_evidence_that_does_not_show_it():
    window = story()
    row = the("other_candidate")
    shown = {str(s) for step in window.trajectories["Ada"] for s in (step.trigger, step.mention)}
    assert set(row["spans"]) <= shown
    rival = window.trajectories[str(row["other_id"])]
    assert not any({str(s.trigger), str(s.mention)} <= set(row["spans"]) for s in rival)


def test_cite_all_cites_the_whole_trajectory():
    doc = document("d", "Ada attacked Bob.\nAda attacked Cay.")
    steps = [
        act("Ada", "attack", "attacker", find(doc, "attacked", i), find(doc, "Ada", i), order=i) for i in range(2)
    ]  # fmt: skip
    window = build_window([doc], ["Ada", "Bob", "Cay", "Dot"], steps)
    assert len(the("cite_all", window)["spans"]) == 4
    assert negatives_of("cite_all", story()) == []  # there the evidence is all there is


@given(st.integers(0, 10_000))
def test_negatives_are_bounded_unique_and_deterministic(seed: int):
    skeleton = skeleton_of(
        ("s1", ["t0"], ["r0"], 0.5), ("s2", ["t1", "t2"], ["*"], 0.35), ("s3", ["t0"], ["!r0", "*"], 0.15)
    )
    intent = Intent("any", 1, "", skeleton, "")
    window = random_window(seed)
    rows = window_negatives(window, intent)
    assert rows == window_negatives(random_window(seed), intent)
    kinds = [row["kind"] for row in rows]
    assert all(kinds.count(kind) <= PER_KIND for kind in set(kinds))
    assert len({row["negative_id"] for row in rows}) == len(rows)
    ids = {c.candidate_id for c in window.candidates}
    spans = {str(h.span) for h in window.handles}
    for row in rows:
        assert row["candidate_id"] in ids
        assert row["other_id"] in ids - {row["candidate_id"]} or row["other_id"] is None
        assert set(row["spans"] or ()) <= spans
        if row["kind"] in ("drop_climax", "swap_role"):
            assert not any(skeleton.slots[0].fits(t, r) for t, r, _ in json.loads(str(row["steps"])))


# ---- the stage ------------------------------------------------------------------------------------------------------

EXAMPLE = """
id: attack
version: 1
title: "Who attacked?"
slots:
  - {id: s1, types: [Trade.Buy], roles: [buyer], weight: 0.35}
  - {id: s2, types: ["Attack.*"], roles: [attacker], weight: 0.5, required: true, climax: true, after: [s1]}
  - {id: s3, types: ["Attack.*"], roles: ["*", "!attacker"], weight: 0.15}
"""


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with tiny tables (but for `trajectories`) and one intent."""
    tiny.write(tmp_path / "data")
    (tmp_path / "intents/sample").mkdir(parents=True)
    (tmp_path / "intents/sample/attack.yaml").write_text(EXAMPLE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(tmp_path / "data/trajectories")
    return tmp_path


def changed(**sections: dict[str, object]) -> Params:
    raw = tiny.params().model_dump(by_alias=True)
    for name, values in sections.items():
        raw[name].update(values)
    return Params.model_validate(raw)


def digests(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.parquet"))}


def test_the_stage_writes_windows_that_rankers_can_load(corpus: Path):
    main(tiny.params())
    (window,) = load_windows("closed", ["test"])
    ann = tiny.candidate("w2", "Ann")
    assert [(s.type, s.role, s.order) for s in window.trajectories[ann]] == [
        ("Trade.Buy", "buyer", 0), ("Attack.Shoot", "attacker", 2),
    ]  # fmt: skip
    assert {h.span.doc_id for h in window.handles} == {"w2:doc-1"}
    assert len(window.handles) == len({h.handle_id for h in window.handles}) == 8
    text = window.documents["w2:doc-1"].text
    handles = tables.read("trajectories/closed/handles")
    assert all(text[r["start"] : r["end"]] == r["surface"] for r in handles.iter_rows(named=True))
    negatives = tables.read("trajectories/negatives")
    assert set(negatives["window_id"]) == {"w1"}  # the train window
    assert {"drop_climax", "swap_steps", "swap_role", "co_participant"} <= set(negatives["kind"])


def test_the_same_input_gives_the_same_bytes(corpus: Path):
    main(tiny.params())
    first = digests(corpus / "data/trajectories")
    main(tiny.params())
    assert digests(corpus / "data/trajectories") == first
    assert len(first) == 8


def test_windows_that_are_not_ranked_have_no_trajectories(corpus: Path):
    tiny.change(corpus / "data", "roster/windows", [pl.lit(False).alias("kept"), pl.lit("few").alias("dropped")],
                pl.col("window_id") == "w1")  # fmt: skip
    main(tiny.params())
    for table in ("steps", "handles"):
        assert set(tables.read(f"trajectories/hybrid/{table}")["window_id"]) == {"w2"}
    assert tables.read("trajectories/negatives").is_empty()


def test_settings_and_negatives_are_switched_by_params(corpus: Path):
    main(changed(roster={"settings": ["hybrid"]}, trajectories={"negatives": False}))
    assert not (corpus / "data/trajectories/closed").exists()
    assert tables.read("trajectories/negatives").is_empty()


def test_gold_has_no_way_into_trajectories(corpus: Path):
    """Defect 1: nothing that a policy is shown depends on gold, so no rule over the prompt can compute the labels."""
    main(tiny.params())
    first = digests(corpus / "data/trajectories")
    for file in (corpus / "data/ingest/gold").rglob("*.parquet"):
        file.unlink()
    (corpus / "data/ingest/roster.parquet").unlink()
    for file in (corpus / "data/reference").rglob("*.parquet"):
        file.unlink()
    main(tiny.params())
    assert digests(corpus / "data/trajectories") == first


def test_an_error_leaves_nothing_half_written(corpus: Path):
    tiny.change(
        corpus / "data", "roster/hybrid/arguments", pl.lit("ghost").alias("mention_id"), pl.col("role") == "host"
    )
    with pytest.raises(TableError, match="unknown mention"):
        main(tiny.params())
    assert [p.name for p in (corpus / "data/trajectories").rglob("*.parquet")] == ["skeletons.parquet"]


def test_no_intents_is_one_clear_error(corpus: Path):
    (corpus / "intents/sample/attack.yaml").unlink()
    with pytest.raises(ParamError, match="no intents here"):
        main(tiny.params())


def test_slots_that_nothing_can_fill_are_named(corpus: Path, capsys: pytest.CaptureFixture[str]):
    (corpus / "intents/sample/attack.yaml").write_text(EXAMPLE.replace("Attack.*", "Atack.*"), encoding="utf-8")
    main(tiny.params())
    assert "intent attack, slot s2: no extracted event has one of the types Atack.*" in capsys.readouterr().err


# ---- mining ---------------------------------------------------------------------------------------------------------


def life(*acts: tuple[str, str], directed: bool | None = None) -> mine.Life:
    """Acts (family, role) of distinct events in text order; `directed`: relations along it, or none at all."""
    made = tuple(mine.Act(f"c{i}", f, r, i) for i, (f, r) in enumerate(acts))
    if directed is None:
        return mine.Life(made, None)
    return mine.Life(made, frozenset((a.chain, b.chain) for a, b in pairwise(made)) if directed else frozenset())


def raids(directed: bool | None = None) -> list[mine.Life]:
    lives = [life(("Buy", "buyer"), ("Raid", "raider"), directed=directed) for _ in range(6)]
    lives += [life(("Raid", "raider"), directed=directed) for _ in range(4)]
    lives += [life(("Raid", "place"), directed=directed) for _ in range(30)]
    lives += [life(("Sleep", "sleeper"), ("Dream", "dreamer"), directed=directed) for _ in range(9)]
    return lives


def slots_of(proposal: mine.Proposal) -> list[Slot]:
    return list(parse_intent(proposal.intent).skeleton.slots)


def test_mining_finds_what_the_targets_did_before():
    (proposal,) = [p for p in mine.propose(raids(), mine.Options(targets=10)) if p.intent["id"] == "raid_raider"]
    assert proposal.targets == 10
    assert [(f, n) for f, n, _ in proposal.slots] == [("Buy", 6)]
    assert slots_of(proposal) == [
        Slot("s1", ("Buy",), ("buyer",), 350_000),
        Slot("s2", ("Raid",), ("raider",), 500_000, True, True),
        Slot("s3", ("Raid",), ("*", "!raider"), 150_000),
    ]


def test_only_relations_make_precedence():
    (proposal,) = [p for p in mine.propose(raids(True), mine.Options(targets=10)) if p.intent["id"] == "raid_raider"]
    assert slots_of(proposal)[1].predecessors == ("s1",)
    (alone,) = [p for p in mine.propose(raids(False), mine.Options(targets=10)) if p.intent["id"] == "raid_raider"]
    assert alone.slots == ()  # relations exist in this corpus, and none links the two
    assert [s.weight for s in slots_of(alone)] == [850_000, 150_000]


def test_support_and_lift_are_needed():
    assert not [p for p in mine.propose(raids(), mine.Options(targets=10, support=7)) if p.slots]
    everything = [life(("Buy", "buyer"), ("Raid", "raider")), life(("Raid", "raider"), ("Buy", "buyer"))] * 10
    lifts = mine.pair_lifts(everything)
    assert lifts["Buy", "Raid"] == pytest.approx(11 * 21 / (11 * 11))
    universal = mine.pair_lifts([life(("Buy", "buyer"), ("Raid", "raider"))] * 3)
    assert universal == {("Buy", "Raid"): 1.0}
    assert mine.pair_lifts([]) == {}


def test_circumstances_are_no_targets_and_like_roles_are_one_family():
    ids = [p.intent["id"] for p in mine.propose(raids(), mine.Options(targets=5, roles=9))]
    assert "raid_place" not in ids
    lives = [life(("Wreck", r)) for r in ("damager", "destroyer", "damagerdestroyer") for _ in range(4)]
    (proposal,) = mine.propose(lives, mine.Options(targets=12))
    assert slots_of(proposal)[0].roles == ("damager", "damagerdestroyer", "destroyer")


def test_another_event_of_the_climax_family_is_a_slot_only_on_request():
    lives = [life(("Raid", "raider"), ("Raid", "raider")) for _ in range(9)]
    lives += [life(("Sleep", "sleeper"), ("Sleep", "sleeper")) for _ in range(9)]
    once, twice = (mine.propose(lives, mine.Options(targets=9, repeats=r))[0] for r in (False, True))
    assert once.slots == ()
    assert [(s.types, s.roles) for s in slots_of(twice)][:2] == [(("Raid",), ("raider",))] * 2


@given(st.lists(st.integers(5, 10_000), max_size=mine.MAX_MINED))
def test_weights_sum_to_one_and_every_slot_can_be_certified(supports: list[int]):
    weights = mine.share_weights(supports)
    parts = [weights.climax, weights.part, *weights.mined]
    assert sum(parts) == MICRO
    assert min(parts) >= mine.FLOOR > round(tiny.params().verifier.accept * MICRO)
    assert weights.climax >= MICRO // 2
    assert sorted(weights.mined) == [w for _, w in sorted(zip(supports, weights.mined, strict=True))]


def test_no_more_slots_than_the_floor_allows():
    with pytest.raises(ValueError, match="at most 3"):
        mine.share_weights([5, 5, 5, 5])


def test_families():
    assert mine.family("conflict.attack.stabbing", 2) == "conflict.attack.*"
    assert mine.family("Attack.Ransom", 2) == "Attack.Ransom"
    assert mine.family("Attack.Ransom", 1) == "Attack.*"


def test_mining_event_chains_gives_plans_of_causes():
    window = annotated(
        {"d1": "A strike, then a riot. The war began."},
        {"strike": ["d1:strike"], "riot": ["d1:riot"], "war": ["d1:war"]},
        [("e1", "d1:strike", "Strike"), ("e2", "d1:riot", "Riot"), ("e3", "d1:war", "War")],
        relations=[("e1", "e3", "CAUSE"), ("e2", "e3", "PRECONDITION"), ("e1", "e2", "BEFORE")],
        kind="event_chain",
    )
    lives = [found for _ in range(10) for found in mine._lives(window, True, 2)]
    war = next(p for p in mine.propose(lives, mine.Options(targets=10)) if p.intent["id"] == "war_cause")
    slots = {s.types: s for s in slots_of(war)}
    assert slots["War",].roles == ("*", "!cause", "!precondition", "!self")
    climax = next(s for s in slots_of(war) if s.climax)
    assert (climax.types, climax.roles) == (("War",), ("cause", "precondition"))


def test_mining_from_tables_writes_proposals_and_leaves_frozen_ones(corpus: Path):
    out = corpus / "mined"
    result = CliRunner().invoke(mine.app, ["mine", str(out), "--targets", "1", "--support", "1"])
    assert result.exit_code == 0, result.output
    assert "attack_shoot_attacker" in result.output
    mined = {i.intent_id: i for i in load_intents(out)}
    assert [s.types for s in mined["attack_shoot_attacker"].skeleton.slots] == [
        ("Trade.Buy",), ("Attack.Shoot",), ("Attack.Shoot",),
    ]  # fmt: skip
    assert mined["attack_shoot_attacker"].skeleton.precedences == ((0, 1),)  # tiny annotates BEFORE
    file = out / "attack_shoot_attacker.yaml"
    assert 'status: "mined"' in file.read_text(encoding="utf-8")
    file.write_text(
        file.read_text(encoding="utf-8").replace('mined"', 'frozen"').replace("Who", "WHO"), encoding="utf-8"
    )
    mine.mine_intents(corpus / "data", out, mine.Options(targets=1, support=1))
    assert "WHO" in file.read_text(encoding="utf-8")


def test_mining_finds_the_plans_of_the_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    ingest("sample", tiny.ROOT / "stages/ingest/sample", sample={"windows": 100})
    proposals = mine.mine_intents(tmp_path / "data", tmp_path / "mined", mine.Options(targets=10))
    found = {str(slots_of(p)[-1].types[0]): {family for family, _, _ in p.slots} for p in proposals}
    assert "cyber.breach" in found["extortion.demand"]
    assert "business.oust" in found["business.take_over"]
    assert "finance.transfer" in found["corruption.bribe"]
    assert all(slot.weight >= mine.FLOOR for p in proposals for slot in slots_of(p))


def test_mining_without_enough_annotation_is_one_clear_error(corpus: Path):
    with pytest.raises(ParamError, match="no event family of the train split has 20 candidates"):
        mine.mine_intents(corpus / "data", corpus / "mined")


def test_a_rendered_intent_reads_back(tmp_path: Path):
    (proposal, *_) = mine.propose(raids(True), mine.Options(targets=9))
    (tmp_path / "a.yaml").write_text(mine.render_intent(proposal.intent, "two\nlines"), encoding="utf-8")
    assert load_intents(tmp_path) == [parse_intent(proposal.intent)]


# ---- frozen intents -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", sorted(p.name for p in INTENTS.iterdir() if list(p.glob("*.yaml"))))
def test_frozen_intents_can_be_certified_slot_by_slot(source: str):
    accept = round(tiny.params().verifier.accept * MICRO)
    for intent in load_intents(INTENTS / source):
        skeleton: Skeleton = intent.skeleton
        assert min(slot.weight for slot in skeleton.slots) > accept, intent.intent_id
        assert skeleton.slots[skeleton.climax].weight == max(slot.weight for slot in skeleton.slots), intent.intent_id
        assert intent.title.endswith("?"), intent.intent_id
        for slot in skeleton.slots:  # a trailing family dot is needed, or `conflict.*` would match `conflicts.x`
            assert all("*" not in t or (t.endswith(".*") and t.count("*") == 1) for t in slot.types), intent.intent_id


def test_spans_in_negatives_are_citations():
    row = the("other_candidate")
    assert all(Span("news:2", 0, 1).doc_id in citation or "news-1" in citation for citation in row["spans"])
