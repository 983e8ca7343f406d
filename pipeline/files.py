"""Files that are never seen half-written: atomic writes, directory publish, the work-directory lock, failure classes.

Everything is written beside its target under a temporary name, flushed to disk, and renamed. A directory artifact
additionally carries the marker file `_COMPLETE` (JSON: file name -> sha256), written last. What a killed process left
under such a name is removed by the next one that writes the same target.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, FailureClass, TransientError

WORK = Path("data/.work")
"""Undeclared scratch: checkpoints, locks, failure classes. Never an output of a stage."""

COMPLETE = "_COMPLETE"


def partial_path(target: str | Path) -> Path:
    """This process's temporary sibling of `target`, absent; makes the folder, removes what dead processes left there.

    The name holds the process id, so two live writers of one target never share a temporary file.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix, suffix = f".{target.name}.", ".partial"
    for left in target.parent.iterdir():
        process = left.name.removeprefix(prefix).removesuffix(suffix)
        if left.name == f"{prefix}{process}{suffix}" and process.isdecimal() and not _runs(int(process)):
            _remove(left)
    temporary = target.with_name(f"{prefix}{os.getpid()}{suffix}")
    _remove(temporary)
    return temporary


def _runs(process: int) -> bool:
    """Whether a process of this id exists; it may be another one of that id, and then what it left stays.

    One that has ended and that its parent has not asked about (a zombie: in a container, often for good) is dead.
    """
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has gone meanwhile, or there is no /proc
        return not Path("/proc/self").exists()
    return state.rpartition(")")[2].split()[0] != "Z"


def _remove(path: Path) -> None:
    """Remove a file or a directory; it may be gone already."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write to; renamed over `path` on success, removed on failure."""
    path = Path(path)
    temporary = partial_path(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically: sorted keys, two spaces, NaN refused, so equal values give equal bytes."""
    text = json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError("file not found", file=path) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"not valid JSON: {error}", file=path) from None


def sha256_file(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def publish_directory(final: str | Path) -> Iterator[Path]:
    """A fresh directory to fill; on success marked complete and renamed to `final`, replacing what stood there."""
    final = Path(final)
    temporary = partial_path(final)
    temporary.mkdir()
    try:
        yield temporary
        names = sorted(p.relative_to(temporary).as_posix() for p in temporary.rglob("*") if p.is_file())
        for name in names:
            with (temporary / name).open("rb") as file:
                os.fsync(file.fileno())
        write_json(temporary / COMPLETE, {name: sha256_file(temporary / name) for name in names})
        shutil.rmtree(final, ignore_errors=True)
        temporary.replace(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_complete(directory: str | Path) -> Path:
    """The directory itself, once its marker and every file's sha256 have been checked.

    Raises:
        DataError: the marker is missing, or a file is missing or has changed.
    """
    directory = Path(directory)
    marker = directory / COMPLETE
    if not marker.is_file():
        raise DataError("not a complete artifact: no _COMPLETE marker", file=directory, mend="run `dvc repro`")
    contents = read_json(marker)
    if not isinstance(contents, dict):
        raise DataError("the _COMPLETE marker is broken", file=marker, mend="run `dvc checkout`")
    for name, digest in contents.items():
        file = directory / name
        if not file.is_file():
            raise DataError("a file of this artifact is missing", file=file, mend="run `dvc checkout`")
        if sha256_file(file) != digest:
            raise DataError("this file was changed after it was published", file=file, mend="run `dvc checkout`")
    return directory


@contextlib.contextmanager
def work_lock(name: str) -> Iterator[Path]:
    """The stage's scratch directory `data/.work/<name>/`, held exclusively by this process.

    Raises:
        TransientError: another process holds it.
    """
    directory = WORK / name
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TransientError(
                f"stage {name} is already running in this workspace", file=directory, mend="wait for it, or stop it"
            ) from None
        yield directory


def clear_failure(stage: str) -> None:
    """Forget the failure of an earlier run."""
    (WORK / "failures" / f"{stage}.json").unlink(missing_ok=True)


def write_failure(stage: str, failure_class: FailureClass, message: str) -> None:
    """Record why a stage failed, for a scheduler to read (DVC does not pass exit codes through)."""
    write_json(WORK / "failures" / f"{stage}.json", {"class": failure_class, "message": message, "stage": stage})
