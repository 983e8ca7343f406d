"""`certrank summary`: systems by CertNDCG, intervals where there is room, undefined metrics as dashes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.errors import DataError
from pipeline.files import write_json
from pipeline.summary import LABEL_FREE, LABELLED, print_summary


def metrics(cert: float | None) -> dict[str, dict[str, float | int | None]]:
    low_high = {"low": None if cert is None else cert - 0.1, "high": None if cert is None else cert + 0.1, "n": 9}
    return {name: {"value": cert, **low_high} for name in LABELLED + LABEL_FREE}


def shown(root: Path, width: int) -> str:
    out = io.StringIO()
    print_summary(root, Console(file=out, width=width))
    return out.getvalue()


def test_the_best_system_comes_first_and_places_are_named(tmp_path: Path) -> None:
    values = {"a_low": {"closed": metrics(0.25)}, "b_high": {"closed": metrics(0.75)}, "c": {"closed": metrics(None)}}
    write_json(tmp_path / "audit" / "metrics.json", values)
    text = shown(tmp_path, 80)
    assert text.index("b_high") < text.index("a_low") < text.index("c ")
    assert "0.750" in text
    assert "[" not in text.split("report")[0]
    assert "data/report/index.html" in text
    assert "0.750 [0.650, 0.850]" in shown(tmp_path, 200)


def test_without_annotation_the_metrics_that_need_no_label_are_shown(tmp_path: Path) -> None:
    free = {name: {"value": None, "low": None, "high": None, "n": 0} for name in LABELLED}

    def system(evidence: float) -> dict[str, dict[str, object]]:
        found = {name: {"value": evidence, "low": None, "high": None, "n": 4} for name in LABEL_FREE}
        return {"closed": metrics(None), "predicted": {**free, **found}}

    write_json(tmp_path / "audit" / "metrics.json", {"a_low": system(0.25), "b_high": system(0.75)})
    text = shown(tmp_path, 100)
    assert "ndcg" not in text
    assert "no annotation" in text
    assert "closed roster: no list to judge" in text
    assert all(name in text for name in LABEL_FREE)
    assert text.index("b_high") < text.index("a_low")
    assert text.count("0.750") == 3


def test_before_the_first_run_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="file not found"):
        shown(tmp_path, 80)
