"""CASIE: nuggets, arguments and roles as score.py of its repository counts them (Satyapanich et al., 2020).

A span with a label is right in part: 2 * common words / (words of gold + words of found), the Dice coefficient, where
words are compared as strings, not by where they stand. Gold spans of a document, in text order, each take the found
span of the same label with which they have most words in common (the first of equals), and no other gold span may take
it again. Precision is the sum of these parts over the number of found spans, recall the sum over gold spans.

Nuggets are labelled by event subtype, arguments by filler type, roles by role. Every word has at most one label, so of
spans that overlap one is kept, see `tag`. The repository's lists leave out some labels of the corpus (`LABELS`): spans
with these count neither as found nor as gold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from pipeline import tables
from pipeline.errors import DataError
from pipeline.files import write_text
from pipeline.tables import Reader
from stages.extract.official import Counts
from stages.extract.scores import Decision
from stages.extract.tokens import Text, read_text

Kind = Literal["nugget", "argument", "role"]

LABELS: dict[Kind, frozenset[str]] = {
    "nugget": frozenset({"DDoS", "Databreach", "DiscoverVulnerability", "PatchVulnerability", "Phishing", "Ransom"}),
    "argument": frozenset({
        "CVE", "Capabilities", "Data", "Device", "File", "GPE", "Malware", "Money", "Number", "Organization", "PII",
        "Patch", "PaymentMethod", "Person", "Purpose", "System", "Time", "Version", "Vulnerability", "Website",
    }),
    "role": frozenset({
        "Attacker", "Discoverer", "Legitimate-Inst", "Releaser", "Supported_Platform", "Tool", "Victim",
        "Vulnerable_System", "Vulnerable_System_Owner",
    }),
}  # fmt: skip
SINGLE = frozenset({"CVE"})
"""Labels whose I- form is in none of the repository's lists: only the first word of such a span counts."""
SAME = {"Software": "System"}
"""Filler types that the repository merges before it trains and scores."""

TABLES = ("events", "mentions", "arguments")
END = "</doc>"
"""Ends every document of a file: score.py closes a span only when another word follows."""

Row = tuple[str, str, int, str, str]
"""(document, word, first character, gold tag, found tag); tags are O, B-label, I-label."""
Spans = pl.DataFrame
"""doc_id, start, end, label, confidence."""


# ---- scoring ---------------------------------------------------------------------------------------------------------


def score(rows: Iterable[Row], kind: Kind) -> dict[str, Counts]:
    """Counts by label; their sum is the micro average. The rows of a document stand together.

    Raises:
        DataError: an I- tag that does not follow a tag of its label.
    """
    totals = {label: Counts() for label in sorted(LABELS[kind])}
    for doc_id, group in groupby(rows, key=lambda row: row[0]):
        lines = list(group)
        words = [row[1] for row in lines]
        gold = _spans(words, [row[3] for row in lines], LABELS[kind], doc_id)
        found = _spans(words, [row[4] for row in lines], LABELS[kind], doc_id)
        for label in {label for label, _ in gold + found}:
            a, b = ([span for name, span in spans if name == label] for spans in (gold, found))
            totals[label] += Counts(_dice(a, b), len(b), len(a))
    return totals


def _spans(
    words: Sequence[str], tags: Sequence[str], labels: frozenset[str], doc_id: str
) -> list[tuple[str, list[str]]]:
    """(label, words) of the listed spans, in text order."""
    spans: list[tuple[str, list[str]]] = []
    before = ""
    for word, tag in zip(words, tags, strict=True):
        label = tag[2:]
        if tag[:2] == "I-" and label != before:
            raise DataError(f"tag {tag!r:.60} follows no {label!r:.60}", field=doc_id)
        if tag[:2] == "B-" and label in labels:
            spans.append((label, [word]))
        elif tag[:2] == "I-" and label in labels and label not in SINGLE:
            spans[-1][1].append(word)
        before = label
    return spans


def _dice(gold: Sequence[list[str]], found: Sequence[list[str]]) -> float:
    """Sum of the parts that are right; spans of one label and one document."""
    left = [(Counter(span), len(span)) for span in found]
    total = 0.0
    for span in gold:
        words = Counter(span)
        common = [(words & other).total() for other, _ in left]
        best = max(range(len(left)), key=lambda i: (common[i], -i), default=-1)
        if best >= 0 and common[best]:
            total += 2 * common[best] / (len(span) + left[best][1])
            del left[best]
    return total


# ---- from our tables -------------------------------------------------------------------------------------------------


def gold_spans(gold: Mapping[str, pl.DataFrame]) -> dict[Kind, Spans]:
    """Labelled spans of gold: events, mentions, arguments of ingest/gold/<split>."""
    return _labelled({name: gold[name].with_columns(confidence=pl.lit(1.0)) for name in TABLES})


def found_spans(found: Mapping[str, pl.DataFrame], decision: Decision) -> dict[Kind, Spans]:
    """Labelled spans that are believed: events, mentions, arguments of extract.

    Nuggets from `decision.event` on. An argument is a mention with some role of at least `decision.argument` in such an
    event, as confident as the best of its roles; all such roles are roles.
    """
    events = found["events"].filter(pl.col("confidence") >= decision.event)
    arguments = found["arguments"].filter(pl.col("confidence") >= decision.argument)
    arguments = arguments.join(events.select("event_id"), on="event_id", how="semi")
    best = arguments.group_by("mention_id").agg(pl.col("confidence").max())
    mentions = found["mentions"].drop("confidence").join(best, on="mention_id")
    return _labelled({"events": events, "mentions": mentions, "arguments": arguments})


