"""Defects of the reference code in certificates and verifier, kept impossible (task definition, section 9).

The numbers are those of the list there; the others are tested with the stages that they concern.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from pipeline.certificates import (
    CertificateError,
    Entry,
    Limits,
    attach,
    certifiable,
    check,
    check_list,
    feasible,
    grammar,
    longest_answer,
    parse,
    render,
    shortest_answer,
)
from pipeline.spans import Span
from pipeline.verifier import CLAIM_ACCEPT, Verifier, claimed_support, verify_claims
from pipeline.windows import Window
from tests.builders import PLAN, act, build_window, document, find, story

ROOT = Path(__file__).parent.parent
LIMITS = Limits()
WINDOW = story()
IDS = [c.candidate_id for c in WINDOW.candidates]
VERIFIER = Verifier(IDS, WINDOW.steps, PLAN)


def gate(entries: list[Entry], window: Window = WINDOW, verifier: Verifier = VERIFIER) -> list[bool]:
    """v_i and the right candidate recovered: what a ranking is paid for (task definition, sections 7 and 8)."""
    verdicts = verifier.verify([entry.spans for entry in entries])
    return [
        check(entry, window, PLAN, LIMITS) is None and verdict.candidate_id == entry.candidate_id
        for entry, verdict in zip(entries, verdicts, strict=True)
    ]


def attached(candidate_id: str) -> Entry:
    entry = attach(WINDOW, PLAN, candidate_id, LIMITS)
    assert entry is not None
    return entry


def test_5_every_cited_span_resolves_in_its_document() -> None:
    """Sentence-local offsets and inclusive ends name no evidence, and are refused rather than read differently."""
    for candidate in ("Ada", "Bob", "Cay"):
        for span in attached(candidate).spans:
            document_text = WINDOW.documents[span.doc_id].text
            assert document_text[span.start : span.end] in {"Ada", "Bob", "Cay", "attacked", "bought", "purchased",
                                                           "raided"}  # fmt: skip
    raided = find(WINDOW.documents["news:2"], "raided")
    sentence = WINDOW.documents["news:2"].sentences[1][0]
    local = Span("news:2", raided.start - sentence, raided.end - sentence)
    inclusive = Span("news:2", raided.start, raided.end - 1)
    for wrong in (local, inclusive):
        assert check(Entry("Bob", (("s1", (wrong,)),)), WINDOW, PLAN, LIMITS) == "not_a_handle"
        assert VERIFIER.support([wrong, find(WINDOW.documents["news:2"], "Bob")]) == {}


def test_6_overlap_is_not_citation_and_whole_documents_do_not_pass() -> None:
    touching = [Span("news:2", 16, 30), Span("news:2", 1, 4)]
    assert VERIFIER.support(touching) == {}
    whole = tuple(Span(d.doc_id, 0, len(d.text)) for d in WINDOW.documents.values())
    assert check(Entry("Ada", (("s1", whole),)), WINDOW, PLAN, LIMITS) is not None
    everything = tuple(h.span for h in WINDOW.handles)
    assert check(Entry("Bob", (("s1", everything),)), WINDOW, PLAN, LIMITS) == "too_many_handles"
    assert not VERIFIER.sufficient("Bob", everything)
    assert not VERIFIER.sufficient("Bob", whole), "citing all speaks for whoever did most, not for the claimed one"


def test_7_one_span_passes_no_threshold() -> None:
    """In the reference code a single span scored 0.5375 against 0.35. Here one span of an act supports nobody."""
    for handle in WINDOW.handles:
        assert VERIFIER.verify([[handle.span]])[0].candidate_id is None
    lazy = Entry("Ada", (("s1", (find(WINDOW.documents["news:2"], "attacked"),)),))
    assert claimed_support(lazy, "Ada", WINDOW.steps, PLAN) > CLAIM_ACCEPT, "the old rule, kept as ablation, is fooled"
    assert verify_claims([lazy], IDS, WINDOW.steps, PLAN, "L0")[0].candidate_id == "Ada"


def test_8_the_verifier_sees_spans_and_no_claims() -> None:
    assert list(inspect.signature(Verifier.verify).parameters) == ["self", "bundles"]
    assert list(inspect.signature(Verifier.support).parameters) == ["self", "spans"]
    assert set(inspect.signature(Verifier.__init__).parameters) == {
        "self", "candidates", "steps", "skeleton", "accept", "margin",
    }  # fmt: skip
    honest = attached("Ada")
    for liar in ("Bob", "Dot"):
        told = Entry(
            liar, tuple((slot, spans[::-1]) for slot, (_, spans) in zip(("s3", "s2"), honest.slots, strict=True))
        )
        assert VERIFIER.verify([told.spans]) == VERIFIER.verify([honest.spans])
        assert gate([told]) == [False]


def test_8_the_verifier_reads_text_positions_not_stage_names() -> None:
    """The same claims over other characters support nobody."""
    moved = [Span(s.doc_id, s.start + 40, s.end + 40) for s in attached("Bob").spans]
    assert VERIFIER.support(moved) == {}


def test_9_shared_evidence_lowers_the_cap_and_the_cap_is_reported() -> None:
    """Candidates with the same evidence cannot be told apart: neither is certifiable, and no list must hold them."""
    doc = document("d", "The pair raided the vault.\nAda bought a map.")
    pair = find(doc, "raided"), find(doc, "The pair")
    steps = [
        *(act(c, "attack", "attacker", *pair) for c in ("a", "b")),
        act("c", "buy", "buyer", find(doc, "bought"), find(doc, "Ada"), order=1),
    ]
    window = build_window([doc], ["a", "b", "c", "e"], steps)
    verifier = Verifier(["a", "b", "c", "e"], steps, PLAN)
    cap = certifiable(window, PLAN, LIMITS, verifier)
    assert set(cap) == {"c"}
    assert feasible([cap["c"]], window, PLAN, LIMITS, 2, len(cap)), "one entry suffices where one can be certified"
    both = [Entry(c, (("s1", pair),)) for c in ("a", "b")]
    assert [v.candidate_id for v in verifier.verify([e.spans for e in both])] == [None, None]


def test_11_a_right_candidate_with_a_wrong_certificate_earns_nothing() -> None:
    right = [attached("Ada"), attached("Bob")]
    assert gate(right) == [True, True]
    shuffled = [Entry(a.candidate_id, b.slots) for a, b in zip(right, right[::-1], strict=True)]
    assert gate(shuffled) == [False, False]
    assert gate([Entry("Ada"), right[1]]) == [False, True]


@pytest.mark.parametrize("k", [1, 2])
def test_12_the_length_of_answers_is_known_before_any_is_generated(k: int) -> None:
    """A generation budget can be held against the shortest feasible and the longest possible answer."""
    shortest, longest = shortest_answer(WINDOW, PLAN, k), longest_answer(WINDOW, PLAN, k, LIMITS)
    assert len(parse(shortest, WINDOW, PLAN, k, LIMITS)) == len(parse(longest, WINDOW, PLAN, k, LIMITS)) == k
    actual = render([attached(c) for c in ("Ada", "Bob")[:k]], WINDOW)
    assert len(shortest) <= len(actual) <= len(longest)
    assert len(shortest_answer(WINDOW, PLAN, 0)) == len(".")
    for cut in range(1, len(actual)):
        with pytest.raises(CertificateError):
            parse(actual[:cut], WINDOW, PLAN, k, LIMITS)


def test_13_unmatched_certificates_are_never_feasible() -> None:
    unmatched = [Entry("Ada"), Entry("Bob")]
    for certifiable_candidates in (0, 1, 2):
        assert check_list(unmatched, WINDOW, PLAN, LIMITS, 2, certifiable_candidates) == "no_slot"
    assert check(Entry("Ada", (("s1", ()), ("s2", ()))), WINDOW, PLAN, LIMITS) == "empty_slot"
    assert not feasible([], WINDOW, PLAN, LIMITS, 2, len(certifiable(WINDOW, PLAN, LIMITS, VERIFIER)))
    entry_rule = next(line for line in grammar(WINDOW, PLAN, 2, LIMITS).splitlines() if line.startswith("entry"))
    assert entry_rule == "entry ::= candidate slots", "a masked decoder cannot even write one"


def test_13_the_builtin_hash_is_used_nowhere() -> None:
    """It differs from process to process."""
    files = [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stages").rglob("*.py")]
    assert files
    for file in files:
        calls = [n.func for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
        assert not [f for f in calls if isinstance(f, ast.Name) and f.id == "hash"], file
