"""The baseline systems: plain functions from a question to a draft.

| system | order | emits |
|---|---|---|
| rm_attach | reward model | K entries, each with the deterministic attachment, empty where there is none |
| rule_attach | matched slot weight | stops early: the entries that it can attach |
| rm_cert | certifiable candidates first, then reward model | stops early: the entries that the verifier accepts alone |
| random | a seeded permutation | like rm_attach |
| cite_all | reward model | K entries, each citing every span of the candidate's steps in its first matched slot |
| shuffled | reward model | rm_attach with the certificates moved cyclically by one |

Ties fall to the canonical order of the roster. None of them sees a label; `rm_*`, `cite_all` and `shuffled` see θ.
Where a window holds no trigger, nothing can be certified and every system emits the empty list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pipeline import certificates
from pipeline.certificates import Entry
from pipeline.rankings import Draft, Task
from pipeline.skeletons import MICRO
from pipeline.windows import stable_seed
from stages.reward.features import Plan, make_case, tracks
from stages.reward.model import RewardModel

Scores = dict[str, float]


@dataclass(frozen=True)
class Question(Task):
    """A task with what the baselines rank by.

    Args:
        model: the reward model.
        seed: of random choices.
    """

    model: RewardModel
    seed: int

    @cached_property
    def rewards(self) -> Scores:
        """candidate_id -> R_θ."""
        return dict(zip(self.candidates, self.model.scores(self.window, self.skeleton).tolist(), strict=True))

    @property
    def k(self) -> int:
        """Length of the list: the window's K, or the roster's size where it is smaller."""
        return min(self.window.k, len(self.candidates))

    def attach(self, candidate_id: str) -> Entry:
        """The deterministic attachment, or an entry that cites nothing where there is none."""
        entry = certificates.attach(self.window, self.skeleton, candidate_id, self.limits)
        return entry if entry is not None else Entry(candidate_id, ())


def descending(scores: Scores) -> tuple[str, ...]:
    """Candidates by descending score; ties keep the roster's order."""
    return tuple(sorted(scores, key=lambda c: -scores[c]))


def rm_attach(question: Question) -> Draft:
    """Reward model order, deterministic attachment."""
    return _attached(question, question.rewards)


def random(question: Question) -> Draft:
    """A permutation drawn from (seed, window, intent), deterministic attachment: the floor."""
    seed = stable_seed(question.seed, "random", question.window.window_id, question.intent.intent_id)
    drawn = np.random.default_rng(seed).random(len(question.candidates))
    return _attached(question, dict(zip(question.candidates, drawn.tolist(), strict=True)))


def _attached(question: Question, scores: Scores) -> Draft:
    order = descending(scores)
    emitted = tuple(question.attach(c) for c in order[: question.k]) if question.answerable else ()
    return Draft(order, scores, emitted)


def rule_attach(question: Question) -> Draft:
    """Order by the weight of the slots that the extracted trajectory fills; emit what can be attached."""
    known, plan = tracks(question.window), Plan(question.skeleton)
    slots = question.skeleton.slots
    scores = {c: sum(slots[j].weight for j, _ in make_case(plan, known[c]).filled) / MICRO for c in question.candidates}
    entries = {c: question.attach(c) for c in descending(scores) if scores[c] > 0} if question.answerable else {}
    return _stopping_early(question, scores, {c: entry for c, entry in entries.items() if entry.slots})


def rm_cert(question: Question) -> Draft:
    """Reward model order among the candidates with an accepted certificate; emit those."""
    return _stopping_early(question, question.rewards, question.certifiable if question.answerable else {})


def _stopping_early(question: Question, scores: Scores, entries: dict[str, Entry]) -> Draft:
    ranked = descending(scores)
    shown = [c for c in ranked if c in entries]
    order = (*shown, *(c for c in ranked if c not in entries))
    return Draft(order, scores, tuple(entries[c] for c in shown[: question.k]))


def cite_all(question: Question) -> Draft:
    """Reward model order; every span of a candidate's steps in its first matched slot. Breaks the limits on purpose."""
    known, plan = tracks(question.window), Plan(question.skeleton)
    order = descending(question.rewards)

    def everything(candidate_id: str) -> Entry:
        filled = sorted(j for j, _ in make_case(plan, known[candidate_id]).filled)
        steps = question.window.trajectories[candidate_id]
        spans = tuple(sorted({span for step in steps for span in (step.trigger, step.mention)}))
        return Entry(candidate_id, ((question.skeleton.slots[filled[0]].slot_id, spans),) if filled else ())

    emitted = tuple(everything(c) for c in order[: question.k]) if question.answerable else ()
    return Draft(order, question.rewards, emitted)


def shuffled(question: Question) -> Draft:
    """rm_attach, every entry with the certificate of the next one (the last with the first's)."""
    draft = rm_attach(question)
    return replace(draft, emitted=shift(draft.emitted))


def shift(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Move the certificates cyclically by one: entry i gets those of entry i + 1."""
    following = [*entries[1:], *entries[:1]]
    return tuple(Entry(mine.candidate_id, other.slots) for mine, other in zip(entries, following, strict=True))


SYSTEMS: dict[str, Callable[[Question], Draft]] = {
    "rm_attach": rm_attach,
    "rule_attach": rule_attach,
    "rm_cert": rm_cert,
    "random": random,
    "cite_all": cite_all,
    "shuffled": shuffled,
}
