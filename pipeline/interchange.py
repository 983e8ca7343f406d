"""The JSON form of a certified list: self-contained, strict, checkable against the documents alone.

One object per list. Every span carries the text it cites, every cited document its sha256, so that a reader needs no
pipeline, and a changed byte or a shifted offset shows:

    {"version": 1, "window_id": "w1", "intent_id": "who_attacked", "k": 2,
     "documents": {"news:2": "<sha256 of the UTF-8 text>"},
     "entries": [{"rank": 1, "candidate_id": "news:2:0-3",
                  "slots": [{"slot_id": "s1", "spans": [{"doc_id": "news:2", "start": 0, "end": 3, "text": "Ada"}]}]}]}

`from_json` accepts exactly this: no further, missing or repeated key, no offset that is not an integer (`true`, `1.0`
and `NaN` are none), ranks 1, 2, 3 ... in order. `check_documents` needs documents and nothing else; rules that need the
extraction (handles, triggers, sentences) are `pipeline.validity.check`'s. Import these names from
`pipeline.certificates`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.errors import CertificateError
from pipeline.spans import Span, sha256_text
from pipeline.validity import Entry, Limits, check_characters, check_overlap, check_shape

if TYPE_CHECKING:
    from pipeline.windows import Window

VERSION = 1


@dataclass(frozen=True, slots=True)
class Certified:
    """A list as exchanged.

    Args:
        window_id, intent_id: the instance.
        k: the most entries allowed.
        entries: in rank order.
        documents: doc_id -> hex sha256 of the text that was cited.
        texts: span -> quoted text, where the source of this list quotes it (tables do not).
    """

    window_id: str
    intent_id: str
    k: int
    entries: tuple[Entry, ...]
    documents: Mapping[str, str]
    texts: Mapping[Span, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A document of a corpus: its exact text and the window it belongs to."""

    text: str
    window_id: str

    @cached_property
    def sha256(self) -> str:
        """Computed from the text, not taken from anywhere."""
        return sha256_text(self.text)


