"""What happens to a broken record: the run fails on it, or it is set aside and counted (`ingest.on_error`)."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from pipeline.files import partial_path
from stages.ingest.records import RecordError

SHOWN = 4_000
"""Characters of a broken record that are kept in the quarantine."""


class Problems:
    """Fails on the first broken record, or writes it with the reason to the quarantine file.

    The file appears when the stage succeeds, empty when nothing was set aside.

    Args:
        path: the quarantine file.
        on_error: fail or quarantine.
    """

    def __init__(self, path: Path, on_error: Literal["fail", "quarantine"]) -> None:
        self.path, self.on_error = path, on_error
        self.dropped: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._partial = partial_path(self.path)
        self._stream = self._partial.open("w", encoding="utf-8", newline="\n")
        return self

    def report(self, error: RecordError, raw: bytes = b"") -> None:
        """Raise the error, or set the record aside.

        Args:
            error: what is wrong, with its place.
            raw: the record as it stands in the corpus.

        Raises:
            RecordError: `on_error` is fail.
        """
        if self.on_error == "fail":
            raise error
        self.dropped[error.reason] += 1
        record = raw.decode("utf-8", errors="backslashreplace").rstrip("\r\n")[:SHOWN]
        entry = {
            "file": None if error.file is None else Path(error.file).name, "line": error.line, "field": error.field,
            "reason": error.reason, "what": error.what, "record": record,
        }  # fmt: skip
        self._stream.write(json.dumps(entry, ensure_ascii=True) + "\n")

    def leave_out(self, what: str, count: int = 1) -> None:
        """Count annotation that the importer leaves out on purpose, by kind."""
        if count:
            self.left_out[what] += count

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stream.close()
        if kind is None:
            self._partial.replace(self.path)
            if self.dropped:
                reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(self.dropped.items()))
                print(f"ingest: {self.dropped.total()} records set aside in {self.path} ({reasons})", file=sys.stderr)
        self._partial.unlink(missing_ok=True)
