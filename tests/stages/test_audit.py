"""The audit: it believes nothing it is told, damages certificates in known ways, and never crashes without gold."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import certificates, metrics, tables
from pipeline.certificates import Entry
from pipeline.errors import DataError
from pipeline.params import Params
from pipeline.skeletons import Intent, Skeleton
from pipeline.spans import Span
from pipeline.windows import Window
from stages.audit import counterfactuals
from stages.audit.__main__ import main
from stages.audit.cases import Case, View
from stages.audit.inputs import Gold, Listed
from stages.audit.lists import MEANS, RATIOS, judge
from stages.audit.tallies import Results
from tests import tiny
from tests.builders import PLAN, find, random_window, skeleton_of, story

ANN = tiny.candidate("w2", "Ann")


def params(**audit: Any) -> Params:
    raw = tiny.params().model_dump(by_alias=True)
    raw["audit"] |= audit
    return Params.model_validate(raw)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the tiny tables; data/audit as written by hand is removed."""
    tiny.write(tmp_path / "data")
    for file in (tmp_path / "data/audit").iterdir():
        file.unlink()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def figures(data: Path, name: str) -> Any:
    return json.loads((data / f"audit/{name}.json").read_text())


def whole(data: Path) -> dict[str, bytes]:
    return {f.relative_to(data).as_posix(): f.read_bytes() for f in sorted((data / "audit").rglob("*")) if f.is_file()}


def make_case(window: Window, skeleton: Skeleton, grades: dict[str, int] | None) -> Case:
    gold = None if grades is None else Gold(grades, tuple(grades.values()), {})
    return Case(View(window), Intent("plan", 1, "plan", skeleton, "0" * 64), params(), gold)


def listed(window: Window, ranking: Sequence[str], entries: Sequence[Entry]) -> Listed:
    local = {c.candidate_id: c.local_id for c in window.candidates}
    return Listed(
        tuple(ranking), tuple(local[c] for c in ranking), tuple(entries), tuple(False for _ in entries), ("parsed",)
    )


def attached(window: Window, skeleton: Skeleton, ranking: Sequence[str]) -> Listed:
    """The ranking with the deterministic attachment for everyone who has one, stopping at the first who has none."""
    entries: list[Entry] = []
    for candidate in ranking:
        entry = certificates.attach(window, skeleton, candidate, certificates.Limits())
        if entry is None:
            break
        entries.append(entry)
    return listed(window, ranking, entries)


def story_case() -> tuple[Case, Listed]:
    window = story()
    case = make_case(window, PLAN, {"Ada": 3, "Bob": 2, "Cay": 1, "Dot": 0})
    return case, attached(window, PLAN, ["Ada", "Bob"])


# ---- the stage on tables ---------------------------------------------------------------------------------------------


def test_a_perfect_list_scores_one_on_every_gate(data: Path) -> None:
    main(params())
    cell = figures(data, "metrics")["rm_attach"]["closed"]
    assert set(cell) == {*MEANS, *RATIOS, "dec_mi", "dec_mi_null"}
    for name in (
        "ndcg",
        "cert_ndcg",
        "cert_ndcg_gold",
        "cert_ndcg_l0",
        "cert_ndcg_l1",
        "feasible",
        "parse_ok",
        "valid",
    ):
        assert cell[name] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 1}, name
    assert cell["evid_cons"]["value"] == 0.5, "one certified entry, K = 2"
    assert cell["dec_rec"] == cell["evid_cons"]
    assert cell["dec_delta"] == {"value": None, "low": None, "high": None, "n": 0}, "a list of one cannot be shifted"
    assert cell["dec_tau"]["value"] is None
    assert cell["characters"]["value"] == len("bought" + "Ann" + "shot" + "Ann")
    assert figures(data, "metrics").keys() == {"oracle", "rm_attach"}
    entries = tables.read("audit/entries", data)
    assert (
        entries.filter(pl.col("system") == "rm_attach").select("grade", "valid", "recovered", "gold_gate").rows()
        == [(3, True, ANN, True)] * 3
    )
    summary = figures(data, "summary")
    assert summary["instances"] == {"kept": 1} and summary["windows"] == {"kept": 1} and not summary["label_free"]
    assert summary["lists"]["rm_attach"]["closed"]["status_disagreements"] == 0


def test_same_input_same_bytes(data: Path) -> None:
    main(params())
    first = whole(data)
    main(params())
    assert whole(data) == first
    assert "audit/metrics.json" in first and "audit/plots/comparison.csv" in first


