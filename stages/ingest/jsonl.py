"""Bring your own corpus: one JSON object per document (docs/corpus.md). Only `text` is required.

`ingest.path` is a `*.jsonl` file or a folder of such files. Documents of one `group` form a window; they may stand
anywhere in the corpus. A folder may hold `types.json`, {"events": {type: [roles]}}: with it, any other type or role is
an error. Splits are stated per document, or by the file `ingest.splits` names ({split: [doc ids]}), else windows are
divided 80/10/10 in the order of sha256(group); a corpus without any annotation is all `test`, as nothing can be learned
from it. Candidates are the annotated entities, or event chains where the corpus has events and no entity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from pipeline.errors import DataError
from pipeline.files import read_json
from pipeline.params import Params
from pipeline.spans import sha256_text
from pipeline.tables import SPLITS
from stages.ingest.corpora import Record, index_files, objects, read_windows, want
from stages.ingest.images import read_image
from stages.ingest.lines import Index, Line, find_files
from stages.ingest.problems import Problems
from stages.ingest.records import (
    RELATIONS,
    Argument,
    Document,
    Event,
    Kind,
    Mention,
    RecordError,
    Relation,
    Window,
    check_document,
    check_sentences,
    check_span,
    match_surface,
)  # fmt: skip
from stages.ingest.sentences import split_sentences

SHARES = (("train", 0.8), ("tune", 0.1), ("test", 0.1))
TYPES = "types.json"

_DOCUMENT_WORDS = "doc_id group split title date url text sentences labelled entities events arguments relations images"
DOCUMENT = frozenset(_DOCUMENT_WORDS.split())
ENTITY, MENTION = frozenset({"id", "type", "mentions"}), frozenset({"id", "start", "end", "type", "surface"})
EVENT = frozenset({"id", "start", "end", "type", "chain", "realis", "surface"})
ARGUMENT, RELATION = frozenset({"event", "mention", "entity", "role"}), frozenset({"head", "tail", "type"})


@dataclass(frozen=True, slots=True)
class Draft:
    """A document as it was read; its entity and chain ids lack the window's prefix."""

    document: Document
    types: dict[str, str]
    relations: tuple[Relation, ...]


@dataclass(slots=True)
class Corpus:
    """What the first pass learns about the corpus as a whole."""

    root: Path
    types: dict[str, list[str]] | None
    split_of: dict[str, str]
    entities: bool = False
    events: bool = False
    seen: set[str] = field(default_factory=set)


def windows(params: Params, index: Index, problems: Problems) -> Iterator[Window]:
    """The corpus as windows in ascending order of their group."""
    path = Path(params.ingest.path)
    files = find_files(path, ".jsonl")
    root = path if path.is_dir() else path.parent
    types = _read_types(path / TYPES) if path.is_dir() and (path / TYPES).exists() else None
    corpus = Corpus(root, types, _read_splits(params.ingest.splits))

    def register(index: Index, record: Record, line: Line) -> None:
        _register(index, record, line, corpus)

    index_files(files, index, problems, register)
    if missing := sorted(corpus.split_of.keys() - corpus.seen):
        what = f"{len(missing)} documents of this file are not in the corpus, e.g. {missing[0]!r:.60}"
        raise DataError(what, file=params.ingest.splits, field="ingest.splits")
    index.resolve(problems)
    index.divide(SHARES if corpus.entities or corpus.events else (("test", 1.0),))
    kind: Kind = "event_chain" if corpus.events and not corpus.entities else "entity"

    def read(record: Record, line: Line) -> Draft:
        return read_draft(record, _doc_id(record, line), corpus)

    def build(group: str, split: str, drafts: Sequence[Draft]) -> Window:
        return build_window(group, split, kind, drafts)

    yield from read_windows(index, problems, read, build)


def _read_types(file: Path) -> dict[str, list[str]]:
    value = read_json(file)
    events = value.get("events") if isinstance(value, dict) and set(value) == {"events"} else None
    if not isinstance(events, dict) or not all(
        isinstance(roles, list) and all(isinstance(role, str) for role in roles) for roles in events.values()
    ):
        raise DataError('expected {"events": {type: [roles]}}', file=file)
    return events


def _read_splits(file: str) -> dict[str, str]:
    """doc_id -> split."""
    if not file:
        return {}
    value = read_json(file)
    if not isinstance(value, dict) or not all(
        isinstance(ids, list) and all(isinstance(doc, str) for doc in ids) for ids in value.values()
    ):
        raise DataError("expected {split: [doc ids]}", file=file, field="ingest.splits")
    split_of: dict[str, str] = {}
    for split, ids in value.items():
        if split not in SPLITS:
            what = f"unknown split {split!r:.60}; the splits are {', '.join(SPLITS)}"
            raise DataError(what, file=file, field="ingest.splits")
        for doc_id in ids:
            if split_of.setdefault(doc_id, split) != split:
                raise DataError(f"{doc_id!r:.60} is in two splits", file=file, field="ingest.splits")
    return split_of


