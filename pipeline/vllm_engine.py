"""Generation by a vLLM server: the client side of `pipeline.engines` over the OpenAI-compatible `/v1/completions`.

    with VllmServer("models/sft") as server:
        for answers in VllmEngine("models/sft", server).generate(requests, sampling):
            ...

Prompts are encoded here and sent as token ids, and answers come back as token ids and are decoded here, so that text
and tokens are related as they are in process. Several requests are under way at a time; answers come in order.

A server that does not know `structured_outputs` ignores it without a word and generates freely. Before the first
request with a grammar (or schema) a canary is therefore sent: one whose grammar has a single improbable sentence.

Sampling is seeded per sample: with the same server, the same samples. They are not those of another engine (another
random number generator), and a batch of another composition moves logits in their last bits, which may now and then
turn a token over; only a server that is sent one request at a time is free of that.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.engines import Answer, Request, Sampling
from pipeline.errors import DataError, SetupError, TransientError
from pipeline.vllm_server import Server, served
from pipeline.vllm_wire import Refused, Shares, Unreachable, Wire

CANARY = "Quokkas rarely tax 17 violet tubas."
CANARY_PROMPT = "Say yes."
TRIES = 3
"""How often a request is sent at most. Generating changes nothing on the server and is seeded, so a repetition is safe:
it gives the same answers."""
WAIT = 0.5
"""Seconds before the second try, doubled before each further one."""


class Tokens(Protocol):
    """The model's tokenizer, that of the server's model folder; a `Policy` is one, too."""

    @property
    def eos(self) -> int:
        """The token that ends an answer."""
        ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


class FolderTokens:
    """The tokenizer in a model folder, without the model; it encodes as `policies.Policy` does.

    Raises:
        SetupError: no fast tokenizer, or one without an end token.
    """

    def __init__(self, folder: str | Path) -> None:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        try:
            found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            first = (str(error).strip().splitlines() or [""])[0][:200]
            raise SetupError(f"no tokenizer here: {type(error).__name__} {first}", file=folder) from None
        if not isinstance(found, PreTrainedTokenizerFast):
            raise SetupError(f"a {type(found).__name__} is not a fast tokenizer", file=folder)
        if found.eos_token_id is None:
            raise SetupError(
                "the tokenizer has no end token", file=folder, mend="set eos_token in tokenizer_config.json"
            )
        self._backend, self.eos = found.backend_tokenizer, int(found.eos_token_id)

    def encode(self, text: str) -> list[int]:
        return list(self._backend.encode(text).ids)

    def decode(self, ids: list[int]) -> str:
        return str(self._backend.decode(ids, skip_special_tokens=False))


@dataclass(frozen=True, slots=True)
class _Job:
    """A request and its encoded prompt."""

    request: Request
    prompt: list[int]


class VllmEngine:
    """An `Engine` (see `pipeline.engines`) that talks to a server.

    Args:
        tokens: the model's tokenizer, or the folder that has it.
        server: a `VllmServer` that was entered, or a `RemoteServer`.
        in_flight: how many requests are under way at a time.
        seconds: how long one request may take.

    Raises:
        SetupError: the server does not serve this model.
        TransientError: it does not answer.
    """

    def __init__(
        self, tokens: Tokens | str | Path, server: Server, *, in_flight: int = 8, seconds: float = 600.0
    ) -> None:
        self.tokens: Tokens = FolderTokens(tokens) if isinstance(tokens, (str, Path)) else tokens
        self.server, self.in_flight, self.seconds = server, max(1, in_flight), seconds
        models = served(self._call(self._wire(), "GET", "/v1/models", None, "the list of models"))
        if server.model not in models:
            raise SetupError(f"the server at {server.url} does not serve {server.model!r} but {sorted(models)}")
        self.limit: int | None = models[server.model]
        self._enforced: set[str] = set()

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.tokens.encode(text))

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Answer]]:
        """The answers of every request, in the order of the requests.

        `seconds` of an answer: at every moment the time that passes is divided equally among the requests under way,
        and a request's part equally among its samples; so they sum to the wall time.

        Raises:
            DataError: a prompt that does not fit the model, a key that stands twice; before anything is generated.
            SetupError: the server ignores grammars, refuses a request, or answers in another form.
            TransientError: the server is gone or does not answer in time. Answers that were yielded are good.
        """
        jobs = self._jobs(requests)
        for kind in ("grammar", "json"):
            if kind not in self._enforced and any(kind in constraint(job.request) for job in jobs):
                self._check_enforced(kind)
        return self._run(jobs, sampling)

    def _jobs(self, requests: Sequence[Request]) -> list[_Job]:
        jobs, keys = [], set()
        for request in requests:
            job = _Job(request, self.tokens.encode(request.prompt))
            length = len(job.prompt) + request.max_new_tokens
            if not job.prompt or (self.limit is not None and length > self.limit):
                raise DataError(f"request {request.key}: a prompt of {len(job.prompt)} tokens and "
                                f"{request.max_new_tokens} new ones do not fit the model's {self.limit}")  # fmt: skip
            if request.key in keys:
                raise DataError(f"request {request.key} stands twice")
            if request.grammar is not None and request.schema is not None:
                raise DataError(f"request {request.key} has a grammar and a schema")
            keys.add(request.key)
            jobs.append(job)
        return jobs

    def _run(self, jobs: Sequence[_Job], sampling: Sampling) -> Iterator[list[Answer]]:
        """A window of requests moves over the jobs; when the caller stops, those under way are dropped."""
        wire, shares = self._wire(), Shares()
        waiting: deque[Future[list[Answer]]] = deque()
        with ThreadPoolExecutor(self.in_flight, thread_name_prefix="vllm") as pool:
            try:
                for job in jobs:
                    waiting.append(pool.submit(self._answers, wire, job, sampling, shares))
                    if len(waiting) > 2 * self.in_flight:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()
                wire.close()

    def _check_enforced(self, kind: str) -> None:
        """Let the server write the only sentence of a grammar.

        Raises:
            SetupError: it wrote something else, or refuses.
        """
        grammar = f'root ::= "{CANARY}"\n' if kind == "grammar" else None
        request = Request(
            key=f"canary {kind}", prompt=CANARY_PROMPT, grammar=grammar,
            schema=None if grammar else {"type": "string", "const": CANARY},
            max_new_tokens=len(CANARY) + 4,  # a token has at least one character; quotes, end
        )  # fmt: skip
        [answer] = self._answers(self._wire(), self._jobs([request])[0], Sampling(temperature=0.0), Shares())
        expected = CANARY if grammar else json.dumps(CANARY)
        if answer.text != expected or answer.finish != "stop":
            named = "grammars" if grammar else "JSON schemas"
            raise SetupError(
                f"the server ignores {named}: asked for {expected!r} and nothing else, it wrote {answer.text[:80]!r}",
                mend="use a vLLM that knows structured_outputs, or generate in process",
            )
        self._enforced.add(kind)

    def _answers(self, wire: Wire, job: _Job, sampling: Sampling, shares: Shares) -> list[Answer]:
        request = job.request
        with shares.share() as share:
            answer = self._call(
                wire, "POST", "/v1/completions", body(job.request, job.prompt, sampling, self.server.model,
                                                      self.tokens.eos), f"request {request.key}",
            )  # fmt: skip
        try:
            choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
            if len(choices) != request.samples:
                raise SetupError(f"request {request.key}: {len(choices)} answers, not {request.samples}")
            return [self._answer(choice, job, sampling, share.seconds / len(choices)) for choice in choices]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SetupError(
                f"request {request.key}: not an answer of vLLM: {type(error).__name__} {error}"[:300],
                mend="token ids and log probabilities are needed: vLLM 0.32 gives them",
            ) from None

    def _answer(self, choice: dict[str, Any], job: _Job, sampling: Sampling, seconds: float) -> Answer:
        tokens = tuple(int(token) for token in choice["token_ids"])
        log_probs = tuple(float(value) for value in choice["logprobs"]["token_logprobs"])
        finish = choice["finish_reason"]
        if (
            finish not in ("stop", "length")
            or len(log_probs) != len(tokens)
            or choice["prompt_token_ids"] != job.prompt
        ):
            raise ValueError(f"finish {finish!r}, {len(tokens)} tokens, {len(log_probs)} log probabilities")
        ended = finish == "stop" and tokens[-1:] == (self.tokens.eos,)
        return Answer(
            text=self.tokens.decode(list(tokens[:-1] if ended else tokens)),
            tokens=tokens,
            log_probs=log_probs if sampling.temperature > 0 else (0.0,) * len(tokens),
            model_log_probs=None,
            finish=finish,
            prompt_tokens=len(job.prompt),
            seconds=seconds,
        )

    def _wire(self) -> Wire:
        return Wire(self.server.url, self.server.key, self.seconds)

    def _call(self, wire: Wire, method: str, path: str, sent: dict[str, Any] | None, what: str) -> Any:
        """One exchange, with repetitions."""
        for number in range(TRIES):
            if number:
                time.sleep(WAIT * 2 ** (number - 1))
            try:
                return wire.exchange(method, path, sent)
            except Refused as refused:
                raise SetupError(f"{what}: the server at {self.server.url} refuses it: {refused}") from None
            except Unreachable as problem:
                last = problem
                if not problem.again or wire.closed:
                    break
                self.server.check()
        self.server.check()
        raise TransientError(
            f"{what}: the server at {self.server.url} is gone: {last}", mend="start again: what was written is kept"
        )


def constraint(request: Request) -> dict[str, Any]:
    """The request's constraint as vLLM's `structured_outputs` has it; empty if there is none."""
    if request.grammar is not None:
        return {"grammar": request.grammar}
    return {} if request.schema is None else {"json": request.schema}


def seed_of(seed: int, key: str) -> int:
    """The seed of a request's first sample; vLLM counts on from it. 48 bits: there is room to count within 64."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{key}".encode()).digest()[:6], "big")


def body(request: Request, prompt: list[int], sampling: Sampling, model: str, end: int) -> dict[str, Any]:
    """The JSON of `/v1/completions`. What is not the distribution's own (top-k, penalties) is switched off by name, as
    a server may have other defaults."""
    sent: dict[str, Any] = {
        "model": model, "prompt": prompt, "n": request.samples, "max_tokens": request.max_new_tokens,
        "temperature": sampling.temperature, "top_p": sampling.top_p if sampling.temperature > 0 else 1.0,
        "seed": seed_of(sampling.seed, request.key), "stop_token_ids": [end], "logprobs": 0,
        "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "return_token_ids": True, "skip_special_tokens": False, "stream": False,
    }  # fmt: skip
    if held := constraint(request):
        sent["structured_outputs"] = held
    return sent


__all__ = ["CANARY", "FolderTokens", "Tokens", "VllmEngine", "body", "constraint", "seed_of"]
