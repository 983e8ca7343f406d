"""What several test modules share: one tiny corpus, read once by an extractor that was fitted on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.extract.__main__ import main as extract
from stages.ingest.__main__ import main as ingest
from tests.stages import encoding
from tests.stages.extracting import params


@pytest.fixture(scope="session")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with data/ingest, models/extract and data/extract; to be copied, never written to."""
    root = tmp_path_factory.mktemp("extracted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        ingest(params())
        extract(params())
    return root


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer encoder with random weights and a small vocabulary."""
    return encoding.save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def ingested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with data/ingest: eight train windows and three of tune."""
    monkeypatch.chdir(tmp_path)
    encoding.write_corpus()
    return tmp_path