def test_a_status_that_the_stage_made_up_is_not_believed(data: Path) -> None:
    cited = "rank/rm_attach/closed/certificates"
    tables.write(cited, tables.read(cited, data).filter(pl.col("slot_id") == "s1"), data)
    frame = tables.read(cited, data)
    tables.write(cited, frame.filter(pl.col("start") == frame["start"].min()), data)  # Ann alone, no trigger
    main(params())
    cell = figures(data, "metrics")["rm_attach"]["closed"]
    assert cell["ndcg"]["value"] == 1 and cell["cert_ndcg"]["value"] == 0 and cell["feasible"]["value"] == 0
    counts = figures(data, "summary")["lists"]["rm_attach"]["closed"]
    assert counts["status_disagreements"] == 1 and counts["reject_codes"] == {"no_trigger": 1}
    assert figures(data, "metrics")["rm_attach"]["hybrid"]["cert_ndcg"]["value"] == 1


@pytest.mark.parametrize(
    ("table", "column", "value", "says"),
    [
        ("certificates", "sha256", "0" * 64, "has changed since it was cited"),
        ("certificates", "doc_id", "w1:doc-1", "no document of the window"),
        ("rankings", "candidate_id", "w1:doc-1:2-5", "not in the roster"),
    ],
)
def test_tampered_lists_stop_the_audit_with_one_line(
    data: Path, table: str, column: str, value: str, says: str
) -> None:
    tiny.change(data, f"rank/rm_attach/closed/{table}", pl.lit(value).alias(column))
    with pytest.raises(DataError, match=says) as error:
        main(params())
    assert "\n" not in str(error.value) and "data/rank/rm_attach/closed" in str(error.value)
    assert not (data / "audit/metrics.json").exists() and not (data / "audit/entries.parquet").exists()


def test_a_system_that_left_an_instance_out_is_named(data: Path) -> None:
    name = "rank/rm_attach/hybrid/rankings"
    tables.write(name, tables.table(name).empty(), data)
    with pytest.raises(DataError, match="rm_attach did not rank window 'w2' for intent attack"):
        main(params())


