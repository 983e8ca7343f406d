"""An instance as a policy is asked it, and its answers as they are read and recorded. Fails closed, repairs nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import fsum
from typing import Any

import numpy as np

from pipeline import certificates
from pipeline.certificates import Entry
from pipeline.engines import Answer, Engine, Request, Sampling
from pipeline.errors import CertificateError, DataError
from pipeline.prompts import Prompt, Prompter
from pipeline.rankings import Draft, Generation, Task
from pipeline.rewards import utilities
from pipeline.windows import Window, stable_seed
from stages.reward.model import RewardModel

EPOCH = 0
"""Of the names in prompts. Training draws others anew for every epoch."""

ROUND = 64
"""Room for an answer is a multiple of so many tokens, so that most requests are alike and run in one batch."""

Talk = Generator[Request, list[Answer], Draft]
"""A system at work on one instance: it yields requests, is sent their answers, and returns the list."""


class NoRoomError(Exception):
    """The prompt alone is over its budget, or prompt and answer together do not fit the model."""


@dataclass(frozen=True, slots=True)
class Voice:
    """A policy that can be asked.

    Args:
        engine: generates.
        decode: token ids to text, as the engine does it.
        specials: special tokens of the tokenizer.
        positions: the most tokens of prompt and answer together, None where unknown.
        identity: of the weights and the tokenizer, so that answers are never taken for another policy's.
    """

    engine: Engine
    decode: Callable[[list[int]], str]
    specials: Sequence[str]
    positions: int | None
    identity: str


@dataclass(frozen=True, slots=True)
class Reading:
    """An answer and what the strict parser says of it.

    Args:
        answer: as generated.
        entries: in canonical ids; () where it was rejected.
        code: why it was rejected.
        sample, attempt: its place among the instance's answers.
    """

    answer: Answer
    entries: tuple[Entry, ...]
    code: str | None
    sample: int = 0
    attempt: int = 0


Parse = Callable[["Question", str], list[Entry]]
"""A text in some form to entries, or CertificateError."""


def compact(question: Question, text: str) -> list[Entry]:
    """The compact form over the ids of the prompt."""
    window = question.prompt.window
    return certificates.parse(text, window, question.skeleton, window.k, question.limits)


@dataclass(frozen=True)
class Question(Task):
    """A task with what a policy reads and is ranked by.

    Args:
        model: the reward model.
        prompter: renders the prompt.
        voice: who is asked.
        sampling: how.
        samples: answers of the systems that choose among several.
        retries: how often `retry` asks again.
        epoch: of the names in the prompt; with any other than `EPOCH` the roster stands in another order, too.
        probe: "" for what becomes a list; else what is tried, so that it draws samples of its own.
    """

    model: RewardModel
    prompter: Prompter
    voice: Voice
    sampling: Sampling
    samples: int
    retries: int
    epoch: int = EPOCH
    probe: str = ""

    @cached_property
    def prompt(self) -> Prompt:
        """What the policy reads.

        Raises:
            NoRoomError: it is over its budget whatever is left out.
        """
        seed, window = self.sampling.seed, self.window
        if self.epoch != EPOCH:
            order = np.random.default_rng(stable_seed("order", seed, window.window_id, self.epoch))
            window = replace(
                window, candidates=tuple(window.candidates[i] for i in order.permutation(len(window.candidates)))
            )
        try:
            return self.prompter.render(window, self.intent, seed, self.epoch)
        except DataError as error:
            raise NoRoomError(error.what) from None

    @cached_property
    def rewards(self) -> dict[str, float]:
        """candidate_id -> R_θ."""
        return dict(zip(self.candidates, self.model.scores(self.window, self.skeleton).tolist(), strict=True))

    @cached_property
    def utilities(self) -> dict[str, float]:
        """candidate_id -> R_θ scaled to [0, 1] over the roster."""
        return utilities(self.rewards)

    @property
    def longest(self) -> str:
        """A longest answer in compact form."""
        window = self.prompt.window
        return certificates.longest_answer(window, self.skeleton, window.k, self.limits)

    def request(
        self, ask: str, longest: str, *, prompt: str | None = None, samples: int = 1, grammar: str | None = None,
        schema: dict[str, Any] | None = None,
    ) -> Request:  # fmt: skip
        """A request with room for the longest answer, and a quarter more for spellings that waste tokens.

        Args:
            ask: what is asked, in a word: systems with equal words and seeds draw equal samples.
            longest: a longest legal answer.
            prompt: the question's own by default.

        Raises:
            NoRoomError: prompt and answer do not fit the model.
        """
        text = self.prompt.text if prompt is None else prompt
        room = self.voice.engine.count(longest) * 5 // 4 + 1
        room += -room % ROUND
        needed, positions = self.voice.engine.count(text) + room, self.voice.positions
        if positions is not None and needed > positions:
            raise NoRoomError(f"prompt and answer need {needed} tokens, the model has {positions}")
        key = f"{self.window.window_id}|{self.intent.intent_id}|{self.window.setting}|{ask}"
        key = f"{key}|{self.probe}" if self.probe else key
        return Request(
            key=key, prompt=text, samples=samples, grammar=grammar, schema=schema, max_new_tokens=room
        )  # fmt: skip

    def read(self, answer: Answer, parse: Parse = compact, *, sample: int = 0, attempt: int = 0) -> Reading:
        """What an answer says; a list with a candidate twice is rejected like one that does not parse."""
        try:
            entries = tuple(parse(self, answer.text))
        except CertificateError as error:
            return Reading(answer, (), error.code, sample, attempt)
        if len({entry.candidate_id for entry in entries}) < len(entries):
            return Reading(answer, (), "repeated_candidate", sample, attempt)
        return Reading(answer, entries, None, sample, attempt)

    def answered(self, readings: Sequence[Reading], chosen: int = -1) -> Draft:
        """The list of the chosen reading, completed by the reward model.

        Args:
            readings: everything that was written.
            chosen: index of the one that counts, the last by default.
        """
        taken = readings[chosen]
        rows = tuple(self._row(reading, reading is taken) for reading in readings)
        return self._draft(taken.entries, rows, fsum(reading.answer.seconds for reading in readings))

    def unasked(self, code: str) -> Draft:
        """An empty list, because nothing can be asked."""
        return self._draft((), (Generation(text="", status="uncertified", reject_code=code),))

    def _draft(self, entries: tuple[Entry, ...], rows: tuple[Generation, ...], seconds: float = 0.0) -> Draft:
        listed = tuple(entry.candidate_id for entry in entries)
        others = sorted((c for c in self.candidates if c not in listed), key=lambda c: -self.rewards[c])
        return Draft((*listed, *others), self.rewards, entries, generations=rows, seconds=seconds)

    def _row(self, reading: Reading, chosen: bool) -> Generation:
        answer = reading.answer
        own = answer.model_log_probs
        return Generation(
            text=answer.text, status="parsed" if reading.code is None else "rejected", reject_code=reading.code,
            sample=reading.sample, attempt=reading.attempt, chosen=chosen, prompt_tokens=answer.prompt_tokens,
            tokens=len(answer.tokens), temperature=self.sampling.temperature, seed=self.sampling.seed,
            log_prob=fsum(answer.log_probs), model_log_prob=None if own is None else fsum(own), finish=answer.finish,
            dropped_steps=self.prompt.dropped.steps,
        )  # fmt: skip


def reordered(window: Window, seed: int) -> Window:
    """The window with its roster in an order drawn from a seed."""
    order = np.random.default_rng(seed).permutation(len(window.candidates))
    return replace(window, candidates=tuple(window.candidates[i] for i in order))
