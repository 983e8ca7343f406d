"""A vLLM server of our own: started for one model folder, watched, and certainly stopped.

    with VllmServer("models/sft") as server:
        engine = VllmEngine("models/sft", server)

vLLM cannot share this environment (their ranges of fastapi and transformers are disjoint), so it runs from the one
that `make serve-env` makes, or from the interpreter that CERTRANK_SERVE_PYTHON names, and is talked to over HTTP on the
loopback device alone, with a key that only this process knows. Nothing is downloaded or reported: the hub is offline
and usage statistics are off. The server runs under `pipeline/guard.py` in a process group of its own, which ends
with the `with` block or with this process, however that ends.

When not to use it: for a few answers, as starting takes one to five minutes on two cores, longer than generating them
in process. A server that runs already is a `RemoteServer`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Protocol

from pipeline.errors import SetupError, TransientError
from pipeline.files import WORK, read_json

ROOT = Path(__file__).parents[1]
GUARD = Path(__file__).with_name("guard.py")
PYTHON = "CERTRANK_SERVE_PYTHON"
"""Environment variable: the interpreter that has vLLM."""
POLL = 0.2
PATIENCE = 10.0
"""Seconds between SIGTERM and SIGKILL."""

MEND_ENV = f"`make serve-env` makes the environment; {PYTHON} may name another interpreter that has vLLM"


class Server(Protocol):
    """What an engine needs to know of a server: where it is, the model's name there, the key, and whether it lives."""

    @property
    def url(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def key(self) -> str | None: ...

    def check(self) -> None:
        """Raise TransientError if the server is known to have ended."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteServer:
    """A server that somebody else runs.

    Args:
        url: up to and without `/v1`.
        model: the name under which it serves the model.
        key: sent as a bearer token.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)

    def check(self) -> None:
        """Nothing is known of its process: only a request can tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How to run the model.

    Args:
        max_model_len: the most tokens of prompt and answer together; None is what the model was made for.
        dtype: of weights and activations; "auto" is that of the file (float32 is served as float16 then).
        kv_cache_dtype: "auto" is `dtype`; "fp8" halves the cache.
        kv_cache_gib: memory for the cache on a CPU.
        sequences: the most answers in generation at a time.
        threads: of the CPU; None leaves it to vLLM (all cores).
        seed: of vLLM itself; requests carry seeds of their own.
        compiled: compile the model first: a start of minutes, then faster.
        seconds: how long the start may take.
        arguments: further arguments for the server, as they are.
    """

    max_model_len: int | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    kv_cache_gib: int = 1
    sequences: int = 32
    threads: int | None = None
    seed: int = 0
    compiled: bool = False
    seconds: float = 600.0
    arguments: tuple[str, ...] = ()


def serve_python() -> Path:
    """The interpreter that has vLLM.

    Raises:
        SetupError: there is none.
    """
    named = os.environ.get(PYTHON)
    python = Path(named) if named else ROOT / ".venv-serve" / "bin" / "python"
    if not os.access(python, os.X_OK):
        raise SetupError("no interpreter with vLLM here", file=python, mend=MEND_ENV)
    return python


