"""The JSON form: round trip, strictness on arbitrary input, and what documents alone can tell."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.certificates import (
    REJECT_CODES,
    CertificateError,
    Certified,
    Corpus,
    Entry,
    Limits,
    Source,
    check_documents,
    check_json,
    from_json,
    to_json,
)
from pipeline.spans import Span
from tests.builders import story
from tests.tamper import table
from tests.test_certificates import lists

WINDOW = story()


@given(lists())
def test_entries_survive_writing_and_reading(entries: list[Entry]) -> None:
    text = to_json(entries, WINDOW, "who_attacked")
    read = from_json(text)
    assert "\n" not in text
    assert (read.window_id, read.intent_id, read.k, list(read.entries)) == ("w1", "who_attacked", 2, entries)
    assert read.documents == {d: WINDOW.documents[d].sha256 for d in {s.doc_id for e in entries for s in e.spans}}
    assert all(WINDOW.documents[s.doc_id].text[s.start : s.end] == text for s, text in read.texts.items())


def reads_or_rejects(text: str) -> None:
    try:
        from_json(text)
    except CertificateError as error:
        assert error.code in REJECT_CODES
        assert "\n" not in str(error) and len(str(error)) < 500
    assert all(code in REJECT_CODES for code in check_json(text, table.CORPUS, table.LIMITS).values())


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.one_of(st.text(), JSON_VALUES.map(json.dumps)))
@example("")
@example("NaN")
@example('"\\ud800"')
@example('{"a":' * 20_000)
def test_arbitrary_text_never_raises_anything_else(text: str) -> None:
    reads_or_rejects(text)


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value inside a JSON value stands."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [here, *(p for key, item in inner for p in paths(item, (*here, key)))]


@given(st.data(), JSON_VALUES)
@settings(max_examples=200)
def test_any_value_put_anywhere_is_read_or_rejected(data: st.DataObject, value: Any) -> None:
    raw = json.loads(table.BASE_JSON)
    *path, last = data.draw(st.sampled_from(paths(raw)[1:]))
    place = raw
    for key in path:
        place = place[key]
    place[last] = value
    reads_or_rejects(json.dumps(raw))


def as_value(read: Certified) -> dict[str, Any]:
    """The JSON value that says exactly what was read."""
    return {
        "version": 1, "window_id": read.window_id, "intent_id": read.intent_id, "k": read.k,
        "documents": dict(read.documents),
        "entries": [
            {"rank": rank, "candidate_id": entry.candidate_id, "slots": [
                {"slot_id": slot_id, "spans": [
                    {"doc_id": s.doc_id, "start": s.start, "end": s.end, "text": read.texts[s]} for s in spans
                ]}
                for slot_id, spans in entry.slots
            ]}
            for rank, entry in enumerate(read.entries, start=1)
        ],
    }  # fmt: skip


@given(st.integers(0, len(table.BASE_JSON) - 1), st.characters())
@settings(max_examples=200)
def test_one_changed_character_is_read_as_written_or_rejected(at: int, character: str) -> None:
    """Nothing is repaired, filled in or left out."""
    text = table.BASE_JSON[:at] + character + table.BASE_JSON[at + 1 :]
    reads_or_rejects(text)
    with contextlib.suppress(CertificateError):
        assert as_value(from_json(text)) == json.loads(text)


def test_what_cannot_be_quoted_is_not_written() -> None:
    for span, code in ((Span("news-9", 0, 1), "unknown_document"), (Span("news-1", 0, 9_999), "out_of_text")):
        with pytest.raises(CertificateError) as caught:
            to_json([Entry("Ada", (("s1", (span,)),))], WINDOW, "x")
        assert caught.value.code == code


def test_the_digest_is_computed_from_the_text_and_not_believed() -> None:
    """A corpus row whose sha256 column was left as it was does not hide a changed text."""
    forged = from_json(table.BASE_JSON)
    changed = {d: Source(s.text.replace("vault", "bank"), s.window_id) for d, s in table.SOURCES.items()}
    assert check_documents(forged, Corpus(changed), Limits()) == {1: "document_changed", 2: "document_changed"}


def test_lists_from_tables_quote_nothing_and_are_checked_all_the_same() -> None:
    silent = replace(from_json(table.BASE_JSON), texts={})
    assert check_documents(silent, table.CORPUS, table.LIMITS) == {}
    unlisted = replace(silent, documents={})
    assert check_documents(unlisted, table.CORPUS, table.LIMITS) == {1: "document_changed", 2: "document_changed"}


def test_an_unknown_window_cites_foreign_documents_only() -> None:
    assert check_documents(replace(from_json(table.BASE_JSON), window_id="w9"), table.CORPUS, table.LIMITS) == {
        1: "foreign_document", 2: "foreign_document",
    }  # fmt: skip
