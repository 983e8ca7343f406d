"""Stage `roster`: who is ranked in each setting, ids and sizes, event chains, and what the stage may read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import tables
from pipeline.errors import DataError, TableError
from pipeline.spans import Span, parse_citation
from pipeline.windows import local_ids
from stages.extract.storage import WEIGHTS
from stages.roster.__main__ import OUTPUTS, main
from stages.roster.candidates import build, merge
from stages.roster.takes_part import SELF, chains, own_events
from tests.stages.extracting import clear, contents, params, rewrite


def span(start: int, end: int, doc_id: str = "d1") -> Span:
    return Span(doc_id, start, end)


# ---- the hybrid roster ----------------------------------------------------------------------------------------------

ANN, ANN_AGAIN, BOB, CAY = span(0, 10), span(20, 30), span(40, 50), span(60, 70)


def test_a_predicted_cluster_brings_its_unmatched_mentions():
    extra = span(80, 90)
    assert merge([(ANN,)], [(ANN, extra)], 0.5) == [[ANN, extra]]


def test_the_given_span_stands_for_a_similar_one():
    assert merge([(ANN,)], [(span(0, 8),)], 0.5) == [[ANN]]
    assert merge([(ANN,)], [(span(0, 4),)], 0.5) == [[ANN], [span(0, 4)]]
    assert merge([(ANN,)], [(span(0, 5),)], 0.5) == [[ANN]]
    assert merge([(ANN,)], [(span(0, 10, "d2"),)], 0.5) == [[ANN], [span(0, 10, "d2")]]


def test_without_a_shared_mention_it_is_a_candidate_of_its_own():
    assert merge([(ANN,)], [(BOB, CAY)], 0.5) == [[ANN], [BOB, CAY]]
    assert merge([], [(BOB,)], 0.5) == [[BOB]]
    assert merge([(ANN,)], [], 0.5) == [[ANN]]


def test_two_closed_clusters_are_never_joined():
    """A predicted cluster over both joins the one it shares most with, and moves no given mention."""
    extra = span(80, 90)
    assert merge([(ANN,), (BOB,)], [(ANN, span(40, 48), extra)], 0.5) == [[ANN, extra], [BOB]]
    assert merge([(ANN,), (BOB,)], [(span(0, 8), BOB, extra)], 0.5) == [[ANN], [BOB, extra]]


def test_the_greatest_total_counts_and_ties_go_to_the_first():
    extra = span(80, 90)
    two_against_one = merge([(BOB,), (ANN, ANN_AGAIN)], [(BOB, span(0, 6), span(20, 26), extra)], 0.5)
    assert two_against_one == [[BOB], [ANN, ANN_AGAIN, extra]]
    assert merge([(ANN,), (BOB,)], [(BOB, ANN, extra)], 0.5) == [[ANN, extra], [BOB]]


def test_two_predicted_clusters_may_join_the_same_one():
    extras = span(80, 90), span(92, 95)
    found = merge([(ANN, ANN_AGAIN)], [(ANN, extras[0]), (ANN_AGAIN, extras[1])], 0.5)
    assert found == [[ANN, ANN_AGAIN, *extras]]


@st.composite
def rosters(draw: st.DrawFn) -> list[tuple[Span, ...]]:
    """Clusters without a common span."""
    spans = draw(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), unique=True, max_size=12))
    owner = [draw(st.integers(0, 3)) for _ in spans]
    groups = [tuple(span(a, a + n) for (a, n), o in zip(spans, owner, strict=True) if o == i) for i in range(4)]
    return [group for group in groups if group]


@given(rosters(), rosters(), st.sampled_from([0.3, 0.5, 1.0]))
def test_the_hybrid_roster_keeps_every_closed_cluster(closed: Any, predicted: Any, iou: float):
    found = merge(closed, predicted, iou)
    assert [tuple(group[: len(own)]) for group, own in zip(found, closed, strict=False)] == closed
    assert len(closed) <= len(found) <= len(closed) + len(predicted)
    given_spans = {s for group in closed for s in group}
    for group, own in zip(found, closed, strict=False):
        assert not (set(group) - set(own)) & given_spans
    everything = {s for group in found for s in group}
    assert given_spans <= everything <= given_spans | {s for group in predicted for s in group}
    lost = {s for group in predicted for s in group} - everything
    assert all(any(s.iou(other) >= iou for other in given_spans) for s in lost)


# ---- ids ------------------------------------------------------------------------------------------------------------


def test_ids_are_first_mentions_in_window_order():
    late, early = span(0, 5, "a"), span(7, 9, "b")
    roster = build("w", [(late, early), (span(1, 3, "b"),)], {"b": 0, "a": 1})
    assert roster.clusters == {"b:1-3": (span(1, 3, "b"),), "b:7-9": (early, late)}
    assert list(roster.clusters) == sorted(roster.clusters)


def test_a_mention_in_two_clusters_stays_in_the_first():
    roster = build("w", [(ANN, BOB), (BOB, CAY), (ANN,), (CAY, CAY)], {"d1": 0})
    assert roster.clusters == {str(ANN): (ANN, BOB), str(CAY): (CAY,)}


@given(rosters(), rosters())
def test_a_roster_is_disjoint_and_complete(one: Any, other: Any):
    roster = build("w", [*one, *other], {"d1": 0})
    spans = [s for group in roster.clusters.values() for s in group]
    assert len(spans) == len(set(spans))
    assert set(spans) == {s for group in [*one, *other] for s in group}
    assert all(parse_citation(key) == group[0] == min(group) for key, group in roster.clusters.items())


# ---- event chains ---------------------------------------------------------------------------------------------------


def event(event_id: str, chain: str, start: int, end: int, confidence: float, **more: Any) -> dict[str, Any]:
    return {"window_id": "w", "event_id": event_id, "chain_id": chain, "doc_id": "d1", "start": start, "end": end,
            "surface": "x", "type": "a", "confidence": confidence, "order": 0, **more}  # fmt: skip


def test_a_chain_is_its_triggers_and_a_span_has_one_chain():
    events = tables.table("extract/events").frame([
        event("1", "c1", 0, 4, 0.4), event("1b", "c2", 0, 4, 0.6), event("2", "c1", 8, 9, 0.9),
        event("3", "c2", 5, 7, 0.9), event("4", "c3", 0, 4, 0.6),
    ])  # fmt: skip
    # The span 0-4 belongs to its likeliest hypothesis, of equally likely ones to the first id; c3 is left empty.
    assert chains(events) == [[span(8, 9)], [span(0, 4), span(5, 7)]]
    assert chains(events.clear()) == []


def test_a_chain_takes_part_in_the_events_on_its_mentions():
    events = tables.table("extract/events").frame([
        event("1", "c1", 0, 4, 0.4), event("1b", "c2", 0, 4, 0.6), event("2", "c1", 8, 10, 0.9),
    ])  # fmt: skip
    rows = own_events("w", events, [span(0, 6), span(9, 20), span(8, 10, "d2")], 0.5)
    assert rows.select("event_id", "mention_id", "role", "confidence").rows() == [
        ("1", "d1:0-6", SELF, 0.4), ("1b", "d1:0-6", SELF, 0.6),
    ]  # fmt: skip


# ---- the stage ------------------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(extracted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny extracted corpus, without gold, as working directory."""
    shutil.copytree(extracted, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "data/ingest/gold")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def setting_tables(setting: str) -> dict[str, pl.DataFrame]:
    return {name: tables.read(f"roster/{setting}/{name}") for name in OUTPUTS}


