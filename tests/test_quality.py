"""The data-quality gate: a tiny consistent data directory passes; each kind of damage is named and stops the gate."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML
from safetensors.numpy import save_file

from pipeline import expectations, quality, tables, views
from pipeline.errors import DataError, ParamError, QualityError, TableError
from pipeline.files import publish_directory, read_json, write_json
from pipeline.graph import load_stages
from pipeline.spans import sha256_text
from tests import tiny

STAGES = tiny.ROOT / "stages"
TABLE_STAGES = ("ingest", "extract", "roster", "trajectories", "reference", "rank", "audit")
ALL_STAGES = sorted(path.parent.name for path in STAGES.glob("*/expectations.yaml"))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny") / "data"
    tiny.write(root)
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    shutil.copytree(pristine, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def stages(tmp_path: Path) -> Path:
    """The repository's expectations without those on artifacts, which the tiny data directory does not have."""
    for stage in TABLE_STAGES:
        parsed = (STAGES / stage / "expectations.yaml").read_text(encoding="utf-8").split("\nartifacts:")[0]
        (tmp_path / "stages" / stage).mkdir(parents=True)
        (tmp_path / "stages" / stage / "expectations.yaml").write_text(parsed, encoding="utf-8")
    return tmp_path / "stages"


def rules(tmp_path: Path, text: str, stage: str = "ingest") -> Path:
    """A folder of stages with one expectations file."""
    (tmp_path / "own" / stage).mkdir(parents=True, exist_ok=True)
    (tmp_path / "own" / stage / "expectations.yaml").write_text(text, encoding="utf-8")
    return tmp_path / "own"


def failures(stage: str, root: Path, stages: Path) -> list[quality.Result]:
    return [r for r in quality.check(stage, tiny.params(), root, stages) if not r.passed]


