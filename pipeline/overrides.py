"""Parameters of one run: applied to params.yaml by DVC, recorded as an experiment, and taken back.

`with overridden({"extract.lattice": 0.3}):` edits params.yaml as `dvc exp run -S` does. Within it stages run as usual
and `record(name)` keeps what they made (`dvc exp save`). Afterwards params.yaml, dvc.lock and the outputs are again
what they were before. The state from before is kept under data/.work/overrides/ until then, so that a run that was
killed is undone by the next (`undo`).
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, ParamError
from pipeline.files import COMPLETE, WORK, atomic_path, publish_directory, sha256_file, write_text
from pipeline.params import load_params
from pipeline.workspace import dvc

PARAMS = Path("params.yaml")
BEFORE = WORK / "overrides"
"""The overridden params.yaml, and below FILES what stood here before, under its own path."""
FILES = "files"
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


@contextlib.contextmanager
def overridden(values: Mapping[str, Any], uncached: Sequence[str]) -> Iterator[None]:
    """params.yaml with these values while the block runs; the workspace as it was before, afterwards.

    Args:
        values: dotted parameter -> value; nothing happens when empty.
        uncached: outputs that DVC does not keep, so that they are kept here meanwhile.

    Raises:
        ParamError: a key does not exist, or a value does not fit it; params.yaml is untouched then.
    """
    if not values:
        yield
        return
    patterns = [f"{_key(key)}={_value(value, key)}" for key, value in values.items()]
    with publish_directory(BEFORE) as kept:
        for path in (str(PARAMS), "dvc.lock", *uncached):
            if Path(path).is_file():
                (kept / FILES / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, kept / FILES / path)
        shutil.copyfile(PARAMS, kept / PARAMS)
        _apply(patterns, kept / PARAMS)
        load_params(kept / PARAMS)
    try:
        write_text(PARAMS, (BEFORE / PARAMS).read_text(encoding="utf-8"))
        yield
    finally:
        _put_back()


def _apply(patterns: Sequence[str], file: Path) -> None:
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides

    try:
        apply_overrides(str(file), list(patterns))
    except DvcException as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise ParamError(f"these overrides do not fit: {cause}", file=PARAMS) from None


def record(name: str, message: str) -> None:
    """Keep the state of the workspace as a DVC experiment (`dvc exp show`, `dvc exp apply NAME`).

    Raises:
        DataError: DVC refuses, e.g. without a commit to stand on.
    """
    done = dvc("exp", "save", "--force", "--name", name, "--message", message)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no word"]
        raise DataError(f"dvc exp save failed: {last[0]}", mend="an experiment needs a git repository with a commit")


def undo() -> bool:
    """Take back the overrides of a run that was killed; whether there were any.

    A params.yaml that was edited since is left alone, and so is everything else.
    """
    if not (BEFORE / COMPLETE).is_file():
        return False
    now = sha256_file(PARAMS) if PARAMS.is_file() else None
    if now != sha256_file(BEFORE / PARAMS) or now == sha256_file(BEFORE / FILES / PARAMS):
        shutil.rmtree(BEFORE)
        return False
    _put_back()
    return True


def _put_back() -> None:
    """dvc.lock and uncached outputs from before, the outputs that this dvc.lock names, and last params.yaml: as long
    as that is the overridden one, there is something to undo."""
    kept = BEFORE / FILES
    for file in sorted(path for path in kept.rglob("*") if path.is_file() and path != kept / PARAMS):
        _copy(file, file.relative_to(kept))
    if (kept / "dvc.lock").is_file():
        done = dvc("checkout", "--force", "--quiet")
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no word"]
            raise DataError(f"the outputs from before could not be checked out: {last[0]}", mend="run `dvc repro`")
    _copy(kept / PARAMS, PARAMS)
    shutil.rmtree(BEFORE)


def _copy(file: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(file, temporary)


def _key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ParamError(f"not the name of a parameter: {key!r}", field="overrides", mend="like extract.lattice")
    return key


def _value(value: Any, key: str) -> str:
    """A value in the grammar of `dvc exp run -S`: JSON, with keys of objects bare and strings in single quotes."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, str):
        if "${" in value or "\\" in value:
            raise ParamError("DVC would interpret ${ and backslashes in it", field=key, mend="edit params.yaml")
        quoted = value.replace("'", "\\'")
        return f"'{quoted}'"
    if isinstance(value, list):
        return f"[{','.join(_value(item, key) for item in value)}]"
    raise ParamError(f"a value of type {type(value).__name__} cannot be set", field=key, mend="set its keys one by one")
