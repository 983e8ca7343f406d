"""Text generation for policies: one interface, two engines.

    engine = TransformersEngine(load_policy("models/sft"))
    for answers in engine.generate(requests, sampling):
        ...

An engine answers every request with as many samples as it asks for, in order, and never alters a text: what comes back
is what the model wrote. What is drawn depends on the sampling seed, the request's key and the sample's number alone,
so a run that was interrupted goes on with the same samples. A request may carry a grammar (GBNF, as
`certificates.grammar` writes it) or a JSON schema, which the engine must enforce token by token; one that cannot
raises `SetupError` before the first request, never silently generates freely.

`TransformersEngine` runs in this process. It has two ways to generate, which draw the same tokens: `shared prefix`
(`pipeline.shared_prefix`: the prompt once for all samples) for the models that `decoders.decoder_for` knows, `generate`
of transformers for any other. Its attribute `way` says which one it is, `why` the reason.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from pipeline import shared_prefix
from pipeline.decoders import Decoder, decoder_for
from pipeline.errors import DataError, ParamError, SetupError
from pipeline.shared_prefix import Mask, Prompt, Sample

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.constrained import Compiled, Vocabulary
    from pipeline.policies import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt.

    Args:
        key: its name: with the seed it decides what is drawn; unique within a call.
        prompt: what the model reads, as it is (special tokens in it have been neutralised before).
        samples: how many answers.
        grammar: GBNF grammar that every answer must be a sentence of, or None.
        schema: JSON schema that every answer must satisfy, or None; not both.
        max_new_tokens: the most tokens of an answer, the end token included.
    """

    key: str
    prompt: str
    samples: int = 1
    grammar: str | None = None
    schema: dict[str, Any] | None = None
    max_new_tokens: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """temperature 0 is greedy; `seed` is of all draws."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One sample.

    Args:
        text: decoded, the end token left out; not stripped.
        tokens: ids, the end token included if there was one.
        log_probs: of each token under the distribution it was drawn from (behaviour; 0 when greedy).
        model_log_probs: of each token under the model without mask at temperature 1; None where an engine cannot tell.
        finish: "stop" or "length" (cut off).
        prompt_tokens: length of the prompt.
        seconds: wall time of the batch that it was generated in, divided by the batch's samples.
    """

    text: str
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    model_log_probs: tuple[float, ...] | None
    finish: Literal["stop", "length"]
    prompt_tokens: int
    seconds: float


