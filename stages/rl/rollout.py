"""Rollouts: groups of lists that a policy writes for rendered windows, ready to be scored token by token.

Prompts of a batch go to the engine together, as many calls as there are temperatures (an engine takes one per call;
AGPO's are therefore rounded to .05). What is drawn depends on the seed, the rollout batch, the instance and the
sample's number alone, so no generator's state is ever saved.

Under a grammar a token is drawn from the legal ones; the same automaton is replayed here, so that training scores what
was sampled. Where a single token is legal there is no choice, no credit and no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline import certificates
from pipeline.constrained import Compiled, compile_grammar
from pipeline.engines import Answer, Request, Sampling, TransformersEngine
from pipeline.errors import DataError
from pipeline.policies import Policy
from pipeline.prompts import Prompt, Prompter
from stages.rl.reward import Judged, judge
from stages.rl.tasks import Instance

HEAT_STEP = 0.05
"""Temperatures are rounded to multiples of it, so that a batch takes few calls of the engine."""

ROUND = 64
"""Room for an answer is a multiple of so many tokens, so that most requests run in one batch."""


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """One answer.

    Args:
        tokens: end token included.
        engine: log-probability of each as drawn.
        text: without the end token.
        complete: whether it ended by itself.
        judged: what it is worth.
        slots: list slot of each token, from 0.
        keys: aligned place and id of each token (`objective.conflicts`).
        legal: packed bits [tokens, W / 8] of what the grammar allowed; None without one.
    """

    tokens: tuple[int, ...]
    engine: tuple[float, ...]
    text: str
    complete: bool
    judged: Judged
    slots: tuple[int, ...]
    keys: tuple[tuple[int, str, int, int], ...]
    legal: np.ndarray[Any, np.dtype[np.uint8]] | None

    @property
    def free(self) -> tuple[bool, ...]:
        """Which tokens were a choice."""
        if self.legal is None:
            return (True,) * len(self.tokens)
        return tuple((np.bitwise_count(self.legal).sum(1) > 1).tolist())


@dataclass(slots=True, eq=False)
class Asked:
    """An instance as it is asked in one rollout batch.

    Args:
        index: its place in the batch, over all processes.
        epoch: of the names in the prompt.
        prompt: as rendered.
        ids: its tokens.
        room: tokens that an answer may have.
        heat: temperature of its rollouts.
        rollouts: the train group.
        probe: the probe group's lists, None where they cast no vote.
    """

    index: int
    instance: Instance
    epoch: int
    prompt: Prompt
    ids: tuple[int, ...]
    room: int
    grammar: Compiled | None
    heat: float
    rollouts: list[Rollout] = field(default_factory=list)
    probe: list[Judged] = field(default_factory=list)


class Sampler:
    """Asks a policy.

    Args:
        policy: its model is the one that is trained.
        prompter: renders windows.
        seed: of names and draws.
        constrained: hold answers to the grammar.
    """

    def __init__(self, policy: Policy, prompter: Prompter, seed: int, *, constrained: bool) -> None:
        self.policy, self.prompter, self.seed, self.constrained = policy, prompter, seed, constrained
        self.engine = TransformersEngine(policy)
        self.width = self.engine.vocabulary.width

    def ask(self, instance: Instance, index: int, epoch: int, heat: float) -> Asked | None:
        """An instance rendered under the names of an epoch; None where prompt and answer do not fit."""
        task = instance.task
        try:
            prompt = self.prompter.render(task.window, task.intent, self.seed, epoch)
        except DataError:
            return None
        longest = certificates.longest_answer(prompt.window, task.skeleton, task.window.k, task.limits)
        room = self.engine.count(longest) * 5 // 4 + 1
        room += -room % ROUND
        ids = tuple(self.policy.encode(prompt.text))
        if len(ids) + room > self.policy.positions:
            return None
        compiled = compile_grammar(self.grammar(instance, prompt), self.engine.vocabulary) if self.constrained else None
        return Asked(index, instance, epoch, prompt, ids, room, compiled, heat)

    def grammar(self, instance: Instance, prompt: Prompt) -> str:
        """Of all certificates of the window as printed."""
        task = instance.task
        return certificates.grammar(prompt.window, task.skeleton, task.window.k, task.limits)

    def answers(self, asked: Sequence[Asked], samples: int, heats: Sequence[float], name: str) -> list[list[Answer]]:
        """`samples` answers of each, at its temperature (0: the likeliest).

        Args:
            name: tells one drawing of an instance from another.
        """
        out: dict[int, list[Answer]] = {}
        for heat in sorted(set(heats)):
            own = [i for i, other in enumerate(heats) if other == heat]
            requests = [self._request(asked[i], samples, name) for i in own]
            groups = self.engine.generate(requests, Sampling(temperature=heat, seed=self.seed))
            out |= dict(zip(own, groups, strict=True))
        return [out[i] for i in range(len(asked))]

    def _request(self, one: Asked, samples: int, name: str) -> Request:
        grammar = self.grammar(one.instance, one.prompt) if self.constrained else None
        key = f"{one.instance.key}|{one.epoch}|{one.index}|{name}"
        return Request(key=key, prompt=one.prompt.text, samples=samples, grammar=grammar, max_new_tokens=one.room)

    def judged(self, one: Asked, answer: Answer) -> Judged:
        """What an answer is worth; one that was cut off is rejected like any text that does not parse."""
        return judge(one.instance, one.prompt.window, answer.text)

    def rollout(self, one: Asked, answer: Answer) -> Rollout:
        """An answer ready to be scored."""
        pieces = [self.policy.decode([token]) for token in answer.tokens]
        if answer.finish == "stop":
            pieces[-1] = ""
        slots = slots_of(pieces, one.instance.k)
        fields = fields_of(pieces, slots)
        keys = tuple((*place, token) for place, token in zip(fields, answer.tokens, strict=True))
        legal = None if one.grammar is None else replayed(one.grammar, answer.tokens)
        return Rollout(
            answer.tokens, answer.log_probs, answer.text, answer.finish == "stop", self.judged(one, answer), slots,
            keys, legal,
        )  # fmt: skip

    def again(self, one: Asked, tokens: Sequence[int]) -> Rollout:
        """An answer that was drawn before, from its tokens alone: not judged, and without the engine's figures."""
        legal = None if one.grammar is None else replayed(one.grammar, tokens)
        none = Judged((), None, (), 0.0)
        places = ((0, "", 0, 0),) * len(tokens)
        return Rollout(tuple(tokens), (0.0,) * len(tokens), "", True, none, (0,) * len(tokens), places, legal)


