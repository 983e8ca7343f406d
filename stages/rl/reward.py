"""What a written list is paid: the reward functions of `pipeline.rewards` over the verifier's verdicts, slot by slot.

    judged = judge(instance, prompt.window, text)          # one rollout; never raises for what a policy writes
    gains = slot_gains("gated", [judged, ...], instance, shaping)   # of a whole group: some rewards compare

A slot's gains add up to the list's reward. A text that does not parse has no entries and no gain.

`gated`, `additive` and `rank` are the task definition's (section 7). Options behind the same gate, none of them by
length: `graded` (E-GRPO, arXiv 2510.24694) pays a valid entry that the verifier does not recover for the required slots
it supports; `economy` (OTC, arXiv 2504.14870) takes something off a certified entry that cites more handles than the
group's best for the same candidate; `contrast` (GCPO, arXiv 2506.07160) adds a bonus to certified entries where the
group's certified lists rank better than its others, and takes it off where they rank worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, pi, sin

from pipeline import certificates, rewards
from pipeline.certificates import Entry
from pipeline.errors import CertificateError
from pipeline.params import Shaping
from pipeline.rankings import Task
from pipeline.rewards import Outcome
from pipeline.windows import Window
from stages.rl.settings import RewardKind
from stages.rl.tasks import Instance

BAND = 0.02
"""Difference in ranking utility between certified and other lists within which `contrast` pays nothing."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A list and what is known of it without any label.

    Args:
        entries: in canonical ids; () where the text was rejected.
        code: why it was rejected, None where it parsed.
        outcomes: of the entries.
        rank: ranking utility of the list, certified or not.
    """

    entries: tuple[Entry, ...]
    code: str | None
    outcomes: tuple[Outcome, ...]
    rank: float

    @property
    def listed(self) -> tuple[str, ...]:
        return tuple(entry.candidate_id for entry in self.entries)

    @property
    def invalid(self) -> bool:
        """Whether the form or any entry is not valid: what the constraint is about."""
        return self.code is not None or not all(o.valid for o in self.outcomes)

    @property
    def certified(self) -> int:
        """Entries that the gate lets through."""
        return sum(o.certified for o in self.outcomes)

    @property
    def whole(self) -> bool:
        """Whether something is listed and all of it is certified."""
        return bool(self.outcomes) and self.certified == len(self.outcomes)


def judge(instance: Instance, window: Window, text: str) -> Judged:
    """Read and judge what a policy wrote.

    Args:
        window: as printed, whose names the text uses.
    """
    task = instance.task
    try:
        entries = tuple(certificates.parse(text, window, task.skeleton, task.window.k, task.limits))
    except CertificateError as error:
        return Judged((), error.code, (), 0.0)
    rank = rewards.r_rank([e.candidate_id for e in entries], instance.u, instance.k)
    return Judged(entries, None, tuple(rewards.outcomes(task, entries)), rank)


def slot_gains(kind: RewardKind, group: Sequence[Judged], instance: Instance, shaping: Shaping) -> list[list[float]]:
    """Gains [G][K] of the slots of every list of a group, 0 where a list has no entry."""
    k = instance.k
    rows = []
    for judged in group:
        if kind == "rank":
            gains = _weighted(judged, instance, [1.0] * len(judged.outcomes))
        elif kind == "additive":
            gains = _additive(judged, instance, shaping)
        else:
            gains = _weighted(judged, instance, _gates(kind, judged, group, shaping))
        rows.append(gains + [0.0] * (k - len(gains)))
    if kind == "contrast":
        bonus = contrast(group) * shaping.contrast / k
        for gains, judged in zip(rows, group, strict=True):
            for i, outcome in enumerate(judged.outcomes):
                gains[i] += bonus * outcome.certified
    return rows


def _weighted(judged: Judged, instance: Instance, weights: Sequence[float]) -> list[float]:
    """Discounted utility over the ideal of each entry, times its weight; a repeated candidate has none."""
    best = rewards.ideal(instance.u, instance.k)
    seen: set[str] = set()
    gains = []
    for rank, (candidate_id, weight) in enumerate(zip(judged.listed, weights, strict=True), 1):
        first = candidate_id not in seen and best > 0
        gains.append(rewards.discount(rank) * instance.u[candidate_id] * weight / best if first else 0.0)
        seen.add(candidate_id)
    return gains


def _additive(judged: Judged, instance: Instance, shaping: Shaping) -> list[float]:
    k = instance.k
    ranked = _weighted(judged, instance, [1.0] * len(judged.outcomes))
    return [
        fsum((
            gain, shaping.certificate * o.coverage * o.valid / k, shaping.cycle * o.recovered / k,
            0.0 if o.valid else -rewards.PENALTY,
        ))
        for gain, o in zip(ranked, judged.outcomes, strict=True)
    ]  # fmt: skip


def _gates(kind: RewardKind, judged: Judged, group: Sequence[Judged], shaping: Shaping) -> list[float]:
    gates = []
    for i, o in enumerate(judged.outcomes):
        gate = float(o.certified)
        if kind == "graded":
            gate += shaping.graded * (1 - gate) * o.valid * o.coverage
        elif kind == "economy" and o.certified:
            used = len(judged.entries[i].spans)
            gate *= 1 - shaping.economy + shaping.economy * thrift(used, fewest(group, o.candidate_id))
        gates.append(gate)
    return gates


def fewest(group: Sequence[Judged], candidate_id: str) -> int:
    """Fewest handles with which any list of the group certifies a candidate."""
    return min(
        len(entry.spans)
        for judged in group
        for entry, o in zip(judged.entries, judged.outcomes, strict=True)
        if o.certified and o.candidate_id == candidate_id
    )


def thrift(used: int, least: int) -> float:
    """sin(π·m / (m + n)): 1 where m handles are the least n, falling with every further one."""
    return sin(pi * used / (used + least))


def contrast(group: Sequence[Judged]) -> float:
    """+1 where the group's certified lists have more ranking utility than its others, -1 where less, 0 within the band
    or where all or none are certified."""
    with_, without = ([j.rank for j in group if j.whole is own] for own in (True, False))
    if not with_ or not without:
        return 0.0
    apart = fsum(with_) / len(with_) - fsum(without) / len(without)
    return 0.0 if abs(apart) <= BAND else 1.0 if apart > 0 else -1.0


def late_flips(task: Task, judged: Judged) -> tuple[int, int]:
    """How many entries' gates are changed by what stands behind them, and of how many.

    Recovery is by an assignment over all bundles of a list, so a later entry can take an earlier one's candidate; a
    return to go is only right where that is rare.
    """
    flips = 0
    for n in range(1, len(judged.entries)):
        before = rewards.outcomes(task, judged.entries[:n])
        flips += before[-1].certified != judged.outcomes[n - 1].certified
    return flips, len(judged.entries)