# ---- the gate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", TABLE_STAGES)
def test_consistent_tables_pass(stage: str, root: Path, stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quality.gate(stage, tiny.params(), root, stages)
    passed = read_json(root / "quality" / f"{stage}.json")
    assert sorted(passed) == ["passed", "tables"]
    assert passed["passed"] is True
    declared = expectations.load(stage, stages).tables
    assert set(declared) == {name for name in tables.TABLES if name.split("/")[0] == stage}, "a table is not checked"
    assert set(passed["tables"]) == {c for name in declared for c in quality.concrete(name, tiny.params())}
    details = read_json(root / "quality" / f"{stage}.details.json")["results"]
    assert {r["table"] for r in details} == set(passed["tables"])
    assert all(r["passed"] for r in details)
    assert "failed" not in capsys.readouterr().err


@pytest.mark.parametrize("stage", TABLE_STAGES)
def test_the_same_tables_give_the_same_bytes(stage: str, root: Path, stages: Path) -> None:
    if stage != "roster":
        pytest.skip("one stage is enough: the code is the same")
    quality.gate(stage, tiny.params(), root, stages)
    first = {p.name: p.read_bytes() for p in (root / "quality").iterdir()}
    quality.gate(stage, tiny.params(), root, stages)
    assert {p.name: p.read_bytes() for p in (root / "quality").iterdir()} == first


def test_an_unannotated_corpus_passes(root: Path, stages: Path) -> None:
    """No gold, no roster, no event, no ranking: every table but the texts is empty."""
    for path in sorted(root.rglob("*.parquet")):
        name = path.relative_to(root).with_suffix("").as_posix()
        if name not in ("ingest/documents", "ingest/sentences", "roster/windows", "trajectories/skeletons"):
            tables.write(name, tables.table(name).empty(), root)
    for stage in TABLE_STAGES:
        assert failures(stage, root, stages) == [], stage


def test_a_failing_check_leaves_no_passed_json(root: Path, stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quality.gate("ingest", tiny.params(), root, stages)
    tiny.change(root, "ingest/gold/test/mentions", (pl.col("surface") + "\x1b[2J").alias("surface"))
    capsys.readouterr()
    with pytest.raises(QualityError, match=r"1 of \d+ expectations on the tables of ingest failed"):
        quality.gate("ingest", tiny.params(), root, stages)
    assert not (root / "quality" / "ingest.json").exists()
    line = next(line for line in capsys.readouterr().err.splitlines() if "failed" in line)
    assert line.startswith("check_ingest: failed: ingest/gold/test/mentions: surface is text[start:end]: 5 of 5 rows ")
    assert "mention_id='w2#Ann0'" in line
    assert line.isprintable()
    details = read_json(root / "quality" / "ingest.details.json")["results"]
    (failed,) = [r for r in details if not r["passed"]]
    assert (failed["table"], failed["failing"]) == ("ingest/gold/test/mentions", 5)
    assert len(failed["sample"]) == quality.SAMPLES


def test_a_missing_or_truncated_table_leaves_no_passed_json(root: Path, stages: Path) -> None:
    quality.gate("extract", tiny.params(), root, stages)
    path = tables.path("extract/events", root)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(TableError, match=r"events\.parquet: not a readable Parquet file"):
        quality.gate("extract", tiny.params(), root, stages)
    path.unlink()
    with pytest.raises(TableError, match=r"events\.parquet: table not found"):
        quality.gate("extract", tiny.params(), root, stages)
    assert not (root / "quality" / "extract.json").exists()


def test_a_warning_is_reported_and_does_not_stop(root: Path, stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tiny corpus tells the same text in train and in test."""
    quality.gate("ingest", tiny.params(), root, stages)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert line.startswith("check_ingest: warning: ingest/documents: no text stands in two splits: 1 of 2 rows fail")
    assert (root / "quality" / "ingest.json").exists()


# ---- damage ---------------------------------------------------------------------------------------------------------

RANK = "rank/rm_attach/closed"
FIRST = pl.col("rank") == 1
FIRST_NAME = pl.col("name") == "Ann"
col, lit = pl.col, pl.lit

DAMAGE: list[tuple[str, str, str | tuple[str, ...], pl.Expr | list[pl.Expr], pl.Expr | None]] = [
    # stage, table, words of the expectation that must fail, change, rows
    ("ingest", "ingest/documents", "sha256 is that of the text", col("text") + ".", None),
    ("ingest", "ingest/documents", "match_regex", lit("xyz").alias("sha256"), None),
    ("ingest", "ingest/documents", "be_in_set", lit("dev").alias("split"), None),
    ("ingest", "ingest/documents", "positions run from 0", col("position") + 1, None),
    ("ingest", "ingest/documents", "a window has one split", lit("w1").alias("window_id"), None),
    ("ingest", "ingest/documents", "unique(doc_id)", lit("w1:doc-1").alias("doc_id"), None),
    ("ingest", "ingest/sentences", "inside the document", col("end") + 100, col("sentence") == 2),
    ("ingest", "ingest/sentences", "ascending, disjoint", col("start") - 3, col("sentence") == 1),
    ("ingest", "ingest/sentences", "a_to_be_greater_than_b", col("start").alias("end"), col("sentence") == 1),
    ("ingest", "ingest/sentences", "references(window_id, doc_id", lit("w9").alias("window_id"), None),
    ("ingest", "ingest/roster", "surface is text[start:end]", [col("start") + 1, col("end") + 1], None),
    ("ingest", "ingest/roster", "be_in_set", lit("person").alias("kind"), None),
    ("ingest", "ingest/roster", "a cluster has one window", lit("same").alias("entity_id"), None),
    ("ingest", "ingest/gold/train/mentions", "references(window_id, entity_id", lit("nobody").alias("entity_id"), None),
    ("ingest", "ingest/gold/train/arguments", "not_match_regex", lit("evt089arg01victim").alias("role"), None),
    ("ingest", "ingest/gold/train/arguments", "references(window_id, event_id", lit("e").alias("event_id"), None),
    ("ingest", "ingest/gold/train/relations", "be_in_set", lit("AFTER").alias("type"), None),
    ("ingest", "ingest/gold/train/relations", "head and tail differ", col("head_event_id").alias("tail_event_id"),
     None),
    ("ingest", "ingest/gold/train/labelled", "references(window_id, doc_id, sentence", col("sentence") + 9, None),
    ("extract", "extract/events", "be_between", lit(1.2).alias("confidence"), None),
    ("extract", "extract/events", "not_be_null", lit(math.nan).alias("confidence"), None),
    ("extract", "extract/events", "orders of a window", col("order") * 2, None),
    ("extract", "extract/arguments", "references(window_id, mention_id", lit("m").alias("mention_id"), None),
    ("roster", "roster/windows", "every window of the corpus", col("characters") + 1, None),
    ("roster", "roster/windows", "every window of the corpus", lit("w3").alias("window_id"), col("window_id") == "w2"),
    ("roster", "roster/windows", "k selects", lit(3).alias("k"), None),
    ("roster", "roster/windows", "n counts the candidates", col("n_hybrid") + 1, None),
    ("roster", "roster/windows", "dropped says why", lit(False).alias("kept"), None),
    ("roster", "roster/hybrid/candidates", "match_regex", lit("7").alias("local_id"), None),
    ("roster", "roster/hybrid/candidates", "local ids are C01", lit("C09").alias("local_id"), FIRST_NAME),
    ("roster", "roster/hybrid/candidates", "mentions counts", col("mentions") + 1, None),
    ("roster", "roster/hybrid/mentions", "its id is the citation", [col("start") - 1, col("surface")], None),
    ("trajectories", "trajectories/skeletons", "weights sum to 1", lit(0.4).alias("weight"), col("climax")),
    ("trajectories", "trajectories/skeletons", "one slot is the climax", lit(True).alias("climax"), None),
    ("trajectories", "trajectories/skeletons", "predecessors are slots", lit(["s7"]).alias("predecessors"), None),
    ("trajectories", "trajectories/closed/steps", "steps run from 0", col("step") + 1, None),
    ("trajectories", "trajectories/closed/steps", "references(window_id, event_id, type", col("order") + 5, None),
    ("trajectories", "trajectories/closed/steps", "references(window_id, trigger_handle", col("mention_handle").alias(
        "trigger_handle"), None),
    ("trajectories", "trajectories/closed/handles", "begins in its sentence", lit(2).alias("sentence"),
     col("sentence") == 0),
    ("trajectories", "trajectories/negatives", "steps is a JSON list", lit('[["a", "b"]]').alias("steps"), None),
    ("trajectories", "trajectories/negatives", "steps is a JSON list", lit('[["a",').alias("steps"), None),
    ("trajectories", "trajectories/negatives", "only train windows", lit("w2").alias("window_id"), None),
    ("reference", "reference/train/instances", "train holds train windows", lit("test").alias("split"), None),
    ("reference", "reference/train/mapping", "train holds train windows", lit("w2").alias("window_id"), None),
    ("reference", "reference/audit/instances", "idcg is that of the grades", lit(6.0).alias("idcg"), None),
    ("reference", "reference/audit/grades", "kept instances have a target", lit(0).alias("grade"), None),
    ("reference", "reference/audit/mapping", "unique(window_id, setting, entity_id)", lit("w1#Ann").alias("entity_id"),
     None),
    ("reference", "reference/audit/sufficient", "spans are distinct citations",
     pl.lit(["w1:doc-1:0-999"]).alias("spans"), None),
    ("reference", "reference/audit/sufficient", "spans are distinct citations", pl.lit(["w1:doc-1:5"]).alias("spans"),
     None),
    ("rank", f"{RANK}/rankings", "ranks run from 1 to k", col("rank") + 1, col("rank") == 2),
    ("rank", f"{RANK}/rankings", "the emitted entries are the first", col("emitted").not_(), None),
    ("rank", f"{RANK}/rankings", "certified entries are emitted", lit("certified").alias("status"), None),
    ("rank", f"{RANK}/rankings", "references(window_id, candidate_id, local_id, name", lit("C77").alias("local_id"),
     FIRST),
    ("rank", f"{RANK}/rankings", "not_be_null", lit(math.nan).alias("score"), None),
    ("rank", f"{RANK}/certificates", "references(window_id, doc_id, sha256", lit("0" * 64).alias("sha256"), None),
    ("rank", f"{RANK}/certificates", "references(window_id, handle_id", [col("start") + 1, col("end") + 1], None),
    ("rank", f"{RANK}/certificates", "inside the document", col("end") + 500, None),
    ("rank", f"{RANK}/generations", "a rejected generation says why", lit("rejected").alias("status"), None),
    ("rank", f"{RANK}/generations", "the list was taken from one", lit(False).alias("chosen"), None),
    ("rank", f"{RANK}/generations", "what a model wrote and was not parsed is on no list",
     [lit("rejected").alias("status"), lit("truncated").alias("reject_code"), lit("stop").alias("finish")], None),
    ("audit", "audit/instances", "0 <= cert_ndcg <= ndcg <= 1", lit(1.5).alias("value"), None),
    ("audit", "audit/instances", "a value is a finite number", lit(math.inf).alias("value"), None),
    ("audit", "audit/entries", "valid entries carry no reject code", lit("no_slot").alias("reject_code"), None),
    ("audit", "audit/entries", "references(system, setting, window_id", lit("nosuch").alias("system"), None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "table", "label", "change", "where"), DAMAGE, ids=[f"{d[1]}-{str(d[2])[:30]}" for d in DAMAGE]
)
def test_damage_is_named(
    stage: str, table: str, label: str, change: pl.Expr, where: pl.Expr | None, root: Path, stages: Path
) -> None:
    tiny.change(root, table, change, where)
    keep_only(stages, stage, table, label)
    found = [(r.table, r.expectation, r.failing) for r in failures(stage, root, stages)]
    assert any(label in expectation and failing > 0 for _, expectation, failing in found), found


def keep_only(stages: Path, stage: str, table: str, label: str) -> None:
    """Leave the rule of this name, or all expectations on the damaged table: checks take a while."""
    file = stages / stage / "expectations.yaml"
    raw = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    declared = tables.table(table).name
    kept = {declared: raw["tables"][declared]}
    for name, expected in [*raw["tables"].items(), (declared, raw["tables"][declared])]:
        for rule, sql in expected.get("rules", {}).items():
            if rule.startswith(label):
                kept = {name: {"rules": {rule: sql}}}
    write_json(file, {"tables": kept})  # JSON is YAML


def test_every_failure_is_attributed_to_its_own_table(root: Path, stages: Path) -> None:
    tiny.change(root, "roster/predicted/mentions", lit(2.0).alias("confidence"), col("window_id") == "w2")
    (failed,) = failures("roster", root, stages)
    assert (failed.table, failed.rows, failed.failing) == ("roster/predicted/mentions", 10, 5)
    assert all(row["window_id"] == "w2" for row in failed.sample)


def test_batches_do_not_change_the_result(root: Path, stages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.change(root, "ingest/gold/test/mentions", lit(-1).alias("start"), col("mention_id") == "w2#Bob0")
    whole = quality.check("ingest", tiny.params(), root, stages)
    monkeypatch.setattr(quality, "BATCH_ROWS", 3)
    assert quality.check("ingest", tiny.params(), root, stages) == whole
    assert [(r.failing, r.sample[0]["mention_id"]) for r in whole if "min_value=0" in r.expectation and r.failing] == [
        (1, "w2#Bob0")
    ]


def test_a_duplicate_in_another_batch_and_shard_is_found(root: Path, stages: Path) -> None:
    """Great Expectations would look for duplicates within a batch; keys are checked over the whole file."""
    text = "x."
    rows = [
        {"window_id": f"w{i:04d}", "doc_id": f"d{i % 900}", "position": 0, "split": "train", "text": text,
         "sha256": sha256_text(text), "title": None, "date": None, "url": None} for i in range(901)
    ]  # fmt: skip
    tables.write("ingest/documents", tables.table("ingest/documents").frame(rows), root)
    (failed,) = [r for r in failures("ingest", root, stages) if r.expectation == "unique(doc_id)"]
    assert failed.sample == ({"doc_id": "d0", "times": 2},)


def test_an_offset_counts_code_points_in_the_tiny_corpus() -> None:
    start, _ = tiny.find(tiny.NAMES[2])
    assert start != tiny.TEXT.encode().index(tiny.NAMES[2].encode())


MEMORY = duckdb.connect()
CHARACTERS = st.characters(exclude_categories=("Cs",)) | st.sampled_from("e\u0301\u200d👩👧🇩🇪\r\n\x00")


@given(st.text(alphabet=CHARACTERS), st.data())
def test_duckdb_slices_like_python(text: str, data: st.DataObject) -> None:
    """Code points, not graphemes and not bytes: combining marks, emoji sequences, flags, CRLF, NUL."""
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    row = MEMORY.execute("select length(?), substring(?, ? + 1, ? - ?)", [text, text, start, end, start])
    assert row.fetchone() == (len(text), text[start:end])


# ---- leftovers of other parameters ----------------------------------------------------------------------------------


def test_leftovers_under_rank_are_removed_and_named(
    root: Path, stages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("rank/random/closed", "rank/rm_attach/open"):
        shutil.copytree(root / RANK, root / name)
    (root / "rank" / ".rm_attach.99.partial").mkdir()
    quality.gate("rank", tiny.params(), root, stages)
    err = capsys.readouterr().err
    for name in ("rank/random", "rank/rm_attach/open", "rank/.rm_attach.99.partial"):
        assert f"removed {root / name}" in err
        assert not (root / name).exists()
    assert sorted(p.relative_to(root / "rank").as_posix() for p in root.glob("rank/*/*")) == sorted(
        f"{system}/{setting}" for system in tiny.SYSTEMS for setting in tables.SETTINGS
    )
    assert quality.remove_leftovers(tiny.params(), root) == []


def test_another_stage_removes_nothing(root: Path, stages: Path) -> None:
    (root / "rank" / "random").mkdir()
    quality.gate("audit", tiny.params(), root, stages)
    assert (root / "rank" / "random").is_dir()


# ---- artifacts ------------------------------------------------------------------------------------------------------


def publish_reward(root: Path, theta: list[float], **config: Any) -> None:
    with publish_directory(root.parent / "models" / "reward") as folder:
        save_file({"theta": np.array(theta)}, folder / "model.safetensors")
        write_json(folder / "config.json", {"features": ["a", "b"], **config})
    row = {"feature": "a", "group": "g", "theta": 1.0, "low": 0.5, "high": 1.5, "sign": "+"}
    write_json(root / "reward" / "theta.json", [row])
    write_json(root / "reward" / "calibration.json", [])


def test_a_model_passes_and_its_hash_is_that_of_its_marker(root: Path) -> None:
    publish_reward(root, [0.1, -0.2])
    quality.gate("reward", tiny.params(), root, STAGES)
    passed = read_json(root / "quality" / "reward.json")["tables"]
    assert sorted(passed) == ["data/reward/calibration.json", "data/reward/theta.json", "models/reward"]


@pytest.mark.parametrize(
    ("theta", "config", "label"),
    [
        ([math.nan, 1.0], {}, "tensors are finite"),
        ([0.0, 1.0], {"features": ["a", "a"]}, "features are distinct"),
        ([0.0, 1.0], {"features": []}, "there is a feature"),
    ],
)
def test_a_broken_model_fails(root: Path, theta: list[float], config: dict[str, Any], label: str) -> None:
    publish_reward(root, theta, **config)
    assert [(r.table, r.expectation) for r in failures("reward", root, STAGES)] == [("models/reward", label)]


def test_a_sign_that_contradicts_its_interval_fails(root: Path) -> None:
    publish_reward(root, [0.0, 1.0])
    row = {"feature": "a", "group": "g", "theta": 1.0, "low": 0.5, "high": 1.5, "sign": "-"}
    write_json(root / "reward" / "theta.json", [row])
    (failed,) = failures("reward", root, STAGES)
    assert failed.table == "data/reward/theta.json"


def test_an_incomplete_model_is_an_error(root: Path) -> None:
    publish_reward(root, [0.0, 1.0])
    (root.parent / "models" / "reward" / "config.json").write_text("{}")
    with pytest.raises(DataError, match="was changed after it was published"):
        failures("reward", root, STAGES)


# ---- the expectations themselves ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_the_repositorys_expectations_load(stage: str) -> None:
    parsed = expectations.load(stage, STAGES)
    assert parsed.tables or parsed.artifacts


def test_every_stage_with_tables_has_expectations() -> None:
    assert {name.split("/")[0] for name in tables.TABLES} <= set(ALL_STAGES)


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_checks_see_labels_only_where_the_stage_does(stage: str) -> None:
    """A check upstream of the policy must not be a way around the isolation of labels."""
    if stage in ("ingest", "reference", "audit"):
        return
    read = expectations.load(stage, STAGES).tables_read
    assert not [name for name in read if name.startswith(("ingest/gold", "reference"))]


@pytest.mark.parametrize("stage", ALL_STAGES)
def test_dvc_knows_everything_that_a_check_reads(stage: str) -> None:
    """Otherwise a check would keep an old verdict when what it read has changed."""
    declared = load_stages(tiny.ROOT / "dvc.yaml")[f"check_{stage}"]
    parsed = expectations.load(stage, STAGES)
    read = [f"data/{name}.parquet" for name in parsed.tables_read] + list(parsed.artifacts)
    missing = [path for path in read if not any(path == dep or path.startswith(f"{dep}/") for dep in declared.deps)]
    assert missing == [], f"deps of check_{stage}"
    places = {place for name in parsed.tables_read for place in views.places(name)}
    keys = (("setting", "roster.settings"), ("system", "rank.systems"), ("system", "rank_policy.systems"))
    needed = {key for place, key in keys if place in places}
    assert needed <= set(declared.params), f"params of check_{stage}"


def test_tables_read_lists_what_rules_and_references_name() -> None:
    read = expectations.load("extract", STAGES).tables_read
    assert read[:4] == ["extract/mentions", "extract/events", "extract/arguments", "extract/relations"]
    assert read[4:] == ["ingest/documents"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tables: [", "not valid YAML"),
        ("table: {}", "table: Extra inputs"),
        ("tables: {ingest/nosuch: {}}", "declares no table of this name"),
        ("tables: {extract/events: {}}", "stage ingest declares no table of this name"),
        ("tables: {ingest/documents: {columns: {nosuch: {}}}}", "'nosuch' is no column"),
        ("tables: {ingest/documents: {unique: [[doc]]}}", "'doc' is no column"),
        ("tables: {ingest/documents: {unique: [[]]}}", "at least 1 item"),
        ("tables: {ingest/documents: {references: [{columns: [doc_id], of: nosuch}]}}", "no table is declared"),
        ("tables: {ingest/documents: {references: [{columns: [title], of: ingest/images}]}}", "'title' is no column"),
        ("tables: {ingest/images: {references: [{columns: [doc_id], of: roster/closed/mentions}]}}", "declared name"),
        ("tables: {ingest/images: {references: [{columns: [doc_id], of: ingest/documents, as: [a, b]}]}}", "as many"),
        ("tables: {ingest/documents: {rows: [{x: {column_A: nosuch}}]}}", "'nosuch' is no column"),
    ],
)
def test_wrong_expectations_are_one_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ParamError, match=message) as caught:
        expectations.load("ingest", rules(tmp_path, text))
    assert "expectations.yaml" in str(caught.value)


def test_a_stage_without_expectations_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ParamError, match="no expectations are written for stage 'report'"):
        expectations.load("report", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("columns: {doc_id: {expect_column_values_to_be_lovely: {}}}", "not an expectation of Great Expectations"),
        ("columns: {doc_id: {expect_column_values_to_be_in_set: {values: [a]}}}", "not an expectation of Great Expec"),
        ("columns: {position: {expect_column_mean_to_be_between: {min_value: 0}}}", "looks at whole columns"),
        ("rules: {broken: selec 1}", "the rule does not run: Parser Error"),
        ("rules: {broken: select 1 from ingest.nosuch}", "the rule does not run: Catalog Error"),
    ],
)
def test_expectations_that_cannot_run_are_one_error(root: Path, tmp_path: Path, text: str, message: str) -> None:
    own = rules(tmp_path, f"tables: {{ingest/documents: {{{text}}}}}")
    with pytest.raises(ParamError, match=message) as caught:
        quality.check("ingest", tiny.params(), root, own)
    assert "\n" not in str(caught.value)


def test_a_rule_over_many_tables_must_say_which_row_is_whose(root: Path, tmp_path: Path) -> None:
    own = rules(tmp_path, "tables: {ingest/gold/<split>/events: {rules: {x: select event_id from gold.events}}}")
    with pytest.raises(ParamError, match='Referenced column "split" not found'):
        quality.check("ingest", tiny.params(), root, own)


def test_reference_ignores_nulls(root: Path, tmp_path: Path) -> None:
    text = """
tables:
  trajectories/negatives:
    references:
      - {columns: [window_id, other_id], of: roster/<setting>/candidates, as: [window_id, candidate_id]}
"""
    own = rules(tmp_path, text, "trajectories")
    assert failures("trajectories", root, own) == []
    tiny.change(root, "trajectories/negatives", lit("nobody").alias("other_id"))
    assert [r.failing for r in failures("trajectories", root, own)] == [1]


# ---- views ----------------------------------------------------------------------------------------------------------


def test_views_are_named_after_their_tables() -> None:
    names = [str(views.view_of(t)) for t in tables.TABLES.values()]
    assert len(set(names)) == len(names)
    assert str(views.view_of(tables.TABLES["ingest/gold/<split>/events"])) == "gold.events"
    assert views.view_of(tables.TABLES["rank/<system>/<setting>/rankings"]).places == ("system", "setting")


def test_places_never_hide_a_column() -> None:
    for table in tables.TABLES.values():
        assert not set(views.places(table.name)) & set(table.schema), table.name


def test_filling_places_is_the_inverse_of_reading_them() -> None:
    declared = "rank/<system>/<setting>/rankings"
    concrete = "rank/rm_attach/closed/rankings"
    assert views.values(declared, concrete) == {"system": "rm_attach", "setting": "closed"}
    assert views.fill(declared, views.values(declared, concrete)) == concrete


def test_mentioned_views_are_found_whole() -> None:
    sql = "select * from gold.events e join ingest.documents using (doc_id) -- extract.eventsx"
    assert views.mentioned(sql) == ["ingest/documents", "ingest/gold/<split>/events"]
