"""What best-of-N chooses by: a number per answer, the higher the better. None of them sees a label."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import exp, fsum

from pipeline import rewards
from stages.rank_policy.questions import Question, Reading

Score = Callable[[Question, Reading], float]

_NAME = re.compile(r"\b[CE][0-9]+\b")


def choose(question: Question, readings: Sequence[Reading], score: Score) -> int:
    """Index of the best answer that parses, the first of equals; 0 where none does."""
    parsed = [i for i, reading in enumerate(readings) if reading.code is None]
    return max(parsed, key=lambda i: score(question, readings[i]), default=0)


def by_rank(question: Question, reading: Reading) -> float:
    """Ranking utility by the reward model; evidence is not looked at."""
    listed = [entry.candidate_id for entry in reading.entries]
    return rewards.r_rank(listed, question.utilities, question.window.k)


def by_reward(question: Question, reading: Reading) -> float:
    """The gated reward: ranking utility of what is valid and recovered by the verifier."""
    return rewards.gated(rewards.outcomes(question, reading.entries), question.utilities, question.window.k)


def by_confidence(question: Question, reading: Reading) -> float:
    """CRew (arXiv 2510.13501): mean probability of the tokens that write ids and handles; 0 for an empty list.

    The probability is the model's own where the engine tells it, else that under which the token was drawn.
    """
    answer = reading.answer
    log_probs = answer.log_probs if answer.model_log_probs is None else answer.model_log_probs
    names = {i for match in _NAME.finditer(answer.text) for i in range(*match.span())}
    picked, end = [], 0
    for n, log_prob in enumerate(log_probs, 1):
        start, end = end, len(question.voice.decode(list(answer.tokens[:n])))
        if not names.isdisjoint(range(start, end)):
            picked.append(exp(log_prob))
    return fsum(picked) / len(picked) if picked else 0.0
