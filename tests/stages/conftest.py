"""What several test modules share: one tiny corpus, read once by an extractor that was fitted on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.extract.__main__ import main as extract
from stages.ingest.__main__ import main as ingest
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
