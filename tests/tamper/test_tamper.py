"""Every row of the tamper table gets exactly its reject code, and every reject code has a row."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.certificates import (
    REJECT_CODES,
    CertificateError,
    Corpus,
    Entry,
    Source,
    check,
    check_documents,
    check_json,
    check_list,
    from_json,
    parse,
    render,
    to_json,
)
from pipeline.verifier import Verifier
from tests.tamper import table

NOT_OF_FORM = {"not_recovered", "no_trigger_handle"}
"""Outcomes of ranking, no breach of form: no tampering with a certificate brings them about."""


def test_the_untouched_list_holds_in_every_form() -> None:
    assert render(table.BASE, table.WINDOW) == table.BASE_LINE
    assert parse(table.BASE_LINE, table.WINDOW, table.SKELETON, table.K, table.LIMITS) == list(table.BASE)
    assert check_list(table.BASE, table.WINDOW, table.SKELETON, table.LIMITS, table.K, table.CERTIFIABLE) is None
    assert from_json(table.BASE_JSON).entries == table.BASE
    assert check_json(table.BASE_JSON, table.CORPUS, table.LIMITS) == {}
    verifier = Verifier([c.candidate_id for c in table.WINDOW.candidates], table.WINDOW.steps, table.SKELETON)
    assert [v.candidate_id for v in verifier.verify([e.spans for e in table.BASE])] == ["zoe", "bob"]


def test_every_code_is_fired_by_a_row() -> None:
    fired = {
        row[-1]
        for rows in (table.LINES, table.ENTRIES, table.LISTS, table.JSON, table.QUOTES, table.EXCHANGED, table.CORPORA)
        for row in rows.values()
    }
    assert fired == set(REJECT_CODES) - NOT_OF_FORM


@pytest.mark.parametrize(("line", "code"), table.LINES.values(), ids=table.LINES)
def test_lines(line: str, code: str) -> None:
    with pytest.raises(CertificateError) as caught:
        parse(line, table.WINDOW, table.SKELETON, table.K, table.LIMITS)
    assert caught.value.code == code


@pytest.mark.parametrize(("entry", "code"), table.ENTRIES.values(), ids=table.ENTRIES)
def test_entries(entry: Entry, code: str) -> None:
    assert check(entry, table.WINDOW, table.SKELETON, table.LIMITS) == code
    listed = [entry, next(e for e in table.BASE if e.candidate_id != entry.candidate_id)]
    assert check_list(listed, table.WINDOW, table.SKELETON, table.LIMITS, table.K, table.CERTIFIABLE) == code


@pytest.mark.parametrize(("entries", "k", "certifiable", "code"), table.LISTS.values(), ids=table.LISTS)
def test_lists(entries: tuple[Entry, ...], k: int, certifiable: int, code: str) -> None:
    assert check_list(entries, table.WINDOW, table.SKELETON, table.LIMITS, k, certifiable) == code


def tampered(old: str, new: str) -> str:
    assert old in table.BASE_JSON, "the row no longer applies"
    return table.BASE_JSON.replace(old, new, 1)


@pytest.mark.parametrize(("old", "new", "code"), table.JSON.values(), ids=table.JSON)
def test_json(old: str, new: str, code: str) -> None:
    text = tampered(old, new)
    with pytest.raises(CertificateError) as caught:
        from_json(text)
    assert caught.value.code == code
    assert len(str(caught.value)) < 400
    assert check_json(text, table.CORPUS, table.LIMITS) == {0: code}


@pytest.mark.parametrize(("old", "new", "code"), table.QUOTES.values(), ids=table.QUOTES)
def test_quotes(old: str, new: str, code: str) -> None:
    rejected = check_documents(from_json(tampered(old, new)), table.CORPUS, table.LIMITS)
    assert rejected.get(1) == code


@pytest.mark.parametrize(("entries", "rank", "code"), table.EXCHANGED.values(), ids=table.EXCHANGED)
def test_exchanged(entries: tuple[Entry, ...], rank: int, code: str) -> None:
    text = to_json(entries, table.WINDOW, "who_attacked")
    assert from_json(text).entries == entries
    assert check_json(text, table.CORPUS, table.LIMITS) == {rank: code}


@pytest.mark.parametrize(("change", "code"), table.CORPORA.values(), ids=table.CORPORA)
def test_corpora(change: Callable[[dict[str, Source]], dict[str, Source]], code: str) -> None:
    assert check_json(table.BASE_JSON, Corpus(change(table.SOURCES)), table.LIMITS) == {1: code, 2: code}
