r"""RAMS 1.0 (Ebner et al., ACL 2020): five-sentence snippets with one annotated trigger each.

Reads the release's `train.jsonlines`, `dev.jsonlines` and `test.jsonlines` from `ingest.path`; train may be missing.
A window is a `source_url`. Its snippets overlap (about a fifth of the sentences repeat), so they are stitched: as long
as one snippet holds another, or ends with the whole sentences that another begins with, the longest such overlap is
joined; a URL may leave several documents. Offsets, inclusive and in tokens, become half-open characters of the text
built from tokens joined by a space, with a line feed between sentences. The prefix `evt\d+arg\d+` of a role is dropped.

Splits, by URL: with train, the official ones (dev is tune); without, dev in the order of sha256(source_url) 80/20 into
train and tune. Coreference is not annotated, so candidates are clusters of arguments of equal name in the window.
Fillers have no type here, so every role's filler is a candidate, places included. A snippet's annotators saw one
trigger, so only the sentences that hold a trigger count as labelled; that other sentences hold no event is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError
from pipeline.params import Params
from pipeline.spans import sha256_text
from stages.ingest.clusters import cluster
from stages.ingest.corpora import Record, index_files, read_windows, want
from stages.ingest.lines import Index, Line
from stages.ingest.problems import Problems
from stages.ingest.records import Argument, Document, Event, Mention, RecordError, Window

SHARES = (("train", 0.8), ("tune", 0.2))
ONTOLOGY = "event_role_multiplicities.txt"

LONE_OVERLAP = 5
"""Tokens that a single shared sentence needs for two snippets to be joined on it: headlines and boilerplate repeat."""

_ROLE = re.compile(r"evt\d+arg\d+(?P<role>.+)")

Tokens = tuple[str, ...]
Place = tuple[int, int, int]
"""(sentence, first token, last token), inclusive, sentence and tokens from 0."""


@dataclass(frozen=True, slots=True)
class Snippet:
    """A snippet; `arguments` are (place, role)."""

    doc_key: str
    sentences: tuple[Tokens, ...]
    trigger: Place
    event_type: str
    arguments: tuple[tuple[Place, str], ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """Stitched sentences and, for each snippet in them, the index of its first sentence."""

    sentences: tuple[Tokens, ...]
    snippets: tuple[tuple[Snippet, int], ...]


def windows(params: Params, index: Index, problems: Problems) -> Iterator[Window]:
    """The corpus as windows in ascending order of URL."""
    folder = Path(params.ingest.path)
    if not folder.is_dir():
        raise DataError(
            "corpus not found", file=folder, field="ingest.path", mend="the folder that holds dev.jsonlines"
        )
    train = folder / "train.jsonlines"
    files = {train: "train"} if train.is_file() else {}
    files |= {folder / "dev.jsonlines": "tune" if files else "", folder / "test.jsonlines": "test"}
    ontology = _read_ontology(folder / ONTOLOGY)

    def register(index: Index, record: Record, line: Line) -> None:
        url, key = want(record, "source_url", str), want(record, "doc_key", str)
        if not url or not key:
            raise RecordError("field", "empty", field="doc_key" if url else "source_url")
        index.add(line, key, group=url, split=files[line.file] or None, key=sha256_text(url), field="doc_key")

    index_files(files, index, problems, register)
    index.resolve(problems)
    index.divide(SHARES)
    yield from read_windows(index, problems, lambda record, _: read_snippet(record, ontology), build_window)


def _read_ontology(file: Path) -> dict[str, frozenset[str]]:
    """Event type -> roles, from the file of the corpus' scorer; empty where that file is missing."""
    if not file.is_file():
        return {}
    try:
        rows = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error.reason}", file=file) from None
    return {row[0]: frozenset(row[1::2]) for row in rows if row}


def read_snippet(record: Record, ontology: dict[str, frozenset[str]]) -> Snippet:
    """One line of the release.

    Raises:
        RecordError: a missing key, a token offset outside the snippet, not exactly one trigger, a type or role that the
            ontology lacks.
    """
    sentences = tuple(_tokens(s, f"sentences[{i}]") for i, s in enumerate(want(record, "sentences", list)))
    if not sentences:
        raise RecordError("text", "the snippet has no sentence", field="sentences")
    triggers = want(record, "evt_triggers", list)
    if len(triggers) != 1:
        raise RecordError("field", f"expected one trigger, got {len(triggers)}", field="evt_triggers")
    try:
        first, last, ((event_type, _),) = triggers[0]
        links = [(start, end, role) for _, (start, end), role in want(record, "gold_evt_links", list)]
    except (TypeError, ValueError):
        raise RecordError("field", "not of the release's form", field="evt_triggers or gold_evt_links") from None
    trigger = _place(sentences, first, last, "evt_triggers[0]")
    if not isinstance(event_type, str) or not event_type or (ontology and event_type not in ontology):
        raise RecordError("type", f"unknown event type {event_type!r:.60}", field="evt_triggers[0]")
    arguments = []
    for i, (start, end, role_id) in enumerate(links):
        match = _ROLE.fullmatch(role_id) if isinstance(role_id, str) else None
        if match is None or (ontology and match["role"] not in ontology[event_type]):
            raise RecordError("type", f"unknown role {role_id!r:.60} of {event_type}", field=f"gold_evt_links[{i}]")
        arguments.append((_place(sentences, start, end, f"gold_evt_links[{i}]"), match["role"]))
    return Snippet(want(record, "doc_key", str), sentences, trigger, event_type, tuple(arguments))


