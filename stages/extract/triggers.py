"""Extra sentences with one annotated trigger each, for finding and typing triggers alone: RAMS' partial training split.

Every line is an object with `doc_key`, `tokens`, `trigger` ([first, last], inclusive) and `event_type`. The text of a
sentence is its tokens joined by one space. What roles the line lists are those of the type, not of the sentence, so
they teach nothing and are not read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import tables
from pipeline.errors import DataError
from pipeline.spans import sha256_text

Rows = list[dict[str, Any]]


def read_triggers(file: str | Path) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, pl.DataFrame]]:
    """Read the file.

    Returns:
        Documents, sentences and gold tables in the form of those of ingest; one window per sentence.

    Raises:
        DataError: missing file, or a line that is not as described; nothing is skipped.
    """
    path = Path(file)
    if not path.is_file():
        raise DataError("file not found", file=path, field="extract.triggers")
    rows: dict[str, Rows] = {name: [] for name in ("documents", "sentences", "events", "labelled")}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                _add(json.loads(line), rows)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise DataError(
                    f"not a sentence with a trigger: {type(error).__name__} {error}", file=path, line=number
                ) from None
    gold = {name: tables.table(f"ingest/gold/<split>/{name}").frame(rows.get(name, [])) for name in tables.GOLD}
    documents, sentences = (tables.table(f"ingest/{name}").frame(rows[name]) for name in ("documents", "sentences"))
    if documents["doc_id"].n_unique() < documents.height:
        raise DataError("a sentence stands twice", file=path, field="doc_key")
    return documents, sentences, gold


def _add(record: dict[str, Any], rows: dict[str, Rows]) -> None:
    tokens, (first, last) = [str(token) for token in record["tokens"]], record["trigger"]
    if not 0 <= first <= last < len(tokens) or not isinstance(record["event_type"], str):
        raise ValueError(f"trigger {first}-{last} in {len(tokens)} tokens")
    text = " ".join(tokens)
    start = len(" ".join(tokens[:first])) + (first > 0)
    surface = " ".join(tokens[first : last + 1])
    document = f"extra:{record['doc_key']}"
    own = {"window_id": document, "doc_id": document}
    rows["documents"].append({
        **own, "position": 0, "split": "train", "text": text, "sha256": sha256_text(text), "title": None,
        "date": None, "url": None,
    })  # fmt: skip
    rows["sentences"].append({**own, "sentence": 0, "start": 0, "end": len(text)})
    rows["labelled"].append({**own, "sentence": 0})
    event = f"{document}#e0"
    rows["events"].append({
        **own, "event_id": event, "chain_id": event, "start": start, "end": start + len(surface), "surface": surface,
        "type": record["event_type"], "realis": None,
    })  # fmt: skip
