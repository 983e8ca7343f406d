"""`certrank ui`: Prefect's server with its UI, the deployments of prefect.yaml, and a worker for their runs.

Three processes and a thread, all of this workspace and all on the loopback device alone: the server, a worker that
takes one run at a time, and a file server for the pages among DVC's outputs (the report), so that artifacts can link
to them. They end together, and a run that is at work is ended with its stages.

When not to use it: for several users or machines. The server asks nobody who they are; do not expose its port.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, NoReturn

from pipeline.cli_runs import prefect_environment
from pipeline.errors import DataError, SetupError, TransientError
from pipeline.files import work_lock
from pipeline.shown import PAGE, PAGES
from pipeline.workspace import GUARD, OWNER, PATIENCE, plan, stop

HOST = "127.0.0.1"
POOL = "certrank"
STARTING = 180.0
"""Seconds that the server may take to start; the first time it makes its database."""
POLL = 0.5
BUSY = 60.0
"""Seconds for which a server that says it is busy is asked again: its database takes one writer at a time."""
LOOK = 30.0
"""Seconds between two looks for lost runs."""
WORKER = ["worker", "start", "--pool", POOL, "--name", "workspace"]


def serve(port: int, home: Path) -> None:
    """Run everything until interrupted.

    Args:
        port: of the server; the pages have the next one.
        home: folder for Prefect's files.

    Raises:
        SetupError: prefect.yaml is missing, or a port is taken.
        TransientError: another `certrank ui` is at work here, or one of the processes died.
    """
    if not Path("prefect.yaml").is_file():
        raise SetupError("no prefect.yaml here", mend="run from the root of the repository")
    url = f"http://{HOST}:{port}"
    environment = server_environment(url, port, home)
    signal.signal(signal.SIGTERM, _interrupt)
    with contextlib.ExitStack() as stack, work_lock("ui"):
        stack.enter_context(pages(port + 1))
        server = stack.enter_context(_started(["server", "start", "--host", HOST, "--port", str(port)], environment))
        await_health(url, server)
        _prefect(["work-pool", "create", POOL, "--type", "process", "--overwrite"], environment)
        ask(url, "PATCH", f"/work_pools/{POOL}", {"concurrency_limit": 1})
        _prefect(["deploy", "--all"], environment)
        worker = stack.enter_context(_started(WORKER, environment))
        print(f"{url} shows the runs, {url}/deployments starts one; Ctrl-C ends everything", flush=True)
        lost = Lost(url)
        with contextlib.suppress(KeyboardInterrupt):
            while server.poll() is None:
                if worker.poll() is not None:
                    print("the worker has ended; another one is started", file=sys.stderr, flush=True)
                    worker = stack.enter_context(_started(WORKER, environment))
                lost.look()
                time.sleep(POLL)
            raise TransientError("Prefect's server has ended by itself", mend="start `make ui` again")


class Lost:
    """Finds runs that the server believes at work and that nobody works on, and marks them as crashed.

    A run whose process and worker were both killed cannot say so itself, and would keep the only place for ever. A run
    at work holds the lock of the flow, so one that does not at two looks is lost.

    Args:
        url: of the server.
    """

    def __init__(self, url: str) -> None:
        self.url, self.next, self.suspects = url, 0.0, set[str]()

    def look(self) -> None:
        """Look, if the last look was long enough ago."""
        if time.monotonic() < self.next:
            return
        self.next = time.monotonic() + LOOK
        wanted = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}}
        try:
            found = {str(run["id"]) for run in ask(self.url, "POST", "/flow_runs/filter", wanted)}
            with work_lock("flow"):
                for run in self.suspects & found:
                    state = {"type": "CRASHED", "message": "nobody works on this run any more"}
                    ask(self.url, "POST", f"/flow_runs/{run}/set_state", {"state": state, "force": True})
                self.suspects = found - self.suspects
        except TransientError:
            self.suspects = set()  # somebody is at work, or the server is busy


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def server_environment(url: str, port: int, home: Path) -> dict[str, str]:
    """The environment of server and worker: only pages of the server itself may talk to its API from a browser."""
    return {
        **prefect_environment(home),
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_UI_API_URL": f"{url}/api",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url,
        "CERTRANK_WORKSPACE": str(Path.cwd()),
        OWNER: str(os.getpid()),
        PAGES: f"http://{HOST}:{port + 1}",
    }


@contextlib.contextmanager
def _started(command: list[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A command of Prefect under a guard, which ends it with this process; ended with the block."""
    guarded = [sys.executable, "-I", str(GUARD), str(os.getpid()), str(PATIENCE)]
    process = subprocess.Popen(
        [*guarded, sys.executable, "-m", "prefect", *command], env=environment, start_new_session=True, text=True
    )
    try:
        yield process
    finally:
        stop(process)


