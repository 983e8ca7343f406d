"""`certrank models keep NAME`: keep the fitted models under a name, for `extract.from` and `reward.from`.

models/extract and models/reward are outputs that the next `dvc repro` replaces. A kept copy stands in
models/fitted/NAME/, outside the pipeline's outputs; with its name in params.yaml, stages use it and fit nothing. So a
corpus without annotation can be ranked with models of another. The audit's held-out extractor (models/heldout) is kept
along where there is one; rankings do without.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from pipeline.errors import ParamError
from pipeline.files import COMPLETE, check_complete, publish_directory

MODELS = ("extract", "reward")
HELDOUT = "heldout"


def keep(name: str, root: str | Path = "models", replace: bool = False) -> list[Path]:
    """Copy models/extract, models/reward and, where there is one, models/heldout into models/fitted/NAME/.

    Args:
        name: lower-case letters, digits, `.`, `_` and `-`.
        root: the models directory.
        replace: whether a model that is already kept under this name may be replaced.

    Returns:
        The kept directories.

    Raises:
        ParamError: not a name, or one that is taken.
        DataError: a model is missing, incomplete or was changed.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise ParamError(f"{name!r:.60} is no name for a model", field="NAME", mend="use a-z, 0-9, `.`, `_` and `-`")
    target = Path(root) / "fitted" / name
    if target.exists() and not replace:
        raise ParamError(f"{name!r} is taken", file=target, field="NAME", mend="choose another, or give --replace")
    sources = [check_complete(Path(root) / model) for model in MODELS]
    # Before the audit has run there is no held-out extractor, and where none was kept its folder holds a card alone.
    if any((Path(root) / HELDOUT).glob("*.safetensors")):
        sources.append(check_complete(Path(root) / HELDOUT))
    else:
        # One that stood under this name belonged to the extractor which is replaced now.
        shutil.rmtree(target / HELDOUT, ignore_errors=True)
    kept = []
    for source in sources:
        with publish_directory(target / source.name) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(COMPLETE))
        kept.append(check_complete(target / source.name))
    return kept
