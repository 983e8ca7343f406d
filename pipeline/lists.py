"""Certified lists as they are found on disk: a directory of `rank`, or a file in the interchange form; and export.

    read_lists("data/rank/rm_attach/closed")     the tables rankings.parquet and certificates.parquet, streamed
    read_lists("rankings.jsonl")                 one JSON object per line (`pipeline.interchange`)
    read_lists("list.json")                      one JSON object

The documents they are checked against are a `Corpus`: documents.parquet, a folder with it, or JSON lines with `doc_id`,
`group` and `text` (docs/corpus.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from pipeline.certificates import Certified, Corpus, Entry, Source, from_json, to_json
from pipeline.errors import CertificateError, DataError, SpanError
from pipeline.spans import Span
from pipeline.tables import Reader
from pipeline.windows import Document, Window

Row = dict[str, Any]
CERTIFIED = "certified"


@dataclass(frozen=True, slots=True)
class Listed:
    """One list with what its source says about it.

    Args:
        place: file and line, or the directory.
        certified: the emitted entries; None when the list could not be read.
        codes: per emitted entry None when the source calls it certified, else the reject code that it states ("" for
            none). A file in the interchange form claims that all its entries are certified.
        broken: per emitted entry a reject code that reading already found, or None; {0: code} concerns the whole list.
        error: why the list could not be read.
    """

    place: str
    certified: Certified | None
    codes: tuple[str | None, ...] = ()
    broken: tuple[tuple[int, str], ...] = ()
    error: CertificateError | None = None

    @property
    def window_id(self) -> str:
        return "" if self.certified is None else self.certified.window_id


def find_lists(path: str | Path) -> list[Path]:
    """The rank directories in and below a folder, or the file itself.

    Raises:
        DataError: none there.
    """
    path = Path(path)
    found = [path]
    if path.is_dir():  # hidden folders are half-written ones of a run that was killed
        files = sorted(path.rglob("rankings.parquet"))
        found = [f.parent for f in files if not any(p.startswith(".") for p in f.relative_to(path).parts)]
    if not found:
        raise DataError("no rankings in this folder", file=path, mend="run `dvc repro`")
    return found


def read_lists(path: str | Path) -> Iterator[Listed]:
    """All lists of a rank directory or of an interchange file, in order of their window.

    Raises:
        DataError: neither of the two, or no list in it.
    """
    path = Path(path)
    if path.is_dir():
        return _read_directory(path)
    if not path.is_file():
        mend = "give data/rank/<system>/<setting> or a JSONL file"
        raise DataError("no such file or directory", file=path, mend=mend)
    lists = sorted(_read_interchange(path), key=lambda listed: listed.window_id)
    if not lists:
        raise DataError("no list in this file", file=path)
    return iter(lists)


# ---- the interchange form -------------------------------------------------------------------------------------------


def _read_interchange(path: Path) -> Iterator[Listed]:
    if path.suffix == ".json":
        yield _read_one(path.read_bytes(), str(path))
        return
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            if raw.strip():
                yield _read_one(raw, f"{path}:{number}")


def _read_one(raw: bytes, place: str) -> Listed:
    try:
        certified = from_json(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Listed(place, None, error=CertificateError("json", f"not UTF-8: {error}"))
    except CertificateError as error:
        return Listed(place, None, error=error)
    return Listed(place, certified, (None,) * len(certified.entries))


# ---- tables ---------------------------------------------------------------------------------------------------------


def _read_directory(path: Path) -> Iterator[Listed]:
    """Stream the two tables side by side: both are sorted by window and intent."""
    rankings = _by_instance(_reader(path, "rankings"))
    certificates = _by_instance(_reader(path, "certificates"))
    pending = next(certificates, None)
    for instance, rows in rankings:
        if pending is not None and pending[0] < instance:
            raise DataError(f"certificates of {pending[0]}, which is not ranked", file=path, mend="run `dvc repro`")
        cited: list[Row] = []
        if pending is not None and pending[0] == instance:
            cited, pending = pending[1], next(certificates, None)
        yield _listed(str(path), instance, rows, cited)
    if pending is not None:
        raise DataError(f"certificates of {pending[0]}, which is not ranked", file=path, mend="run `dvc repro`")


def _reader(path: Path, name: str) -> Reader:
    return Reader(f"rank/system/setting/{name}", file=path / f"{name}.parquet")


def _by_instance(reader: Reader) -> Iterator[tuple[tuple[str, str], list[Row]]]:
    rows = (row for batch in reader.batches(8192) for row in batch.iter_rows(named=True))
    last = ("", "")
    for instance, group in groupby(rows, key=lambda row: (row["window_id"], row["intent_id"])):
        if instance <= last:
            raise DataError(f"the rows of {instance} are out of order", file=reader.path, mend="run `dvc repro`")
        last = instance
        yield instance, list(group)


def _listed(place: str, instance: tuple[str, str], ranked: list[Row], cited: list[Row]) -> Listed:
    emitted = [row for row in ranked if row["emitted"]]
    documents: dict[str, str] = {}
    broken: dict[int, str] = {}
    by_entry: dict[tuple[int, str], dict[str, list[Span]]] = {}
    position = {(row["rank"], row["candidate_id"]): i for i, row in enumerate(emitted, start=1)}
    for row in cited:
        key = (row["rank"], row["candidate_id"])
        if key not in position:
            broken.setdefault(0, "unknown_candidate")
            continue
        try:
            span = Span(row["doc_id"], row["start"], row["end"])
        except SpanError:
            broken.setdefault(position[key], "negative_offset" if row["start"] < 0 else "empty_span")
            continue
        by_entry.setdefault(key, {}).setdefault(row["slot_id"], []).append(span)
        if documents.setdefault(span.doc_id, row["sha256"]) != row["sha256"]:
            documents[span.doc_id] = "stated in two ways"  # and so no document's hash
    for i, row in enumerate(emitted, start=1):
        if row["rank"] != i:
            broken.setdefault(i, "rank_order")
    entries = tuple(
        Entry(row["candidate_id"], tuple((s, tuple(spans)) for s, spans in slots.items()))
        for row in emitted
        for slots in (by_entry.get((row["rank"], row["candidate_id"]), {}),)
    )
    codes = tuple(None if row["status"] == CERTIFIED else row["reject_code"] or "" for row in emitted)
    certified = Certified(*instance, len(ranked), entries, documents)
    return Listed(place, certified, codes, tuple(sorted(broken.items())))


# ---- documents ------------------------------------------------------------------------------------------------------


def load_corpus(path: str | Path) -> Corpus:
    """The documents of a corpus.

    Args:
        path: documents.parquet, a folder that holds it or `*.jsonl` files, or a JSON-lines file.

    Raises:
        DataError: nothing of the kind, a broken line, or a document id that stands twice.
    """
    path = Path(path)
    if path.is_dir():
        files = [path / "documents.parquet"] if (path / "documents.parquet").is_file() else sorted(path.glob("*.jsonl"))
    else:
        files = [path]
    if not files or not files[0].is_file():
        mend = "give documents.parquet or a JSON-lines corpus"
        raise DataError("no documents here", file=path, field="--corpus", mend=mend)
    sources: dict[str, Source] = {}
    for file in files:
        for place, doc_id, source in _parquet(file) if file.suffix == ".parquet" else _json_lines(file):
            if doc_id in sources:
                raise DataError(f"document {doc_id!r:.60} stands twice", file=file, line=place)
            sources[doc_id] = source
    return Corpus(sources)


Found = Iterator[tuple[int | None, str, Source]]


def _parquet(file: Path) -> Found:
    for batch in Reader("ingest/documents", file=file).batches():
        for doc_id, text, window_id in batch.select("doc_id", "text", "window_id").iter_rows():
            yield None, doc_id, Source(text, window_id)


def _json_lines(file: Path) -> Found:
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            if not raw.strip():
                continue
            try:
                record = json.loads(raw.decode("utf-8-sig"))
            except ValueError as error:
                raise DataError(f"not JSON: {error}", file=file, line=number) from None
            if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                raise DataError("a document needs a text", file=file, line=number, field="text")
            # The same defaults as at ingest: a name made of file and line, a window of its own.
            doc_id = record.get("doc_id") or f"{file.stem}-{number:06d}"
            window_id = record.get("group") or doc_id
            if not isinstance(doc_id, str) or not isinstance(window_id, str):
                raise DataError("doc_id and group are strings", file=file, line=number)
            yield number, doc_id, Source(record["text"], window_id)


# ---- export ---------------------------------------------------------------------------------------------------------


def export(lists: Iterable[Listed], corpus: Corpus, uncertified: bool = False) -> Iterator[str]:
    """Lists in the interchange form, one line of JSON each.

    Args:
        lists: of a rank directory.
        corpus: to quote from.
        uncertified: whether to keep entries that the system did not certify; by default they are left out, because
            whoever reads a list in this form takes each entry for certified.

    Raises:
        CertificateError: a span outside its document.
    """
    for listed in lists:
        if listed.certified is None:
            raise listed.error or CertificateError("json", "not a list")
        certified = listed.certified
        kept = [
            entry for entry, code in zip(certified.entries, listed.codes, strict=True) if code is None or uncertified
        ]
        named = sorted({span.doc_id for entry in kept for span in entry.spans} & set(corpus.sources))
        documents = {d: Document(d, corpus.sources[d].text, corpus.sources[d].sha256, ()) for d in named}
        window = Window(certified.window_id, "", "", certified.k, documents, (), (), ())
        yield to_json(kept, window, certified.intent_id)