class Corpus:
    """The documents that certificates are checked against, by doc_id."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self.sources = sources
        self.characters: dict[str, int] = {}
        for source in sources.values():
            self.characters[source.window_id] = self.characters.get(source.window_id, 0) + len(source.text)


# ---- writing --------------------------------------------------------------------------------------------------------


def to_json(entries: Sequence[Entry], window: Window, intent_id: str) -> str:
    """One line of JSON, without a line feed; equal lists give equal text.

    Raises:
        CertificateError: a span in no document of the window, or beyond its end.
    """
    cited = [span for entry in entries for span in entry.spans]
    for span in cited:
        if span.doc_id not in window.documents:
            raise CertificateError("unknown_document", f"{span.doc_id!r} is not in window {window.window_id!r}")
        if span.end > len(window.documents[span.doc_id].text):
            raise CertificateError("out_of_text", f"{span} ends beyond its document")
    value = {
        "version": VERSION,
        "window_id": window.window_id,
        "intent_id": intent_id,
        "k": window.k,
        "documents": {doc_id: window.documents[doc_id].sha256 for doc_id in sorted({s.doc_id for s in cited})},
        "entries": [
            {
                "rank": rank,
                "candidate_id": entry.candidate_id,
                "slots": [
                    {"slot_id": slot_id, "spans": [_span_json(span, window) for span in spans]}
                    for slot_id, spans in entry.slots
                ],
            }
            for rank, entry in enumerate(entries, start=1)
        ],
    }
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _span_json(span: Span, window: Window) -> dict[str, object]:
    text = window.documents[span.doc_id].text[span.start : span.end]
    return {"doc_id": span.doc_id, "start": span.start, "end": span.end, "text": text}


# ---- reading --------------------------------------------------------------------------------------------------------


def from_json(text: str) -> Certified:
    """Read one list, strictly.

    Raises:
        CertificateError: on anything that `to_json` would not write; never another exception.
    """
    try:
        raw = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CertificateError("json", f"not JSON: {error}") from None
    _keys(raw, "list", ("version", "window_id", "intent_id", "k", "documents", "entries"))
    if type(raw["version"]) is not int or raw["version"] != VERSION:
        raise CertificateError("version", f"version {_shown(raw['version'])}, expected {VERSION}")
    documents = _typed(raw, "documents", dict)
    texts: dict[Span, str] = {}
    entries = tuple(_read_entry(entry, rank, texts) for rank, entry in enumerate(_typed(raw, "entries", list), start=1))
    cited = {span.doc_id for entry in entries for span in entry.spans}
    if cited != set(documents):
        odd = sorted(cited ^ set(documents))[0]
        raise CertificateError("listed_documents", f"{_shown(odd)} is cited and not listed, or listed and not cited")
    return Certified(
        _typed(raw, "window_id", str), _typed(raw, "intent_id", str), _typed(raw, "k", int), entries,
        {doc_id: _typed(documents, doc_id, str) for doc_id in documents}, texts,
    )  # fmt: skip


def _read_entry(raw: Any, rank: int, texts: dict[Span, str]) -> Entry:
    _keys(raw, "entry", ("rank", "candidate_id", "slots"))
    if _typed(raw, "rank", int) != rank:
        raise CertificateError("rank_order", f"rank {_shown(raw['rank'])} in place {rank}")
    slots = []
    for slot in _typed(raw, "slots", list):
        _keys(slot, "slot", ("slot_id", "spans"))
        spans = tuple(_read_span(span, texts) for span in _typed(slot, "spans", list))
        slots.append((_typed(slot, "slot_id", str), spans))
    return Entry(_typed(raw, "candidate_id", str), tuple(slots))


def _read_span(raw: Any, texts: dict[Span, str]) -> Span:
    _keys(raw, "span", ("doc_id", "start", "end", "text"))
    for name in ("start", "end"):
        if type(raw[name]) is not int:
            raise CertificateError("offset_type", f"{name} is {_shown(raw[name])}")
    if raw["start"] < 0:
        raise CertificateError("negative_offset", f"start is {_shown(raw['start'])}")
    if raw["start"] >= raw["end"]:
        raise CertificateError("empty_span", f"start {_shown(raw['start'])} is not before the end")
    if not _typed(raw, "doc_id", str):
        raise CertificateError("field_type", "doc_id is empty")
    span = Span(raw["doc_id"], raw["start"], raw["end"])
    if texts.setdefault(span, _typed(raw, "text", str)) != raw["text"]:
        raise CertificateError("text_mismatch", f"{span} is quoted in two ways")
    return span


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise CertificateError("duplicate_key", f"key {_shown(key)} stands twice in one object")
        seen[key] = value
    return seen


def _keys(raw: Any, what: str, expected: tuple[str, ...]) -> None:
    if type(raw) is not dict:
        raise CertificateError("json" if what == "list" else "field_type", f"a {what} must be an object")
    for key in expected:
        if key not in raw:
            raise CertificateError("missing_key", f"a {what} lacks {key!r}")
    for key in raw:
        if key not in expected:
            raise CertificateError("unknown_key", f"a {what} has no key {_shown(key)}")


def _typed(raw: dict[str, Any], key: str, kind: type) -> Any:
    if type(raw[key]) is not kind:
        raise CertificateError("field_type", f"{_shown(key)} must be {kind.__name__}, not {_shown(raw[key])}")
    return raw[key]


def _shown(value: Any) -> str:
    """A value for a message: short, and containers by name only, for they may be nested deeply."""
    return type(value).__name__ if isinstance(value, list | dict) else repr(value)[:60]


# ---- checking against documents -------------------------------------------------------------------------------------


def check_json(text: str, corpus: Corpus, limits: Limits) -> dict[int, str]:
    """`from_json`, then `check_documents`; a list that cannot even be read is {0: code}."""
    try:
        certified = from_json(text)
    except CertificateError as error:
        return {0: error.code}
    return check_documents(certified, corpus, limits)


def check_documents(certified: Certified, corpus: Corpus, limits: Limits) -> dict[int, str]:
    """Check a list against documents on their own, without any extraction.

    Returns:
        Rank -> first reject code, of the entries that break a rule; {} when all hold.
    """
    rejected: dict[int, str] = {}
    seen: set[str] = set()
    for rank, entry in enumerate(certified.entries, start=1):
        code = (
            ("too_many_entries" if rank > certified.k else None)
            or ("repeated_candidate" if entry.candidate_id in seen else None)
            or check_shape(entry, limits)
            or next(filter(None, (_check_span(span, certified, corpus) for span in entry.spans)), None)
            or check_overlap(entry.spans)
            or check_characters(entry, limits, corpus.characters.get(certified.window_id, 0))
        )
        if code is not None:
            rejected[rank] = code
        seen.add(entry.candidate_id)
    return rejected


def _check_span(span: Span, certified: Certified, corpus: Corpus) -> str | None:
    source = corpus.sources.get(span.doc_id)
    if source is None:
        return "unknown_document"
    if source.window_id != certified.window_id:
        return "foreign_document"
    if certified.documents.get(span.doc_id) != source.sha256:
        return "document_changed"
    if span.end > len(source.text):
        return "out_of_text"
    quoted = certified.texts.get(span)
    if quoted is not None and quoted != source.text[span.start : span.end]:
        return "text_mismatch"
    return None
