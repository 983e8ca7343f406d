"""What a killed run may leave broken in a workspace, found and mended before the next one.

    python -m pipeline.recovery

Artifacts need no mending: they appear by rename (`pipeline.files`), and DVC compares hashes. Three files of bookkeeping
are written in place, by DVC or by an editor of parameters, and may be caught half-written:

- `dvc.lock`: put aside as `dvc.lock.broken` and taken from git's index; where git has none, the next `dvc repro` writes
  it anew. Finished stages come out of DVC's run cache; only those with an output left to git (`audit`) run again.
- `.dvc/tmp/rwlock`, DVC's list of who reads and writes what: emptied, unless a DVC command runs in this workspace.
- `params.yaml` with the overrides of an on-demand run that was killed: put back (`pipeline.overrides`).
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import overrides
from pipeline.errors import TransientError
from pipeline.files import write_text

LOCK = Path("dvc.lock")
BROKEN = Path("dvc.lock.broken")
RWLOCK = Path(".dvc/tmp/rwlock")


def mend() -> list[str]:
    """Mend what is broken; one line for each thing that was.

    Raises:
        TransientError: DVC's bookkeeping is broken while one of its commands runs here.
    """
    return [*_params(), *_lock(), *_rwlock()]


def _params() -> list[str]:
    return ["params.yaml: the overrides of a killed run were taken back"] if overrides.undo() else []


def _lock() -> list[str]:
    if not LOCK.is_file() or sound(LOCK):
        return []
    LOCK.replace(BROKEN)
    committed = subprocess.run(["git", "show", f":./{LOCK}"], capture_output=True, text=True, check=False)
    if committed.returncode == 0 and committed.stdout.strip():
        write_text(LOCK, committed.stdout)
        return [f"{LOCK} was broken: put aside as {BROKEN}, git's version restored"]
    return [f"{LOCK} was broken: put aside as {BROKEN}; DVC rebuilds it from its run cache"]


def sound(lock: Path) -> bool:
    """Whether a dvc.lock can be read and lists at least one stage, and only whole ones.

    A file that was cut between two stages is sound: DVC takes the others from its run cache.
    """
    try:
        text = lock.read_text(encoding="utf-8")
        raw = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, UnicodeDecodeError):
        return False
    stages = raw.get("stages") if isinstance(raw, dict) else None
    if not isinstance(stages, dict) or not stages or "schema" not in raw or text[-1] != "\n":
        return False
    return all(isinstance(entry, dict) and _whole(entry) for entry in stages.values())


def _whole(entry: dict[str, Any]) -> bool:
    """Whether a stage's entry has its command, and everything DVC writes of each dependency and output."""
    listed = [item for kind in ("deps", "outs") for item in entry.get(kind) or ()]
    return "cmd" in entry and bool(entry.get("outs")) and all(isinstance(i, dict) and _hashed(i) for i in listed)


def _hashed(item: dict[str, Any]) -> bool:
    wanted = {"path", "hash", "md5", "size"} | ({"nfiles"} if str(item.get("md5")).endswith(".dir") else set())
    return wanted <= set(item)


def _rwlock() -> list[str]:
    try:
        json.loads(RWLOCK.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError:
        if running := dvc_commands():
            raise TransientError(
                f"DVC's list of locks is broken while process {running[0]} runs DVC here", file=RWLOCK, mend="stop it"
            ) from None
        write_text(RWLOCK, "{}")
        return [f"{RWLOCK} was broken and no DVC command runs here: emptied"]
    return []


def dvc_commands() -> list[int]:
    """Ids of the other processes that run a DVC command in this workspace."""
    here, found = Path.cwd(), []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            place = (folder / "cwd").readlink()
        except OSError:
            continue  # it has ended, or belongs to somebody else
        programs = {Path(os.fsdecode(word)).name for word in words[:3]}
        if place == here and "dvc" in programs:
            found.append(int(folder.name))
    return found


def main() -> None:
    """Command line of this module."""
    print("\n".join(mend()) or "nothing was broken")


if __name__ == "__main__":
    main()
