"""A window as rankers, policies and the verifier see it: texts, roster, extracted trajectories and evidence handles.

Nothing here carries a gold label. Windows are streamed shard by shard from the tables of `roster` and `trajectories`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pipeline import tables
from pipeline.spans import Span


@dataclass(frozen=True, slots=True)
class Document:
    """A document; `sentences` are half-open character ranges in order."""

    doc_id: str
    text: str
    sha256: str
    sentences: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A member of the roster. `candidate_id` is canonical, `local_id` (C01, ...) is what a policy sees."""

    candidate_id: str
    local_id: str
    name: str


@dataclass(frozen=True, slots=True)
class Step:
    """One role hypothesis of a candidate: also the verifier's atom (event, candidate, role) with its two spans.

    Args:
        candidate_id: canonical id.
        event_id: extracted event.
        type: event type.
        role: role of the candidate in it.
        order: rank of the event in the window's extracted order.
        confidence: of the hypothesis, in [0, 1].
        trigger, mention: the spans of the trigger and of the argument.
    """

    candidate_id: str
    event_id: str
    type: str
    role: str
    order: int
    confidence: float
    trigger: Span
    mention: Span


@dataclass(frozen=True, slots=True)
class Handle:
    """A citable span: `handle_id` (E01, ...) is window-local; `kind` is trigger, mention or both."""

    handle_id: str
    span: Span
    kind: str
    sentence: int
    confidence: float
    bucket: str


@dataclass(frozen=True)
class Window:
    """Everything a ranking system may see of one window in one roster setting.

    Args:
        window_id: id.
        split: train, tune, cal or test.
        setting: closed, predicted or hybrid.
        k: length of the list.
        documents: by doc_id, in window order.
        candidates: in canonical order.
        steps: of all candidates, sorted by (candidate_id, step).
        handles: sorted by span.
    """

    window_id: str
    split: str
    setting: str
    k: int
    documents: dict[str, Document]
    candidates: tuple[Candidate, ...]
    steps: tuple[Step, ...]
    handles: tuple[Handle, ...]

    @cached_property
    def characters(self) -> int:
        return sum(len(d.text) for d in self.documents.values())

    @cached_property
    def trajectories(self) -> dict[str, list[Step]]:
        """candidate_id -> its steps; every candidate has an entry."""
        out: dict[str, list[Step]] = {c.candidate_id: [] for c in self.candidates}
        for step in self.steps:
            out[step.candidate_id].append(step)
        return out

    @cached_property
    def handle_of(self) -> dict[Span, Handle]:
        return {h.span: h for h in self.handles}

    @cached_property
    def by_handle(self) -> dict[str, Handle]:
        return {h.handle_id: h for h in self.handles}

    @cached_property
    def by_local_id(self) -> dict[str, Candidate]:
        return {c.local_id: c for c in self.candidates}


def stable_seed(*parts: object) -> int:
    """A 64-bit seed from sha256 of the parts joined by `|`; never from `hash()`."""
    digest = hashlib.sha256("|".join(str(p) for p in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def local_ids(prefix: str, n: int, seed: int, window_id: str, epoch: int = 0) -> list[str]:
    """A permutation of `prefix`01, `prefix`02, ... for n items in canonical order, drawn from the arguments."""
    width = max(2, len(str(n)))
    order = np.random.default_rng(stable_seed(seed, window_id, epoch, prefix)).permutation(n)
    return [f"{prefix}{int(i) + 1:0{width}d}" for i in order]


def load_windows(
    setting: str, splits: Sequence[str], root: str | Path = "data", only: str | None = None
) -> Iterator[Window]:
    """Stream the kept windows of some splits in window order.

    Args:
        setting: roster setting.
        splits: which splits.
        root: data directory.
        only: one window id.

    Yields:
        Window: one at a time; memory is bounded by a shard.
    """
    windows = tables.Reader("roster/windows", root)
    readers = {
        name: tables.Reader(name, root)
        for name in (
            "ingest/documents", "ingest/sentences", f"roster/{setting}/candidates",
            f"trajectories/{setting}/steps", f"trajectories/{setting}/handles",
        )
    }  # fmt: skip
    for shard in tables.shards("roster/windows", root):
        if only is not None and not shard[0] <= only <= shard[1]:
            continue
        wanted = windows.frame(shard).filter(pl.col("kept") & pl.col("split").is_in(list(splits)))
        if only is not None:
            wanted = wanted.filter(pl.col("window_id") == only)
        if wanted.is_empty():
            continue
        documents, sentences, candidates, steps, handles = (_by_window(r.frame(shard)) for r in readers.values())
        for row in wanted.iter_rows(named=True):
            key = row["window_id"]
            yield _build(
                row, setting, documents[key], sentences.get(key, []), candidates.get(key, []), steps.get(key, []),
                handles.get(key, []),
            )  # fmt: skip


Rows = list[dict[str, Any]]


def _by_window(frame: pl.DataFrame) -> dict[str, Rows]:
    out: dict[str, Rows] = {}
    for row in frame.iter_rows(named=True):
        out.setdefault(row["window_id"], []).append(row)
    return out


def _build(row: dict[str, Any], setting: str, documents: Rows, sentences: Rows, candidates: Rows, steps: Rows,
           handles: Rows) -> Window:  # fmt: skip
    ranges: dict[str, list[tuple[int, int]]] = {}
    for s in sentences:
        ranges.setdefault(s["doc_id"], []).append((s["start"], s["end"]))
    return Window(
        row["window_id"], row["split"], setting, row["k"],
        {
            d["doc_id"]: Document(d["doc_id"], d["text"], d["sha256"], tuple(ranges.get(d["doc_id"], [])))
            for d in documents
        },
        tuple(Candidate(c["candidate_id"], c["local_id"], c["name"]) for c in candidates),
        tuple(
            Step(
                s["candidate_id"], s["event_id"], s["type"], s["role"], s["order"], s["confidence"],
                Span(s["doc_id"], s["trigger_start"], s["trigger_end"]),
                Span(s["doc_id"], s["mention_start"], s["mention_end"]),
            )
            for s in steps
        ),
        tuple(
            Handle(
                h["handle_id"], Span(h["doc_id"], h["start"], h["end"]), h["kind"], h["sentence"], h["confidence"],
                h["bucket"],
            )
            for h in handles
        ),
    )  # fmt: skip
