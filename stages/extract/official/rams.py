"""RAMS: argument links as scorer.py of the release counts them (Ebner et al., "Multi-Sentence Argument Linking", 2020).

A link is (trigger span, argument span, role), spans in tokens of the snippet, both ends inclusive. Links are compared
as multisets snippet by snippet, so a link that is predicted twice is right once and wrong once. The same counts are
kept by distance: sentence of the argument minus sentence of the trigger, from -2 to 2. Type-constrained decoding keeps,
for every role of the *gold* event type, the most confident links up to the number that the ontology allows. The event
type is never scored, and the trigger only as part of a link.

Ingest stitches the snippets of an article into documents; `place` finds every snippet in them again.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from pipeline import tables
from pipeline.errors import DataError
from pipeline.files import write_text
from pipeline.tables import Reader
from stages.extract.official import Counts
from stages.extract.scores import Decision
from stages.ingest.corpora import want
from stages.ingest.lines import parse_object, read_lines
from stages.ingest.rams import ONTOLOGY, Snippet, read_snippet, stitch
from stages.ingest.records import RecordError

FILES = ("train.jsonlines", "dev.jsonlines", "test.jsonlines")
DISTANCES = (-2, -1, 0, 1, 2)
FOUND = ("events", "mentions", "arguments")

Trigger = Literal["decided", "given"]
"""Whose arguments answer for a gold trigger; always a hypothesis whose span is, in tokens, the gold trigger's.

`decided`: the most confident one (the first type on a tie), if it reaches the event threshold. End to end.
`given`: the one of the gold type, else the most confident one, however improbable. The task as published gives trigger
and type; the lattice of hypotheses is the nearest that an extractor which finds its own triggers can come to it.

