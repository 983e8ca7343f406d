"""MAVEN-ERE: relations as evaluate.py of its repository counts them (Wang et al., 2022).

The unit is an ordered pair of mentions of one document; a relation between two chains is one between all their
mentions. A pair has one label per task or none. Precision is over pairs with a predicted label, recall over pairs with
a gold label, a pair is right when the labels are equal, and counts are added up over all types and documents (micro).
Mentions that are not annotated do not count. Time expressions are mentions too in the temporal task.

Gold comes from the release (`read_document`) or from our tables (`table_documents`), where ingest has dropped time
expressions and all temporal relations but BEFORE: the temporal figure of tables is about BEFORE between events, and not
the official one. Causal and subevent figures are the same either way.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import tables
from pipeline.errors import DataError
from pipeline.files import write_text
from pipeline.tables import Reader
from stages.extract.official import Counts
from stages.ingest.corpora import objects, want
from stages.ingest.lines import parse_object, read_lines
from stages.ingest.maven_ere import FILES
from stages.ingest.records import RecordError

TASKS: dict[str, tuple[str, ...]] = {
    "temporal": ("BEFORE", "OVERLAP", "CONTAINS", "SIMULTANEOUS", "ENDS-ON", "BEGINS-ON"),
    "causal": ("PRECONDITION", "CAUSE"),
    "subevent": ("SUBEVENT",),
}
TASK_OF = {kind: task for task, kinds in TASKS.items() for kind in kinds}
THRESHOLDS = (0.01, 0.02, 0.03, 0.05, 0.075, *(i / 20 for i in range(2, 20)))
TUNE_WINDOWS = 500
"""Thresholds are chosen on at most so many tune windows, the first by id."""
SPAN = ("doc_id", "start", "end")

Pair = tuple[str, str]
Labels = dict[str, dict[Pair, str]]
"""Task -> (head mention, tail mention) -> type."""
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Document:
    """Gold of one document (of one window, from tables).

    Args:
        doc_id: its id.
        mentions: ids of event mentions, in the order in which they are annotated.
        times: ids of time expressions.
        labels: relations between mentions.
    """

    doc_id: str
    mentions: tuple[str, ...]
    times: frozenset[str]
    labels: Labels


def score(documents: Iterable[Document], predictions: Mapping[str, Labels]) -> dict[str, Counts]:
    """Counts per task.

    Args:
        documents: gold.
        predictions: doc_id -> labels; a document without an entry has none.
    """
    totals = dict.fromkeys(TASKS, Counts())
    for document in documents:
        found = predictions.get(document.doc_id, {})
        events = frozenset(document.mentions)
        for task in TASKS:
            known = events | document.times if task == "temporal" else events
            gold = document.labels.get(task, {})
            labels = {pair: kind for pair, kind in found.get(task, {}).items() if known.issuperset(pair)}
            right = sum(gold.get(pair) == kind for pair, kind in labels.items())
            totals[task] += Counts(right, len(labels), len(gold))
    return totals


# ---- gold ------------------------------------------------------------------------------------------------------------


def read_document(record: Record) -> Document:
    """One line of the release. Of two labels of a pair the last one counts, in the order of the file.

    Raises:
        DataError: a missing key, an unknown relation, a relation of something unknown.
    """
    chains: dict[str, tuple[str, ...]] = {}
    for name, event in objects(record, "events"):
        chains[want(event, "id", str, name)] = tuple(
            want(m, "id", str, place) for place, m in objects(event, "mention", name)
        )
    events = tuple(mention for chain in chains.values() for mention in chain)
    times = frozenset(want(time, "id", str, name) for name, time in objects(record, "TIMEX"))
    timed = {**chains, **{time: (time,) for time in times}}
    labels = {
        "temporal": _expanded(want(record, "temporal_relations", dict), "temporal", timed),
        "causal": _expanded(want(record, "causal_relations", dict), "causal", chains),
        "subevent": _expanded({"SUBEVENT": want(record, "subevent_relations", list)}, "subevent", chains),
    }
    return Document(want(record, "id", str), events, times, labels)


def _expanded(relations: Record, task: str, chains: Mapping[str, tuple[str, ...]]) -> dict[Pair, str]:
    labels: dict[Pair, str] = {}
    for kind, pairs in relations.items():
        if kind not in TASKS[task]:
            raise DataError(f"unknown {task} relation {kind!r:.60}", field=f"{task}_relations")
        for head, tail in pairs:
            for end in (head, tail):
                if end not in chains:
                    raise DataError(f"unknown event {end!r:.60}", field=f"{task}_relations")
            labels.update(dict.fromkeys(product(chains[head], chains[tail]), kind))
    return {pair: kind for pair, kind in labels.items() if pair[0] != pair[1]}


def table_documents(events: pl.DataFrame, relations: pl.DataFrame) -> list[Document]:
    """Gold from our tables, one document per window that has an event; mentions are event ids.

    Args:
        events, relations: of ingest/gold/<split>.
    """
    chain = dict(events.select("event_id", "chain_id").iter_rows())
    members: dict[str, list[str]] = defaultdict(list)
    mentions: dict[str, list[str]] = defaultdict(list)
    for window_id, event_id, chain_id in events.select("window_id", "event_id", "chain_id").iter_rows():
        members[chain_id].append(event_id)
        mentions[window_id].append(event_id)
    labels: dict[str, Labels] = {window_id: {task: {} for task in TASKS} for window_id in mentions}
    ordered = relations.sort("window_id", "type", "head_event_id", "tail_event_id")
    for window_id, head, tail, kind in ordered.select(
        "window_id", "head_event_id", "tail_event_id", "type"
    ).iter_rows():
        pairs = product(members[chain[head]], members[chain[tail]])
        labels[window_id][TASK_OF[kind]].update({pair: kind for pair in pairs if pair[0] != pair[1]})
    return [Document(window_id, tuple(ids), frozenset(), labels[window_id]) for window_id, ids in mentions.items()]


# ---- predictions -----------------------------------------------------------------------------------------------------


def predict(
    gold: pl.DataFrame,
    found: Mapping[str, pl.DataFrame],
    threshold: Mapping[str, float],
    names: Mapping[str, str] | None = None,
    *,
    chains: bool = True,
) -> dict[str, Labels]:
    """What the extractor says about pairs of gold mentions: window_id -> labels.

    A found event stands for the gold mention of the very same span, whatever its type and confidence: mentions are
    given in this task. Of several labels of one pair in one task the most confident one is kept, the first by name on a
    tie.

    Args:
        gold: events of ingest/gold/<split>.
        found: events and relations of extract, of at least these windows.
        threshold: least confidence, by task.
        names: event_id of gold -> id to write, where it is another one.
        chains: whether a relation holds for all events of the two predicted chains, as it does in gold.
    """
    known = gold.group_by(SPAN).agg(pl.col("event_id").sort().alias("gold_id"))
    events = found["events"].select("event_id", "chain_id", *SPAN).join(known, on=SPAN, how="left")
    relations = found["relations"].with_columns(
        task=pl.col("type").replace_strict(TASK_OF, default=None, return_dtype=pl.String)
    )
    floors = pl.DataFrame({"task": list(TASKS), "floor": [threshold[task] for task in TASKS]})
    relations = relations.join(floors, on="task").filter(pl.col("confidence") >= pl.col("floor"))
    chain, members = events.select("event_id", "chain_id"), events.explode("gold_id").drop_nulls("gold_id")
    for end in ("head", "tail"):
        if chains:
            relations = relations.join(chain, left_on=f"{end}_event_id", right_on="event_id").join(
                members.select("chain_id", pl.col("gold_id").alias(end)), on="chain_id"
            ).drop("chain_id")  # fmt: skip
        else:
            own = members.select(pl.col("event_id"), pl.col("gold_id").alias(end))
            relations = relations.join(own, left_on=f"{end}_event_id", right_on="event_id")
    best = (
        relations.filter(pl.col("head") != pl.col("tail"))
        .sort("window_id", "task", "head", "tail", "confidence", "type", descending=[False] * 4 + [True, False])
        .unique(["window_id", "task", "head", "tail"], keep="first", maintain_order=True)
    )
    out: dict[str, Labels] = defaultdict(lambda: {task: {} for task in TASKS})
    for window_id, task, head, tail, kind in best.select("window_id", "task", "head", "tail", "type").iter_rows():
        pair = (head, tail) if names is None else (names[head], names[tail])
        out[window_id][task][pair] = kind
    return dict(out)


def decide(
    documents: Sequence[Document], gold: pl.DataFrame, found: Mapping[str, pl.DataFrame], *, chains: bool = True
) -> dict[str, float]:
    """The threshold with the best F1 of each task, on a split that is not tested on; the lowest of equals."""
    scores = {
        t: score(documents, predict(gold, found, dict.fromkeys(TASKS, t), chains=chains)) for t in THRESHOLDS
    }  # fmt: skip
    return {task: max(THRESHOLDS, key=lambda t: (scores[t][task].f1 or 0.0, -t)) for task in TASKS}


# ---- files -----------------------------------------------------------------------------------------------------------


def write_predictions(path: str | Path, doc_ids: Iterable[str], predictions: Mapping[str, Labels]) -> None:
    """Write `test_prediction.jsonl` as evaluate.py reads it: one object per document, without coreference."""
    lines = []
    for doc_id in doc_ids:
        labels = predictions.get(doc_id, {})
        record: Record = {"id": doc_id}
        for task, kinds in TASKS.items():
            pairs = {kind: [list(p) for p, k in sorted(labels.get(task, {}).items()) if k == kind] for kind in kinds}
            record[f"{task}_relations"] = pairs["SUBEVENT"] if task == "subevent" else pairs
        lines.append(json.dumps(record, ensure_ascii=False))
    write_text(path, "".join(line + "\n" for line in lines))


def read_predictions(records: Iterable[Record]) -> dict[str, Labels]:
    """Lines in that form. Of two labels of a pair, and of two lines of a document, the last one counts.

    Raises:
        DataError: an unknown relation, a pair that is none, a mention related to itself.
    """
    out: dict[str, Labels] = {}
    for record in records:
        labels: Labels = {task: {} for task in TASKS}
        for task in TASKS:
            stated = record.get(f"{task}_relations", {})
            for kind, pairs in ({"SUBEVENT": stated or []} if task == "subevent" else stated).items():
                if kind not in TASKS[task]:
                    raise DataError(f"unknown {task} relation {kind!r:.60}", field=f"{task}_relations")
                for pair in pairs:
                    if len(pair) != 2 or pair[0] == pair[1]:
                        raise DataError(f"expected two mentions, got {pair!r:.80}", field=f"{task}_relations")
                    labels[task][pair[0], pair[1]] = kind
        out[want(record, "id", str)] = labels
    return out


def read_release(folder: str | Path) -> tuple[dict[str, Document], int]:
    """The release: id -> document, and how many lines cannot be read (they are left out)."""
    documents: dict[str, Document] = {}
    refused = 0
    for file in (Path(folder) / name for name in FILES):
        for line, raw in read_lines(file):
            try:
                if isinstance(raw, RecordError):
                    raise raw
                document = read_document(parse_object(raw, line))
                documents[document.doc_id] = document
            except DataError:
                refused += 1
    return documents, refused


# ---- a split ---------------------------------------------------------------------------------------------------------


def split_scores(
    folder: str | Path | None = None, splits: Sequence[str] = ("tune", "test"), root: str | Path = "data"
) -> dict[str, Any]:
    """Scores of whole splits, shard by shard: thresholds, and split -> task -> figures.

    Thresholds are those that do best on windows of tune with a relation, against the gold of our tables; 0.5 where
    there is none.

    Args:
        folder: the release, for the official temporal figure; without it gold comes from our tables, of any corpus.
        splits: of ingest/gold; "test" is the official validation file.
        root: data directory.
    """
    released, refused = read_release(folder) if folder is not None else ({}, 0)
    found = {name: Reader(f"extract/{name}", root) for name in ("events", "relations")}
    threshold = _decided(found, root)
    totals = {split: dict.fromkeys(TASKS, Counts()) for split in splits}
    for split in splits:
        gold = {name: Reader(f"ingest/gold/{split}/{name}", root) for name in ("events", "relations")}
        for shard in tables.shards("ingest/documents", root):
            events = gold["events"].frame(shard)
            if events.is_empty():
                continue
            frames = {name: reader.frame(shard) for name, reader in found.items()}
            documents = table_documents(events, gold["relations"].frame(shard))
            names: dict[str, str] | None = None
            if folder is not None:
                names = {event_id: name for d in documents for event_id, name in _named(d, released)}
                documents = [released[d.doc_id] for d in documents]
            for task, counts in score(documents, predict(events, frames, threshold, names)).items():
                totals[split][task] += counts
    scores = {split: {task: c.as_dict() for task, c in tasks.items()} for split, tasks in totals.items()}
    return {"gold": "release" if folder is not None else "tables", "not_read": refused,
            "thresholds": threshold, "splits": scores}  # fmt: skip


def _decided(found: Mapping[str, Reader], root: str | Path) -> dict[str, float]:
    gold = {name: Reader(f"ingest/gold/tune/{name}", root) for name in ("events", "relations")}
    windows = gold["relations"].frame()["window_id"].unique().sort()[:TUNE_WINDOWS]
    if windows.is_empty():
        return dict.fromkeys(TASKS, 0.5)
    bounds = (str(windows[0]), str(windows[-1]))

    def frames(readers: Mapping[str, Reader]) -> dict[str, pl.DataFrame]:
        return {n: r.frame(bounds).filter(pl.col("window_id").is_in(windows.implode())) for n, r in readers.items()}

    truth = frames(gold)
    return decide(table_documents(truth["events"], truth["relations"]), truth["events"], frames(found))


def _named(document: Document, released: Mapping[str, Document]) -> Iterable[Pair]:
    """(event_id, mention id): the importer numbers the mentions of a line `#e0`, `#e1` ... in the order of the line."""
    if document.doc_id not in released or len(released[document.doc_id].mentions) != len(document.mentions):
        what = f"document {document.doc_id!r:.80} is not the one that was ingested"
        raise DataError(what, field="ingest.path", mend="run `dvc repro ingest`: the corpus has changed")
    mentions = released[document.doc_id].mentions
    return ((f"{document.doc_id}#e{i}", mention) for i, mention in enumerate(mentions))