class VllmServer:
    """Context manager; `url`, `model`, `key` and `log` are valid inside.

    Args:
        folder: safetensors, config.json and the tokenizer's files.
        settings: how to run it.
        model: the name to serve it under.

    Raises:
        SetupError: on entering: no vLLM, no model, or the server ends or is not ready in time; its last words are told.
    """

    def __init__(self, folder: str | Path, settings: ServerSettings | None = None, *, model: str = "policy") -> None:
        self.folder, self.settings, self.model = Path(folder), settings or ServerSettings(), model
        self.key: str | None = None
        self.url = ""
        self.log = Path()
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> VllmServer:
        python = serve_python()
        if not (self.folder / "config.json").is_file():
            kind = "an adapter, no whole model," if (self.folder / "adapter_config.json").is_file() else "no model"
            raise SetupError(f"{kind} here", file=self.folder, mend="a folder with config.json and weights is served")
        port = _free_port()
        self.key, self.url = secrets.token_hex(16), f"http://127.0.0.1:{port}"
        self.log = WORK / "vllm" / f"{self.model}-{port}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._guard = self._start(python, port, log)
        try:
            self._wait(port)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def check(self) -> None:
        """Raise TransientError if the server has ended."""
        if self._guard is None or self._guard.poll() is not None:
            code = "" if self._guard is None else f" (exit code {self._guard.returncode})"
            raise TransientError(f"the vLLM server has ended{code}: {last_words(self.log)}", file=self.log,
                                 mend="start again: what was written is kept")  # fmt: skip

    @property
    def group(self) -> int | None:
        """The id of the server's process group, None when it is not running."""
        return None if self._guard is None or self._guard.poll() is not None else self._guard.pid

    def _start(self, python: Path, port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
        guarded = [sys.executable, "-I", str(GUARD), str(os.getpid()), str(PATIENCE)]
        return subprocess.Popen(
            [*guarded, *command(python, self.folder.resolve(), port, self.model, self.settings)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env=environment(python, self.settings) | {"VLLM_API_KEY": self.key or ""},
        )  # fmt: skip

    def _wait(self, port: int) -> None:
        """Return when the server is healthy and is ours."""
        assert self._guard is not None
        deadline = time.monotonic() + self.settings.seconds
        while time.monotonic() < deadline:
            if (code := self._guard.poll()) is not None:
                raise SetupError(f"the vLLM server did not start (exit code {code}): {last_words(self.log)}",
                                 file=self.log, mend="the log has the rest")  # fmt: skip
            if _ask(port, "/health", self.key)[0] == 200:
                status, answer = _ask(port, "/v1/models", self.key)
                if status == 200 and self.model in served(answer):
                    return
                raise SetupError(f"another server answers on port {port}", file=self.log, mend="start again")
            time.sleep(POLL)
        raise SetupError(f"the vLLM server was not ready after {self.settings.seconds:.0f} s: {last_words(self.log)}",
                         file=self.log, mend="allow more seconds, or a smaller model")  # fmt: skip

    def _stop(self) -> None:
        guard, self._guard = self._guard, None
        if guard is None:
            return
        with contextlib.suppress(ProcessLookupError):
            guard.send_signal(signal.SIGTERM)
        try:
            code = guard.wait(3 * PATIENCE)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        if code < 0:  # the guard was killed, or hangs, and has not ended the others
            with contextlib.suppress(ProcessLookupError):
                os.killpg(guard.pid, signal.SIGKILL)
            guard.wait()


def command(python: Path, folder: Path, port: int, model: str, settings: ServerSettings) -> list[str]:
    """The command line of the server."""
    given = [
        "--model", str(folder), "--served-model-name", model, "--host", "127.0.0.1", "--port", str(port),
        "--dtype", settings.dtype, "--kv-cache-dtype", settings.kv_cache_dtype, "--seed", str(settings.seed),
        "--max-num-seqs", str(settings.sequences),
        # one backend, so that a grammar means the same whatever the request; JSON without endless white space
        "--structured-outputs-config", json.dumps({"backend": "xgrammar", "disable_any_whitespace": True}),
        "--generation-config", "vllm",  # not the model's own temperature and cut-offs
        "--logprobs-mode", "processed_logprobs",  # of the distribution that tokens are drawn from
    ]  # fmt: skip
    if settings.max_model_len is not None:
        given += ["--max-model-len", str(settings.max_model_len)]
    if not settings.compiled:
        given.append("--enforce-eager")
        if "kv_lora_rank" in read_json(folder / "config.json"):
            # On a CPU the kernel of 0.32 takes the distance between heads for that between tokens and so rotates the
            # queries of latent attention wrongly, without an error. Compiled, the kernel is not used anyway.
            given += ["--compilation-config", json.dumps({"custom_ops": ["all", "-rotary_embedding"]})]
    return [str(python), "-m", "vllm.entrypoints.openai.api_server", *given, *settings.arguments]


def environment(python: Path, settings: ServerSettings) -> dict[str, str]:
    """The server's environment variables: offline, silent, small, scratch files below data/.work."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    scratch = (WORK / "vllm").resolve()
    threads = {} if settings.threads is None else {"OMP_NUM_THREADS": str(settings.threads)}
    return kept | threads | {
        "PATH": f"{python.parent}{os.pathsep}{kept.get('PATH', os.defpath)}",
        "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1", "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "auto" if settings.threads is None else "nobind",
        "VLLM_HOST_IP": "127.0.0.1", "VLLM_LOOPBACK_IP": "127.0.0.1",
        "VLLM_CACHE_ROOT": str(scratch / "cache"), "VLLM_CONFIG_ROOT": str(scratch / "config"),
        "PYTHONUNBUFFERED": "1",
    }  # fmt: skip


def last_words(log: Path, lines: int = 3) -> str:
    """What a server's log ends with, on one line: the last lines that name an error, or else the last ones."""
    try:
        said = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    except FileNotFoundError:
        return "it has no log"
    said = [re.sub(r"^\(\w+ pid=\d+\) (?:[A-Z]+ [\d-]+ [\d:]+ \[[^]]*\] )?", "", line) for line in said if line]
    errors = [line for line in said if re.match(r"[\w.]*(?:Error|Exception|Exit|Interrupt)\b", line)]
    return " | ".join(list(dict.fromkeys(errors or said))[-lines:])[-600:] or "it said nothing"


def served(answer: Any) -> dict[str, Any]:
    """Of an answer of `/v1/models`: model name -> the most tokens of prompt and answer, None where not told."""
    try:
        return {str(model["id"]): model.get("max_model_len") for model in answer["data"]}
    except (AttributeError, KeyError, TypeError):
        return {}


def _free_port() -> int:
    """A port that was free a moment ago; the key tells whether it is really our server that has it then."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ask(port: int, path: str, key: str | None) -> tuple[int, Any]:
    """GET: status and JSON (None if it is not JSON); status 0 while nothing answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException):
        return 0, None
    finally:
        connection.close()
    try:
        return answer.status, json.loads(body)
    except ValueError:
        return answer.status, None
