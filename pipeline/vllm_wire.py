"""HTTP to a server that generates: one exchange at a time per thread, all of them ended at once, time fairly divided.

The standard library's client on purpose: it heeds no proxy settings, so nothing meant for a server on this computer
leaves it, and its sockets can be shut down from another thread.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import SetupError


class Refused(Exception):  # noqa: N818 - a state of affairs that the engine turns into an error
    """The server answered that it will not: the same request will be refused again."""


class Unreachable(Exception):  # noqa: N818
    """No answer, or one that says to come again.

    Args:
        again: whether trying again may help.
    """

    def __init__(self, what: str, *, again: bool) -> None:
        super().__init__(what)
        self.again = again


class Wire:
    """Exchanges with one server, from any number of threads; `close` ends those under way, which raise Unreachable.

    Args:
        url: up to and without `/v1`.
        key: sent as a bearer token.
        seconds: how long an answer may keep silent.
    """

    def __init__(self, url: str, key: str | None, seconds: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SetupError(f"not the address of a server: {url!r}", mend="write http://host:port")
        self._parts, self._seconds, self._path = parts, seconds, parts.path.rstrip("/")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()
        self.closed = False

    def exchange(self, method: str, path: str, sent: Any) -> Any:
        """Send JSON (or nothing), receive JSON.

        Raises:
            Refused: status 4xx, or an answer that is not JSON.
            Unreachable: anything that is no answer.
        """
        connection = self._connection()
        try:
            payload = None if sent is None else json.dumps(sent)
            connection.connect()
            if self.closed:  # `close` saw no socket of this connection
                raise Unreachable("given up", again=False)
            connection.request(method, self._path + path, payload, self._headers)
            answer = connection.getresponse()
            received = answer.read()
        except TimeoutError:
            raise Unreachable(f"no answer within {self._seconds:.0f} s", again=False) from None
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{type(error).__name__} {error}".strip(), again=True) from None
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
        if answer.status == 429 or answer.status >= 500:
            raise Unreachable(f"status {answer.status}: {_message(received)}", again=True)
        if answer.status != 200:
            raise Refused(f"status {answer.status}: {_message(received)}")
        try:
            return json.loads(received)
        except ValueError:
            raise Refused(f"not JSON: {_message(received)}") from None

    def close(self) -> None:
        """End every exchange that is under way (the server stops generating for it) and refuse new ones."""
        with self._lock:
            self.closed = True
            sockets = [connection.sock for connection in self._open if connection.sock is not None]
        for one in sockets:
            with contextlib.suppress(OSError):  # it was closed meanwhile
                one.shutdown(socket.SHUT_RDWR)

    def _connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        assert self._parts.hostname is not None
        connection = kind(self._parts.hostname, self._parts.port, timeout=self._seconds)
        with self._lock:
            if self.closed:
                raise Unreachable("given up", again=False)
            self._open.add(connection)
        return connection


def _message(received: bytes) -> str:
    """What an error says, at most 300 characters."""
    try:
        answer = json.loads(received)
        return str(answer["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return received[:300].decode("utf-8", "replace")


class Share:
    """A part of the time; `seconds` is final when its block has ended."""

    seconds = 0.0


class Shares:
    """Divides the time that passes equally among the blocks that are running, so that all parts sum to the whole."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running, self._each, self._seen = 0, 0.0, 0.0

    @contextlib.contextmanager
    def share(self) -> Iterator[Share]:
        share, start = Share(), self._turn(+1)
        try:
            yield share
        finally:
            share.seconds = self._turn(-1) - start

    def _turn(self, change: int) -> float:
        """One block more or less; what a block that ran from the beginning on would have got so far."""
        with self._lock:
            now = time.perf_counter()
            if self._running:
                self._each += (now - self._seen) / self._running
            self._seen, self._running = now, self._running + change
            return self._each
