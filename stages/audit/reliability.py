"""Whether the extractor's confidences hold: reliability diagrams and expected calibration errors against gold.

Every hypothesis in an annotated sentence is judged, the whole lattice down to its floor. It is right when a gold span
of its label overlaps its span by half or more of their union in characters, the same rule that confidences are fitted
to (in words). What is true but not annotated counts as wrong, so a confidence is held to be the chance of being
annotated. docs/metrics.md has the definitions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline import tables
from pipeline.metrics import rounded
from pipeline.tables import Reader
from stages.extract.scores import inside, labelled_ranges

Ints = NDArray[np.int64]

SPLITS = ("tune", "test")
"""Splits that are judged: confidences are fitted on the first, the second is the honest one."""

TABLES = ("events", "mentions", "arguments", "handles", "relations")
FOUND = ("events", "mentions", "arguments", "relations")
BINS = 10
EDGES = np.array([i / BINS for i in range(1, BINS)])
"""Borders between bins; a confidence on a border belongs to the bin above it."""

BUCKETS = ("low", "medium", "high")
SPAN = ["window_id", "doc_id", "start", "end"]


class Tally:
    """Hypotheses of one table, counted per bin and per bucket; shards are added up.

    Args:
        buckets: least confidence of `high` and of `medium`.
    """

    def __init__(self, buckets: Sequence[float]) -> None:
        self.bucket_edges = np.array(sorted(buckets))
        self.n_B = np.zeros(BINS, dtype=np.int64)
        self.right_B = np.zeros(BINS, dtype=np.int64)
        self.confidence_B = np.zeros(BINS)
        self.n_K = np.zeros(len(BUCKETS), dtype=np.int64)
        self.right_K = np.zeros(len(BUCKETS), dtype=np.int64)

    def add(self, judged: pl.DataFrame) -> None:
        """Count hypotheses: columns confidence and right."""
        p, right = judged["confidence"].to_numpy(), judged["right"].to_numpy().astype(bool)
        bins = np.searchsorted(EDGES, p, side="right")
        kinds = np.searchsorted(self.bucket_edges, p, side="right")
        self.n_B += np.bincount(bins, minlength=BINS)
        self.right_B += np.bincount(bins[right], minlength=BINS)
        self.confidence_B += np.bincount(bins, weights=p, minlength=BINS)
        self.n_K += np.bincount(kinds, minlength=len(BUCKETS))
        self.right_K += np.bincount(kinds[right], minlength=len(BUCKETS))

    def as_dict(self) -> dict[str, Any]:
        """`ece`, `n`, `bins` (those that hold a hypothesis, ascending) and `buckets`; undefined figures are None."""
        n = int(self.n_B.sum())
        error = float(np.abs(self.confidence_B - self.right_B).sum()) / n if n else None
        return {
            "ece": rounded(error),
            "n": n,
            "bins": [
                {
                    "low": b / BINS,
                    "n": int(self.n_B[b]),
                    "confidence": rounded(self.confidence_B[b] / self.n_B[b]),
                    "right": rounded(self.right_B[b] / self.n_B[b]),
                }
                for b in range(BINS)
                if self.n_B[b]
            ],
            "buckets": {
                name: {"n": int(m), "right": rounded(right / m if m else None)}
                for name, m, right in reversed(list(zip(BUCKETS, self.n_K, self.right_K, strict=True)))
            },
        }


def reliability(buckets: Sequence[float], root: str | Path = "data") -> dict[str, dict[str, Any]]:
    """Reliability of the extractor's confidences: split -> table -> {ece, n, bins, buckets}.

    Args:
        buckets: least confidence of a handle of `high` and of `medium`.
        root: data directory.
    """
    found = {name: Reader(f"extract/{name}", root) for name in FOUND}
    sentences = Reader("ingest/sentences", root)
    out: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        gold = {name: Reader(f"ingest/gold/{split}/{name}", root) for name in (*FOUND, "labelled")}
        tallies = {name: Tally(buckets) for name in TABLES}
        for shard in tables.shards("roster/windows", root):
            truth = {name: reader.frame(shard) for name, reader in gold.items()}
            if truth["labelled"].is_empty():
                continue
            judged = judge(truth, {n: r.frame(shard) for n, r in found.items()}, sentences.frame(shard))
            for name, frame in judged.items():
                tallies[name].add(frame)
        out[split] = {name: tally.as_dict() for name, tally in tallies.items()}
    return out


def judge(
    gold: Mapping[str, pl.DataFrame], found: Mapping[str, pl.DataFrame], sentences: pl.DataFrame
) -> dict[str, pl.DataFrame]:
    """Which hypotheses are right, as far as annotation can tell.

    Args:
        gold: events, mentions, arguments, relations, labelled of ingest/gold/<split>.
        found: events, mentions, arguments, relations of extract.
        sentences: ingest/sentences of at least the annotated documents.

    Returns:
        Table -> confidence and right, one row per judged hypothesis. `events` and `mentions` are judged where their
        span begins in an annotated sentence, `arguments` where their event does. In a window without any gold mention
        nobody may have annotated them: neither mentions nor arguments are judged there. The type of a mention is no
        part of its confidence and not asked for. `handles` has one row per span, as trajectories do: the likeliest of
        its event and role hypotheses, if that one is judged. `relations` are judged where both events are right and
        some relation of the type is annotated in the window: right between any mentions of the two annotated chains.
    """
    ranges = labelled_ranges(gold, sentences)
    described = gold["mentions"].select("window_id").unique()
    event_ids = inside(found["events"], ranges).select("event_id")
    mention_ids = inside(found["mentions"], ranges).join(described, on="window_id", how="semi").select("mention_id")
    same_event = _pairs("event_id", found["events"], gold["events"], ["doc_id", "type"])
    same_mention = _pairs("mention_id", found["mentions"], gold["mentions"], ["doc_id"])
    filled = (
        found["arguments"].select("event_id", "mention_id", "role")
        .join(same_event, on="event_id").join(same_mention, on="mention_id")
        .join(gold["arguments"].select(gold_event_id="event_id", gold_mention_id="mention_id", role="role"),
              on=["gold_event_id", "gold_mention_id", "role"], how="semi")
    )  # fmt: skip
    events = _marked(_marked(found["events"], "judged", event_ids), "right", same_event.select("event_id"))
    mentions = _marked(_marked(found["mentions"], "judged", mention_ids), "right", same_mention.select("mention_id"))
    arguments = _marked(found["arguments"], "judged", event_ids)
    arguments = _marked(arguments, "annotated", described)
    arguments = _marked(arguments, "right", filled.select("event_id", "mention_id", "role"))
    arguments = arguments.with_columns(judged=pl.col("judged") & pl.col("annotated"))
    spans = found["mentions"].select("mention_id", "doc_id", "start", "end")
    hypotheses = pl.concat([
        frame.select(*SPAN, "confidence", "judged", "right")
        for frame in (events, arguments.join(spans, on="mention_id", maintain_order="left"))
    ])  # fmt: skip
    handles = hypotheses.sort("confidence", descending=True, maintain_order=True).unique(
        SPAN, keep="first", maintain_order=True
    )
    relations = _judged_relations(gold, found["relations"], same_event)
    frames = {
        "events": events, "mentions": mentions, "arguments": arguments, "handles": handles, "relations": relations,
    }  # fmt: skip
    return {name: frame.filter("judged").select("confidence", "right") for name, frame in frames.items()}


def _judged_relations(gold: Mapping[str, pl.DataFrame], found: pl.DataFrame, same_event: pl.DataFrame) -> pl.DataFrame:
    """Relation hypotheses with the columns judged and right; none within a chain is judged."""
    chain_of = same_event.join(gold["events"].select(gold_event_id="event_id", chain="chain_id"), on="gold_event_id")
    chain_of = chain_of.select("event_id", "chain").unique()
    gold_chain = gold["events"].select("event_id", chain="chain_id").unique()
    key = ["head_event_id", "tail_event_id", "type"]
    placed, truth = found.select("window_id", *key), gold["relations"].select("window_id", *key)
    for end in ("head", "tail"):
        names = {"event_id": f"{end}_event_id", "chain": end}
        placed = placed.join(chain_of.rename(names), on=f"{end}_event_id")
        truth = truth.join(gold_chain.rename(names), on=f"{end}_event_id")
    placed = placed.filter(pl.col("head") != pl.col("tail")).join(
        truth.select("window_id", "type").unique(), on=["window_id", "type"], how="semi"
    )
    right = placed.join(truth, on=["window_id", "head", "tail", "type"], how="semi")
    return _marked(_marked(found, "judged", placed.select(key)), "right", right.select(key))


def _marked(frame: pl.DataFrame, name: str, keys: pl.DataFrame) -> pl.DataFrame:
    """The frame with a column that says whether a row's key is among `keys`."""
    marks = keys.unique().with_columns(pl.lit(value=True).alias(name))
    joined = frame.join(marks, on=keys.columns, how="left", maintain_order="left")
    return joined.with_columns(pl.col(name).fill_null(value=False))


