"""What dvc.yaml proves: exact code dependencies, imports that follow the DAG, and where labels can and cannot go."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import DataError, ParamError
from pipeline.graph import Stage, code_closure, load_stages, overlap, wrong_code_deps
from pipeline.params import Params, load_params

ROOT = Path(__file__).resolve().parents[1]
STAGES = load_stages(ROOT / "dvc.yaml")


def readers(path: str) -> set[str]:
    return {name for name, stage in STAGES.items() if any(overlap(dep, path) for dep in stage.data_deps)}


def upstream(name: str) -> set[str]:
    """Stages that `name` depends on, directly or not."""
    found: set[str] = set()
    todo = [name]
    while todo:
        deps = STAGES[todo.pop()].data_deps
        for other, stage in STAGES.items():
            if other not in found and any(overlap(dep, out) for dep in deps for out in stage.outs):
                found.add(other)
                todo.append(other)
    return found


def test_every_code_file_a_stage_executes_is_a_dependency() -> None:
    assert wrong_code_deps(ROOT / "dvc.yaml", ROOT) == []


def test_a_missing_and_a_superfluous_dependency_are_both_named(tmp_path: Path) -> None:
    package = tmp_path / "stages" / "toy"
    package.mkdir(parents=True)
    (tmp_path / "stages" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("def main() -> None:\n    from stages.toy import inner\n")
    (package / "inner.py").touch()
    (package / "outer.py").touch()
    file = tmp_path / "dvc.yaml"
    file.write_text("stages:\n  toy:\n    cmd: python -m stages.toy\n    deps: [stages/toy/outer.py]\n")
    wrong = wrong_code_deps(file, tmp_path)
    assert "toy: lacks stages/toy/inner.py" in wrong
    assert "toy: does not run stages/toy/outer.py" in wrong


def test_unknown_module_and_foreign_command_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no module"):
        code_closure("stages.nowhere", ROOT)
    file = tmp_path / "dvc.yaml"
    file.write_text("stages:\n  toy:\n    cmd: rm -rf data\n")
    with pytest.raises(ParamError, match="python -m"):
        load_stages(file)


# A check depends on the stage it checks; the package behind it is pipeline.quality, which imports no stage.
PACKAGES = [name for name in STAGES if not name.startswith("check_")]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_stage_imports_only_from_stages_upstream_of_it(name: str) -> None:
    allowed = upstream(name) | {name}
    used = {path.split("/")[1] for path in code_closure(STAGES[name].module, ROOT) if path.count("/") == 2}
    used.discard("__init__.py")
    assert {u for u in used if not u.endswith(".py")} <= allowed


def test_checks_import_no_stage() -> None:
    for name, stage in STAGES.items():
        if name.startswith("check_"):
            assert not [p for p in code_closure(stage.module, ROOT) if p.startswith("stages/") and p.count("/") > 1]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("data/ingest/gold/test", {"check_ingest", "reference", "audit"}),
        ("data/ingest/gold/cal", {"check_ingest", "reference", "audit"}),
        ("data/ingest/gold/tune", {"check_ingest", "reference", "audit", "extract", "heldout"}),
        ("data/ingest/gold/train", {"check_ingest", "reference", "audit", "extract", "heldout"}),
        ("data/ingest/roster.parquet", {"check_ingest", "check_reference", "reference", "audit", "roster", "heldout"}),
        ("data/reference/audit", {"check_reference", "rank_oracle", "audit", "report"}),
        ("data/reference/tune", {"check_reference", "reward", "sft"}),
        ("data/reference/train", {"check_reference", "reward", "sft"}),
    ],
)
def test_labels_reach_only_these_stages(path: str, allowed: set[str]) -> None:
    assert readers(path) <= allowed


@pytest.mark.parametrize("name", ["rank", "rl", "trajectories", "roster"])
def test_what_ranks_sees_no_label_outside_train_and_tune(name: str) -> None:
    """Follow the data of the stage back to its sources: gold of test and cal, and the audit's reference, never occur.

    A check's verdict ({passed, sha256}) is no data; the reward model carries labels of train alone (its own test).
    """
    forbidden = ("data/ingest/gold/test", "data/ingest/gold/cal", "data/reference/audit")
    for stage in {*upstream_by_data(name), name} - {"ingest", "reference"}:
        for dep in STAGES[stage].data_deps:
            assert not any(overlap(dep, path) for path in forbidden), (stage, dep)


AUDITING = {"audit", "check_audit", "report", "check_report"}


def test_the_held_out_extractor_is_heard_by_the_audit_alone() -> None:
    """No stage but the audit reads its model or its tables, and no other stage is anywhere downstream of it: neither
    rankings nor policies nor rewards can fit themselves to what will judge them."""
    assert readers("data/heldout") == {"check_heldout", "audit"}
    assert readers("models/heldout") == {"check_heldout"}
    assert readers("data/quality/heldout.json") == {"audit"}
    downstream = {name for name in STAGES if "heldout" in upstream(name)}
    assert {"audit", "check_heldout"} <= downstream <= {"check_heldout", *AUDITING}
    for name in set(STAGES) - {"heldout", *AUDITING}:
        assert not [path for path in code_closure(STAGES[name].module, ROOT) if path.startswith("stages/heldout/")]


def test_the_held_out_extractor_hears_nobody_of_what_it_judges() -> None:
    """It shares the corpus, the annotation of train and tune, and the rosters; not what the extractor said."""
    deps = STAGES["heldout"].data_deps
    for path in ("data/extract", "models/extract", "data/trajectories", "data/reference", "models/reward", "data/rank",
                 "data/ingest/gold/test", "data/ingest/gold/cal"):  # fmt: skip
        assert not [dep for dep in deps if overlap(dep, path)], path


def upstream_by_data(name: str) -> set[str]:
    found: set[str] = set()
    todo = [name]
    while todo:
        deps = [d for d in STAGES[todo.pop()].data_deps if not d.startswith("data/quality/")]
        for other, stage in STAGES.items():
            if other not in found and any(overlap(dep, out) for dep in deps for out in stage.outs):
                found.add(other)
                todo.append(other)
    return found


def param_reads(stage: Stage) -> Iterator[str]:
    """`section` or `section.key` for every `params.section.key` in the code that the stage executes."""
    for path in code_closure(stage.module, ROOT):
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        inner = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and id(node) not in inner:
                chain = []
                while isinstance(node, ast.Attribute):
                    chain.append(node.attr)
                    node = node.value
                if isinstance(node, ast.Name) and node.id == "params" and chain[-1] in Params.model_fields:
                    yield ".".join(reversed(chain)).replace("from_", "from")


@pytest.mark.parametrize("name", PACKAGES)
def test_params_that_a_stage_reads_are_declared(name: str) -> None:
    declared = STAGES[name].params
    for key in param_reads(STAGES[name]):
        covered = any(key == d or key.startswith(d + ".") for d in declared)
        assert covered, f"{name} reads params.{key}, dvc.yaml does not list it"


@pytest.mark.parametrize("name", PACKAGES)
def test_params_that_a_stage_declares_exist_and_are_read(name: str) -> None:
    values = load_params(ROOT / "params.yaml").model_dump(by_alias=True)
    reads = set(param_reads(STAGES[name]))
    for key in STAGES[name].params:
        here = values
        for part in key.split("."):
            assert part in here, f"params.yaml has no {key}"
            here = here[part]
        assert any(r == key or r.startswith(key + ".") for r in reads), f"{name} declares {key} but never reads it"


def test_every_param_is_read_by_some_stage() -> None:
    declared = {key for stage in STAGES.values() for key in stage.params}
    for section, values in load_params(ROOT / "params.yaml").model_dump(by_alias=True).items():
        for key in values if isinstance(values, dict) else ():
            path = f"{section}.{key}"
            assert any(path == d or path.startswith(d + ".") or d.startswith(path + ".") for d in declared), path
