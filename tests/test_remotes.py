"""A DVC remote carries everything: push here, pull in a fresh clone, and nothing is left to run there."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pipeline.files import sha256_file
from tests import toy


def test_a_clone_pulls_from_a_folder_and_runs_nothing(tmp_path: Path) -> None:
    here, there, store = toy.make(tmp_path / "here"), tmp_path / "there", tmp_path / "store"
    toy.dvc(here, "repro")
    toy.dvc(here, "remote", "add", "-d", "store", str(store))
    assert "pushed" in toy.dvc(here, "push", "--run-cache")
    toy.commit(here)
    subprocess.run(["git", "clone", "-q", str(here), str(there)], check=True)
    assert not (there / "data/first").exists()
    assert "added" in toy.dvc(there, "pull", "--run-cache")
    files = [
        p.relative_to(here) for root in ("data/first", "models", "data/report") for p in (here / root).rglob("*.*")
    ]
    assert len(files) >= 3
    assert {f: sha256_file(there / f) for f in files} == {f: sha256_file(here / f) for f in files}
    said = toy.dvc(there, "repro")
    assert "Running stage" not in said and "Data and pipelines are up to date." in said
    assert toy.lock(there) == toy.lock(here)


def test_a_run_cache_from_the_remote_spares_a_run_without_a_lock(tmp_path: Path) -> None:
    here, there, store = toy.make(tmp_path / "here"), tmp_path / "there", tmp_path / "store"
    toy.dvc(here, "remote", "add", "-d", "store", str(store))
    toy.commit(here)
    subprocess.run(["git", "clone", "-q", str(here), str(there)], check=True)
    toy.dvc(here, "repro", "train")
    toy.dvc(here, "push", "--run-cache")
    said = toy.dvc(there, "repro", "--pull", "train")
    assert "Running stage" not in said, said
    assert (there / "models/train/weights.txt").read_text() == (here / "models/train/weights.txt").read_text()


def test_a_damaged_file_of_the_remote_is_not_taken(tmp_path: Path) -> None:
    here, there, store = toy.make(tmp_path / "here"), tmp_path / "there", tmp_path / "store"
    toy.dvc(here, "repro", "train")
    toy.dvc(here, "remote", "add", "-d", "store", str(store))
    toy.dvc(here, "push")
    toy.commit(here)
    listing = toy.lock(here)["check_first"]["outs"][0]["md5"]
    file = store / "files/md5" / listing[:2] / listing[2:]
    file.chmod(0o644)
    file.write_text(file.read_text().replace("true", "True"))
    subprocess.run(["git", "clone", "-q", str(here), str(there)], check=True)
    toy.dvc(there, "config", "remote.store.verify", "true")
    said = toy.dvc(there, "pull", "check_first")
    assert not (there / "data/quality/first.json").exists(), said
