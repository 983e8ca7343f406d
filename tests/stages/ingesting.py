"""Runs the stage `ingest` in an empty workspace, for its tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import tables
from pipeline.files import read_json
from pipeline.params import Params, load_params
from stages.ingest.__main__ import main

ROOT = Path(__file__).parent.parent.parent
FIXTURES = Path(__file__).parent / "fixtures"


def params_for(source: str, path: str | Path, *, sample: dict[str, Any] | None = None, **ingest: Any) -> Params:
    """The repository's params with another corpus, and other knobs of the sample."""
    params = load_params(ROOT / "params.yaml")
    knobs = params.ingest.sample.model_copy(update=sample or {})
    update = {"source": source, "path": str(path), "sample": knobs, **ingest}
    extract = params.extract.model_copy(update={"triggers": str(ROOT / params.extract.triggers)})
    return params.model_copy(update={"ingest": params.ingest.model_copy(update=update), "extract": extract})


def ingest(source: str, path: str | Path, **options: Any) -> dict[str, Any]:
    """Run the stage in the current directory; its summary."""
    main(params_for(source, path, **options))
    summary: dict[str, Any] = read_json("data/ingest/summary.json")
    return summary


def gold(name: str, *splits: str) -> pl.DataFrame:
    """A gold table of some splits, of all without any."""
    return pl.concat([tables.read(f"ingest/gold/{split}/{name}") for split in splits or tables.SPLITS])


def texts() -> dict[str, str]:
    """doc_id -> text."""
    frame = tables.read("ingest/documents")
    return dict(zip(frame["doc_id"].to_list(), frame["text"].to_list(), strict=True))


def write_corpus(*documents: Any, file: str = "corpus/docs.jsonl") -> Path:
    """Write a jsonl corpus; strings are written as they are. Its folder."""
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [d if isinstance(d, str) else json.dumps(d, ensure_ascii=False) for d in documents]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path.parent


def check_invariants() -> None:
    """What holds of every corpus: surfaces, sentences that hold spans, unique keys, references, splits by window."""
    by_id = texts()
    sentences = tables.read("ingest/sentences")
    ranges: dict[str, list[tuple[int, int]]] = {}
    for doc_id, start, end in sentences.select("doc_id", "start", "end").iter_rows():
        assert 0 <= (ranges.get(doc_id) or [(0, 0)])[-1][1] <= start < end <= len(by_id[doc_id])
        ranges.setdefault(doc_id, []).append((start, end))
    assert ranges.keys() == by_id.keys()
    for frame in (gold("mentions"), gold("events"), tables.read("ingest/roster")):
        for doc_id, start, end, surface in frame.select("doc_id", "start", "end", "surface").iter_rows():
            assert by_id[doc_id][start:end] == surface
            assert any(a <= start < b for a, b in ranges[doc_id])
    for name in tables.GOLD:
        frame = gold(name)
        assert not frame.select(tables.table(f"ingest/gold/train/{name}").key).is_duplicated().any()
    documents = tables.read("ingest/documents")
    split = dict(documents.select("window_id", "split").iter_rows())
    assert documents.select("window_id", "split").unique().height == len(split)
    for part in tables.SPLITS:
        for name in tables.GOLD:
            assert all(split[window] == part for window in tables.read(f"ingest/gold/{part}/{name}")["window_id"])
    arguments, relations = gold("arguments"), gold("relations")
    events, mentions = set(gold("events")["event_id"]), set(gold("mentions")["mention_id"])
    assert set(arguments["event_id"]) | set(relations["head_event_id"]) | set(relations["tail_event_id"]) <= events
    assert set(arguments["mention_id"]) <= mentions
    assert set(gold("mentions")["entity_id"]) == set(gold("entities")["entity_id"])
