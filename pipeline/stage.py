"""How every stage starts: `run(name, main)` reads params, locks the work directory, and turns errors into one line."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from safetensors import SafetensorError

from pipeline.errors import CertrankError, FailureClass, printable
from pipeline.files import clear_failure, work_lock, write_failure
from pipeline.params import Params, load_params

T = TypeVar("T")

_FULL = re.compile(r"disk is full|\(os error (?:28|122)\)")


def run(name: str, main: Callable[[Params], None]) -> None:
    """Run a stage and exit: 0, or 1 with one line on stderr (the traceback too with CERTRANK_DEBUG=1 or for a bug).

    Args:
        name: the stage's name in dvc.yaml, matrix cells as `rank@random-closed`.
        main: the stage itself.
    """
    started = time.monotonic()
    try:
        with work_lock(name.replace("/", "_")):
            clear_failure(name)
            main(load_params())
    except CertrankError as error:
        _fail(name, error.failure_class, str(error), error.exit_code)
    except Exception as error:  # noqa: BLE001 - the one place that reports a bug
        if disk_full(error):
            place = getattr(error, "filename", None) or "disk"
            what = f"{place}: {os.strerror(errno.ENOSPC)}; free some space, then run it again"
            _fail(name, "transient", what, 75)
        if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES):
            _fail(name, "data", f"{error.filename or 'disk'}: {os.strerror(error.errno)}", 1)
        _fail(name, "bug", f"{type(error).__name__}: {error}", 1)
    print(f"{name}: done in {time.monotonic() - started:.1f} s", file=sys.stderr)


def disk_full(error: Exception) -> bool:
    """Whether a write failed for want of space; SQLite and safetensors have errors of their own for it."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, sqlite3.OperationalError | SafetensorError) and bool(_FULL.search(str(error)))


def _fail(name: str, failure_class: FailureClass, message: str, code: int) -> None:
    if failure_class == "bug" or os.environ.get("CERTRANK_DEBUG"):
        traceback.print_exc()
    print(f"{name}: error: {printable(message)}", file=sys.stderr)
    try:
        write_failure(name, failure_class, message)
    except OSError as error:
        if not (failure_class == "transient" and disk_full(error)):  # else the line above has said it
            print(f"{name}: the failure class could not be recorded: {error}", file=sys.stderr)
    raise SystemExit(code)


def progress(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Yield items; say on stderr how far they are, at most every three seconds."""
    started = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last >= 3:
            left = (now - started) / max(done, 1) * (total - done)
            print(f"  {label}: {done}/{total}, about {left:.0f} s left", file=sys.stderr, flush=True)
            last = now
        yield item
