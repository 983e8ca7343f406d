"""How well a policy ranks while it is being trained: CertNDCG of greedy, grammar-constrained lists on tune windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from pipeline import certificates, metrics
from pipeline.certificates import Entry
from pipeline.engines import Request, Sampling, TransformersEngine
from pipeline.errors import CertificateError, DataError
from pipeline.policies import Policy
from pipeline.prompts import Prompt, Prompter
from pipeline.rankings import judge
from stages.sft.lessons import Lesson


@dataclass(frozen=True, eq=False)
class Judge:
    """Ranks held-out lessons by a policy.

    Args:
        policy: whose model is being trained.
        prompter: renders windows.
        lessons: held out.
        seed: of the names in the prompts.
    """

    policy: Policy
    prompter: Prompter
    lessons: Sequence[Lesson]
    seed: int

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Mean CertNDCG@K, share of the right answer's CertNDCG that is reached, entries per list, share cut off."""
        engine = TransformersEngine(self.policy)
        asked = [(lesson, prompt) for lesson in self.lessons if (prompt := self._prompt(lesson)) is not None]
        room = max((engine.count(_longest(lesson, prompt)) for lesson, prompt in asked), default=0) * 5 // 4 + 1
        requests = [
            Request(key=lesson.key, prompt=prompt.text, grammar=_grammar(lesson, prompt), max_new_tokens=room)
            for lesson, prompt in asked
        ]
        reached = possible = entries = cut = 0.0
        for (lesson, prompt), answers in zip(asked, engine.generate(requests, Sampling(temperature=0.0)), strict=True):
            listed = _read(answers[0].text, lesson, prompt)
            cut += answers[0].finish == "length"
            entries += len(listed)
            reached += certified(lesson, listed)
        for lesson in self.lessons:
            possible += certified(lesson, lesson.entries)
        n = len(self.lessons)
        return {"cert_ndcg": reached / n, "of_cap": reached / possible if possible else 0.0, "entries": entries / n,
                "cut": cut / n}  # fmt: skip

    def _prompt(self, lesson: Lesson) -> Prompt | None:
        try:
            return self.prompter.render(lesson.task.window, lesson.task.intent, self.seed)
        except DataError:
            return None


def _grammar(lesson: Lesson, prompt: Prompt) -> str:
    task = lesson.task
    return certificates.grammar(prompt.window, task.skeleton, task.window.k, task.limits)


def _longest(lesson: Lesson, prompt: Prompt) -> str:
    """A longest legal answer; an answer gets room for it and a quarter more, for spellings that waste tokens."""
    task = lesson.task
    return certificates.longest_answer(prompt.window, task.skeleton, task.window.k, task.limits)


def _read(text: str, lesson: Lesson, prompt: Prompt) -> tuple[Entry, ...]:
    """The list as written; an answer that was cut off is none."""
    task = lesson.task
    try:
        return tuple(certificates.parse(text, prompt.window, task.skeleton, task.window.k, task.limits))
    except CertificateError:
        return ()


def certified(lesson: Lesson, entries: tuple[Entry, ...]) -> float:
    """CertNDCG@K of a list; a repeated candidate counts once."""
    codes = judge(lesson.task, entries)
    seen: set[str] = set()
    gates = []
    for entry, code in zip(entries, codes, strict=True):
        gates.append(code is None and entry.candidate_id not in seen)
        seen.add(entry.candidate_id)
    grades = [lesson.grades.get(entry.candidate_id, 0) for entry in entries]
    return metrics.dcg(grades, lesson.task.window.k, gates) / lesson.ideal if lesson.ideal else 0.0
