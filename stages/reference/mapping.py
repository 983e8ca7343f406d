"""Which gold candidate a roster candidate stands for: the pairing of maximum total mention IoU.

The total IoU of a pair sums the intersection over union of all its overlapping mention spans. It is counted in integers
of 1e-6, so that neither the order of summation nor the machine shows. An unmapped candidate has relevance 0.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy.optimize import linear_sum_assignment

from pipeline.skeletons import MICRO

_PAIR = ("window_id", "candidate_id", "entity_id")


def overlaps(roster: pl.DataFrame, gold: pl.DataFrame) -> pl.DataFrame:
    """Total mention IoU of every pair that overlaps at all.

    Args:
        roster: rows of `roster/<setting>/mentions`.
        gold: rows of `ingest/roster`.

    Returns:
        Columns window_id, candidate_id, entity_id, `iou` (integer of 1e-6), sorted.
    """
    ours = roster.select("window_id", "candidate_id", "doc_id", "start", "end")
    theirs = gold.select("window_id", "entity_id", "doc_id", _start="start", _end="end")
    shared = pl.min_horizontal("end", "_end") - pl.max_horizontal("start", "_start")
    union = (pl.col("end") - pl.col("start")) + (pl.col("_end") - pl.col("_start")) - pl.col("_shared")
    return (
        ours.join(theirs, on=["window_id", "doc_id"], how="inner")
        .with_columns(_shared=shared)
        .filter(pl.col("_shared") > 0)
        .with_columns(iou=pl.col("_shared") * MICRO // union)
        .group_by(_PAIR)
        .agg(pl.col("iou").sum())
        .sort(_PAIR)
    )


def map_candidates(roster: pl.DataFrame, gold: pl.DataFrame, match_iou: float) -> pl.DataFrame:
    """One-to-one mapping of roster candidates to gold candidates, window by window.

    Args:
        roster: rows of `roster/<setting>/mentions`.
        gold: rows of `ingest/roster`.
        match_iou: a pair may match when its total IoU is greater.

    Returns:
        Columns window_id, candidate_id, entity_id, iou (in mentions, i.e. 1.0 = one identical mention).
    """
    pairs = overlaps(roster, gold).filter(pl.col("iou") > round(match_iou * MICRO))
    matched: list[tuple[str, str, str, float]] = []
    for window in pairs.partition_by("window_id", maintain_order=True):
        candidates = sorted(set(window["candidate_id"]))
        entities = sorted(set(window["entity_id"]))
        row, column = ({key: i for i, key in enumerate(keys)} for keys in (candidates, entities))
        weight = np.zeros((len(candidates), len(entities)), dtype=np.int64)
        for _, candidate, entity, iou in window.iter_rows():
            weight[row[candidate], column[entity]] = iou
        for i, j in zip(*linear_sum_assignment(weight, maximize=True), strict=True):
            if weight[i, j]:
                matched.append((window["window_id"][0], candidates[i], entities[j], int(weight[i, j]) / MICRO))
    schema = {"window_id": pl.String, "candidate_id": pl.String, "entity_id": pl.String, "iou": pl.Float64}
    return pl.DataFrame(matched, schema=schema, orient="row")