def rounded(heat: float) -> float:
    """A temperature as it is sampled and scored with."""
    return round(round(heat / HEAT_STEP) * HEAT_STEP, 2)


def replayed(grammar: Compiled, tokens: Sequence[int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Packed bits of what the grammar allows before each token.

    Raises:
        DataError: a token is not legal where it stands.
    """
    state = grammar.start.deep_copy()
    rows: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
    for n, token in enumerate(tokens):
        # The end token is told by the mask alone: a finished automaton takes nothing in.
        if n:
            state.consume_tokens([tokens[n - 1]])
        rows.append(np.frombuffer(state.compute_bitmask(), dtype=np.uint8))
        if state.is_error() or not rows[-1][token // 8] >> token % 8 & 1:
            raise DataError(f"token {n + 1} of a rollout is not in its grammar")
    return np.stack(rows)


def slots_of(pieces: Sequence[str], k: int) -> tuple[int, ...]:
    """List slot of every token of a compact line.

    The bar before an entry belongs to that entry: writing it is the decision to go on. The full stop, and the end
    token, belong to the slot that is left empty (the last one, where none is).
    """
    out, bars = [], 0
    listed = False
    ended = 0
    for piece in pieces:
        bars += piece.count("|")
        before = piece.partition(".")[0]
        listed = listed or any(c.isalnum() for c in before)
        if "." in piece:
            ended = 1
        out.append(min(bars + (ended if listed else 0), k - 1))
    return tuple(out)


def fields_of(pieces: Sequence[str], slots: Sequence[int]) -> list[tuple[int, str, int]]:
    """Aligned place of every token: list slot, word in the entry (a plan slot's name, or "" ), number in that word.

    Tokens of different rollouts at one place answer the same question.
    """
    out: list[tuple[int, str, int]] = []
    text = "".join(pieces)
    at, word, number, begin = 0, "", 0, -1
    for piece, slot in zip(pieces, slots, strict=True):
        first = at + len(piece) - len(piece.lstrip(" "))
        start = text.rfind(" ", 0, first + 1) + 1
        if start != begin or (out and out[-1][0] != slot):
            begin, number = start, 0
            whole = text[start:].split(" ", 1)[0]
            word = whole.partition("=")[0] if "=" in whole else ""
        out.append((slot, word, number))
        number += 1
        at += len(piece)
    return out
