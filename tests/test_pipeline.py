"""The whole pipeline by DVC on a miniature sample: same bytes in two clones, nothing done twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
NAMES = {"ndcg", "cert_ndcg", "cert_ndcg_gold", "evid_cons", "feasible", "dec_delta", "dec_tau"}
ENV = {**os.environ, "PATH": f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "PYTHONHASHSEED"):
    ENV.pop(name, None)


def clone(target: Path) -> Path:
    """The working tree as git would hand it over, in a repository of its own, with a small corpus in params."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    (target / "dvc.lock").unlink(missing_ok=True)
    change_params(target, ingest={"sample": {"windows": 40}}, rank={"systems": ["rm_attach", "random"]},
                  reward={"bootstrap": 20}, report={"windows": 3})  # fmt: skip
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        subprocess.run([*git, *command], cwd=target, check=True)
    return target


def change_params(target: Path, **sections: dict[str, Any]) -> None:
    yaml = YAML()
    raw = yaml.load((target / "params.yaml").read_text(encoding="utf-8"))

    def merge(into: Any, values: dict[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                merge(into[key], value)
            else:
                into[key] = value

    merge(raw, sections)
    with (target / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(raw, file)


def dvc(target: Path, *args: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["dvc", *args], cwd=target, env={**ENV, **extra}, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Two clones built side by side under different hash seeds."""
    folder = tmp_path_factory.mktemp("clones")
    pair = (clone(folder / "a"), clone(folder / "b"))
    runs = [
        subprocess.Popen(
            ["dvc", "repro"], cwd=target, env={**ENV, "PYTHONHASHSEED": seed}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for target, seed in zip(pair, ("1", "2"), strict=True)
    ]  # fmt: skip
    for run in runs:
        output, _ = run.communicate()
        assert run.returncode == 0, output[-4000:]
    yield pair


def lock(target: Path) -> Any:
    return YAML(typ="safe").load((target / "dvc.lock").read_text(encoding="utf-8"))["stages"]


def test_two_clones_give_the_same_bytes(built: tuple[Path, Path]) -> None:
    a, b = built
    assert lock(a) == lock(b)


def test_metrics_are_complete_and_ordered(built: tuple[Path, Path]) -> None:
    metrics = json.loads((built[0] / "data/audit/metrics.json").read_text(encoding="utf-8"))
    assert set(metrics) == {"rm_attach", "random", "oracle"}
    for system, settings in metrics.items():
        assert set(settings) == {"closed", "predicted", "hybrid"}
        for setting, values in settings.items():
            assert {"ndcg", "cert_ndcg", "cert_ndcg_gold", "evid_cons", "feasible", "dec_delta", "dec_tau"} <= set(
                values
            )
            for name, m in values.items():
                assert set(m) == {"value", "low", "high", "n"}, (system, setting, name)
            assert 0 <= values["cert_ndcg"]["value"] <= values["ndcg"]["value"] <= 1
    closed = {system: metrics[system]["closed"]["cert_ndcg"]["value"] for system in metrics}
    assert closed["random"] < closed["rm_attach"] <= closed["oracle"]


def test_a_second_repro_runs_nothing(built: tuple[Path, Path]) -> None:
    done = dvc(built[0], "repro")
    assert done.returncode == 0, done.stderr
    assert "Running stage" not in done.stdout + done.stderr
    assert dvc(built[0], "status").stdout.strip().endswith("Data and pipelines are up to date.")


def test_a_changed_expectation_reruns_only_its_check(built: tuple[Path, Path]) -> None:
    file = built[1] / "stages/roster/expectations.yaml"
    file.write_text(file.read_text(encoding="utf-8") + "\n# reviewed\n", encoding="utf-8")
    done = dvc(built[1], "repro")
    assert done.returncode == 0, done.stderr
    ran = [line.split("'")[1] for line in (done.stdout + done.stderr).splitlines() if line.startswith("Running stage")]
    assert ran == ["check_roster"]


def test_dvc_commands_a_user_knows(built: tuple[Path, Path]) -> None:
    shown = dvc(built[0], "metrics", "show", "--json")
    assert shown.returncode == 0
    assert "data/audit/metrics.json" in shown.stdout
    assert "rank@rm_attach-closed" in dvc(built[0], "dag").stdout
    plots = dvc(built[0], "plots", "show", "-o", "plots")
    assert plots.returncode == 0, plots.stderr
    assert (built[0] / "plots/index.html").is_file()


def test_a_broken_table_stops_the_pipeline_with_one_clear_line(built: tuple[Path, Path]) -> None:
    """Rows that break an expectation do not flow: the check names the table and nothing downstream runs."""
    target = built[1]
    change_params(target, roster={"min_candidates": 1000})
    done = dvc(target, "repro", "check_roster")
    assert done.returncode == 0, done.stdout + done.stderr
    done = dvc(target, "repro", "reward")
    assert done.returncode != 0
    errors = [line for line in (done.stdout + done.stderr).splitlines() if ": error: " in line]
    assert len(errors) == 1
    assert not list(target.glob("data/**/*.partial"))