def test_a_corpus_without_gold_gives_the_label_free_metrics(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("instances", "grades", "mapping", "sufficient"):
        tables.write(f"reference/audit/{name}", tables.table(f"reference/audit/{name}").empty(), data)
    tables.write("ingest/roster", tables.table("ingest/roster").empty(), data)
    main(params())
    assert "label-free metrics only" in capsys.readouterr().err
    cell = figures(data, "metrics")["rm_attach"]["closed"]
    nothing = {"value": None, "low": None, "high": None, "n": 0}
    for name in ("ndcg", "cert_ndcg", "cert_ndcg_gold", "iou_f1", "dec_delta", "dec_difference"):
        assert cell[name] == nothing, name
    assert cell["evid_cons"]["value"] == 0.5 and cell["feasible"]["value"] == 1 and cell["precision"]["value"] == 1
    assert figures(data, "summary")["label_free"] and figures(data, "summary")["windows_judged"] == 1
    tests = figures(data, "counterfactuals")["rm_attach"]["closed"]
    assert tests["empty"]["evid_cons"]["value"] == 0 and tests["empty"]["cert_ndcg"] == nothing
    assert tables.read("audit/entries", data)["grade"].null_count() == tables.read("audit/entries", data).height


def test_a_corpus_without_any_window_to_judge(data: Path) -> None:
    raw = params().model_dump(by_alias=True)
    raw["rank"]["splits"] = ["tune"]
    main(Params.model_validate(raw))
    cell = figures(data, "metrics")["oracle"]["predicted"]
    assert all(figure["n"] == 0 and figure["value"] is None for figure in cell.values())


def test_plots_are_tables_that_dvc_can_draw(data: Path) -> None:
    main(params())
    rows = list(csv.DictReader((data / "audit/plots/comparison.csv").read_text().splitlines()))
    assert {"setting", "system", "metric", "value", "low", "high", "n"} == set(rows[0])
    assert {(r["system"], r["setting"]) for r in rows} == {
        (system, setting) for system in tiny.SYSTEMS for setting in tables.SETTINGS
    }
    found = figures(data, "metrics")
    shown = next(r for r in rows if r["metric"] == "cert_ndcg" and r["system"] == "oracle" and r["setting"] == "closed")
    assert float(shown["value"]) == found["oracle"]["closed"]["cert_ndcg"]["value"]


def test_extraction_is_scored_against_gold_split_by_split(data: Path) -> None:
    events = tables.read("extract/events", data)
    tables.write("extract/events", events.with_columns(pl.when(pl.col("window_id") == "w2").then(
        pl.lit("Contact.Meet")).otherwise(pl.col("type")).alias("type")), data)  # fmt: skip
    steps = "trajectories/predicted/steps"
    tables.write(steps, tables.read(steps, data).filter(pl.col("candidate_id") != ANN), data)
    main(params())
    found = figures(data, "extraction")
    scores = found["scores"]["trigger_exact"]
    assert scores["train"]["f1"] == 1 and scores["train"]["gold"] == 3
    assert scores["test"]["f1"] == pytest.approx(1 / 3, abs=1e-4), "one of three types is right"
    assert set(scores) == {"train", "test"} and found["thresholds"] == {"event": 0.5, "argument": 0.5}
    closed, predicted = found["roster"]["closed"]["test"], found["roster"]["predicted"]["test"]
    assert closed["found"] == {"value": 1.0, "n": 4} and closed["relevant_with_steps"] == {"value": 1.0, "n": 1}
    assert predicted["relevant_found"] == {"value": 1.0, "n": 1}
    assert predicted["relevant_with_steps"] == {"value": 0.0, "n": 1}, "found, but nothing it did was extracted"
    assert found["roster"]["closed"]["cal"]["found"] == {"value": None, "n": 0}


def test_the_sweep_contains_the_audit_itself(data: Path) -> None:
    main(params(sweep_accept=[0.1, 0.9999], sweep_margin=[0.05]))
    points = figures(data, "sweep")["rm_attach"]["closed"]
    assert points[0]["accept"] == 0.1 and points[0]["cert_ndcg"]["value"] == 1
    assert points[1]["accept"] == 0.9999
    strict = tables.read("audit/entries", data)["sigma"][0] >= 0.9999
    assert points[1]["cert_ndcg"]["value"] == float(strict)


# ---- the held-out extractor --------------------------------------------------------------------------------------


NOTHING = {"value": None, "low": None, "high": None, "n": 0}


def tell(data: Path, **changes: pl.Expr) -> None:
    """Let the held-out extractor say of window w2 what the other one says, but for changed columns of its roles."""
    own = pl.col("window_id") == "w2"
    tables.write("heldout/windows", tables.table("heldout/windows").frame([
        {"window_id": "w2", "words": 12, "hidden": 5},
    ]), data)  # fmt: skip
    tables.write("heldout/events", tables.read("extract/events", data).filter(own).drop("chain_id"), data)
    tables.write("heldout/relations", tables.read("extract/relations", data).filter(own), data)
    for setting in tables.SETTINGS:
        roles = tables.read(f"roster/{setting}/arguments", data).filter(own).with_columns(**changes)
        tables.write(f"heldout/{setting}/arguments", roles, data)


def test_without_a_held_out_extractor_l3_is_null(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(params())
    assert "closed: nothing was read by a held-out extractor: L3 is null" in capsys.readouterr().err
    for cells in figures(data, "metrics").values():
        for cell in cells.values():
            assert cell["cert_ndcg_l3"] == cell["evid_cons_l3"] == cell["l3_agrees"] == NOTHING
            assert cell["cert_ndcg"]["n"] == 1
    assert tables.read("audit/entries", data)["recovered_l3"].null_count() == 6


def test_one_that_reads_the_same_confirms_everything(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell(data)
    main(params())
    assert "L3" not in capsys.readouterr().err
    for cell in figures(data, "metrics")["rm_attach"].values():
        assert cell["cert_ndcg_l3"] == cell["cert_ndcg"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 1}
        assert cell["evid_cons_l3"] == cell["evid_cons"]
        assert cell["l3_agrees"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 1}
    entries = tables.read("audit/entries", data)
    assert entries["recovered_l3"].to_list() == entries["recovered"].to_list() == [ANN] * 6
    rows = tables.read("audit/instances", data).filter(pl.col("system") == "rm_attach", pl.col("setting") == "closed")
    assert {"cert_ndcg_l3", "evid_cons_l3", "certified", "certified_by_both"} <= set(rows["metric"])
    differences = figures(data, "differences")["oracle"]["closed"]
    assert differences["cert_ndcg_l3"]["value"] == 0 == differences["l3_agrees"]["value"]


def test_one_that_reads_otherwise_confirms_nothing(data: Path) -> None:
    """It sees Ann in both events, in roles that no slot allows: the same spans then speak for nobody."""
    tell(data, role=pl.lit("bystander"))
    main(params())
    for cell in figures(data, "metrics")["rm_attach"].values():
        assert cell["cert_ndcg"]["value"] == 1 and cell["evid_cons"]["value"] == 0.5
        assert cell["cert_ndcg_l3"]["value"] == cell["evid_cons_l3"]["value"] == cell["l3_agrees"]["value"] == 0
    assert tables.read("audit/entries", data)["recovered_l3"].null_count() == 6


def test_one_that_found_nothing_confirms_nothing(data: Path) -> None:
    """It read the window, so this is a verdict; a null would hide it."""
    tell(data)
    for name in ("events", "relations", *(f"{setting}/arguments" for setting in tables.SETTINGS)):
        tables.write(f"heldout/{name}", tables.table(f"heldout/{name}").empty(), data)
    main(params())
    cell = figures(data, "metrics")["rm_attach"]["closed"]
    assert cell["cert_ndcg_l3"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 1} and cell["l3_agrees"]["value"] == 0


def test_a_judged_window_that_it_did_not_read_is_named(data: Path) -> None:
    other = tables.table("heldout/windows").frame([{"window_id": "w1", "words": 1, "hidden": 0}])
    tables.write("heldout/windows", other, data)
    with pytest.raises(DataError, match=r"did not read window 'w2'.*dvc repro heldout"):
        main(params())


def test_l3_needs_no_gold(data: Path) -> None:
    tell(data)
    for name in ("instances", "grades", "mapping", "sufficient"):
        tables.write(f"reference/audit/{name}", tables.table(f"reference/audit/{name}").empty(), data)
    tables.write("ingest/roster", tables.table("ingest/roster").empty(), data)
    main(params())
    cell = figures(data, "metrics")["rm_attach"]["closed"]
    assert cell["cert_ndcg_l3"] == NOTHING
    assert cell["evid_cons_l3"]["value"] == 0.5 and cell["l3_agrees"]["value"] == 1


def test_the_same_spans_are_judged_by_other_atoms() -> None:
    """Ada's acts are Bob's to the second reader: her bundle now speaks for him, and the margin decides."""
    case, answer = story_case()
    window, intent = case.window, case.intent
    swapped = [replace(s, candidate_id="Bob" if s.candidate_id == "Ada" else s.candidate_id) for s in window.steps]
    second = Case(View(window, swapped), intent, params(), case.gold)
    judged = judge(second, answer)
    assert judged.gates == [True, True] and judged.verdicts_l3 is not None
    assert judged.verdicts_l3[0].candidate_id != "Ada"
    assert judged.values["certified"] == 2 and judged.values["certified_by_both"] in (0, 1)
    same = judge(Case(View(window, window.steps), intent, params(), case.gold), answer)
    assert same.verdicts_l3 == same.verdicts and same.values["certified_by_both"] == 2
    assert judge(case, answer).verdicts_l3 is None and judge(case, answer).values["cert_ndcg_l3"] is None


def test_l3_certifies_no_invalid_bundle() -> None:
    case, answer = story_case()
    text = case.window.documents["news:2"].text
    bundle = (Span("news:2", 0, text.index("\n")),)
    second = Case(View(case.window, case.window.steps), case.intent, params(), case.gold)
    judged = judge(second, listed(case.window, answer.ranking, [Entry("Ada", (("s1", bundle),))]))
    assert judged.facts[0].code == "not_a_handle" and judged.values["evid_cons_l3"] == 0
    assert judged.values["certified_by_both"] is None, "no certified entry, so nothing to agree on"


# ---- one list --------------------------------------------------------------------------------------------------------


def test_story_is_certified_and_its_worked_values() -> None:
    case, answer = story_case()
    judged = judge(case, answer)
    assert judged.gates == [True, True]
    assert judged.values["ndcg"] == judged.values["cert_ndcg"] == 1
    assert judged.values["evid_cons"] == judged.values["precision"] == judged.values["recall"] == 1
    assert judged.values["dec_tau"] == 1, "Ada has more support than Bob"
    assert judged.values["dec_difference"] == 1, "moved certificates certify nobody"
    assert judged.values["cert_ndcg_gold"] == 0, "no gold evidence is known here, so the gold gate is shut"


def test_all_of_the_story_under_every_counterfactual() -> None:
    case, answer = story_case()
    gates = {test: damage(case, answer) for test, damage in counterfactuals.TESTS.items()}
    assert gates["shuffle"] == [False, False]
    assert gates["relabel"] == gates["distract"] == [True, True]
    assert gates["mask_names"] == gates["empty"] == [False, False]
    assert gates["cite_all"] is not None and gates["cite_all_unlimited"] == [True, True]
    # Bob's bundle is one trigger and one name: without either it says nothing, and no neighbour says it for him.
    assert gates["delete"] is not None and not gates["delete"][1]
    assert gates["swap"] is not None and not gates["swap"][1]


def test_shuffling_needs_two_entries() -> None:
    case, answer = story_case()
    one = listed(case.window, answer.ranking, answer.entries[:1])
    assert counterfactuals.shuffle(case, one) is None
    assert judge(case, one).values["dec_difference"] is None


def test_an_invalid_bundle_counts_nothing_even_if_the_verifier_recovers_it() -> None:
    case, answer = story_case()
    text = case.window.documents["news:2"].text
    bundle = (Span("news:2", 0, text.index("\n")),)
    judged = judge(case, listed(case.window, answer.ranking, [Entry("Ada", (("s1", bundle),))]))
    assert judged.facts[0].code == "not_a_handle" and judged.gates == [False]
    assert judged.values["cert_ndcg"] == 0 and judged.values["cert_ndcg_l0"] == 0


def test_unneeded_citations_cost_precision_and_unsupported_claims_recall() -> None:
    case, _ = story_case()
    two = case.window.documents["news:2"]
    entry = Entry("Bob", (("s1", (find(two, "Bob"), find(two, "raided"))), ("s2", (find(two, "attacked"),))))
    facts = case.facts(entry)
    assert facts.precision == (2, 3) and facts.recall == (1, 2)
    assert facts.sufficient and not facts.minimal


def test_the_gold_gate_is_shut_when_the_evidence_is_not_what_gold_says() -> None:
    window = story()
    one, two = window.documents["news-1"], window.documents["news:2"]
    right, wrong = (find(two, "Ada"), find(two, "attacked")), (find(one, "Ada"), find(one, "bought"))
    intent = Intent("plan", 1, "plan", PLAN, "0" * 64)
    for sets, gate in (((right,), True), ((wrong,), False), ((), False)):
        case = Case(View(window), intent, params(), Gold({"Ada": 2}, (2,), {"Ada": sets} if sets else {}))
        facts = case.facts(Entry("Ada", (("s1", right),)))
        assert facts.gold_gate is gate and facts.code is None
        assert facts.iou_f1 == (None if not sets else 1.0 if gate else 0.0)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_relations_that_hold_for_any_list(seed: int, random: Any) -> None:
    window = random_window(seed)
    skeleton = skeleton_of(
        ("s1", ["t0"], ["r0", "r1"], 0.5), ("s2", ["t1", "t2"], ["*"], 0.35), ("s3", ["t0"], ["*", "!r0"], 0.15)
    )
    names = [c.candidate_id for c in window.candidates]
    case = make_case(window, skeleton, {name: random.randint(0, 3) for name in names} | {names[0]: 3})
    ranking = random.sample(names, k=window.k)
    answer = attached(window, skeleton, ranking)
    judged = judge(case, answer)
    values = judged.values
    ndcg, certified = values["ndcg"], values["cert_ndcg"]
    assert ndcg is not None and certified is not None and values["cert_ndcg_l0"] is not None
    assert 0 <= certified <= ndcg <= 1 and 0 <= values["cert_ndcg_l0"] <= ndcg
    after = {test: damage(case, answer) for test, damage in counterfactuals.TESTS.items()}
    assert after["relabel"] == judged.gates
    assert not any(after["empty"] or []) and not any(after["mask_names"] or [])
    assert all(len(gates) == len(answer.entries) for gates in after.values() if gates is not None)
    for entry, facts in zip(answer.entries, judged.facts, strict=True):
        assert facts.code is None and facts.characters == metrics.characters(entry.spans)
        assert facts.recall[0] <= facts.recall[1] and facts.precision[0] <= facts.precision[1]


# ---- sums ------------------------------------------------------------------------------------------------------------


def test_a_tally_leaves_undefined_values_out_of_value_and_n() -> None:
    results = Results()
    windows = {"a": 0, "b": 1}
    for window_id, value in (("a", 1.0), ("a", None), ("b", 0.5)):
        results.tally.add("ndcg", window_id, value)
    ratio = results.tally.ratio("ndcg", windows)
    assert ratio.n == 2 and ratio.num.tolist() == [1.0, 0.5] and ratio.den.tolist() == [1.0, 1.0]
    weights = metrics.window_weights(2, 1000, 1)
    assert metrics.estimate(ratio, weights).value == 0.75
    assert results.tally.ratio("unheard_of", windows).n == 0
    assert np.all(results.tally.ratio("unheard_of", windows).den == 0)