def _doc_id(record: Record, line: Line) -> str:
    return _text(record, "doc_id") or f"{line.file.stem}-{line.number:06d}"


def _register(index: Index, record: Record, line: Line, corpus: Corpus) -> None:
    """First pass: ids, group, split, and whether anything is annotated."""
    doc_id = _doc_id(record, line)
    group, split = _text(record, "group") or doc_id, _text(record, "split")
    if split is not None and split not in SPLITS:
        raise RecordError("split", f"unknown split {split!r:.60}; the splits are {', '.join(SPLITS)}", field="split")
    if corpus.split_of:
        listed = corpus.split_of.get(doc_id)
        if listed is None and split is None:
            raise RecordError("split", f"{doc_id!r:.60} is in no split of ingest.splits", field="split")
        if listed is not None and split is not None and listed != split:
            what = f"{doc_id!r:.60} is {split} here and {listed} in ingest.splits"
            raise RecordError("split", what, field="split")
        split = split or listed
    index.add(line, doc_id, group, split, key=sha256_text(group))
    if doc_id in corpus.split_of:
        corpus.seen.add(doc_id)
    corpus.entities |= bool(record.get("entities"))
    corpus.events |= bool(record.get("events"))


def read_draft(record: Record, doc_id: str, corpus: Corpus) -> Draft:
    """One line, checked; offsets are half-open characters (Unicode code points) of `text`.

    Raises:
        RecordError: see `records.REASONS`.
    """
    _keys(record, DOCUMENT, "")
    text = want(record, "text", str)
    if not text.strip():
        raise RecordError("text", "the document has no text", field="text")
    sentences = split_sentences(text)
    if "sentences" in record:
        sentences = tuple(
            _pair(text, pair, f"sentences[{i}]") for i, pair in enumerate(want(record, "sentences", list))
        )
        check_sentences(text, sentences)
    mentions, types = _read_mentions(record, doc_id, text)
    events = _read_events(record, doc_id, text, corpus)
    document = Document(
        doc_id, text, sentences, _text(record, "title"), _date(record), _text(record, "url"),
        _labelled(record, len(sentences)), mentions, events, _read_arguments(record, doc_id, mentions, events, corpus),
        [
            read_image(corpus.root, want(image, "path", str, name), f"{name}.path")
            for name, image in objects(record, "images")
            if _keys(image, frozenset({"path"}), name)
        ],
    )  # fmt: skip
    check_document(document)
    return Draft(document, types, tuple(_read_relations(record, doc_id)))


def _read_mentions(record: Record, doc_id: str, text: str) -> tuple[list[Mention], dict[str, str]]:
    mentions: list[Mention] = []
    types: dict[str, str] = {}
    entities: set[str] = set()
    for name, entity in objects(record, "entities"):
        _keys(entity, ENTITY, name)
        entity_id, entity_type = _id(entity, "id", name), _text(entity, "type", name)
        if entity_id in entities:
            raise RecordError("duplicate", f"entity {entity_id!r:.60} occurs twice", field=f"{name}.id")
        entities.add(entity_id)
        if entity_type:
            types[entity_id] = entity_type
        for k, (place, mention) in enumerate(objects(entity, "mentions", name)):
            _keys(mention, MENTION, place)
            start, end = _span(mention, text, place)
            mention_id = _id(mention, "id", place) if "id" in mention else f"{entity_id}.{k}"
            kind = _text(mention, "type", place) or entity_type
            mentions.append(Mention(f"{doc_id}#{mention_id}", entity_id, start, end, kind))
    return mentions, types


def _read_events(record: Record, doc_id: str, text: str, corpus: Corpus) -> list[Event]:
    events = []
    for name, event in objects(record, "events"):
        _keys(event, EVENT, name)
        event_id, kind = _id(event, "id", name), want(event, "type", str, name)
        if not kind or (corpus.types is not None and kind not in corpus.types):
            raise RecordError("type", f"unknown event type {kind!r:.60}", field=f"{name}.type")
        start, end = _span(event, text, name)
        chain = _id(event, "chain", name) if event.get("chain") is not None else ""
        events.append(Event(f"{doc_id}#{event_id}", chain, start, end, kind, _text(event, "realis", name)))
    return events


