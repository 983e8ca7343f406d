"""Spans and citation strings."""

from __future__ import annotations

import contextlib
import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SpanError
from pipeline.spans import Span, merge, parse_citation, sha256_text

SPANS = st.builds(lambda d, at, n: Span(d, at, at + n), st.text(min_size=1), st.integers(0, 10**6), st.integers(1, 500))
NEAR = st.builds(lambda d, at, n: Span(d, at, at + n), st.sampled_from("de"), st.integers(0, 20), st.integers(1, 8))


@given(SPANS)
def test_citation_strings_round_trip_whatever_the_document_is_called(span: Span) -> None:
    assert parse_citation(str(span)) == span


@given(st.text())
def test_any_other_text_is_a_span_error(text: str) -> None:
    with contextlib.suppress(SpanError):
        assert str(parse_citation(text)) == text


@pytest.mark.parametrize(
    "text",
    ["d:0-0", "d:5-3", "d:-1-3", "d:+1-3", "d:01-3", "d:1-03", "d: 1-3", "d:1 -3", "d:1-3 ", "d:1-3\n", "d:1.0-3",
     ":1-3", "d:1-", "d:1", "d", "", "d:\u0661-\u0663", "d:\uff11-\uff13", "d:1\u20133", "[0]", "d:True-3", "d:0x1-3",
     "d:1-" + "9" * 19],
)  # fmt: skip
def test_malformed_citations(text: str) -> None:
    with pytest.raises(SpanError):
        parse_citation(text)


def test_document_ids_may_hold_separators() -> None:
    assert parse_citation("a:1-2:3-4") == Span("a:1-2", 3, 4)
    assert parse_citation("a\n:3-4") == Span("a\n", 3, 4)


@pytest.mark.parametrize(
    ("doc_id", "start", "end"),
    [("", 0, 1), ("d", -1, 1), ("d", 1, 1), ("d", 2, 1), ("d", True, 2), ("d", 0, True), ("d", 0.0, 1),
     ("d", 0, float("nan")), ("d", "0", 1), ("d", None, 1), (1, 0, 1), (None, 0, 1)],
)  # fmt: skip
def test_nothing_but_a_proper_span_can_be_made(doc_id: object, start: object, end: object) -> None:
    with pytest.raises(SpanError):
        Span(doc_id, start, end)  # type: ignore[arg-type]


@given(NEAR, NEAR)
def test_relations_agree_with_sets_of_characters(a: Span, b: Span) -> None:
    x, y = ({(s.doc_id, at) for at in range(s.start, s.end)} for s in (a, b))
    assert a.overlaps(b) == b.overlaps(a) == bool(x & y)
    assert a.contains(b) == (y <= x)
    assert a.iou(b) == len(x & y) / len(x | y)
    assert len(a) == len(x)


@given(st.lists(NEAR))
def test_merging_keeps_the_characters_and_leaves_gaps_between_spans(spans: list[Span]) -> None:
    merged = merge(spans)
    assert {(s.doc_id, at) for s in merged for at in range(s.start, s.end)} == {
        (s.doc_id, at) for s in spans for at in range(s.start, s.end)
    }
    assert merged == sorted(merged)
    assert all(a.doc_id != b.doc_id or a.end < b.start for a, b in pairwise(merged))
    assert merge(merged) == merged


def test_a_text_is_identified_by_its_exact_bytes() -> None:
    text = "Zoé attacked.\n"
    same_to_the_eye = {
        text, unicodedata.normalize("NFD", text), text.replace("\n", "\r\n"), text.replace("Z", "\u200bZ"),
        "\ufeff" + text,
    }  # fmt: skip
    assert len({sha256_text(t) for t in same_to_the_eye}) == 5
    assert sha256_text("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
