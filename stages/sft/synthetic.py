"""Windows to train a base policy on: the pipeline's own first stages over a generated corpus of its own.

Whatever corpus is being worked on, the windows come from the sample's generator under another seed, are read by a
linear extractor fitted on a part of them, and get rosters, trajectories and grades as every corpus does. So what the
model learns to read are an extractor's own errors, not invented ones. Each stage is a process in a folder of its own,
with parameters of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from pipeline.errors import DataError, ParamError
from pipeline.files import COMPLETE, write_text
from pipeline.params import Params, load_params, parse_params
from pipeline.windows import stable_seed

STAGES = ("ingest", "extract", "roster", "trajectories", "reference", "reward")
FOLDERS = ("stages", "intents", "pipeline")
SETTING = "closed"


def settings(params: Params, windows: int) -> Params:
    """Parameters of the generated corpus: as they are, but for source, size and seed, and a linear extractor."""
    raw = params.model_dump(by_alias=True)
    raw["seed"] = stable_seed(params.seed, "base") % (1 << 31)
    raw["ingest"] |= {"source": "sample", "path": "stages/ingest/sample", "on_error": "fail", "splits": ""}
    raw["ingest"]["sample"]["windows"] = windows
    raw["extract"] |= {"model": "linear", "from": "", "triggers": "stages/extract/triggers.jsonl"}
    raw["roster"] |= {"settings": [SETTING], "candidate_kind": "entity"}
    raw["reward"] |= {"from": "", "setting": SETTING}
    return parse_params(raw)


def build(folder: Path, params: Params, windows: int) -> Params:
    """Build the corpus under `folder`; stages that a killed run has finished with equal parameters are not run again.

    Returns:
        The parameters that it was built with.

    Raises:
        DataError: a stage failed; what it said is on stderr.
    """
    own = settings(params, windows)
    root = Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    for name in FOLDERS:
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(root / name)
    fresh = not _built_with(folder / "params.yaml", own)
    if fresh:
        with (folder / "params.yaml").open("w", encoding="utf-8") as file:
            YAML().dump(own.model_dump(by_alias=True), file)
    for stage in STAGES:
        marker = folder / f"{stage}{COMPLETE}"
        if fresh:
            marker.unlink(missing_ok=True)
        if not marker.is_file():
            environment = {**os.environ, "PYTHONHASHSEED": "0"}
            if subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=folder, env=environment).returncode:
                raise DataError(f"stage {stage} failed on the generated corpus", file=folder)
            write_text(marker, "")
    return own


def _built_with(file: Path, own: Params) -> bool:
    """Whether the parameters stored there are these; those of an older version, which do not parse, are not."""
    try:
        return file.is_file() and load_params(file) == own
    except ParamError:
        return False
