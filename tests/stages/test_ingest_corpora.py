"""The importers on the real corpora: counts, splits and invariants that their README states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import tables
from tests.stages.ingesting import ROOT, check_invariants, gold, ingest

DATA = ROOT.parent / "shared" / "data"

pytestmark = [
    pytest.mark.corpora,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the corpora in {DATA.parent.name}/{DATA.name}"),
]


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def published_splits(corpus: str) -> dict[str, Any]:
    splits: dict[str, Any] = json.loads((DATA / "splits.json").read_text())[corpus]
    return splits


def test_casie() -> None:
    summary = ingest("casie", DATA / "casie")
    check_invariants()
    documents = tables.read("ingest/documents")
    for split, ids in published_splits("casie").items():
        assert sorted(documents.filter(split=split)["doc_id"]) == sorted(ids)
    assert sum(summary["rows"]["events"].values()) == 8485 - 1
    realis = dict(gold("events").group_by("realis").len().iter_rows())
    assert sum(realis.values()) == 8484
    assert realis["Generic"] in (2106, 2107)
    left_out = sum(count for what, count in summary["left_out"].items() if what.startswith("filler type"))
    assert left_out == 1403 + 413 + 260 + 463 + 555 + 1742
    # Of 22,701 arguments; some name one span twice in a role.
    assert 0.999 * (22701 - left_out) <= gold("arguments").height <= 22701 - left_out
    assert len(set(gold("arguments")["role"])) <= 26
    assert summary["dropped"] == {}


def test_rams() -> None:
    summary = ingest("rams", DATA / "rams")
    check_invariants()
    url_of: dict[str, str] = {}
    for name in ("dev", "test"):
        for line in (DATA / "rams" / f"{name}.jsonlines").read_text().splitlines():
            record = json.loads(line)
            url_of[record["doc_key"]] = record["source_url"]
    split_of = dict(tables.read("ingest/documents").select("window_id", "split").iter_rows())
    for split, keys in published_splits("rams").items():
        assert {split_of[url_of[key]] for key in keys} == {split}
    assert summary["rows"]["windows"] == {"train": 319, "tune": 80, "cal": 0, "test": 400}
    # Every snippet's trigger is there; two snippets may share one.
    assert 924 + 871 - 5 <= gold("events").height <= 924 + 871
    assert 0.99 * (2188 + 2023) <= gold("arguments").height <= 2188 + 2023
    assert not any(role.startswith("evt") for role in gold("arguments")["role"])
    assert tables.read("ingest/sentences").height < 0.85 * (4456 + 4245)


def test_partial_maven_ere_is_refused_clearly() -> None:
    with pytest.raises(Exception, match=r"maven_ere/train\.jsonl: ingest\.path: file not found"):
        ingest("maven_ere", DATA / "maven_ere")
