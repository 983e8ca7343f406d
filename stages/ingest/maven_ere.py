"""MAVEN-ERE (Wang et al., EMNLP 2022), official release: `train.jsonl` and `valid.jsonl`; one window per document.

No participant is annotated, so candidates are event chains: one roster row per trigger mention of a chain. Sentences
are tokens joined by a space, texts sentences joined by a line feed, and token offsets (half-open, within the sentence)
become characters. Relations stand between chains in the release; here they join the first mentions of the two chains,
and the chain carries them to the rest. BEFORE, CAUSE, PRECONDITION and SUBEVENT are kept; relations with a time
expression and the other temporal relations are counted and left out. `test.jsonl` has no gold and is not read.

Splits: train in the order of sha256(id) 90/10 into train and tune; valid is test. Every sentence is labelled: the
release lists the words that its annotators found to be no event.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from pipeline.errors import DataError
from pipeline.params import Params
from pipeline.spans import sha256_text
from stages.ingest.corpora import Record, index_files, objects, read_windows, want
from stages.ingest.lines import Index, Line
from stages.ingest.problems import Problems
from stages.ingest.records import Document, Event, RecordError, Relation, Window

SHARES = (("train", 0.9), ("tune", 0.1))
FILES = {"train.jsonl": None, "valid.jsonl": "test"}
RELATIONS = {"BEFORE": "BEFORE", "CAUSE": "CAUSE", "PRECONDITION": "PRECONDITION"}


def windows(params: Params, index: Index, problems: Problems) -> Iterator[Window]:
    """The corpus as windows in ascending order of document id."""
    folder = Path(params.ingest.path)
    if not folder.is_dir():
        raise DataError("corpus not found", file=folder, field="ingest.path", mend="the folder that holds train.jsonl")

    def register(index: Index, record: Record, line: Line) -> None:
        doc_id = want(record, "id", str)
        if not doc_id:
            raise RecordError("field", "empty", field="id")
        index.add(line, doc_id, group=doc_id, split=FILES[line.file.name], key=sha256_text(doc_id))

    def build(_: str, split: str, parts: Sequence[Window]) -> Window:
        (window,) = parts
        return Window(window.window_id, split, window.documents, "event_chain", relations=window.relations)

    index_files([folder / name for name in FILES], index, problems, register)
    index.divide(SHARES)
    yield from read_windows(index, problems, lambda record, _: read_document(record, problems), build)


def read_document(record: Record, problems: Problems) -> Window:
    """One line of the release, as a window whose split is still unknown.

    Raises:
        RecordError: a missing key, a token offset outside its sentence, a trigger that is not the text there.
    """
    doc_id = want(record, "id", str)
    tokens = want(record, "tokens", list)
    if not tokens or not all(isinstance(s, list) and s and all(isinstance(t, str) and t for t in s) for s in tokens):
        raise RecordError("field", "expected a list of lists of tokens", field="tokens")
    lines = [" ".join(sentence) for sentence in tokens]
    begins = [0, *accumulate(len(line) + 1 for line in lines)]
    events: list[Event] = []
    first: dict[str, tuple[int, str]] = {}
    for number, (name, chain) in enumerate(objects(record, "events")):
        key, kind = want(chain, "id", str, name), want(chain, "type", str, name)
        if key in first:
            raise RecordError("duplicate", f"event {key!r:.60} occurs twice", field=f"{name}.id")
        for place, mention in objects(chain, "mention", name):
            start, end = _characters(mention, tokens, begins, place)
            event_id = f"{doc_id}#e{len(events)}"
            events.append(Event(event_id, f"{doc_id}#c{number}", start, end, kind))
            first[key] = min(first.get(key, (start, event_id)), (start, event_id))
        if key not in first:
            raise RecordError("field", "an event without a mention", field=f"{name}.mention")
    times = {want(time, "id", str, name) for name, time in objects(record, "TIMEX")}
    relations = _relations(record, {key: event for key, (_, event) in first.items()}, times, problems)
    document = Document(
        doc_id, "\n".join(lines), tuple((b, b + len(line)) for b, line in zip(begins, lines, strict=False)),
        title=want(record, "title", str) or None, labelled=range(len(lines)), events=events,
    )  # fmt: skip
    return Window(doc_id, "", (document,), "event_chain", relations=relations)


def _characters(mention: Record, tokens: list[list[str]], begins: Sequence[int], name: str) -> tuple[int, int]:
    sentence, offset = want(mention, "sent_id", int, name), want(mention, "offset", list, name)
    if not 0 <= sentence < len(tokens):
        raise RecordError("offset", f"there is no sentence {sentence}", field=f"{name}.sent_id")
    words = tokens[sentence]
    if len(offset) != 2 or any(type(o) is not int for o in offset) or not 0 <= offset[0] < offset[1] <= len(words):
        raise RecordError("offset", f"{offset!r:.60} does not lie in its {len(words)} tokens", field=f"{name}.offset")
    first, last = offset
    surface, stated = " ".join(words[first:last]), want(mention, "trigger_word", str, name)
    if surface.split() != stated.split():
        raise RecordError(
            "surface", f"the tokens are {surface!r:.60}, not {stated!r:.60}", field=f"{name}.trigger_word"
        )
    start = begins[sentence] + sum(len(word) + 1 for word in words[:first])
    return start, start + len(surface)


def _relations(record: Record, first: dict[str, str], times: set[str], problems: Problems) -> list[Relation]:
    wanted: dict[Relation, None] = {}
    groups = [
        *want(record, "temporal_relations", dict).items(), *want(record, "causal_relations", dict).items(),
        ("SUBEVENT", want(record, "subevent_relations", list)),
    ]  # fmt: skip
    for label, pairs in groups:
        kind = "SUBEVENT" if label == "SUBEVENT" else RELATIONS.get(label.upper())
        if not isinstance(pairs, list):
            raise RecordError("field", f"expected a list of pairs, got {pairs!r:.60}", field=label)
        if kind is None:
            problems.leave_out(f"relation {label}", len(pairs))
            continue
        for pair in pairs:
            if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(end, str) for end in pair):
                raise RecordError("field", f"expected a pair of ids, got {pair!r:.60}", field=label)
            if pair[0] in times or pair[1] in times:
                problems.leave_out("relation with a time expression")
                continue
            for end in pair:
                if end not in first:
                    raise RecordError("reference", f"unknown event {end!r:.60}", field=label)
            wanted[Relation(first[pair[0]], first[pair[1]], kind)] = None
    return list(wanted)
