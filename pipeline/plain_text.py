"""Plain text as a corpus: text files and JSON-lines corpora become records without annotation, for `certrank extract`.

Offsets count the Unicode code points of a file as it is decoded: a byte order mark is no part of the text; line ends
stay as they are, so CR LF is two characters.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import DataError

SUFFIXES = (".jsonl", ".txt")
MAX_BYTES = 16 * 2**20
"""Of one text file. A document is read in one piece by every stage, so its size decides how much memory they need."""

MAX_SENTENCE = 1000
"""Characters; a longer one is cut at white space. Every mention is paired with every event near it, and "near" counts
sentences, so one sentence without an end would take memory by the square of its length."""

TEXT_KEYS = frozenset({"doc_id", "group", "title", "date", "url", "text", "sentences"})
ANNOTATION = frozenset({"split", "labelled", "entities", "events", "arguments", "relations", "images"})
Row = dict[str, Any]


def find_inputs(paths: Sequence[Path]) -> list[Path]:
    """The files to read: those given, and of folders the *.txt and *.jsonl files by name.

    Raises:
        DataError: a path that does not exist, a folder without such a file, a file that is given twice.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
            if not inside:
                raise DataError("no *.txt or *.jsonl file in this folder", file=path)
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise DataError("no such file or folder", file=path)
    seen: set[Path] = set()
    for file in found:
        if file.resolve() in seen:
            raise DataError("this file is given twice", file=file)
        seen.add(file.resolve())
    return found


def read_text(file: Path) -> str:
    """The text of a file, line ends as they are, without a byte order mark.

    Raises:
        DataError: too large, not UTF-8, or nothing but white space.
    """
    size = file.stat().st_size
    if size > MAX_BYTES:
        what = f"{size / 2**20:.0f} MiB; one text may have {MAX_BYTES >> 20}"
        raise DataError(what, file=file, mend="divide it into several files")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"byte {error.start} is not UTF-8", file=file, mend="save the file as UTF-8") from None
    if not text.strip():
        raise DataError("there is no text in this file", file=file)
    return text


@dataclass(slots=True)
class Corpus:
    """The corpus as it is written. `origin` maps its files to those it was made of, `file_of` documents to files."""

    origin: dict[str, str] = field(default_factory=dict)
    file_of: dict[str, str] = field(default_factory=dict)
    annotated: list[str] = field(default_factory=list)


def write_corpus(inputs: Sequence[Path], folder: Path, window: str | None) -> Corpus:
    """Write the texts as a corpus without annotation, file by file and line by line.

    Args:
        inputs: text files and JSON-lines corpora.
        folder: receives one file per input; a record stands on the same line as in its own file.
        window: the window of documents that state no group; None = one per file.

    Raises:
        DataError: see `read_text` and `stages.ingest.lines`.
    """
    folder.mkdir()
    stems = Counter(file.stem for file in inputs)
    corpus = Corpus()
    for number, file in enumerate(inputs):
        name = file.stem if stems[file.stem] == 1 else file.as_posix()
        target = folder / f"{number:06d}.jsonl"
        corpus.origin[f"{folder.name}/{target.name}"] = str(file)
        with target.open("w", encoding="utf-8", newline="\n") as out:
            for record in _records(file, name, corpus):
                if record is not None:
                    key = record["doc_id"]
                    if key in corpus.file_of:
                        raise DataError(f"{key!r:.60} is also a document of {corpus.file_of[key]}", file=file)
                    record["group"] = record.get("group") or window or name
                    record["split"] = "test"
                    corpus.file_of[key] = str(file)
                out.write("\n" if record is None else json.dumps(record, ensure_ascii=False) + "\n")
    return corpus


def _records(file: Path, name: str, corpus: Corpus) -> Iterator[Row | None]:
    """The documents of a file; None for a line that holds none."""
    from stages.ingest.lines import parse_object, read_lines

    if file.suffix != ".jsonl":
        text = read_text(file)
        yield {"doc_id": name, "title": file.name, "text": text, **_sentences(text)}
        return
    last = 0
    for line, raw in read_lines(file):
        if isinstance(raw, Exception):
            raise raw
        record = parse_object(raw, line)
        for key in record.keys() - TEXT_KEYS - ANNOTATION:
            raise DataError("unknown key", file=file, line=line.number, field=key)
        if record.keys() & ANNOTATION and str(file) not in corpus.annotated:
            corpus.annotated.append(str(file))
        for key in ("doc_id", "group"):
            if not isinstance(record.get(key) or "", str):
                raise DataError("expected a string", file=file, line=line.number, field=key)
        yield from (None for _ in range(line.number - last - 1))
        last = line.number
        kept = {key: value for key, value in record.items() if key in TEXT_KEYS}
        kept["doc_id"] = record.get("doc_id") or f"{name}-{line.number:06d}"
        if isinstance(record.get("text"), str) and "sentences" not in record:
            kept |= _sentences(record["text"])
        yield kept
    if last == 0:
        raise DataError("there is no document in this file", file=file)


def _sentences(text: str) -> Row:
    """Sentence boundaries, where those that ingest finds would be too far apart."""
    from stages.ingest.sentences import split_sentences

    found = split_sentences(text)
    if all(end - start <= MAX_SENTENCE for start, end in found):
        return {}
    return {"sentences": [piece for start, end in found for piece in cut(text, start, end)]}


def cut(text: str, start: int, end: int, most: int = MAX_SENTENCE) -> Iterator[tuple[int, int]]:
    """Pieces of a sentence with at most so many characters, ending before white space where there is any.

    >>> list(cut("one two three", 0, 13, 8))
    [(0, 7), (8, 13)]
    """
    while end - start > most:
        stop = next((i for i in range(start + most, start, -1) if text[i].isspace()), start + most)
        yield start, stop
        start = stop
        while start < end and text[start].isspace():
            start += 1
    if start < end:
        yield start, end