def _tokens(value: object, name: str) -> Tokens:
    if not isinstance(value, list) or not value or not all(isinstance(t, str) and t.strip() for t in value):
        raise RecordError("field", f"expected a list of tokens, got {value!r:.60}", field=name)
    return tuple(value)


def _place(sentences: Sequence[Tokens], first: object, last: object, name: str) -> Place:
    """Token offsets of the whole snippet -> sentence and offsets within it."""
    if type(first) is not int or type(last) is not int:
        raise RecordError("offset", f"offset must be a whole number, not {first!r:.30}, {last!r:.30}", field=name)
    before = 0
    for i, sentence in enumerate(sentences):
        if before <= first < before + len(sentence):
            if not first <= last < before + len(sentence):
                break
            return i, first - before, last - before
        before += len(sentence)
    raise RecordError("offset", f"tokens {first}-{last} do not lie in one sentence of the snippet", field=name)


def stitch(snippets: Sequence[Snippet]) -> list[Piece]:
    """Join snippets of one article as long as two overlap, the longest overlap first, ties by doc_key.

    Overlaps are maximal and of whole sentences: one piece inside another, or the end of one = the beginning of the
    other. A single shared sentence counts from `LONE_OVERLAP` tokens on.
    """
    pieces = [Piece(s.sentences, ((s, 0),)) for s in sorted(snippets, key=lambda s: s.doc_key)]
    while True:
        best = (0, 0, 0, 0)
        for i, left in enumerate(pieces):
            for j, right in enumerate(pieces):
                if i != j:
                    size, offset = _overlap(left.sentences, right.sentences)
                    if size > best[0]:
                        best = (size, i, j, offset)
        size, i, j, offset = best
        if not size:
            return pieces
        left, right = pieces[i], pieces[j]
        joined = Piece(
            left.sentences + right.sentences[len(left.sentences) - offset :],
            left.snippets + tuple((s, place + offset) for s, place in right.snippets),
        )
        pieces[min(i, j)] = joined
        del pieces[max(i, j)]


def _overlap(left: tuple[Tokens, ...], right: tuple[Tokens, ...]) -> tuple[int, int]:
    """(shared sentences, index in `left` where `right` begins): right inside left, or left's end = right's start."""
    for offset in range(len(left)):
        size = min(len(left) - offset, len(right))
        if left[offset : offset + size] == right[:size] and (size > 1 or len(right[0]) >= LONE_OVERLAP):
            return size, offset
    return 0, 0


def build_window(url: str, split: str, snippets: Sequence[Snippet]) -> Window:
    """All snippets of a URL as a window of stitched documents."""
    pieces = sorted(stitch(snippets), key=lambda p: min(s.doc_key for s, _ in p.snippets))
    drafts = [_Draft(piece) for piece in pieces]
    spans = [(d, span) for d, draft in enumerate(drafts) for span in sorted({a[1] for a in draft.arguments})]
    groups = cluster([drafts[d].text[start:end] for d, (start, end) in spans])
    entity = {key: f"{url}#p{group}" for key, group in zip(spans, groups, strict=True)}
    return Window(url, split, [draft.document(url, d, entity) for d, draft in enumerate(drafts)])


Characters = tuple[int, int]


class _Draft:
    """A piece as text with character offsets, before its mentions belong to entities."""

    def __init__(self, piece: Piece) -> None:
        self.doc_id = min(s.doc_key for s, _ in piece.snippets)
        starts: list[list[int]] = []
        self.sentences: list[Characters] = []
        at = 0
        for tokens in piece.sentences:
            offsets, begin = [], at
            for token in tokens:
                offsets.append(at)
                at += len(token) + 1
            starts.append(offsets)
            self.sentences.append((begin, at - 1))
        self.text = "\n".join(" ".join(tokens) for tokens in piece.sentences)

        def characters(place: Place, shift: int) -> Characters:
            sentence, first, last = place[0] + shift, place[1], place[2]
            return starts[sentence][first], starts[sentence][last] + len(piece.sentences[sentence][last])

        self.triggers: dict[tuple[Characters, str], None] = {}
        arguments: set[tuple[tuple[Characters, str], Characters, str]] = set()
        for snippet, shift in piece.snippets:
            event = (characters(snippet.trigger, shift), snippet.event_type)
            self.triggers[event] = None
            arguments |= {(event, characters(place, shift), role) for place, role in snippet.arguments}
        self.arguments = [(event, span, role) for event, span, role in sorted(arguments)]
        self.labelled = sorted({s.trigger[0] + shift for s, shift in piece.snippets})

    @property
    def _spans(self) -> list[Characters]:
        return sorted({span for _, span, _ in self.arguments})

    def document(self, url: str, d: int, entity: dict[tuple[int, Characters], str]) -> Document:
        mention = {span: f"{self.doc_id}#m{i}" for i, span in enumerate(self._spans)}
        event = {key: f"{self.doc_id}#e{i}" for i, key in enumerate(sorted(self.triggers))}
        return Document(
            self.doc_id, self.text, tuple(self.sentences), url=url, labelled=self.labelled,
            mentions=[Mention(name, entity[d, span], *span) for span, name in mention.items()],
            events=[
                Event(name, f"{self.doc_id}#c{i}", *key[0], key[1]) for i, (key, name) in enumerate(event.items())
            ],
            arguments=[Argument(event[key], mention[span], role) for key, span, role in self.arguments],
        )  # fmt: skip
