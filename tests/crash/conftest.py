"""One built miniature for all tests of this folder and all workers; each test gets a copy."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash import miniature


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace after an uninterrupted run; not to be changed."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = base / "miniature", base / "miniature.done"
    with (base / "miniature.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            miniature.remove(folder)
            miniature.make(folder)
            done.touch()
    return folder


@pytest.fixture
def place(built: Path, tmp_path: Path) -> Iterator[Path]:
    folder = miniature.copy(built, tmp_path / "work")
    yield folder
    miniature.remove(folder)