def _read_arguments(
    record: Record, doc_id: str, mentions: Sequence[Mention], events: Sequence[Event], corpus: Corpus
) -> list[Argument]:
    """Arguments; one that names an entity goes to the mention of it that stands nearest to the trigger."""
    triggers = {event.event_id: event for event in events}
    arguments = []
    for name, argument in objects(record, "arguments"):
        _keys(argument, ARGUMENT, name)
        event_id, role = f"{doc_id}#{_id(argument, 'event', name)}", want(argument, "role", str, name)
        event = triggers.get(event_id)
        if event is None:
            raise RecordError("reference", f"unknown event {argument['event']!r:.60}", field=f"{name}.event")
        if not role or (corpus.types is not None and role not in corpus.types[event.type]):
            raise RecordError("type", f"unknown role {role!r:.60} of {event.type}", field=f"{name}.role")
        if ("mention" in argument) == ("entity" in argument):
            raise RecordError("field", "needs either a mention or an entity", field=name)
        if "mention" in argument:
            mention_id = f"{doc_id}#{_id(argument, 'mention', name)}"
        else:
            entity = _id(argument, "entity", name)
            own = [m for m in mentions if m.entity_id == entity]
            if not own:
                what = f"entity {entity!r:.60} has no mention in this document"
                raise RecordError("reference", what, field=f"{name}.entity")
            mention_id = min(own, key=lambda m: (max(m.start - event.end, event.start - m.end), m.start)).mention_id
        arguments.append(Argument(event_id, mention_id, role))
    return arguments


def _read_relations(record: Record, doc_id: str) -> Iterator[Relation]:
    for name, relation in objects(record, "relations"):
        _keys(relation, RELATION, name)
        kind = want(relation, "type", str, name)
        if kind not in RELATIONS:
            what = f"relation {kind!r:.60} is not one of {', '.join(RELATIONS)}"
            raise RecordError("type", what, field=f"{name}.type")
        yield Relation(f"{doc_id}#{_id(relation, 'head', name)}", f"{doc_id}#{_id(relation, 'tail', name)}", kind)


def build_window(group: str, split: str, kind: Kind, drafts: Sequence[Draft]) -> Window:
    """Documents of a group; equal entity ids and chain ids in it are one entity and one chain."""
    documents = []
    types: dict[str, str] = {}
    for position, draft in enumerate(drafts):
        document = draft.document
        for entity, entity_type in draft.types.items():
            types.setdefault(f"{group}#{entity}", entity_type)
        documents.append(
            replace(
                document,
                mentions=[replace(m, entity_id=f"{group}#{m.entity_id}") for m in document.mentions],
                events=[
                    replace(e, chain_id=f"{group}#{e.chain_id or f'{position}.{i}'}")
                    for i, e in enumerate(document.events)
                ],
            )
        )
    relations = [relation for draft in drafts for relation in draft.relations]
    return Window(group, split, documents, kind, types, relations)


def _keys(record: Record, known: frozenset[str], name: str) -> bool:
    """True, once no key is unknown."""
    for key in record:
        if key not in known:
            mend = f"known are {', '.join(sorted(known))}"
            raise RecordError("field", "unknown key", field=f"{name}.{key}" if name else key, mend=mend)
    return True


def _text(record: Record, key: str, name: str = "") -> str | None:
    """An optional string; absent, null and the empty string are the same."""
    return None if record.get(key) is None else want(record, key, str, name) or None


def _id(record: Record, key: str, name: str) -> str:
    value = want(record, key, str, name)
    if not value or "#" in value:
        raise RecordError("field", f"an id is not empty and holds no #, got {value!r:.60}", field=f"{name}.{key}")
    return value


def _span(record: Record, text: str, name: str) -> tuple[int, int]:
    for key in ("start", "end"):
        if key not in record:
            raise RecordError("field", "missing key", field=f"{name}.{key}")
    start, end = check_span(text, record["start"], record["end"], name)
    if record.get("surface") is not None:
        match_surface(text, start, end, want(record, "surface", str, name), f"{name}.surface")
    return start, end


def _pair(text: str, pair: object, name: str) -> tuple[int, int]:
    if not isinstance(pair, list) or len(pair) != 2:
        raise RecordError("field", f"expected [start, end], got {pair!r:.60}", field=name)
    return check_span(text, pair[0], pair[1], name)


def _labelled(record: Record, sentences: int) -> Sequence[int]:
    """Sentences annotated exhaustively: those listed, else all where the document has the key `events`."""
    if "labelled" not in record:
        return range(sentences) if isinstance(record.get("events"), list) else ()
    listed = want(record, "labelled", list)
    if any(type(i) is not int or not 0 <= i < sentences for i in listed) or len(set(listed)) != len(listed):
        what = f"expected different sentence numbers from 0 to {sentences - 1}"
        raise RecordError("reference", what, field="labelled")
    return sorted(listed)


def _date(record: Record) -> str | None:
    value = _text(record, "date")
    if value is not None:
        try:
            datetime.fromisoformat(value)
        except ValueError:
            raise RecordError("field", f"not an ISO date: {value!r:.60}", field="date") from None
    return value