def _prefect(command: list[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *command], env=environment,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
        raise DataError(f"`prefect {' '.join(command)}` failed, see above", file="prefect.yaml")


def ask(url: str, method: str, path: str, body: object = None) -> Any:
    """One request to the API of the server at `url`; what it answers, from JSON. Tried again while it is busy (503).

    Raises:
        DataError: it refuses.
        TransientError: it stays busy, or does not answer at all.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/api{path}", data, headers, method=method)
    deadline = time.monotonic() + BUSY
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            if error.code != http.HTTPStatus.SERVICE_UNAVAILABLE:
                raise DataError(f"the server answers {error.code} to {method} {path}", file=url) from None
            if time.monotonic() > deadline:
                raise TransientError(f"the server is busy: {method} {path}", file=url) from None
        except OSError as error:
            raise TransientError(f"the server does not answer: {error}", file=url) from None
        time.sleep(POLL)


def await_health(url: str, server: subprocess.Popen[str]) -> None:
    """Wait until the server answers.

    Raises:
        SetupError: it has ended, e.g. because the port is taken.
        TransientError: it takes too long.
    """
    deadline = time.monotonic() + STARTING
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SetupError(f"Prefect's server did not start at {url}", mend="is the port taken? --port has another")
        try:
            with urllib.request.urlopen(f"{url}/api/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(POLL)
    raise TransientError(f"Prefect's server did not answer at {url} within {STARTING:.0f} s")


# ---- pages ----------------------------------------------------------------------------------------------------------


class Pages(http.server.SimpleHTTPRequestHandler):
    """Serves, read-only, the files of outputs that are folders with an index.html, and nothing else."""

    folders: tuple[str, ...] = ()

    def send_head(self) -> io.BytesIO | BinaryIO | None:
        path = Path(self.translate_path(self.path)).resolve()
        roots = [Path(self.directory, folder).resolve() for folder in self.folders]
        allowed = any((root / PAGE).is_file() and path.is_relative_to(root) for root in roots)
        if not allowed or not path.is_file() or self.headers.get("Host") != self.expected_host():
            self.send_error(404)
            return None
        return super().send_head()

    def expected_host(self) -> str:
        """A browser that was led here under another name (DNS rebinding) is not answered."""
        assert isinstance(self.server, http.server.HTTPServer)
        return f"{HOST}:{self.server.server_port}"

    def end_headers(self) -> None:
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name is inherited
        return


@contextlib.contextmanager
def pages(port: int, root: Path = Path()) -> Iterator[http.server.ThreadingHTTPServer]:
    """The file server, in a thread.

    Raises:
        SetupError: the port is taken.
    """
    folders = tuple(out for step in plan().steps for out in step.outs)
    handler = type("PagesHere", (Pages,), {"folders": folders})
    try:
        server = http.server.ThreadingHTTPServer((HOST, port), functools.partial(handler, directory=str(root)))
    except OSError as error:
        raise SetupError(f"port {port}: {os.strerror(error.errno or 0)}", mend="--port has another") from None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
