"""The records every importer yields, and the checks that each of them passes before anything is written.

A window is the unit of ranking: documents with their sentences, gold annotation and images. Offsets are half-open
ranges of Unicode code points of the document's text; surfaces are never stored here but cut from the text when a table
row is made, so `text[start:end] == surface` holds by construction, and an importer whose corpus states surfaces
compares them first (`match_surface`).

Ids are unique in the corpus: the id of the document (mentions, events) or of the window (entities, chains), then `#`,
then a part without `#`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.errors import DataError

Kind = Literal["entity", "event_chain"]

REALIS = ("Actual", "Generic", "Other")
RELATIONS = ("BEFORE", "CAUSE", "PRECONDITION", "SUBEVENT")

REASONS = {
    "json": "the line is not one JSON object",
    "encoding": "bytes that are not UTF-8, or a lone surrogate",
    "size": "the line is too long",
    "field": "a missing or unknown key, or a value of the wrong type",
    "offset": "an offset outside the text, or not a whole number",
    "sentence": "sentences that overlap or leave out an annotated span",
    "surface": "the stated surface is not the text between the offsets",
    "type": "an event type, role, relation or realis that is not declared",
    "reference": "an id that is not defined",
    "duplicate": "an id or a row that occurs twice",
    "split": "a group with two splits, or no split",
    "image": "an image that is missing or lies outside the corpus",
    "text": "a document without text",
}
"""Why a record was refused; the keys are counted in data/ingest/summary.json."""


class RecordError(DataError):
    """A record of the corpus is wrong.

    Args:
        reason: key of `REASONS`.
        what: the particulars.
        file, line, field, mend: as in `CertrankError`.
    """

    def __init__(
        self, reason: str, what: str, *, file: str | Path | None = None, line: int | None = None,
        field: str | None = None, mend: str | None = None,
    ) -> None:  # fmt: skip
        self.reason = reason
        super().__init__(what, file=file, line=line, field=field, mend=mend)

    def at(self, file: str | Path, line: int) -> RecordError:
        """The same error with its place, where it has none yet."""
        if self.file is not None:
            return self
        return RecordError(self.reason, self.what, file=file, line=line, field=self.field, mend=self.mend)


@dataclass(frozen=True, slots=True)
class Mention:
    """A participant mention; mentions of one entity_id corefer."""

    mention_id: str
    entity_id: str
    start: int
    end: int
    type: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """An event mention (its trigger); mentions of one chain_id corefer."""

    event_id: str
    chain_id: str
    start: int
    end: int
    type: str
    realis: str | None = None


@dataclass(frozen=True, slots=True)
class Argument:
    """`mention_id` plays `role` in `event_id`."""

    event_id: str
    mention_id: str
    role: str


@dataclass(frozen=True, slots=True)
class Relation:
    """A directed relation between two event mentions of one window."""

    head: str
    tail: str
    type: str


@dataclass(frozen=True, slots=True)
class Image:
    """An attached image: path relative to the corpus, sha256 of its bytes, size in pixels where the header tells."""

    path: str
    sha256: str
    width: int | None
    height: int | None
    media_type: str | None


@dataclass(frozen=True, slots=True)
class Document:
    """One document with its gold.

    Args:
        sentences: half-open character ranges, ascending and disjoint.
        labelled: indices of the sentences that are annotated exhaustively for events.
    """

    doc_id: str
    text: str
    sentences: tuple[tuple[int, int], ...]
    title: str | None = None
    date: str | None = None
    url: str | None = None
    labelled: Sequence[int] = ()
    mentions: Sequence[Mention] = ()
    events: Sequence[Event] = ()
    arguments: Sequence[Argument] = ()
    images: Sequence[Image] = ()


@dataclass(frozen=True, slots=True)
class Window:
    """The unit of ranking.

    Args:
        documents: in window order.
        kind: what its candidates are: entities, or event chains where a corpus annotates no participant.
        entity_types: entity_id -> type, for entities whose type is known.
        relations: between events of any of its documents.
    """

    window_id: str
    split: str
    documents: Sequence[Document]
    kind: Kind = "entity"
    entity_types: dict[str, str] = field(default_factory=dict)
    relations: Sequence[Relation] = ()


def check_text(text: str, name: str) -> None:
    """Refuse text that has no UTF-8 form.

    Raises:
        RecordError: a lone surrogate.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecordError("encoding", f"lone surrogate at character {error.start}", field=name) from None


def check_span(text: str, start: object, end: object, name: str) -> tuple[int, int]:
    """Both offsets, once they are whole numbers inside the text.

    Raises:
        RecordError: a bool, a float, a string; start < 0, end <= start, end beyond the text.
    """
    for key, value in (("start", start), ("end", end)):
        if type(value) is not int:
            raise RecordError("offset", f"offset must be a whole number, not {value!r:.60}", field=f"{name}.{key}")
    assert isinstance(start, int)
    assert isinstance(end, int)
    if not 0 <= start < end <= len(text):
        raise RecordError("offset", f"{start}-{end} does not lie in the text of {len(text)} characters", field=name)
    return start, end


