"""Writes windows to the tables of data/ingest, one shard of windows at a time."""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import polars as pl

from pipeline import tables
from pipeline.errors import DataError
from pipeline.spans import sha256_text
from stages.ingest.records import Mention, Window

INPUTS = ("documents", "sentences", "images", "roster")
SHARD_CHARACTERS = 8_000_000
"""A shard is written early when its texts grow beyond this, so that long documents do not grow the memory."""

Row = tuple[Any, ...]


class Tables:
    """All tables of the stage, open for writing; none is visible before every one is complete.

    Args:
        root: data directory.
    """

    def __init__(self, root: str | Path = "data") -> None:
        self._root = root
        self._rows: dict[str, list[Row]] = defaultdict(list)
        self._windows = self._characters = 0
        self._last = ""
        self.counts: Counter[tuple[str, str]] = Counter()

    def __enter__(self) -> Self:
        names = [f"ingest/{name}" for name in INPUTS]
        names += [f"ingest/gold/{split}/{name}" for split in tables.SPLITS for name in tables.GOLD]
        with ExitStack() as stack:
            self._writers = stack.enter_context(tables.writers(names, self._root))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, tb)
            return
        with self._stack:  # so that a failure to write the last shard reaches every writer and nothing is published
            self._flush()

    def add(self, window: Window) -> None:
        """Append a window; windows must come in ascending order of their ids.

        Raises:
            DataError: they do not.
        """
        if self.counts and window.window_id <= self._last:
            raise DataError(f"window {window.window_id!r:.80} comes after {self._last!r:.80}", field="window_id")
        self._last = window.window_id
        self._inputs(window)
        self._gold(window)
        self.counts["windows", window.split] += 1
        self._windows += 1
        if self._windows == tables.SHARD_WINDOWS or self._characters > SHARD_CHARACTERS:
            self._flush()

    def _inputs(self, window: Window) -> None:
        key, rows = window.window_id, self._rows
        for position, d in enumerate(window.documents):
            self._characters += len(d.text)
            rows["ingest/documents"].append(
                (key, d.doc_id, position, window.split, d.text, sha256_text(d.text), d.title, d.date, d.url)
            )
            rows["ingest/sentences"] += [(key, d.doc_id, i, start, end) for i, (start, end) in enumerate(d.sentences)]
            rows["ingest/images"] += [
                (key, d.doc_id, i, m.path, m.sha256, m.width, m.height, m.media_type, "file")
                for i, m in enumerate(d.images)
            ]
            if window.kind == "entity":
                members = [(m.entity_id, m.start, m.end) for m in d.mentions]
            else:
                members = [(e.chain_id, e.start, e.end) for e in d.events]
            rows["ingest/roster"] += [
                (key, member, d.doc_id, start, end, d.text[start:end], window.kind) for member, start, end in members
            ]
            self.counts["documents", window.split] += 1
            self.counts["sentences", window.split] += len(d.sentences)
            self.counts["images", window.split] += len(d.images)
            self.counts["roster", window.split] += len(members)

    def _gold(self, window: Window) -> None:
        key = window.window_id
        entities: dict[str, list[str]] = {}
        part: dict[str, list[Row]] = {name: [] for name in tables.GOLD}
        for d in window.documents:
            mentions: list[Mention] = sorted(d.mentions, key=lambda m: m.start)
            for m in mentions:
                surface = d.text[m.start : m.end]
                entities.setdefault(m.entity_id, []).append(surface)
                part["mentions"].append((key, m.mention_id, m.entity_id, d.doc_id, m.start, m.end, surface, m.type))
            part["events"] += [
                (key, e.event_id, e.chain_id, d.doc_id, e.start, e.end, d.text[e.start : e.end], e.type, e.realis)
                for e in d.events
            ]
            part["arguments"] += [(key, a.event_id, a.mention_id, a.role) for a in d.arguments]
            part["labelled"] += [(key, d.doc_id, i) for i in d.labelled]
        part["relations"] = [(key, r.head, r.tail, r.type) for r in window.relations]
        part["entities"] = [
            (key, entity, max(surfaces, key=len), window.entity_types.get(entity))
            for entity, surfaces in entities.items()
        ]
        for name, new in part.items():
            self._rows[f"ingest/gold/{window.split}/{name}"] += new
            self.counts[name, window.split] += len(new)

    def _flush(self) -> None:
        for name, rows in self._rows.items():
            schema = tables.table(name).schema
            self._writers[name].append(pl.DataFrame(rows, schema=schema, orient="row"))
        self._rows.clear()
        self._windows = self._characters = 0
