"""Failpoints: loaded by every Python process that has this folder on PYTHONPATH; no line of the product knows of them.

CERTRANK_FAILPOINT is `POINT:PROGRAM:N`. The Nth time (from 1) that a process whose command line holds PROGRAM comes to
POINT, its whole process group is ended by SIGKILL, DVC included:

    before_write      a temporary file or folder is about to be made
    mid_write         a temporary file is written in full and cut to its first half
    before_rename     it is complete and flushed, and about to be renamed to its target
    after_rename      it has just been renamed
    after_checkpoint  a finished folder has just been renamed to its place under data/.work
    in_dvc_lock       DVC has written the first half of dvc.lock
"""

import builtins
import os
import signal
import sys
from pathlib import Path

POINT, PROGRAM, NTH = (os.environ.get("CERTRANK_FAILPOINT") or "::0").split(":")
PARTIAL = ".partial"
_left = int(NTH)


def reached(point):
    global _left
    if point == POINT:
        _left -= 1
        if _left == 0:
            os.killpg(os.getpgrp(), signal.SIGKILL)


def _scratch(path):
    return "data/.work/" in Path(path).absolute().as_posix()


def _arm():
    from pipeline import files

    partial_path, fsync, replace = files.partial_path, os.fsync, os.replace

    def partial_path_(target):
        if not _scratch(target):
            reached("before_write")
        return partial_path(target)

    def fsync_(descriptor):
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if POINT == "mid_write" and PARTIAL in path and not _scratch(path):
            os.truncate(path, Path(path).stat().st_size // 2)
            reached("mid_write")
        return fsync(descriptor)

    def replace_(source, target, **rest):
        published = str(source).endswith(PARTIAL)
        if published and not _scratch(target):
            reached("before_rename")
        replace(source, target, **rest)
        if published and not _scratch(target):
            reached("after_rename")
        elif published and Path(target).is_dir():
            reached("after_checkpoint")

    files.partial_path, os.fsync, os.replace = partial_path_, fsync_, replace_


def _arm_lock():
    real = builtins.open

    def open_(file, mode="r", *rest, **more):
        if isinstance(file, str | os.PathLike) and Path(file).name == "dvc.lock" and "w" in mode:
            text = Path(file).read_text()
            with real(file, "w") as half:
                half.write(text[: len(text) // 2])
            reached("in_dvc_lock")
        return real(file, mode, *rest, **more)

    builtins.open = open_


if _left and any(PROGRAM in word for word in sys.orig_argv):
    _arm_lock() if POINT == "in_dvc_lock" else _arm()
