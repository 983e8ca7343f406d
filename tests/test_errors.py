"""The exception tree: one line per error, whatever the values hold."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import errors
from pipeline.errors import CertificateError, CertrankError, DataError, TransientError

TREE = {
    errors.ParamError: CertrankError, errors.DataError: CertrankError, errors.SpanError: DataError,
    errors.TableError: DataError, errors.CertificateError: DataError, errors.QualityError: DataError,
    errors.SetupError: CertrankError, errors.TransientError: CertrankError,
}  # fmt: skip


def test_the_tree_is_the_one_the_docstring_draws() -> None:
    assert errors.__doc__ is not None
    for child, parent in TREE.items():
        assert child.__bases__ == (parent,)
        assert child.__name__ in errors.__doc__
    assert {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)} == {
        CertrankError, *TREE,
    }  # fmt: skip


def test_one_line_names_place_field_and_mend() -> None:
    error = DataError("offset outside the text", file="a.jsonl", line=3, field="events[0].start", mend="fix it")
    assert str(error) == "a.jsonl:3: events[0].start: offset outside the text; fix it"
    assert str(DataError("bad", file="a")) == "a: bad"
    assert str(DataError("bad")) == "bad"


def test_line_zero_is_shown_and_no_file_means_no_line() -> None:
    assert str(DataError("bad", file="a", line=0)) == "a:0: bad"
    assert str(DataError("bad", line=4)) == "bad"


@given(st.text(alphabet=st.characters()), st.text(), st.text())
def test_hostile_values_stay_on_one_printable_line(what: str, field: str, file: str) -> None:
    shown = str(DataError(what, field=field, file=file, mend=what))
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1


def test_terminal_escapes_are_shown_not_sent() -> None:
    shown = str(DataError("type \x1b[2J\x1b]0;owned\x07\r\nfaked: ok\u202e\ud800"))
    assert "\x1b" not in shown
    assert "\n" not in shown
    assert shown == r"type \x1b[2J\x1b]0;owned\x07\r\nfaked: ok\u202e\ud800"


def test_failure_classes_and_exit_codes() -> None:
    assert (DataError("x").failure_class, DataError("x").exit_code) == ("data", 1)
    assert (TransientError("x").failure_class, TransientError("x").exit_code) == ("transient", 75)


@pytest.mark.parametrize(
    "error",
    [
        DataError("bad \x07 value", file="f", line=2, field="g", mend="m"),
        CertificateError("no_slot", "nothing is cited", field="C01"),
        TransientError("held"),
    ],
)
def test_errors_cross_process_boundaries(error: CertrankError) -> None:
    back = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_certificate_errors_carry_their_code() -> None:
    error = CertificateError("no_slot", "nothing is cited", field="C01")
    assert error.code == "no_slot"
    assert str(error) == "C01: [no_slot] nothing is cited"