def _pairs(key: str, found: pl.DataFrame, gold: pl.DataFrame, label: Sequence[str]) -> pl.DataFrame:
    """Found and gold rows of equal label that share half of their union: columns KEY and gold_KEY."""
    f, g = half_overlaps(found, gold, label)
    return pl.DataFrame({key: found[key].gather(f), f"gold_{key}": gold[key].gather(g)})


def half_overlaps(found: pl.DataFrame, gold: pl.DataFrame, label: Sequence[str]) -> tuple[Ints, Ints]:
    """Pairs of spans that share half or more of their union in characters.

    Two such spans begin no further apart than either is long, so gold spans are looked up by where they begin; memory
    is bounded by those near a hypothesis, not by the product of both tables.

    Args:
        found, gold: columns start, end and those of `label`.
        label: columns that must be equal, the document among them.

    Returns:
        Row numbers in `found` and in `gold`, one entry per pair.
    """
    codes = gold.select(label).unique(maintain_order=True).with_row_index("code")
    f, g = (
        frame.select(*label, "start", "end").with_row_index("row").join(codes, on=label, maintain_order="left")
        for frame in (found, gold)
    )
    if f.is_empty():
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    # Every label has a stretch of its own on one line, too long for a span to reach the next.
    stride = 2 * int(np.concatenate([f["end"].to_numpy(), g["end"].to_numpy()]).max()) + 1
    row_F, start_F, end_F, at_F = _placed(f, stride)
    row_G, start_G, end_G, at_G = _placed(g.sort("code", "start", maintain_order=True), stride)
    low = np.searchsorted(at_G, at_F - (end_F - start_F), side="left")
    count = np.searchsorted(at_G, at_F + (end_F - start_F), side="right") - low
    i = np.repeat(np.arange(len(at_F)), count)
    j = np.arange(len(i)) + np.repeat(low - np.cumsum(count) + count, count)
    shared = np.minimum(end_F[i], end_G[j]) - np.maximum(start_F[i], start_G[j])
    union = np.maximum(end_F[i], end_G[j]) - np.minimum(start_F[i], start_G[j])
    match = 2 * shared >= union
    return row_F[i[match]], row_G[j[match]]


def _placed(frame: pl.DataFrame, stride: int) -> tuple[Ints, Ints, Ints, Ints]:
    """Row number, start, end, and place of the start on the common line."""
    row, start, end, code = (frame[name].cast(pl.Int64).to_numpy() for name in ("row", "start", "end", "code"))
    return row, start, end, code * stride + start