Where there is no such hypothesis nothing is predicted, and every gold link of the snippet is missed.
"""

Span = tuple[int, int]
"""First and last token in the snippet, from 0, inclusive."""
Multiplicities = Mapping[str, Mapping[str, int]]
"""Event type -> role -> how many arguments may have it."""
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Link:
    """A predicted argument."""

    trigger: Span
    argument: Span
    role: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Scores:
    """All links, and links by distance; links further than two sentences apart are in `overall` alone."""

    overall: Counts = field(default_factory=Counts)
    by_distance: Mapping[int, Counts] = field(default_factory=lambda: dict.fromkeys(DISTANCES, Counts()))

    def __add__(self, other: Scores) -> Scores:
        return Scores(self.overall + other.overall, {d: self.by_distance[d] + other.by_distance[d] for d in DISTANCES})

    def as_dict(self) -> dict[str, Any]:
        return {**self.overall.as_dict(), "by_distance": {str(d): c.as_dict() for d, c in self.by_distance.items()}}


# ---- scoring ---------------------------------------------------------------------------------------------------------


def score(
    snippets: Iterable[Snippet], predictions: Mapping[str, Sequence[Link]], ontology: Multiplicities | None = None
) -> Scores:
    """Compare predictions with gold.

    Args:
        snippets: gold; of two with one doc_key the last one counts.
        predictions: doc_key -> links; a snippet without an entry has none, an entry without a snippet is not looked at.
        ontology: for type-constrained decoding; a type that it lacks is not constrained.

    Raises:
        DataError: a predicted span lies outside of its snippet or crosses a sentence.
    """
    total = Scores()
    for snippet in {s.doc_key: s for s in snippets}.values():
        links = predictions.get(snippet.doc_key, ())
        allowed = None if ontology is None else ontology.get(snippet.event_type)
        if allowed is not None:
            links = constrain(links, allowed)
        total += _compare(snippet, links)
    return total


def constrain(links: Iterable[Link], allowed: Mapping[str, int]) -> list[Link]:
    """The most confident links up to the number of each role; the order given decides among equals."""
    kept: list[Link] = []
    used: Counter[str] = Counter()
    for link in sorted(links, key=lambda link: -link.confidence):
        if used[link.role] < allowed.get(link.role, 0):
            used[link.role] += 1
            kept.append(link)
    return kept


def _compare(snippet: Snippet, links: Iterable[Link]) -> Scores:
    first = _first_tokens(snippet)
    trigger = _whole(snippet.trigger, first)
    gold = Counter((trigger, _whole(place, first), role) for place, role in snippet.arguments)
    found = Counter((link.trigger, link.argument, link.role) for link in links)
    overall, by_distance = Counts(), dict.fromkeys(DISTANCES, Counts())
    for key in gold | found:
        counts = Counts(min(gold[key], found[key]), found[key], gold[key])
        distance = _sentence(key[1], first, snippet.doc_key) - _sentence(key[0], first, snippet.doc_key)
        overall += counts
        if distance in by_distance:
            by_distance[distance] += counts
    return Scores(overall, by_distance)


def _first_tokens(snippet: Snippet) -> list[int]:
    """First token of every sentence, and the number of tokens at the end."""
    first = [0]
    for sentence in snippet.sentences:
        first.append(first[-1] + len(sentence))
    return first


def _whole(place: tuple[int, int, int], first: Sequence[int]) -> Span:
    """Tokens of a sentence -> tokens of the snippet."""
    sentence, start, end = place
    return first[sentence] + start, first[sentence] + end


def _sentence(span: Span, first: Sequence[int], doc_key: str) -> int:
    sentence = bisect_right(first, span[0]) - 1
    if not 0 <= span[0] <= span[1] < first[-1] or span[1] >= first[sentence + 1]:
        raise DataError(f"tokens {span[0]}-{span[1]} do not lie in one sentence of the snippet", field=doc_key)
    return sentence


# ---- where the snippets stand ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Placed:
    """A snippet in the document that ingest made of it.

    Args:
        first: first token of every sentence of the snippet, and the number of tokens at the end.
        starts, ends: characters of the document at which the snippet's tokens begin and end.
    """

    snippet: Snippet
    doc_id: str
    first: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def trigger(self) -> Span:
        return _whole(self.snippet.trigger, self.first)

    def tokens(self, start: int, end: int) -> Span | None:
        """The tokens that characters of the document touch; one that is cut counts whole.

        None when the characters begin outside of the snippet. A span that runs on beyond its sentence keeps the part
        in the sentence where it begins: the scorer knows no other.
        """
        if not self.starts[0] <= start < self.ends[-1]:
            return None
        begin = bisect_right(self.ends, start)
        last = bisect_left(self.starts, end) - 1
        sentence = bisect_right(self.first, begin) - 1
        last = min(last, self.first[sentence + 1] - 1)
        return (begin, last) if last >= begin else None


def place(snippets: Sequence[Snippet]) -> list[Placed]:
    """Find the snippets of one article in the documents that the importer stitches of them; ordered by doc_key."""
    out: list[Placed] = []
    for piece in stitch(snippets):
        at, spans = 0, list[list[Span]]()
        for sentence in piece.sentences:
            spans.append([])
            for token in sentence:
                spans[-1].append((at, at + len(token)))
                at += len(token) + 1
        doc_id = min(s.doc_key for s, _ in piece.snippets)
        for snippet, shift in piece.snippets:
            own = [span for sentence in spans[shift : shift + len(snippet.sentences)] for span in sentence]
            starts, ends = zip(*own, strict=True)
            out.append(Placed(snippet, doc_id, tuple(_first_tokens(snippet)), starts, ends))
    return sorted(out, key=lambda placed: placed.snippet.doc_key)


def check(placed: Placed, text: str) -> None:
    """Every token must stand in the text where it is thought to.

    Raises:
        DataError: the corpus is not the one that was ingested.
    """
    tokens = (token for sentence in placed.snippet.sentences for token in sentence)
    for token, start, end in zip(tokens, placed.starts, placed.ends, strict=True):
        if text[start:end] != token:
            what = f"snippet {placed.snippet.doc_key!r:.80} does not stand in document {placed.doc_id!r:.80}"
            raise DataError(what, field="ingest.path", mend="run `dvc repro ingest`: the corpus has changed")


# ---- predictions -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Predicted:
    """Predictions, and what became of the hypotheses.

    Args:
        links: doc_key -> links, one entry for every snippet.
        triggers: doc_key -> whether a hypothesis answered for the trigger.
        outside: arguments left out because they lie outside of the snippet, which the annotators did not see.
    """

    links: dict[str, list[Link]]
    triggers: dict[str, bool]
    outside: int


def predict(
    placed: Iterable[Placed], found: Mapping[str, pl.DataFrame], decision: Decision, trigger: Trigger = "decided"
) -> Predicted:
    """What the extractor says about the gold trigger of every snippet.

    Args:
        placed: snippets.
        found: events, mentions, arguments of extract, of at least their documents.
        decision: least confidence of an event (`decided` alone) and of an argument.
        trigger: whose arguments answer, see `Trigger`.

    Returns:
        Predicted: links by descending confidence. Two mentions that touch the same tokens are one link for each role,
        of the higher confidence.
    """
    events: dict[str, list[tuple[int, int, str, float, str]]] = defaultdict(list)
    columns = ("doc_id", "start", "end", "type", "confidence", "event_id")
    for doc_id, *event in found["events"].select(columns).sort("doc_id", "start", "end", "type").iter_rows():
        events[doc_id].append((event[0], event[1], event[2], event[3], event[4]))
    arguments: dict[str, list[tuple[str, int, int, str, float]]] = defaultdict(list)
    joined = (
        found["arguments"].filter(pl.col("confidence") >= decision.argument)
        .join(found["mentions"].select("mention_id", "doc_id", "start", "end"), on="mention_id")
        .select("event_id", "doc_id", "start", "end", "role", "confidence")
    )  # fmt: skip
    for event_id, *argument in joined.iter_rows():
        arguments[event_id].append((argument[0], argument[1], argument[2], argument[3], argument[4]))
    links: dict[str, list[Link]] = {}
    triggers: dict[str, bool] = {}
    outside = 0
    for snippet in placed:
        name = snippet.snippet.doc_key
        event_id = _answering(snippet, events[snippet.doc_id], decision, trigger)
        links[name], left_out = _links(snippet, arguments[event_id] if event_id else ())
        triggers[name] = event_id is not None
        outside += left_out
    return Predicted(links, triggers, outside)


def _answering(
    placed: Placed, events: Iterable[tuple[int, int, str, float, str]], decision: Decision, trigger: Trigger
) -> str | None:
    """The event hypothesis whose arguments answer for the trigger of a snippet."""
    first, last = placed.trigger
    begin, stop = placed.starts[first], placed.ends[last]
    best, answer = (False, -1.0), None
    for start, end, kind, confidence, event_id in events:
        if start >= stop or end <= begin or placed.tokens(start, end) != (first, last):
            continue
        if trigger == "decided" and confidence < decision.event:
            continue
        rank = (trigger == "given" and kind == placed.snippet.event_type, confidence)
        if rank > best:
            best, answer = rank, event_id
    return answer


def _links(placed: Placed, arguments: Iterable[tuple[str, int, int, str, float]]) -> tuple[list[Link], int]:
    best: dict[tuple[Span, str], float] = {}
    outside = 0
    for doc_id, start, end, role, confidence in arguments:
        span = placed.tokens(start, end) if doc_id == placed.doc_id else None
        if span is None:
            outside += 1
            continue
        best[span, role] = max(confidence, best.get((span, role), 0.0))
    order = sorted(best.items(), key=lambda item: (-item[1], item[0]))
    return [Link(placed.trigger, span, role, confidence) for (span, role), confidence in order], outside


# ---- files -----------------------------------------------------------------------------------------------------------


def write_predictions(path: str | Path, links: Mapping[str, Sequence[Link]], triggers: Mapping[str, Span]) -> None:
    """Write what `scorer.py --pred_file` reads: one JSON object per snippet, in order of doc_key.

    Args:
        path: file to write.
        links: doc_key -> links.
        triggers: doc_key -> span of the gold trigger, which stands before its arguments.
    """
    lines = []
    for name in sorted(links):
        arguments = [[*link.argument, link.role, link.confidence] for link in links[name]]
        predictions = [[list(triggers[name]), *arguments]] if arguments else []
        lines.append(json.dumps({"doc_key": name, "predictions": predictions}, ensure_ascii=False))
    write_text(path, "".join(line + "\n" for line in lines))


def read_predictions(records: Iterable[Record]) -> dict[str, list[Link]]:
    """Lines in that form; of two with one doc_key the last one counts.

    Raises:
        DataError: not of that form.
    """
    out: dict[str, list[Link]] = {}
    for record in records:
        try:
            events = record["predictions"]
            if len(events) > 1:
                raise ValueError("more than one event")
            out[record["doc_key"]] = [
                Link((trigger[0], trigger[1]), (argument[0], argument[1]), argument[2], argument[3])
                for trigger, *arguments in events
                for argument in arguments
            ]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"not a prediction in the form of RAMS: {type(error).__name__} {error}") from None
    return out


def read_multiplicities(file: str | Path) -> dict[str, dict[str, int]]:
    """The ontology of the scorer: `type role count role count ...` a line.

    Raises:
        DataError: missing, or not of that form.
    """
    try:
        rows = [line.split() for line in Path(file).read_text(encoding="utf-8").splitlines()]
        return {row[0]: dict(zip(row[1::2], map(int, row[2::2]), strict=True)) for row in rows if row}
    except FileNotFoundError:
        raise DataError("file not found", file=file) from None
    except ValueError as error:
        raise DataError(f"not an ontology: {error}", file=file) from None


def read_release(folder: str | Path, ontology: Multiplicities | None = None) -> tuple[dict[str, list[Snippet]], int]:
    """The release: source_url -> snippets in file order, and how many lines the importer refuses (they are left out).

    Args:
        folder: holds some of `FILES`.
        ontology: what the importer checks types and roles by, where it has one.

    Raises:
        DataError: no file of the release is in the folder.
    """
    files = [file for file in (Path(folder) / name for name in FILES) if file.is_file()]
    if not files:
        raise DataError("no file of the release", file=folder, field="ingest.path", mend=f"one of {', '.join(FILES)}")
    roles = {kind: frozenset(counts) for kind, counts in (ontology or {}).items()}
    articles: dict[str, list[Snippet]] = defaultdict(list)
    refused = 0
    for file in files:
        for line, raw in read_lines(file):
            try:
                if isinstance(raw, RecordError):
                    raise raw
                record = parse_object(raw, line)
                articles[want(record, "source_url", str)].append(read_snippet(record, roles))
            except RecordError:
                refused += 1
    return dict(articles), refused


# ---- a split ---------------------------------------------------------------------------------------------------------


def split_scores(
    folder: str | Path, decision: Decision, splits: Sequence[str] = ("tune", "test"), root: str | Path = "data"
) -> dict[str, Any]:
    """Scores of whole splits: split -> what is scored -> figures; article by article, shard by shard.

    Args:
        folder: the release, params.ingest.path.
        decision: thresholds.
        splits: of ingest/documents; "test" is the official test file.
        root: data directory.

    Returns:
        For each split `decided`, `given` and, where the ontology stands in the folder, `decided_constrained` and
        `given_constrained`: precision, recall, f1, found, gold, by_distance; further `triggers` and, for each way,
        how many of them were found; `outside`; `not_ingested`, snippets of articles that ingest set aside.
    """
    ontology = read_multiplicities(Path(folder) / ONTOLOGY) if (Path(folder) / ONTOLOGY).is_file() else None
    articles, refused = read_release(folder, ontology)
    readers = {name: Reader(f"extract/{name}", root) for name in FOUND}
    documents = Reader("ingest/documents", root)
    ways: tuple[Trigger, ...] = ("decided", "given")
    totals: dict[str, dict[str, Scores]] = {split: defaultdict(Scores) for split in splits}
    counts: dict[str, Counter[str]] = {split: Counter() for split in splits}
    ingested = 0
    for shard in tables.shards("ingest/documents", root):
        texts: dict[str, str] = {}
        split_of: dict[str, str] = {}
        for window_id, doc_id, split, text in (
            documents.frame(shard).select("window_id", "doc_id", "split", "text").iter_rows()
        ):
            texts[doc_id], split_of[window_id] = text, split
        found = {name: reader.frame(shard) for name, reader in readers.items()}
        for split in splits:
            placed = [p for url, s in split_of.items() if s == split for p in place(articles.get(url, ()))]
            for snippet in placed:
                check(snippet, texts.get(snippet.doc_id, ""))
            gold = [p.snippet for p in placed]
            counts[split]["triggers"] += len(gold)
            for way in ways:
                predicted = predict(placed, found, decision, way)
                totals[split][way] += score(gold, predicted.links)
                if ontology is not None:
                    totals[split][f"{way}_constrained"] += score(gold, predicted.links, ontology)
                counts[split][f"triggers_{way}"] += sum(predicted.triggers.values())
                counts[split][f"outside_{way}"] += predicted.outside
        ingested += sum(len(articles.get(url, ())) for url in split_of)
    return {
        "not_ingested": sum(map(len, articles.values())) - ingested + refused,
        "splits": {
            split: {**{name: s.as_dict() for name, s in sorted(totals[split].items())}, **dict(counts[split])}
            for split in splits
        },
    }
