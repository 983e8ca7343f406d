"""What peers get wrong at the edges, and what happens here instead (task definition, section 10).

Ours fails closed: a line or a citation that is not exactly right is rejected with a code, and nothing takes its place.
"""

from __future__ import annotations

import pytest

from pipeline.certificates import CertificateError, Corpus, Entry, Limits, Source, check, check_json, from_json, parse
from pipeline.errors import SpanError
from pipeline.spans import Span, merge, parse_citation
from pipeline.verifier import NONE, Verifier
from tests.builders import PLAN, story
from tests.tamper import table

WINDOW = story()
LIMITS = Limits()


def code_of(line: str) -> str:
    with pytest.raises(CertificateError) as caught:
        parse(line, WINDOW, PLAN, 2, LIMITS)
    return caught.value.code


@pytest.mark.parametrize("handle", ["E00", "E0", "E99", "E-1", "E", "0", "-1", "00"])
def test_alce_index_zero_does_not_cite_the_last_document(handle: str) -> None:
    """ALCE turns `[0]` into index -1. Handles are names here, looked up and never counted."""
    assert code_of(f"C02 s1={handle} .") in {"unknown_handle", "syntax"}
    assert code_of("[0] .") == "syntax"
    with pytest.raises(SpanError):
        parse_citation("[0]")


def test_eraser_an_unknown_document_is_noticed() -> None:
    """ERASER's check for unknown documents can never fire; ours does, wherever a span comes from."""
    entry = Entry("Ada", (("s1", (Span("no-such-document", 0, 3),)),))
    assert check(entry, WINDOW, PLAN, LIMITS) == "unknown_document"
    assert check_json(table.BASE_JSON, Corpus({}), LIMITS) == {1: "unknown_document", 2: "unknown_document"}
    assert Verifier(["Ada"], WINDOW.trajectories["Ada"], PLAN).verify([entry.spans]) == [NONE]


def test_fever_true_is_not_line_one() -> None:
    """`True == 1` in Python, so a boolean passes for an index in the FEVER scorer."""
    with pytest.raises(SpanError):
        Span("d", True, 5)
    with pytest.raises(SpanError):
        Span("d", 0, True)
    for text in ("true", "1.0", "NaN", '"1"', "null"):
        with pytest.raises(CertificateError) as caught:
            from_json(table.BASE_JSON.replace('"start": 17', f'"start": {text}', 1))
        assert caught.value.code == "offset_type"


def test_fever_nothing_divides_by_zero() -> None:
    """No evidence, no atoms, no precedence pair, no roster, no text: each share is 0 and nobody is recovered."""
    assert merge([]) == []
    verifier = Verifier([], [], PLAN)
    assert verifier.support([]) == {} and verifier.verify([[], []]) == [NONE, NONE]
    assert not verifier.sufficient("Ada", []) and not verifier.minimal("Ada", [])
    assert LIMITS.bundle_limit(0) == LIMITS.bundle_characters
    assert check_json(table.BASE_JSON, Corpus({"news-1": Source("", "w1"), "news:2": Source("", "w1")}), LIMITS) == {
        1: "document_changed", 2: "document_changed",
    }  # fmt: skip


def test_fever_an_empty_certificate_is_not_correct() -> None:
    assert check(Entry("Ada"), WINDOW, PLAN, LIMITS) == "no_slot"


def test_fever_repeated_evidence_is_not_free() -> None:
    span = WINDOW.handles[0].span
    assert check(Entry("Ada", (("s1", (span, span)),)), WINDOW, PLAN, LIMITS) == "repeated_span"
    assert check(Entry("Ada", (("s1", (span,)), ("s2", (span,)))), WINDOW, PLAN, LIMITS) == "repeated_span"


@pytest.mark.parametrize(
    "line", ["3 1 2", "3 1 2 .", "[3] > [1] > [2]", "C3 > C1", "1. C02\n2. C04", "C02, C04 .", "02 01 .", "C02 > C04 ."]
)
def test_rank_llm_digits_are_no_ranking_and_failure_keeps_no_order(line: str) -> None:
    """rank_llm reads any digits as a ranking and falls back to the input order; here there is a code and no list."""
    assert code_of(line) in {"syntax", "truncated", "unknown_candidate"}