def _labelled(frames: Mapping[str, pl.DataFrame]) -> dict[Kind, Spans]:
    span = ("doc_id", "start", "end")
    roles = frames["arguments"].join(frames["mentions"].select("mention_id", *span), on="mention_id")
    subtype = pl.col("type").str.split(".").list.last()
    out: dict[Kind, pl.DataFrame] = {
        "nugget": frames["events"].select(*span, subtype.alias("label"), "confidence"),
        "argument": frames["mentions"].select(*span, pl.col("type").replace(SAME).alias("label"), "confidence"),
        "role": roles.select(*span, pl.col("role").alias("label"), "confidence"),
    }
    return {kind: frame.filter(pl.col("label").is_in(list(LABELS[kind]))) for kind, frame in out.items()}


def tag(text: Text, spans: Spans) -> tuple[list[str], int]:
    """One tag per token, and how many spans are left out because a token of theirs is taken.

    The most confident span comes first, then the longest, the earliest, and the first label by name. A span that cuts a
    token takes the whole of it; the same span with the same label is one span.
    """
    rows = spans.group_by("doc_id", "start", "end", "label").agg(pl.col("confidence").max())
    first, last = text.locate(rows["doc_id"].to_list(), rows["start"].to_numpy(), rows["end"].to_numpy())
    columns = (rows["confidence"].to_list(), first.tolist(), last.tolist(), rows["label"].to_list())
    order = sorted((-p, a - b, a, label, b) for p, a, b, label in zip(*columns, strict=True) if b >= a)
    tags = ["O"] * text.size
    left_out = 0
    for _, _, a, label, b in order:
        if any(tags[t] != "O" for t in range(a, b + 1)):
            left_out += 1
            continue
        tags[a : b + 1] = [f"B-{label}"] + [f"I-{label}"] * (b - a)
    return tags, left_out


def to_rows(text: Text, gold: Sequence[str], found: Sequence[str], doc_ids: Iterable[str]) -> list[Row]:
    """Tokens and tags of some documents, each closed by a row of its own."""
    number = {doc_id: doc for doc, doc_id in enumerate(text.doc_ids)}
    bounds = np.searchsorted(text.doc_T, np.arange(len(text.doc_ids) + 1)).tolist()
    out: list[Row] = []
    for doc in sorted(number[doc_id] for doc_id in set(doc_ids)):
        doc_id, tokens = text.doc_ids[doc], range(bounds[doc], bounds[doc + 1])
        words = (text.words[w] for w in text.word_T[tokens.start : tokens.stop])
        out += [(doc_id, w, int(text.start_T[t]), gold[t], found[t]) for t, w in zip(tokens, words, strict=True)]
        out.append((doc_id, END, len(text.texts[doc]), "O", "O"))
    return out


def write_rows(path: str | Path, rows: Iterable[Row]) -> None:
    """Write the file that `score.py -predictedfile` reads: one word a line, tab-separated.

    Raises:
        DataError: a document id with a tab or a line feed.
    """
    lines = []
    for row in rows:
        if not row[0].isprintable():
            raise DataError(f"the form has no place for the document id {row[0]!r:.80}", field="doc_id")
        lines.append("\t".join(map(str, row)))
    write_text(path, "".join(line + "\n" for line in lines))


# ---- a split ---------------------------------------------------------------------------------------------------------


def split_scores(
    decision: Decision, splits: Sequence[str] = ("tune", "test"), root: str | Path = "data"
) -> dict[str, Any]:
    """Scores of whole splits, shard by shard: split -> kind -> figures, `by_label` and `left_out` among them.

    Args:
        decision: thresholds.
        splits: of ingest/gold.
        root: data directory.

    Returns:
        `left_out` counts overlapping spans that have no place among the tags, of gold and of found.
    """
    found = {name: Reader(f"extract/{name}", root) for name in TABLES}
    documents, sentences = Reader("ingest/documents", root), Reader("ingest/sentences", root)
    totals: dict[str, dict[Kind, dict[str, Counts]]] = {split: {kind: {} for kind in LABELS} for split in splits}
    left_out: Counter[tuple[str, Kind, str]] = Counter()
    for shard in tables.shards("ingest/documents", root):
        frame = documents.frame(shard)
        believed = found_spans({name: reader.frame(shard) for name, reader in found.items()}, decision)
        text = read_text(frame, sentences.frame(shard))
        for split in splits:
            own = frame.filter(pl.col("split") == split)
            truth = gold_spans({name: Reader(f"ingest/gold/{split}/{name}", root).frame(shard) for name in TABLES})
            for kind in LABELS:
                inside = believed[kind].join(own.select("doc_id"), on="doc_id", how="semi")
                gold_tags, gold_out = tag(text, truth[kind])
                found_tags, found_out = tag(text, inside)
                rows = to_rows(text, gold_tags, found_tags, own["doc_id"].to_list())
                left_out += Counter({(split, kind, "gold"): gold_out, (split, kind, "found"): found_out})
                for label, counts in score(rows, kind).items():
                    totals[split][kind][label] = totals[split][kind].get(label, Counts()) + counts
    return {
        split: {
            kind: {
                **sum(labels.values(), Counts()).as_dict(),
                "by_label": {label: counts.as_dict() for label, counts in sorted(labels.items())},
                "left_out": {part: left_out[split, kind, part] for part in ("gold", "found")},
            }
            for kind, labels in kinds.items()
        }
        for split, kinds in totals.items()
    }
