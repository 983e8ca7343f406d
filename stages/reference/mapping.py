"""Which gold candidate a roster candidate stands for: the pairing of maximum total mention IoU.

The total IoU of a pair sums the intersection over union of all its overlapping mention spans. It is counted in integers
of 1e-6, so that neither the order of summation nor the machine shows. An unmapped candidate has relevance 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csgraph

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
    pairs = [
        _near(mine, known[key])
        for known in [theirs.partition_by("window_id", "doc_id", as_dict=True)]
        for key, mine in ours.partition_by("window_id", "doc_id", as_dict=True, maintain_order=True).items()
        if key in known
    ]
    empty = ours.clear().join(theirs.clear(), on=["window_id", "doc_id"], how="inner")
    return (
        pl.concat([empty, *pairs])
        .with_columns(_shared=shared)
        .filter(pl.col("_shared") > 0)
        .with_columns(iou=pl.col("_shared") * MICRO // union)
        .group_by(_PAIR)
        .agg(pl.col("iou").sum())
        .sort(_PAIR)
    )


def _near(ours: pl.DataFrame, theirs: pl.DataFrame) -> pl.DataFrame:
    """Pairs of spans of one document that may overlap: every roster mention with the gold ones around it.

    All pairs would be 10^8 for 10,000 mentions on either side.
    """
    theirs = theirs.sort("_start")
    starts, reach = theirs["_start"].to_numpy(), theirs["_end"].cum_max().to_numpy()
    low = np.searchsorted(reach, ours["start"].to_numpy(), side="right")
    high = np.searchsorted(starts, ours["end"].to_numpy(), side="left")
    counts = np.maximum(high - low, 0)
    mine = np.repeat(np.arange(len(counts)), counts)
    other = np.arange(len(mine)) - np.repeat(np.cumsum(counts) - counts - low, counts)
    found: pl.DataFrame = pl.concat([ours[mine], theirs[other].drop("window_id", "doc_id")], how="horizontal")
    return found


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
        for part in _components(window):
            candidates = sorted(set(part["candidate_id"]))
            entities = sorted(set(part["entity_id"]))
            row, column = ({key: i for i, key in enumerate(keys)} for keys in (candidates, entities))
            weight = np.zeros((len(candidates), len(entities)), dtype=np.int64)
            for _, candidate, entity, iou in part.iter_rows():
                weight[row[candidate], column[entity]] = iou
            for i, j in zip(*linear_sum_assignment(weight, maximize=True), strict=True):
                if weight[i, j]:
                    matched.append((window["window_id"][0], candidates[i], entities[j], int(weight[i, j]) / MICRO))
    schema = {"window_id": pl.String, "candidate_id": pl.String, "entity_id": pl.String, "iou": pl.Float64}
    return pl.DataFrame(matched, schema=schema, orient="row")


def _components(pairs: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Pairs of one window, divided so that no candidate or entity stands in two parts.

    Each part is a problem of its own, so the matrix of a window of 10,000 candidates is never built.
    """
    candidate, entity = (pairs[name].rank("dense").to_numpy().astype(np.int64) - 1 for name in _PAIR[1:])
    size = int(candidate.max(initial=-1)) + 1
    total = size + int(entity.max(initial=-1)) + 1
    graph = sparse.coo_array((np.ones(len(candidate)), (candidate, entity + size)), shape=(total, total))
    _, label = csgraph.connected_components(graph, directed=False)
    yield from pairs.with_columns(_part=pl.Series(label[candidate])).partition_by(
        "_part", maintain_order=True, include_key=False
    )
