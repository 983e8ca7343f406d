"""How much is read at once: runs of windows whose texts fit into memory together."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pipeline import tables

CHARACTERS = 2_000_000
"""Of the texts that are read at once, at most, unless a single window has more. The tokens, features and vectors of a
text take some 500 times its size. Usual shards stay below: 256 windows of three news reports have 600,000."""

ROWS = 64
"""Documents whose lengths are looked up at once."""


def portions(root: str | Path = "data") -> list[tuple[str, str]]:
    """Runs of consecutive windows, as (first, last) window ids: the shards of ingest/documents, and where a shard has
    more than `CHARACTERS` characters, a new one from the window on that exceeds them.
    """
    lengths: dict[str, int] = {}
    for batch in tables.Reader("ingest/documents", root).batches(ROWS, ["window_id", "text"]):
        for window_id, characters in batch.select("window_id", pl.col("text").str.len_chars()).iter_rows():
            lengths[window_id] = lengths.get(window_id, 0) + characters
    runs: list[tuple[str, str]] = []
    first, last, windows, total = "", "", 0, 0
    for window_id, characters in lengths.items():
        if windows == tables.SHARD_WINDOWS or (windows and total + characters > CHARACTERS):
            runs.append((first, last))
            windows = total = 0
        first = window_id if not windows else first
        last, windows, total = window_id, windows + 1, total + characters
    return [*runs, (first, last)] if windows else runs
