"""Gold windows: what rankers would see if extraction were perfect. For tests and for measuring the task's own cap.

With gold steps a candidate is relevant exactly when the verifier accepts some certificate for it, so an oracle scores
CertNDCG 1 (task definition, section 11): a cap below 1 is then the extractor's, never the definitions'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import tables
from pipeline.spans import Span
from pipeline.windows import Candidate, Document, Handle, Window, local_ids
from stages.trajectories.annotated import Annotated, AnnotatedReader, group_rows


def gold_window(
    annotated: Annotated, row: dict[str, Any], documents: Sequence[dict[str, Any]],
    sentences: Sequence[dict[str, Any]], seed: int,
) -> Window:  # fmt: skip
    """A window in which the gold steps stand where extracted ones would; candidates are named by their entity_id.

    Args:
        annotated: its gold.
        row: of `roster/windows`.
        documents, sentences: its rows of `ingest/documents` and `ingest/sentences`.
        seed: local ids are drawn from it.
    """
    ranges: dict[str, list[tuple[int, int]]] = {}
    for s in sentences:
        ranges.setdefault(s["doc_id"], []).append((s["start"], s["end"]))
    texts = {d["doc_id"]: d["text"] for d in documents}
    entities = list(annotated.mentions)
    ids = local_ids("C", len(entities), seed, annotated.window_id)
    names = [max((texts[m.doc_id][m.start : m.end] for m in annotated.mentions[e]), key=len) for e in entities]
    return Window(
        annotated.window_id, row["split"], "closed", row["k"],
        {
            d["doc_id"]: Document(d["doc_id"], d["text"], d["sha256"], tuple(ranges.get(d["doc_id"], [])))
            for d in documents
        },
        tuple(Candidate(e, i, n) for e, i, n in zip(entities, ids, names, strict=True)),
        annotated.steps,
        _handles(annotated, ranges, seed),
    )  # fmt: skip


def _handles(annotated: Annotated, ranges: dict[str, list[tuple[int, int]]], seed: int) -> tuple[Handle, ...]:
    triggers = {s.trigger for s in annotated.steps}
    mentions = {m for spans in annotated.mentions.values() for m in spans}
    spans = sorted(triggers | mentions)
    ids = local_ids("E", len(spans), seed, annotated.window_id)
    kinds = ["both" if s in triggers and s in mentions else "trigger" if s in triggers else "mention" for s in spans]
    return tuple(
        Handle(i, span, kind, _sentence(span, ranges), 1.0, "high")
        for i, span, kind in zip(ids, spans, kinds, strict=True)
    )


def _sentence(span: Span, ranges: dict[str, list[tuple[int, int]]]) -> int:
    return max(i for i, (start, _) in enumerate(ranges[span.doc_id]) if start <= span.start)


def gold_windows(splits: Sequence[str], seed: int, root: str | Path = "data") -> Iterator[Window]:
    """Stream the kept windows of some splits with gold steps, in window order."""
    reader = AnnotatedReader(splits, root)
    readers = [tables.Reader(f"ingest/{name}", root) for name in ("documents", "sentences")]
    windows = tables.Reader("roster/windows", root)
    for shard in tables.shards("roster/windows", root):
        kept = windows.frame(shard).filter(pl.col("kept"))
        rows = {row["window_id"]: row for row in kept.iter_rows(named=True)}
        documents, sentences = (group_rows(r.frame(shard)) for r in readers)
        for annotated in reader.windows(shard):
            key = annotated.window_id
            if key in rows:
                yield gold_window(annotated, rows[key], documents[key], sentences[key], seed)