def match_surface(text: str, start: int, end: int, surface: str, name: str) -> None:
    """Compare a stated surface with the text.

    Raises:
        RecordError: they differ.
    """
    if text[start:end] != surface:
        raise RecordError("surface", f"text[{start}:{end}] is {text[start:end]!r:.60}, not {surface!r:.60}", field=name)


def check_sentences(text: str, sentences: Sequence[tuple[int, int]], name: str = "sentences") -> None:
    """Sentences ascend, do not overlap and lie in the text.

    Raises:
        RecordError: they do not, or there is none.
    """
    if not sentences:
        raise RecordError("sentence", "a document needs at least one sentence", field=name)
    last = 0
    for i, (start, end) in enumerate(sentences):
        check_span(text, start, end, f"{name}[{i}]")
        if start < last:
            raise RecordError(
                "sentence", f"sentence {start}-{end} begins before the last one ends", field=f"{name}[{i}]"
            )
        last = end


def check_document(document: Document) -> None:
    """Everything that can be wrong with one document on its own.

    Raises:
        RecordError: see `REASONS`.
    """
    text = document.text
    check_text(document.doc_id, "doc_id")
    check_text(text, "text")
    if not text.strip():
        raise RecordError("text", "the document has no text", field="text")
    check_sentences(text, document.sentences)
    starts = [start for start, _ in document.sentences]

    def hold(start: int, end: int, name: str) -> None:
        check_span(text, start, end, name)
        i = bisect_right(starts, start) - 1
        if i < 0 or start >= document.sentences[i][1]:
            raise RecordError("sentence", f"span {start}-{end} begins outside every sentence", field=name)

    for mention in document.mentions:
        hold(mention.start, mention.end, _local("mentions", mention.mention_id))
    for event in document.events:
        hold(event.start, event.end, _local("events", event.event_id))
        if event.realis is not None and event.realis not in REALIS:
            name = _local("events", event.event_id)
            raise RecordError("type", f"realis {event.realis!r:.60} is not one of {', '.join(REALIS)}", field=name)
    mentions = _unique((m.mention_id for m in document.mentions), "mentions")
    _unique((f"{m.start}-{m.end}" for m in document.mentions), "mentions", "two mentions have the span")
    events = _unique((e.event_id for e in document.events), "events")
    _unique((f"{e.start}-{e.end} and type {e.type}" for e in document.events), "events", "two events have the span")
    for argument in document.arguments:
        if argument.event_id not in events:
            raise RecordError("reference", f"unknown event {_bare(argument.event_id)!r:.60}", field="arguments")
        if argument.mention_id not in mentions:
            raise RecordError("reference", f"unknown mention {_bare(argument.mention_id)!r:.60}", field="arguments")
    _unique(
        (f"{_bare(a.event_id)}, {_bare(a.mention_id)}, {a.role}" for a in document.arguments), "arguments", "repeated"
    )
    if any(not 0 <= i < len(document.sentences) for i in document.labelled):
        raise RecordError("reference", "a labelled sentence that does not exist", field="labelled")


def check_window(window: Window) -> None:
    """What can only be seen over all documents of a window.

    Raises:
        RecordError: a relation between unknown events, a repeated one, an unknown type; event chains that share a span.
    """
    events = {event.event_id for document in window.documents for event in document.events}
    for relation in window.relations:
        if relation.type not in RELATIONS:
            what = f"relation {relation.type!r:.60} is not one of {', '.join(RELATIONS)}"
            raise RecordError("type", what, field="relations")
        for end in (relation.head, relation.tail):
            if end not in events:
                raise RecordError("reference", f"unknown event {_bare(end)!r:.60}", field="relations")
        if relation.head == relation.tail:
            what = f"event {_bare(relation.head)!r:.60} is related to itself"
            raise RecordError("reference", what, field="relations")
    _unique((f"{r.head} {r.type} {r.tail}" for r in window.relations), "relations", "repeated")
    if window.kind == "event_chain":
        for document in window.documents:
            spans = (f"{event.start}-{event.end}" for event in document.events)
            _unique(spans, "events", "candidates are event chains, and two events have the span")


def _unique(values: Iterable[str], name: str, what: str = "id occurs twice:") -> set[str]:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise RecordError("duplicate", f"{what} {_bare(value)!r:.80}", field=name)
        seen.add(value)
    return seen


def _bare(identifier: str) -> str:
    return identifier.rpartition("#")[2]


def _local(name: str, identifier: str) -> str:
    return f"{name}[{_bare(identifier)}]"
