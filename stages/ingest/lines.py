"""Reading JSON lines twice: once to learn where every record stands, once in the order of the windows.

The first pass checks that each line is one JSON object and puts its window, id and place into a SQLite file in the
work directory; the second pass seeks to the lines window by window. So a window's documents may stand anywhere in a
corpus of any size, a repeated id is found with file and line, and memory holds one window.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from pipeline.errors import DataError
from stages.ingest.problems import Problems
from stages.ingest.records import RecordError, check_text

MAX_LINE = 64 * 2**20
"""Bytes. A longer line is refused before it is parsed, so one bad record cannot exhaust the memory."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Line:
    """Where a record stands: file, line from 1, byte offset and size."""

    file: Path
    number: int
    offset: int
    size: int


def find_files(path: str | Path, suffix: str) -> list[Path]:
    """The corpus: the file itself, or the files of a folder with this suffix, by name.

    Raises:
        DataError: neither a file nor a folder, or a folder without such a file.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError("corpus not found", file=path, field="ingest.path", mend="set ingest.path in params.yaml")
    files = sorted(file for file in path.glob(f"*{suffix}") if file.is_file())
    if not files:
        raise DataError(f"no *{suffix} file in this folder", file=path, field="ingest.path")
    return files


def read_lines(file: Path) -> Iterator[tuple[Line, bytes | RecordError]]:
    """Every line that is not blank, raw; one that is longer than `MAX_LINE` comes as the error to report.

    Raises:
        DataError: the file does not exist.
    """
    if not file.is_file():
        raise DataError("file not found", file=file, field="ingest.path")
    with file.open("rb") as stream:
        offset = number = 0
        while raw := stream.readline(MAX_LINE + 1):
            number += 1
            size = len(raw)
            line = Line(file, number, offset, size)
            if size > MAX_LINE:
                while raw and not raw.endswith(b"\n"):
                    raw = stream.readline(2**20)
                    size += len(raw)
                what = f"the line has more than {MAX_LINE >> 20} MiB"
                yield Line(file, number, offset, 0), RecordError("size", what, file=file, line=number)
            elif raw.strip(b" \t\r\n\xef\xbb\xbf"):
                yield line, raw
            offset += size


def parse_object(raw: bytes, line: Line) -> dict[str, Any]:
    """One line as a JSON object.

    Raises:
        RecordError: not UTF-8, not JSON, not an object, a repeated key, NaN, a lone surrogate, nested too deeply.
    """
    place: dict[str, Any] = {"file": line.file, "line": line.number}
    try:
        text = raw.rstrip(b"\r\n").decode("utf-8-sig" if line.offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        what = f"byte {error.start} of the line is not UTF-8"
        raise RecordError("encoding", what, mend="save the file as UTF-8", **place) from None
    try:
        value = json.loads(text, object_pairs_hook=_pairs, parse_constant=_constant)
        if _SURROGATE.search(raw):
            check_text(json.dumps(value, ensure_ascii=False), "line")
    except RecordError as error:
        raise error.at(line.file, line.number) from None
    except json.JSONDecodeError as error:
        raise RecordError(
            "json", f"not valid JSON: {error.msg.removesuffix(' at')} at column {error.colno}", **place
        ) from None
    except RecursionError:
        raise RecordError("json", "not valid JSON: nested too deeply", **place) from None
    except ValueError as error:
        raise RecordError("json", f"not valid JSON: {error!s:.80}", **place) from None
    if not isinstance(value, dict):
        raise RecordError("json", "expected one JSON object per line", **place)
    return value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise RecordError("json", f"the key {next(k for k in keys if keys.count(k) > 1)!r:.60} occurs twice")
    return value


def _constant(name: str) -> None:
    raise RecordError("json", f"{name} is not JSON")


class Index:
    """Where the records of each window stand.

    Args:
        directory: where the SQLite file lives while the index is open; it is removed on exit.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "index.sqlite"
        self._files: list[Path] = []

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self._db = sqlite3.connect(self._path)
        try:
            self._db.executescript(
                "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-32768;"
                'CREATE TABLE line (doc TEXT PRIMARY KEY, "group" TEXT, split TEXT, key TEXT, file INT, number INT, '
                "offset INT, size INT) WITHOUT ROWID;"
                'CREATE TABLE part ("group" TEXT PRIMARY KEY, split TEXT) WITHOUT ROWID;'
            )
        except sqlite3.Error:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._db.close()
        self._path.unlink(missing_ok=True)

    def add(
        self, line: Line, doc_id: str, group: str, split: str | None = None, key: str = "", field: str = "doc_id"
    ) -> None:  # fmt: skip
        """Register a record.

        Args:
            line: its place.
            doc_id: its id, unique in the corpus.
            group: its window.
            split: when the corpus states one.
            key: the hash in whose order windows without a stated split are divided.
            field: what the corpus calls the id.

        Raises:
            RecordError: the id was used before.
        """
        if not self._files or self._files[-1] != line.file:
            self._files.append(line.file)
        row = (doc_id, group, split, key, len(self._files) - 1, line.number, line.offset, line.size)
        try:
            self._db.execute("INSERT INTO line VALUES (?,?,?,?,?,?,?,?)", row)
        except sqlite3.IntegrityError:
            file, number = self._db.execute("SELECT file, number FROM line WHERE doc = ?", (doc_id,)).fetchone()
            what = f"the id {doc_id!r:.80} was used before, in {self._files[file].name}:{number}"
            raise RecordError("duplicate", what, file=line.file, line=line.number, field=field) from None

    def resolve(self, problems: Problems) -> None:
        """Report every window whose records state two splits, and leave it out.

        Raises:
            RecordError: there is one, and broken records are not set aside.
        """
        query = 'SELECT "group" FROM line GROUP BY "group" HAVING min(split) <> max(split) ORDER BY "group"'
        for (group,) in self._db.execute(query).fetchall():
            rows = self._db.execute(
                'SELECT file, number, offset, size, split FROM line WHERE "group" = ? ORDER BY file, number', (group,)
            ).fetchall()
            stated = [row for row in rows if row[4] is not None]
            file, number, _, _, split = next(row for row in stated if row[4] != stated[0][4])
            what = f"group {group!r:.80} is in split {stated[0][4]} and in {split}"
            error = RecordError("split", what, file=self._files[file], line=number, field="split")
            with LineReader() as reader:
                raw = b"".join(reader.read(Line(self._files[f], n, offset, size)) for f, n, offset, size, _ in rows)
            problems.report(error, raw)
            self._db.execute('DELETE FROM line WHERE "group" = ?', (group,))

    def divide(self, shares: Sequence[tuple[str, float]]) -> None:
        """Give every window a split: the stated one, else by its rank in the order of (key, group).

        Args:
            shares: (split, share), in order; each boundary is rounded, and windows of one key stay together.
        """
        self._db.execute(
            'INSERT INTO part SELECT "group", max(split) FROM line GROUP BY "group" HAVING max(split) IS NOT NULL'
        )
        rest = (
            'SELECT "group", min(key) AS key FROM line WHERE "group" NOT IN (SELECT "group" FROM part) GROUP BY "group"'
        )
        total: int = self._db.execute(f"SELECT count(*) FROM ({rest})").fetchone()[0]
        ranked = f'SELECT "group", rank() OVER (ORDER BY key) - 1 AS place FROM ({rest})'
        ends = boundaries(total, [share for _, share in shares])
        cases = " ".join(f"WHEN place < {end} THEN '{split}'" for (split, _), end in zip(shares, ends, strict=True))
        if total:
            self._db.execute(f'INSERT INTO part SELECT "group", CASE {cases} END FROM ({ranked})')

    def windows(self) -> Iterator[tuple[str, str, list[Line]]]:
        """(group, split, places of its records in the order of file and line), by group, after `divide`."""
        rows = self._db.execute(
            'SELECT line."group", part.split, file, number, offset, size FROM line '
            'JOIN part ON line."group" = part."group" ORDER BY line."group", file, number'
        )
        current = split = ""
        lines: list[Line] = []
        for group, part, file, number, offset, size in rows:
            if lines and group != current:
                yield current, split, lines
                lines = []
            current, split = group, part
            lines.append(Line(self._files[file], number, offset, size))
        if lines:
            yield current, split, lines

    def count(self) -> int:
        """How many windows there are, after `divide`."""
        return int(self._db.execute("SELECT count(*) FROM part").fetchone()[0])


def boundaries(total: int, shares: Sequence[float]) -> list[int]:
    """Rounded ranks at which the parts end; the last part ends at `total`.

    >>> boundaries(399, [0.8, 0.2])
    [319, 399]
    """
    ends, cumulated = [], 0.0
    for share in shares:
        cumulated += share
        ends.append(round(total * cumulated))
    ends[-1] = total
    return ends


class LineReader:
    """Reads lines by place, keeping the file of the last one open."""

    _stream: BinaryIO

    def __init__(self) -> None:
        self._file: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._file is not None:
            self._stream.close()

    def read(self, line: Line) -> bytes:
        """The raw bytes of a line."""
        if self._file != line.file:
            if self._file is not None:
                self._stream.close()
            self._stream, self._file = line.file.open("rb"), line.file
        self._stream.seek(line.offset)
        return self._stream.read(line.size)
