"""Evidence handles: every span the extractor produced in a window, under a window-local name that means nothing.

A handle's confidence is the best of the extractor's hypotheses about its span: for a trigger the likeliest event there,
for a mention the likeliest role it plays (0 when the extractor gave it none). How a mention came to be in the roster is
deliberately not in it: in hybrid rosters that would tell gold candidates from predicted ones.

A span that crosses a sentence boundary keeps its handle, numbered by the sentence it begins in, but no valid
certificate can cite it.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from pipeline.errors import TableError
from pipeline.windows import local_ids

_SPAN = ("window_id", "doc_id", "start", "end")


def build_handles(
    events: pl.DataFrame,
    mentions: pl.DataFrame,
    arguments: pl.DataFrame,
    sentences: pl.DataFrame,
    seed: int,
    buckets: Sequence[float],
) -> pl.DataFrame:
    """Handles of one shard.

    Args:
        events: rows of `extract/events`.
        mentions, arguments: rows of `roster/<setting>/mentions` and `roster/<setting>/arguments`.
        sentences: rows of `ingest/sentences`.
        seed: handle ids are drawn from it and the window's id.
        buckets: least confidence of `high` and of `medium`.

    Returns:
        Rows of `trajectories/<setting>/handles`.

    Raises:
        TableError: a span that begins in no sentence.
    """
    role = arguments.group_by("window_id", "mention_id").agg(role=pl.col("confidence").max())
    found = pl.concat([
        events.select(*_SPAN, "surface", "confidence", kind=pl.lit("trigger")),
        mentions.join(role, on=["window_id", "mention_id"], how="left").select(
            *_SPAN, "surface", confidence=pl.col("role").fill_null(0.0), kind=pl.lit("mention")
        ),
    ])  # fmt: skip
    spans = (
        found.group_by(_SPAN)
        .agg(
            pl.col("surface").min(),
            pl.col("confidence").max(),
            kind=pl.when(pl.col("kind").n_unique() == 2).then(pl.lit("both")).otherwise(pl.col("kind").min()),
        )
        .sort(_SPAN)
    )
    high, medium = buckets
    return _with_sentence(spans, sentences).with_columns(
        handle_id=_handle_ids(spans, seed),
        bucket=pl.when(pl.col("confidence") >= high).then(pl.lit("high"))
        .when(pl.col("confidence") >= medium).then(pl.lit("medium"))
        .otherwise(pl.lit("low")),
    )  # fmt: skip


def attach_handles(steps: pl.DataFrame, handles: pl.DataFrame) -> pl.DataFrame:
    """Add `trigger_handle` and `mention_handle` to the frame of `steps.build_steps`."""
    for name in ("trigger", "mention"):
        named = handles.select(
            "window_id", "doc_id",
            pl.col("start").alias(f"{name}_start"), pl.col("end").alias(f"{name}_end"),
            pl.col("handle_id").alias(f"{name}_handle"),
        )  # fmt: skip
        steps = steps.join(
            named, on=["window_id", "doc_id", f"{name}_start", f"{name}_end"], how="left", maintain_order="left"
        )
    return steps


def _with_sentence(spans: pl.DataFrame, sentences: pl.DataFrame) -> pl.DataFrame:
    starts = sentences.select("doc_id", "start", "sentence").sort("doc_id", "start")
    ordered = spans.sort("doc_id", "start")
    placed = ordered.join_asof(starts, on="start", by="doc_id", strategy="backward", check_sortedness=False)
    lost = placed.filter(pl.col("sentence").is_null())
    if not lost.is_empty():
        row = lost.row(0, named=True)
        raise TableError(
            f"the span {row['doc_id']}:{row['start']}-{row['end']} begins in no sentence",
            field="ingest/sentences",
            mend="run `dvc repro ingest`",
        )
    return placed.sort(_SPAN)


def _handle_ids(spans: pl.DataFrame, seed: int) -> pl.Series:
    """One id per row of `spans`, which is sorted by window and span."""
    ids: list[str] = []
    for window_id, n in spans.group_by("window_id", maintain_order=True).len().iter_rows():
        ids += local_ids("E", n, seed, window_id)
    return pl.Series("handle_id", ids, dtype=pl.String)
