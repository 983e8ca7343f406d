"""What a run shows: the page of a stage, the table of metrics, keys of artifacts."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import shown, workspace

ROOT = Path(__file__).resolve().parents[1]


def test_a_page_has_checks_rows_outputs_and_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data/x/inner").mkdir(parents=True)
    pq.write_table(pa.table({"n": [1, 2, 3]}), "data/x/inner/rows.parquet")
    Path("data/x/broken.parquet").write_text("no Parquet")
    Path("data/check.json").write_text(json.dumps({"passed": False, "tables": {}}))
    entry = {
        "params": {"params.yaml": {"a": {"b": [1, 2]}, "url": "<script>x</script> | `y`"}},
        "outs": [{"path": "data/x", "md5": "00.dir", "size": 5}, {"path": "data/check.json", "md5": "11", "size": 2}],
    }
    page = shown.stage_markdown("x@a-b", "its command was run", entry)
    assert "| data/check.json | false |" in page
    assert "| data/x/inner/rows.parquet | 3 |" in page and "broken" not in page
    assert "| data/x | 00.dir | 5 |" in page
    assert "| a.b | \\[1, 2\\] |" in page
    assert "<script>" not in page and "&lt;script&gt;x&lt;/script&gt; \\| \\`y\\`" in page


def test_what_dvc_lock_says_of_a_stage_is_found_without_reading_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from ruamel.yaml import YAML

    monkeypatch.chdir(ROOT)
    whole = YAML(typ="safe").load(Path("dvc.lock").read_text(encoding="utf-8"))["stages"]
    for stage in ("ingest", "rank@rm_attach-closed", list(whole)[-1]):
        assert shown.locked(stage) == whole[stage]
    assert shown.locked("rank") == {} and shown.locked("ing.st") == {}


def test_metrics_are_compared_with_those_before() -> None:
    before = shown.numbers({"data/m.json": {"a": {"x": 1, "y": 2.5, "gone": 4}, "name": "text", "on": True}})
    now = shown.numbers({"data/m.json": {"a": {"x": 1, "y": 2.0, "new": 3}}})
    rows = {row["metric"]: (row["value"], row["last run"], row["difference"]) for row in shown.metric_rows(before, now)}
    assert rows == {
        "m: a.y": (2.0, 2.5, -0.5), "m: a.gone": (None, 4.0, None), "m: a.new": (3.0, None, None),
        "m: a.x": (1.0, 1.0, 0.0),
    }  # fmt: skip
    assert next(iter(rows)) == "m: a.y"  # the largest change on top


@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # within DVC
def test_every_stage_has_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names = [step.name for step in workspace.plan().steps]
    keys = {shown.key(f"stage-{name}") for name in names}
    assert len(keys) == len(names) and all(k.replace("-", "").isalnum() and k == k.lower() for k in keys)
