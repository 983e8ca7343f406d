"""Runs a command in a process group of its own and ends the whole group when its owner is gone.

    python -I pipeline/guard.py OWNER_PID SECONDS COMMAND [ARGUMENT ...]

A server or a stage of the pipeline, with all that it starts, must not outlive the program that started it, not even
when that program is killed by SIGKILL and can clean up nothing. The guard is started in a session of its own, so a
signal to the owner's process group does not reach it; it watches the owner, and when the owner has died, or SIGTERM
arrives, or the command has ended, it sends SIGTERM to the group, waits at most so many SECONDS and sends SIGKILL.
Exits as the command did.

Only the standard library is imported: the guard starts at once, and needs nothing of the environment it watches.
Linux only, as /proc tells which processes of the group are left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

POLL = 0.2
"""Seconds between two looks at the owner."""


def main() -> int:
    owner, patience, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ask)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while os.getppid() == owner and not asked:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(POLL)
            break
    end_group(child, patience)
    code = child.wait()
    return code if code >= 0 else 128 - code


def end_group(child: subprocess.Popen[bytes], patience: float) -> None:
    """End every other process of this process group: SIGTERM, after so many seconds SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in others():
            try:
                os.kill(process, number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + patience
        while others() and time.monotonic() < deadline:
            child.poll()  # reaps it, else it would stay in the list
            time.sleep(0.05)


def others() -> list[int]:
    """The living processes of this process group but for this one."""
    group, found = os.getpgrp(), []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            try:
                # "pid (name) state parent group ...": the name may hold spaces and parentheses
                fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(folder.name))
    return found


if __name__ == "__main__":
    sys.exit(main())