def members(frame: pl.DataFrame, key: str) -> set[frozenset[str]]:
    """Clusters as sets of citation strings."""
    groups: dict[str, set[str]] = {}
    for value, *where in frame.select(key, "doc_id", "start", "end").iter_rows():
        groups.setdefault(value, set()).add(str(Span(*where)))
    return {frozenset(group) for group in groups.values()}


def test_every_setting_is_consistent_without_any_gold(workspace: Path):
    main(params())
    texts = dict(tables.read("ingest/documents").select("doc_id", "text").iter_rows())
    position = dict(tables.read("ingest/documents").select("doc_id", "position").iter_rows())
    windows = tables.read("roster/windows")
    for setting in tables.SETTINGS:
        found = setting_tables(setting)
        for name, frame in found.items():
            assert frame.height > 0
            assert not frame.select(tables.table(f"roster/{setting}/{name}").key).is_duplicated().any(), (setting, name)
        mentions = found["mentions"]
        for doc_id, start, end, surface, mention_id in mentions.select(
            "doc_id", "start", "end", "surface", "mention_id"
        ).iter_rows():
            assert texts[doc_id][start:end] == surface
            assert mention_id == str(Span(doc_id, start, end))
        by_candidate = mentions.partition_by("window_id", "candidate_id", as_dict=True)
        for window, candidate, name, count in (
            found["candidates"].select("window_id", "candidate_id", "name", "mentions").iter_rows()
        ):  # fmt: skip
            rows = by_candidate.pop((window, candidate))
            spans = [Span(*row) for row in rows.select("doc_id", "start", "end").iter_rows()]
            assert candidate == str(min(spans, key=lambda s: (position[s.doc_id], s.start, s.end)))
            assert count == len(spans) and len(name) == max(map(len, rows["surface"].to_list()))
        assert not by_candidate
        for (window,), rows in found["candidates"].group_by("window_id"):
            assert rows["local_id"].to_list() == local_ids("C", rows.height, params().seed, str(window))
            assert len(set(rows["local_id"])) == rows.height
        sizes = found["candidates"].group_by("window_id").len()
        joined = windows.join(sizes, on="window_id", how="left").with_columns(pl.col("len").fill_null(0))
        assert (joined[f"n_{setting}"] == joined["len"]).all()
        arguments = found["arguments"]
        assert set(arguments["mention_id"]) <= set(mentions["mention_id"])
        assert set(arguments["event_id"]) <= set(tables.read("extract/events")["event_id"])
        assert arguments["confidence"].is_between(0, 1).all() and mentions["confidence"].is_between(0, 1).all()


