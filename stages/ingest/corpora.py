"""What the importers of JSON-lines corpora share: one pass indexes the records, a second one builds windows."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline.stage import progress
from stages.ingest.lines import Index, Line, LineReader, parse_object, read_lines
from stages.ingest.problems import Problems
from stages.ingest.records import RecordError, Window, check_document, check_window

Record = dict[str, Any]
T = TypeVar("T")


def index_files(
    files: Iterable[Path], index: Index, problems: Problems, register: Callable[[Index, Record, Line], None]
) -> None:
    """First pass: parse every line and let `register` add it to the index; broken lines go to `problems`.

    Args:
        register: calls `index.add` or raises RecordError.
    """
    for file in files:
        for count, (line, raw) in enumerate(read_lines(file), start=1):
            try:
                if isinstance(raw, RecordError):
                    raise raw
                register(index, parse_object(raw, line), line)
            except RecordError as error:
                problems.report(error.at(file, line.number), raw if isinstance(raw, bytes) else b"")
            if count % 50_000 == 0:
                print(f"  ingest: {count} lines of {file.name} read", file=sys.stderr, flush=True)


def read_windows(
    index: Index,
    problems: Problems,
    read: Callable[[Record, Line], T],
    build: Callable[[str, str, Sequence[T]], Window],
) -> Iterator[Window]:
    """Second pass: windows in ascending order, each checked.

    Args:
        read: one record and its place -> whatever `build` takes; raises RecordError for a broken one.
        build: (window_id, split, what the records gave in file order) -> the window.
    """
    with LineReader() as reader:
        for group, split, lines in progress(index.windows(), "ingest", index.count()):
            parts: list[T] = []
            kept: list[Line] = []
            for line in lines:
                raw = reader.read(line)
                try:
                    parts.append(read(parse_object(raw, line), line))
                    kept.append(line)
                except RecordError as error:
                    problems.report(error.at(line.file, line.number), raw)
            if not parts:
                continue
            try:
                window = build(group, split, parts)
                for document in window.documents:
                    check_document(document)
                check_window(window)
            except RecordError as error:
                problems.report(error.at(kept[0].file, kept[0].number), b"".join(reader.read(line) for line in kept))
                continue
            yield window


def want(record: Record, key: str, kind: type[T], name: str = "") -> T:
    """The value of a key that must be there and of a type (a bool is not an int).

    Raises:
        RecordError: it is not.
    """
    where = f"{name}.{key}" if name else key
    if key not in record:
        raise RecordError("field", "missing key", field=where)
    value = record[key]
    if type(value) is not kind:
        raise RecordError("field", f"expected {_NAMES[kind]}, got {value!r:.60}", field=where)
    return value


_NAMES: dict[type, str] = {str: "a string", int: "a whole number", list: "a list", dict: "an object"}


def objects(record: Record, key: str, name: str = "") -> Iterator[tuple[str, Record]]:
    """(where, object) for each member of a list of objects; a missing key is an empty list.

    Raises:
        RecordError: not a list of objects.
    """
    where = f"{name}.{key}" if name else key
    for i, value in enumerate(want(record, key, list, name) if key in record else ()):
        if not isinstance(value, dict):
            raise RecordError("field", f"expected an object, got {value!r:.60}", field=f"{where}[{i}]")
        yield f"{where}[{i}]", value
