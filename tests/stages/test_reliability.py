"""Reliability of the extractor's confidences, on frames small enough to be counted by hand."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import tables
from pipeline.spans import Span
from stages.audit import plots
from stages.audit.__main__ import main as audit
from stages.audit.reliability import TABLES, Tally, half_overlaps, judge, reliability
from stages.report import charts
from tests import tiny

BUCKETS = (0.5, 0.2)
Frames = dict[str, pl.DataFrame]
Row = dict[str, Any]


def frames(prefix: str, **rows: Sequence[tuple[Any, ...]]) -> Frames:
    """Tables of one window `w` from short rows: events (id, doc, start, end, type, confidence), mentions (id, doc,
    start, end, confidence), arguments (event, mention, role, confidence), relations (head, tail, type, confidence);
    gold ones without the confidence, gold events with a chain in its place."""
    out = {}
    for name in ("events", "mentions", "arguments", "relations"):
        made: list[Row] = []
        for row in rows.get(name, ()):
            if name == "relations":
                whole: Row = dict(zip(("head_event_id", "tail_event_id", "type", "confidence"), row, strict=False))
            elif name == "arguments":
                whole = dict(zip(("event_id", "mention_id", "role", "confidence"), row, strict=False))
            elif name == "events":
                whole = dict(zip(("event_id", "doc_id", "start", "end", "type", "confidence"), row, strict=False))
                chain = row[5] if prefix.startswith("ingest") and len(row) > 5 else row[0]
                whole |= {"chain_id": chain, "surface": "", "order": 0, "realis": None}
            else:
                whole = dict(zip(("mention_id", "doc_id", "start", "end", "confidence"), row, strict=False))
                whole |= {"entity_id": row[0], "surface": "", "type": None}
            made.append({"window_id": "w", **whole})
        schema = tables.table(f"{prefix}/{name}").schema
        out[name] = tables.table(f"{prefix}/{name}").frame({c: row[c] for c in schema} for row in made)
    return out


def gold(labelled: Sequence[tuple[str, int]] = (("d", 0),), **rows: Sequence[tuple[Any, ...]]) -> Frames:
    return frames("ingest/gold/test", **rows) | {
        "labelled": tables.table("ingest/gold/test/labelled").frame(
            {"window_id": "w", "doc_id": doc, "sentence": i} for doc, i in labelled
        )
    }


def found(**rows: Sequence[tuple[Any, ...]]) -> Frames:
    return frames("extract", **rows)


SENTENCES = tables.table("ingest/sentences").frame(
    {"window_id": "w", "doc_id": doc, "sentence": i, "start": 100 * i, "end": 100 * i + 99}
    for doc in ("d", "e") for i in range(2)
)  # fmt: skip


def rows_of(frame: pl.DataFrame) -> list[tuple[float, bool]]:
    return sorted(frame.select("confidence", "right").rows())


# ---- which hypotheses are right --------------------------------------------------------------------------------------


def test_a_relation_is_right_between_mentions_of_the_annotated_chains() -> None:
    truth = gold(
        events=[("g1", "d", 0, 9, "A", "x"), ("g2", "d", 20, 29, "A", "x"), ("g3", "d", 40, 49, "B", "y"),
                ("g4", "d", 60, 69, "B", "z")],
        relations=[("g1", "g3", "CAUSE")],
    )  # fmt: skip
    events = [(f"f{i}", "d", 20 * i - 20, 20 * i - 11, "AABB"[i - 1], 0.9) for i in (1, 2, 3, 4)]
    events.append(("f5", "d", 80, 89, "A", 0.9))
    judged = judge(
        truth,
        found(events=events, relations=[
            ("f1", "f3", "CAUSE", 0.9),  # as annotated
            ("f2", "f3", "CAUSE", 0.8),  # another mention of the same chain
            ("f3", "f1", "CAUSE", 0.7),  # the wrong way round
            ("f1", "f4", "CAUSE", 0.6),  # not annotated
            ("f1", "f2", "CAUSE", 0.5),  # within a chain: not judged
            ("f1", "f3", "BEFORE", 0.4),  # no relation of this type is annotated: not judged
            ("f5", "f3", "CAUSE", 0.3),  # one end is no annotated event: not judged
        ]),
        SENTENCES,
    )  # fmt: skip
    assert rows_of(judged["relations"]) == [(0.6, False), (0.7, False), (0.8, True), (0.9, True)]


def test_an_event_is_right_by_type_and_half_of_the_union() -> None:
    judged = judge(
        gold(events=[("g", "d", 10, 20, "Attack")]),
        found(events=[
            ("same", "d", 10, 20, "Attack", 0.9),
            ("half", "d", 15, 20, "Attack", 0.8),  # 5 of 10
            ("less", "d", 16, 20, "Attack", 0.7),  # 4 of 10
            ("wider", "d", 5, 25, "Attack", 0.6),  # 10 of 20
            ("too_wide", "d", 4, 25, "Attack", 0.5),  # 10 of 21
            ("type", "d", 10, 20, "Arrest", 0.4),
            ("elsewhere", "e", 10, 20, "Attack", 0.3),  # not an annotated document
            ("beside", "d", 110, 120, "Attack", 0.2),  # not an annotated sentence
        ]),
        SENTENCES,
    )  # fmt: skip
    assert rows_of(judged["events"]) == [
        (0.4, False), (0.5, False), (0.6, True), (0.7, False), (0.8, True), (0.9, True),
    ]  # fmt: skip


def test_a_role_needs_its_event_its_filler_and_its_name() -> None:
    truth = gold(
        events=[("g1", "d", 0, 5, "Attack"), ("g2", "d", 20, 25, "Attack")],
        mentions=[("m1", "d", 10, 14), ("m2", "d", 110, 120)],
        arguments=[("g1", "m1", "attacker"), ("g1", "m2", "victim"), ("g2", "m2", "attacker")],
    )
    hypotheses = found(
        events=[
            ("a", "d", 0, 5, "Attack", 0.9), ("b", "d", 20, 25, "Attack", 0.9), ("t", "d", 0, 5, "Arrest", 0.1),
            ("c", "d", 150, 155, "Attack", 0.9),
        ],
        mentions=[("x", "d", 10, 14, 1.0), ("y", "d", 113, 120, 1.0), ("z", "d", 30, 34, 1.0)],
        arguments=[
            ("a", "x", "attacker", 0.95),
            ("a", "x", "victim", 0.85),  # fills another role
            ("a", "y", "victim", 0.75),  # the filler stands in a sentence that is not annotated; the event does not
            ("a", "z", "victim", 0.65),  # nobody
            ("b", "x", "attacker", 0.55),  # fills that role in the other event
            ("t", "x", "attacker", 0.45),  # the event is of another type
            ("c", "x", "attacker", 0.35),  # the event stands in a sentence that is not annotated: not judged
        ],
    )  # fmt: skip
    judged = judge(truth, hypotheses, SENTENCES)
    assert rows_of(judged["arguments"]) == [
        (0.45, False), (0.55, False), (0.65, False), (0.75, True), (0.85, False), (0.95, True),
    ]  # fmt: skip
    assert rows_of(judged["mentions"]) == [(1.0, False), (1.0, True)], "y begins beyond the annotated sentence"


def test_a_handle_is_as_right_as_the_likeliest_hypothesis_about_its_span() -> None:
    truth = gold(events=[("g", "d", 0, 5, "Attack")], mentions=[("m", "d", 10, 14)], arguments=[("g", "m", "attacker")])
    hypotheses = found(
        events=[
            ("a", "d", 0, 5, "Attack", 0.5), ("b", "d", 0, 5, "Arrest", 0.3), ("c", "d", 150, 155, "Attack", 0.9),
        ],
        mentions=[("x", "d", 10, 14, 1.0), ("y", "d", 20, 24, 1.0), ("z", "d", 30, 34, 1.0)],
        arguments=[
            ("a", "x", "attacker", 0.2), ("b", "x", "attacker", 0.25),  # the likelier one is wrong
            ("a", "y", "attacker", 0.1), ("c", "y", "attacker", 0.6),  # the likelier one cannot be judged
        ],
    )  # fmt: skip
    assert rows_of(judge(truth, hypotheses, SENTENCES)["handles"]) == [(0.25, False), (0.5, True)]


def test_where_nobody_annotated_mentions_none_is_judged() -> None:
    hypotheses = found(
        events=[("a", "d", 0, 5, "Attack", 0.5)],
        mentions=[("x", "d", 10, 14, 1.0)],
        arguments=[("a", "x", "attacker", 0.4)],
    )
    judged = judge(gold(events=[("g", "d", 0, 5, "Attack")]), hypotheses, SENTENCES)
    assert {name: frame.height for name, frame in judged.items()} == {
        "events": 1, "mentions": 0, "arguments": 0, "handles": 1, "relations": 0,
    }  # fmt: skip


def test_an_annotated_sentence_without_an_event_makes_its_hypotheses_wrong() -> None:
    judged = judge(gold(), found(events=[("a", "d", 0, 5, "Attack", 0.5)]), SENTENCES)
    assert rows_of(judged["events"]) == [(0.5, False)]


@pytest.mark.parametrize("truth", [gold(), gold(labelled=()), gold(events=[("g", "d", 0, 5, "Attack")])])
def test_nothing_found_nothing_judged(truth: Frames) -> None:
    judged = judge(truth, found(), SENTENCES)
    assert set(judged) == set(TABLES) and all(frame.is_empty() for frame in judged.values())


SPANS = st.lists(st.tuples(st.sampled_from("de"), st.integers(0, 30), st.integers(1, 12)), max_size=12)


@settings(deadline=None)
@given(SPANS, SPANS)
def test_pairs_are_those_of_intersection_over_union(
    a: list[tuple[str, int, int]], b: list[tuple[str, int, int]]
) -> None:
    def frame(rows: list[tuple[str, int, int]]) -> pl.DataFrame:
        schema = {"doc_id": pl.String, "start": pl.Int64, "end": pl.Int64}
        return pl.DataFrame([(doc, start, start + size) for doc, start, size in rows], schema=schema, orient="row")

    f, g = half_overlaps(frame(a), frame(b), ["doc_id"])
    assert sorted(zip(f.tolist(), g.tolist(), strict=True)) == [
        (i, j) for i, (d, s, n) in enumerate(a) for j, (e, t, m) in enumerate(b)
        if Span(d, s, s + n).iou(Span(e, t, t + m)) >= 0.5
    ]  # fmt: skip


# ---- bins, buckets, error --------------------------------------------------------------------------------------------


def tally(*shards: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    made = Tally(BUCKETS)
    for rows in shards:
        schema = {"confidence": pl.Float64, "right": pl.Boolean}
        made.add(pl.DataFrame(rows, schema=schema, orient="row"))
    return made.as_dict()


def test_error_bins_and_buckets_by_hand() -> None:
    rows = [(0.05, False), (0.05, True), (0.22, False), (0.28, True), (0.95, True)]
    expected = {
        # |0.05 - 0.5| * 2/5 + |0.25 - 0.5| * 2/5 + |0.95 - 1| * 1/5
        "ece": pytest.approx(0.29),
        "n": 5,
        "bins": [
            {"low": 0.0, "n": 2, "confidence": 0.05, "right": 0.5},
            {"low": 0.2, "n": 2, "confidence": 0.25, "right": 0.5},
            {"low": 0.9, "n": 1, "confidence": 0.95, "right": 1.0},
        ],
        "buckets": {
            "high": {"n": 1, "right": 1.0}, "medium": {"n": 2, "right": 0.5}, "low": {"n": 2, "right": 0.5},
        },
    }  # fmt: skip
    assert tally(rows) == expected
    assert tally(rows[:1], [], rows[1:4], rows[4:]) == expected, "shards add up"


@pytest.mark.parametrize("border", [i / 10 for i in range(1, 10)])
def test_a_confidence_on_a_border_belongs_to_the_bin_above(border: float) -> None:
    below = float(np.nextafter(border, 0))
    assert [(b["low"], b["n"]) for b in tally([(border, True), (below, True)])["bins"]] == [
        (pytest.approx(border - 0.1), 1),
        (border, 1),
    ]


def test_zero_and_one_are_in_the_outer_bins_and_bucket_borders_are_inclusive() -> None:
    found_ = tally([(0.0, False), (1.0, True), (0.5, True), (0.2, False)])
    assert [(b["low"], b["n"]) for b in found_["bins"]] == [(0.0, 1), (0.2, 1), (0.5, 1), (0.9, 1)]
    assert found_["buckets"] == {
        "high": {"n": 2, "right": 1.0}, "medium": {"n": 1, "right": 0.0}, "low": {"n": 1, "right": 0.0},
    }  # fmt: skip
    assert found_["ece"] == pytest.approx((0 + 0.2 + 0.5 + 0) / 4)


def test_without_hypotheses_every_figure_is_undefined() -> None:
    empty = {"n": 0, "right": None}
    assert tally() == tally([]) == {
        "ece": None, "n": 0, "bins": [], "buckets": {"high": empty, "medium": empty, "low": empty},
    }  # fmt: skip


# ---- on tables, in the audit, in a chart -----------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.write(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def test_every_split_counts_its_own_windows(data: Path) -> None:
    """The tiny extraction is gold itself (w2 is test, tune is empty); then the type of one event is changed."""
    figures = reliability(BUCKETS, data)
    assert set(figures) == {"tune", "test"}
    assert all(figures["tune"][name]["n"] == 0 and figures["tune"][name]["ece"] is None for name in TABLES)
    counts = {name: figures["test"][name]["n"] for name in TABLES}
    assert counts == {"events": 3, "mentions": 5, "arguments": 5, "handles": 8, "relations": 1}
    assert all(row["right"] == 1 for name in TABLES for row in figures["test"][name]["bins"])
    tiny.change(data, "extract/events", pl.lit("Other").alias("type"), pl.col("surface") == "shot")
    figures = reliability(BUCKETS, data)
    rights = {name: sum(b["right"] * b["n"] for b in figures["test"][name]["bins"]) for name in TABLES}
    assert rights["mentions"] == 5
    assert rights["events"] == pytest.approx(2, abs=1e-5)
    assert rights["arguments"] == pytest.approx(3, abs=1e-5), "both roles of the event are wrong with it"


def test_the_audit_writes_it_and_its_plot(data: Path) -> None:
    params = tiny.params()
    audit(params)
    written = json.loads((data / "audit/extraction.json").read_text())["reliability"]
    assert written == reliability(params.trajectories.buckets, data)
    rows = list(csv.DictReader((data / "audit/plots/reliability.csv").read_text().splitlines()))
    assert [float(r["confidence"]) for r in rows] == [round(0.05 + i / 10, 2) for i in range(10)]
    assert all(r["calibrated"] == r["confidence"] for r in rows)
    filled = {i: float(r["test_events"]) for i, r in enumerate(rows) if r["test_events"]}
    assert filled == {round(b["low"] * 10): b["right"] for b in written["test"]["events"]["bins"]}
    assert filled and not any(r["tune_events"] for r in rows)


def test_the_plot_has_a_column_for_every_split_and_table() -> None:
    figures = {s: {t: tally([(0.3, True), (0.31, False)] if s == "test" else []) for t in TABLES} for s in
               ("tune", "test")}  # fmt: skip
    lines = plots.reliability(figures).splitlines()
    assert lines[0].split(",") == ["confidence", "calibrated", *(f"{s}_{t}" for s in ("tune", "test") for t in TABLES)]
    empty, half = "," * len(TABLES), ",0.5" * len(TABLES)
    assert lines[4] == f"0.35,0.35{empty}{half}" and lines[1] == f"0.05,0.05{empty}{empty}"


def test_the_diagram_lies_inside_its_frame_with_the_line_from_corner_to_corner() -> None:
    made = str(charts.reliability_chart({"events": [(0.0, 0.0, 90), (1.0, 1.0, 10)], "<b>": []}, '"label"'))
    ideal = re.search(r'<line x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)" class="ideal"/>', made)
    dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', made)
    assert ideal is not None and [(x, y) for x, y, _ in dots] == [(ideal[1], ideal[2]), (ideal[3], ideal[4])]
    assert (float(dots[0][2]) / float(dots[1][2])) ** 2 == pytest.approx(9, rel=0.01), "area by count"
    assert "<b>" not in made and '""' not in made