def test_local_ids_tell_nothing_of_the_order(workspace: Path):
    main(params())
    orders = [rows["local_id"].to_list() for rows in setting_tables("closed")["candidates"].partition_by("window_id")]
    assert any(order != sorted(order) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_settings_hold_what_they_are_made_of(workspace: Path):
    main(params())
    given_clusters = members(tables.read("ingest/roster"), "entity_id")
    assert members(setting_tables("closed")["mentions"], "candidate_id") == given_clusters
    assert members(setting_tables("predicted")["mentions"], "candidate_id") == members(
        tables.read("extract/mentions"), "entity_id"
    )
    hybrid = members(setting_tables("hybrid")["mentions"], "candidate_id")
    for cluster in given_clusters:
        assert sum(cluster <= group for group in hybrid) == 1
        assert sum(bool(cluster & group) for group in hybrid) == 1
    assert setting_tables("closed")["mentions"]["confidence"].unique().to_list() == [1.0]
    # A hybrid mention whose confidence lies below the extractor's floor could only be a given one.
    assert setting_tables("hybrid")["mentions"]["confidence"].unique().to_list() == [1.0]
    assert setting_tables("predicted")["arguments"].equals(tables.read("extract/arguments"))


def test_a_found_mention_keeps_its_confidence(workspace: Path):
    main(params())
    own = tables.read("extract/mentions").select("mention_id", found="confidence")
    both = setting_tables("predicted")["mentions"].join(own, on="mention_id")
    assert both.height > 100
    assert (both["confidence"] - both["found"]).abs().max() == pytest.approx(0.0, abs=1e-5)


def test_sizes(workspace: Path):
    main(params())
    windows = tables.read("roster/windows")
    documents = tables.read("ingest/documents")
    assert windows["window_id"].to_list() == sorted(set(documents["window_id"]))
    assert windows["characters"].sum() == documents["text"].str.len_chars().sum()
    assert windows["documents"].sum() == documents.height
    for row in windows.iter_rows(named=True):
        assert row["n"] == row["n_closed"] > 0
        assert row["k"] == min(params().roster.max_k, row["n"] // 2)
        assert row["kept"] and row["dropped"] is None
    least = sorted(windows["n"].to_list())[windows.height // 2]
    main(params(roster={"min_candidates": least, "max_k": 50}))
    again = tables.read("roster/windows")
    assert again["kept"].to_list() == [n >= least for n in windows["n"]]
    assert 0 < again["kept"].sum() <= windows.height
    assert again.filter(~pl.col("kept"))["dropped"].unique().to_list() in ([], [f"fewer than {least} candidates"])
    assert again.filter("kept")["dropped"].null_count() == again["kept"].sum()
    assert again["k"].to_list() == [n // 2 for n in windows["n"]]
    assert any(n % 2 for n in windows["n"])


def test_the_predicted_roster_does_not_know_the_closed_one(workspace: Path):
    main(params())
    before = contents("data/roster/predicted")
    sizes = tables.read("roster/windows")
    tables.write("ingest/roster", tables.read("ingest/roster").filter(pl.col("start") > 200))
    main(params())
    assert contents("data/roster/predicted") == before
    clear("ingest/roster")
    main(params())
    assert contents("data/roster/predicted") == before
    windows = tables.read("roster/windows")
    assert windows["n_closed"].unique().to_list() == [0]
    assert windows["n"].to_list() == windows["n_predicted"].to_list() == windows["n_hybrid"].to_list()
    assert windows["n_predicted"].to_list() == sizes["n_predicted"].to_list()
    assert setting_tables("closed")["candidates"].is_empty()
    assert setting_tables("hybrid")["candidates"].equals(setting_tables("predicted")["candidates"])


def test_the_same_input_gives_the_same_bytes_with_and_without_gold(workspace: Path, extracted: Path):
    main(params())
    before = contents("data/roster")
    assert len(before) == 1 + 3 * len(OUTPUTS)
    shutil.copytree(extracted / "data/ingest/gold", "data/ingest/gold")
    main(params())
    assert contents("data/roster") == before


def test_the_size_of_a_shard_changes_no_row(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    main(params())
    before = {setting: setting_tables(setting) for setting in tables.SETTINGS}
    windows, whole = tables.read("roster/windows"), tables.shards
    monkeypatch.setattr(tables, "shards", lambda name: whole(name, size=3))
    main(params())
    assert tables.read("roster/windows").equals(windows)
    for setting, frames in before.items():
        assert all(frame.equals(setting_tables(setting)[name]) for name, frame in frames.items())


def test_only_the_settings_asked_for_are_written(workspace: Path):
    main(params(roster={"settings": ["predicted"]}))
    assert {Path(name).parts[2] for name in contents("data/roster")} == {"predicted", "windows.parquet"}


def test_candidates_may_be_event_chains(workspace: Path):
    """Corpora without arguments: the candidates are events, and each takes part in itself."""
    rewrite("ingest/roster", pl.lit("event_chain").alias("kind"))
    main(params())
    predicted = setting_tables("predicted")
    events = tables.read("extract/events")
    spans = {str(Span(*row)) for row in events.select("doc_id", "start", "end").iter_rows()}
    assert set(predicted["mentions"]["mention_id"]) == spans
    assert set(predicted["candidates"]["candidate_id"]) <= spans
    for setting in tables.SETTINGS:
        assert set(setting_tables(setting)["arguments"]["role"]) <= {SELF}
    assert set(predicted["arguments"]["event_id"]) == set(events["event_id"])
    joined = predicted["arguments"].join(events.select("event_id", own="confidence"), on="event_id")
    assert (joined["confidence"] == joined["own"]).all()
    frames = contents("data/roster")
    main(params(roster={"candidate_kind": "event_chain"}))
    assert contents("data/roster") == frames


def test_missing_inputs_leave_nothing_behind(workspace: Path):
    tables.path("extract/events").unlink()
    with pytest.raises(TableError, match="table not found"):
        main(params())
    assert contents("data/roster") == {}


def test_a_changed_model_is_refused(workspace: Path):
    weights = bytearray(Path("models/extract", WEIGHTS).read_bytes())
    weights[-1] ^= 1
    Path("models/extract", WEIGHTS).write_bytes(weights)
    with pytest.raises(DataError, match="changed"):
        main(params())
    assert contents("data/roster") == {}
