"""The one exception tree.

CertrankError                 anything certrank itself raises; one line: what is wrong, where, how to mend it
├── ParamError                params.yaml or an intent file is wrong
├── DataError                 an input or an artifact is wrong (failure class `data`)
│   ├── SpanError             a span or a citation string is malformed or lies outside its document
│   ├── TableError            a Parquet table is missing, truncated or does not have its declared schema
│   ├── CertificateError      a certificate was rejected; carries a reject code
│   └── QualityError          a data-quality gate failed
├── SetupError                the environment lacks something (a package, a model, a tool)
└── TransientError            a retry may succeed (a lock that is held, a server that died; class `transient`)

Everything else that escapes is a bug (failure class `bug`) and is shown with its traceback.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

FailureClass = Literal["transient", "data", "bug"]


class CertrankError(Exception):
    """Base of all errors of certrank.

    Args:
        what: what is wrong, in one sentence without a final period.
        file: the file it is about.
        line: its line, from 1.
        field: the field, column or parameter.
        mend: how to mend it.
    """

    failure_class: FailureClass = "data"
    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        file: str | Path | None = None,
        line: int | None = None,
        field: str | None = None,
        mend: str | None = None,
    ) -> None:
        self.what, self.file, self.line, self.field, self.mend = what, file, line, field, mend
        super().__init__(self.one_line())

    def __reduce__(self) -> tuple[Callable[..., CertrankError], tuple[Any, ...]]:
        # Subclasses have constructors of their own; a worker process must still be able to send any of them home.
        return _restore, (type(self), self.args, self.__dict__)

    def one_line(self) -> str:
        """`file:line: field: what; mend`, control characters escaped so that a hostile value stays on one line."""
        place = "" if self.file is None else str(self.file) + (f":{self.line}" if self.line is not None else "")
        parts = [part for part in (place, self.field) if part]
        text = ": ".join([*parts, self.what]) + (f"; {self.mend}" if self.mend else "")
        return printable(text)


def printable(text: str) -> str:
    """The text with every control, format and line-breaking character escaped: safe to show on one terminal line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _restore(kind: type[CertrankError], args: tuple[Any, ...], state: dict[str, Any]) -> CertrankError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class ParamError(CertrankError):
    """params.yaml or an intent file is wrong."""


class DataError(CertrankError):
    """An input or an artifact is wrong."""


class SpanError(DataError):
    """A span is malformed or lies outside its document."""


class TableError(DataError):
    """A table is missing, truncated or not of its declared schema."""


class CertificateError(DataError):
    """A certificate was rejected.

    Args:
        code: the reject code (`pipeline.certificates.REJECT_CODES` lists them with their meaning).
        what: the particulars.
    """

    def __init__(self, code: str, what: str, **place: str | int | Path | None) -> None:
        self.code = code
        super().__init__(f"[{code}] {what}", **place)  # type: ignore[arg-type]


class QualityError(DataError):
    """A data-quality gate failed."""


class SetupError(CertrankError):
    """The environment lacks something."""


class TransientError(CertrankError):
    """A retry may succeed."""

    failure_class: FailureClass = "transient"
    exit_code = 75  # EX_TEMPFAIL