class Engine(Protocol):
    """Generates answers."""

    def count(self, text: str) -> int:
        """Tokens of a text."""
        ...

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Answer]]:
        """The answers of every request, in the order of the requests, each as soon as its batch is done.

        Raises:
            DataError: a prompt that does not fit the model.
            SetupError: the engine cannot enforce a grammar.
            TransientError: the server is gone.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Job:
    """A request whose prompt has been cut into tokens."""

    request: Request
    prompt: Prompt


class TransformersEngine:
    """Generation in this process, with torch.

    Consecutive requests that ask for equally many samples and tokens go through the model together, as long as their
    prompts hold at most `batch_tokens` tokens (the longest counts for each: shorter ones are padded) and their samples
    are at most `batch_rows`. A request that is larger than that goes alone, so memory is bounded by the larger of the
    two and never by the number of requests: keys and values of batch_tokens + batch_rows · max_new_tokens tokens, and
    a few copies of logits [batch_rows, vocabulary] (SmolLM2-135M in float32 with 256 new tokens: 0.9 GiB, 12 MiB each).

    Args:
        policy: its model is run where and in the precision that it is.

    Raises:
        ParamError: a bound is below 1.
    """

    def __init__(self, policy: Policy, *, batch_tokens: int = 4096, batch_rows: int = 64) -> None:
        for field, value in (("batch_tokens", batch_tokens), ("batch_rows", batch_rows)):
            if value < 1:
                raise ParamError(f"must be at least 1, not {value}", field=field)
        self.policy, self.batch_tokens, self.batch_rows = policy, batch_tokens, batch_rows
        self.decoder: Decoder | None = None
        self.way: Literal["shared prefix", "generate"] = "shared prefix"
        self.why = f"{type(policy.plain).__name__} runs layer by layer"
        try:
            self.decoder = decoder_for(policy.plain)
        except SetupError as error:
            self.way, self.why = "generate", error.what

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Of the masks; made when the first grammar comes."""
        from pipeline.constrained import Vocabulary

        model: Any = self.policy.plain
        width = self.decoder.shape.vocabulary if self.decoder else model.get_output_embeddings().weight.shape[0]
        return Vocabulary(self.policy.backend, end=self.policy.end, width=width)

    def count(self, text: str) -> int:
        """Tokens of a prompt, the first token that a tokenizer puts before it included."""
        return len(self.policy.encode(text))

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Answer]]:
        """See `Engine`. Requests are checked here and now; texts are generated as the answers are asked for.

        Raises:
            DataError: a prompt is empty or does not fit the model.
            ParamError: equal keys, no sample, or both a grammar and a schema.
            SetupError: a grammar's characters cannot be spelled; later, when its turn comes: it cannot be enforced.
        """
        if len({request.key for request in requests}) < len(requests):
            raise ParamError("two requests have the same key", field="requests")
        jobs = [_Job(request, self._prompt(request)) for request in requests]
        if any(request.grammar is not None or request.schema is not None for request in requests):
            from pipeline.constrained import check_spelling

            for request in requests:
                if request.grammar is not None:
                    check_spelling(request.grammar, self.vocabulary)
        return self._answers(jobs, sampling)

    def _prompt(self, request: Request) -> Prompt:
        place = f"request {request.key!r}"
        if request.samples < 1:
            raise ParamError(f"{place}: must be at least 1, not {request.samples}", field="samples")
        if request.grammar is not None and request.schema is not None:
            raise ParamError(f"{place} has both a grammar and a schema", field="schema")
        ids = tuple(self.policy.encode(request.prompt))
        if not ids:
            raise DataError(f"{place}: the prompt is empty")
        if len(ids) + request.max_new_tokens > self.policy.positions:
            raise DataError(
                f"{place}: the prompt has {len(ids)} tokens; with {request.max_new_tokens} new ones that is more than "
                f"the model's {self.policy.positions} positions"
            )
        return Prompt(request.key, ids)

    def _answers(self, jobs: Sequence[_Job], sampling: Sampling) -> Iterator[list[Answer]]:
        for batch in self._batches(jobs):
            begin = time.perf_counter()
            groups = self._samples(batch, sampling)
            seconds = (time.perf_counter() - begin) / sum(map(len, groups))
            for job, samples in zip(batch, groups, strict=True):
                yield [self._answer(sample, len(job.prompt.ids), seconds) for sample in samples]

    def _batches(self, jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
        batch: list[_Job] = []
        for job in jobs:
            if batch and not self._fits([*batch, job]):
                yield batch
                batch = []
            batch.append(job)
        if batch:
            yield batch

    def _fits(self, batch: list[_Job]) -> bool:
        first = batch[0].request
        alike = all(
            (job.request.samples, job.request.max_new_tokens) == (first.samples, first.max_new_tokens) for job in batch
        )
        tokens = len(batch) * max(len(job.prompt.ids) for job in batch)
        return alike and tokens <= self.batch_tokens and len(batch) * first.samples <= self.batch_rows

    def _samples(self, batch: list[_Job], sampling: Sampling) -> list[list[Sample]]:
        """The samples of every request of a batch, which are alike."""
        first = batch[0].request
        how = shared_prefix.Sampling(
            max_new_tokens=first.max_new_tokens, temperature=sampling.temperature, top_p=sampling.top_p,
            stop=frozenset({self.policy.eos}), seed=sampling.seed,
        )  # fmt: skip
        grammars = [self._grammar(job.request) for job in batch]
        prompts = [job.prompt for job in batch]
        if self.decoder is not None:
            return shared_prefix.generate(self.decoder, prompts, first.samples, how, _mask(grammars))
        return [
            generate_plainly(self.policy.plain, prompt, first.samples, how, _mask([grammar]))
            for prompt, grammar in zip(prompts, grammars, strict=True)
        ]

    def _grammar(self, request: Request) -> Compiled | None:
        if request.grammar is None and request.schema is None:
            return None
        from pipeline.constrained import compile_grammar, compile_schema

        if request.grammar is not None:
            return compile_grammar(request.grammar, self.vocabulary)
        assert request.schema is not None
        return compile_schema(request.schema, self.vocabulary)

    def _answer(self, sample: Sample, prompt_tokens: int, seconds: float) -> Answer:
        assert sample.finish is not None
        written = sample.tokens[:-1] if sample.finish == "stop" else sample.tokens
        return Answer(
            text=self.policy.decode(written), tokens=tuple(sample.tokens), log_probs=tuple(sample.log_probs),
            model_log_probs=tuple(sample.model_log_probs), finish=sample.finish, prompt_tokens=prompt_tokens,
            seconds=seconds,
        )  # fmt: skip


def _mask(grammars: list[Compiled | None]) -> Mask | None:
    if not any(grammars):
        return None
    from pipeline.constrained import Mask as GrammarMask

    return GrammarMask(grammars)


@torch.inference_mode()
def generate_plainly(
    model: Any, prompt: Prompt, group: int, sampling: shared_prefix.Sampling, mask: Mask | None
) -> list[Sample]:
    """Samples of one prompt by `generate` of transformers, every one a row of its own.

    Tokens are chosen by `shared_prefix.choose` from the same random numbers; the model is left nothing but to copy the
    chosen token, so the same samples come out.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    samples = [Sample(0, number) for number in range(group)]
    chooser = _Chooser(samples, prompt.key, sampling, mask)
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=sampling.max_new_tokens, eos_token_id=sorted(sampling.stop),
        pad_token_id=min(sampling.stop),
    )  # fmt: skip
    ids_NP = torch.tensor([prompt.ids] * group, device=model.device)
    # A model's own settings (penalties, suppressed tokens) would be mixed into ours.
    own, model.generation_config = model.generation_config, GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        model.generate(
            ids_NP, attention_mask=torch.ones_like(ids_NP), generation_config=config,
            logits_processor=LogitsProcessorList([chooser]),
        )  # fmt: skip
    finally:
        model.generation_config = own
    return samples


class _Chooser:
    """A logits processor that chooses the next token of every row itself and leaves only that one."""

    def __init__(self, samples: list[Sample], key: str, sampling: shared_prefix.Sampling, mask: Mask | None) -> None:
        self.samples, self.sampling, self.mask = samples, sampling, mask
        self.random = [shared_prefix.generator(sampling.seed, key, sample.number) for sample in samples]

    def __call__(self, _ids: Tensor, logits_NW: Tensor) -> Tensor:
        places = [n for n, sample in enumerate(self.samples) if sample.finish is None]
        live = [self.samples[n] for n in places]
        draws = [self.random[n].random() for n in places]
        chosen = shared_prefix.choose(logits_NW[places], live, draws, self.sampling, self.mask)
        only_NW = torch.full_like(logits_NW, -torch.inf)
        only_NW[:, min(self.sampling.stop)] = 0.0  # of rows that have ended; generate puts padding there
        for n, sample, token, drawn, own in zip(places, live, *chosen, strict=True):
            sample.take(token, drawn, own, self.sampling)
            only_NW[n] = -torch.inf
            only_NW[n, token] = 0.0
        return only_NW
