"""The certificate language: parse, render and grammar agree, and nothing but CertificateError ever comes out."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.certificates import (
    REJECT_CODES,
    CertificateError,
    Entry,
    Limits,
    grammar,
    longest_answer,
    parse,
    render,
    shortest_answer,
)
from pipeline.spans import Span
from pipeline.windows import Window
from tests.builders import PLAN, random_window, story

LIMITS = Limits()
WINDOW = story()
LINES = (
    ".",
    "C02 s1=E07,E01 s2=E08,E02 | C04 s1=E04,E03 .",
    "C03 s2=E05,E10 s3=E07,E09 .",
    "C01 | C02 s3=E01,E01 .",
)
"""Lines of the language over `WINDOW`; the last one parses although both of its entries are invalid."""


def code_of(text: str, window: Window = WINDOW, k: int = 2) -> str | None:
    try:
        parse(text, window, PLAN, k, LIMITS)
    except CertificateError as error:
        assert error.code in REJECT_CODES
        assert "\n" not in str(error) and len(str(error)) < 300
        return error.code
    return None


@st.composite
def lists(draw: st.DrawFn) -> list[Entry]:
    """Entries of the form a line can say: roster candidates, plan slots in order, one or two handles each."""
    spans = [h.span for h in WINDOW.handles]
    entries = []
    for _ in range(draw(st.integers(0, 2))):
        slots = [s.slot_id for s in PLAN.slots if draw(st.booleans())]
        cited = [(s, tuple(draw(st.lists(st.sampled_from(spans), min_size=1, max_size=2)))) for s in slots]
        entries.append(Entry(draw(st.sampled_from(WINDOW.candidates)).candidate_id, tuple(cited)))
    return entries


@given(lists())
def test_entries_survive_rendering_and_parsing(entries: list[Entry]) -> None:
    line = render(entries, WINDOW)
    assert "\n" not in line
    assert parse(line, WINDOW, PLAN, 2, LIMITS) == entries


@given(lists(), st.data())
@settings(max_examples=300)
def test_a_mutated_line_is_read_as_written_or_rejected(entries: list[Entry], data: st.DataObject) -> None:
    """Nothing is repaired: whatever still parses renders back to exactly the mutated text."""
    text = list(render(entries, WINDOW))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        new = data.draw(st.sampled_from(["", " ", ".", ",", "=", "|", "0", "1", "C", "E", "s", "\n", "\u200b", "٣"]))
        text[at : at + data.draw(st.integers(0, 2))] = new
    line = "".join(text)
    if code_of(line) is None:
        assert render(parse(line, WINDOW, PLAN, 2, LIMITS), WINDOW) == line


@given(st.text())
@example("")
@example("\ud800")
@example("." * 1000)
@example("C01 " * 50_000 + ".")
def test_arbitrary_text_never_raises_anything_else(text: str) -> None:
    if code_of(text) is None:
        assert render(parse(text, WINDOW, PLAN, 2, LIMITS), WINDOW) == text


@pytest.mark.parametrize("line", LINES)
def test_known_lines_round_trip(line: str) -> None:
    assert render(parse(line, WINDOW, PLAN, 2, LIMITS), WINDOW) == line


def test_the_empty_list_is_a_bare_full_stop() -> None:
    assert parse(".", WINDOW, PLAN, 2, LIMITS) == []
    assert render([], WINDOW) == "."
    assert code_of(" .") == "syntax" and code_of("") == "truncated"


def test_local_ids_and_handles_resolve_to_canonical_ids_and_spans() -> None:
    entries = parse("C02 s1=E07,E01 .", WINDOW, PLAN, 2, LIMITS)
    assert entries == [Entry("Ada", (("s1", (Span("news:2", 9, 17), Span("news:2", 0, 3))),))]
    assert entries[0].spans == (Span("news:2", 9, 17), Span("news:2", 0, 3))


def test_a_long_line_is_rejected_in_linear_time() -> None:
    assert code_of("C01 s1=" + "E01," * 200_000 + "E01 .") == "too_many_handles"
    assert code_of("C01 | " * 200_000 + "C01 .") == "too_many_entries"
    assert code_of("C01 s1=" + "E" * 1_000_000 + " .") == "unknown_handle"


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        (Entry("Eve", ()), "unknown_candidate"),
        (Entry("Ada", (("s1", ()),)), "empty_slot"),
        (Entry("Ada", (("s1", (Span("news:2", 9, 16),)),)), "not_a_handle"),
    ],
)
def test_what_has_no_form_is_not_rendered(entry: Entry, code: str) -> None:
    with pytest.raises(CertificateError) as caught:
        render([entry], WINDOW)
    assert caught.value.code == code


# ---- grammar --------------------------------------------------------------------------------------------------------


def as_regex(rules: str) -> re.Pattern[str]:
    """The grammar as a regular expression: no rule refers to itself, so names are simply replaced by their bodies."""
    bodies = dict(line.split(" ::= ", 1) for line in rules.splitlines())

    def expand(body: str) -> str:
        parts = re.findall(r'"[^"]*"|[a-z][a-z0-9]*|[|()?]', body)
        out = []
        for part in parts:
            if part.startswith('"'):
                out.append(f"(?:{re.escape(part[1:-1])})")
            else:
                out.append(f"(?:{expand(bodies[part])})" if part in bodies else part)
        return "".join(out)

    return re.compile(expand(bodies["root"]))


@pytest.mark.parametrize(("k", "handles"), [(1, 1), (2, 2), (3, 2), (5, 3)])
def test_every_name_of_the_grammar_is_defined(k: int, handles: int) -> None:
    rules = grammar(WINDOW, PLAN, k, Limits(max_handles=handles))
    names = {line.split(" ::= ")[0] for line in rules.splitlines()}
    used = set(re.findall(r"\b[a-z][a-z0-9]*\b", re.sub(r'"[^"]*"', "", rules)))
    assert used == names


@given(lists(), st.data())
@settings(max_examples=300)
def test_grammar_and_parser_are_the_same_language(entries: list[Entry], data: st.DataObject) -> None:
    """Apart from entries without any slot, which parse (and are invalid) but are never offered to a decoder."""
    line = list(render(entries, WINDOW))
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(line)))
        line[at : at + data.draw(st.integers(0, 4))] = data.draw(
            st.sampled_from(["", " ", ".", ",E01", "=", " | C01", " s3=E02", "E11", "C5", "s1=E01", " "])
        )
    text = "".join(line)
    in_grammar = MATCH.fullmatch(text) is not None
    parses = code_of(text) is None
    slotted = parses and all(e.slots for e in parse(text, WINDOW, PLAN, 2, LIMITS))
    assert in_grammar == slotted


MATCH = as_regex(grammar(WINDOW, PLAN, 2, LIMITS))


def test_grammar_of_a_window_without_handles_only_knows_the_empty_list() -> None:
    bare = Window("w", "test", "closed", 2, WINDOW.documents, WINDOW.candidates, (), ())
    assert grammar(bare, PLAN, 2, LIMITS) == 'root ::= "."\n'
    assert longest_answer(bare, PLAN, 2, LIMITS) == shortest_answer(bare, PLAN, 2) == "."


@given(st.integers(0, 500), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_answer_lengths_bound_every_sentence(seed: int, k: int) -> None:
    window = random_window(seed, candidates=5)
    match = as_regex(grammar(window, PLAN, k, LIMITS))
    longest, shortest = longest_answer(window, PLAN, k, LIMITS), shortest_answer(window, PLAN, k)
    assert match.fullmatch(longest) and match.fullmatch(shortest)
    widest = max(len(h.handle_id) for h in window.handles)
    assert len(longest) == k * (3 + len(PLAN.slots) * (4 + 2 * widest + 1)) + 3 * (k - 1) + 2
    assert len(shortest) == k * (3 + 4 + min(len(h.handle_id) for h in window.handles)) + 3 * (k - 1) + 2
