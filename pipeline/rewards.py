"""Rewards of a ranked list: the reward model's scores and the verifier's verdicts, no label (task definition, 7).

    u = utilities(scores)                      # R_θ of the roster, scaled to [0, 1]
    judged = outcomes(task, entries)           # validity and recovery of each emitted entry
    gated(judged, u, k)                        # the default
    additive(judged, u, k, certificate=0.5, cycle=0.5)

All of them are pure and exact: sums are rounded once, so equal lists get equal rewards, and taking a term away never
raises a sum. A candidate that stands on the list again earns nothing there: neither utility (else repeating the best
one would pay) nor validity. A list that could not be parsed has no entries, hence no reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum, log2

from pipeline import certificates
from pipeline.certificates import Entry
from pipeline.rankings import Task

PENALTY = 0.1
"""What the additive reward takes for each rejected bundle: one that is emitted and not valid."""

Utilities = Mapping[str, float]
"""candidate_id -> u in [0, 1], for the whole roster."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known of one emitted entry without any label.

    Args:
        candidate_id: canonical id.
        valid: v, false for a candidate that stands further up already.
        recovered: whether the verifier recovers the candidate from the list's bundles.
        coverage: share of the plan's required slots that the cited spans fill; 0 where the plan requires none.
    """

    candidate_id: str
    valid: bool
    recovered: bool
    coverage: float

    @property
    def certified(self) -> bool:
        """Valid and recovered: what the gate lets through."""
        return self.valid and self.recovered


def outcomes(task: Task, entries: Sequence[Entry]) -> list[Outcome]:
    """Judge an emitted list, entry by entry.

    Args:
        task: the instance; the window's own ids do not matter, entries are canonical.
        entries: of candidates of the roster, in rank order.
    """
    verdicts = task.verifier.verify([entry.spans for entry in entries]) if entries else []
    required = {slot.slot_id for slot in task.skeleton.slots if slot.required}
    seen: set[str] = set()
    judged = []
    for entry, verdict in zip(entries, verdicts, strict=True):
        valid = certificates.check(entry, task.window, task.skeleton, task.limits) is None
        filled = required.intersection(task.verifier.filled(entry.candidate_id, entry.spans))
        judged.append(
            Outcome(
                entry.candidate_id,
                valid and entry.candidate_id not in seen,
                verdict.candidate_id == entry.candidate_id,
                len(filled) / len(required) if required else 0.0,
            )
        )
        seen.add(entry.candidate_id)
    return judged


# ---- ranking utility ------------------------------------------------------------------------------------------------


def utilities(scores: Mapping[str, float]) -> dict[str, float]:
    """u = (R - min) / (max - min) over the roster; 1 for all where R is flat.

    Args:
        scores: candidate_id -> R_θ, finite, of the whole roster.
    """
    if not scores:
        return {}
    low, high = min(scores.values()), max(scores.values())
    if high == low:
        return dict.fromkeys(scores, 1.0)
    return {candidate_id: (score - low) / (high - low) for candidate_id, score in scores.items()}


def discount(rank: int) -> float:
    """1 / log2(rank + 1), ranks from 1."""
    return 1.0 / log2(rank + 1)


def ideal(u: Utilities, k: int) -> float:
    """The discounted utility of the best list of at most k candidates."""
    return fsum(discount(i) * value for i, value in enumerate(sorted(u.values(), reverse=True)[:k], 1))


def r_rank(listed: Sequence[str], u: Utilities, k: int) -> float:
    """Discounted utility of the listed candidates over the ideal, in [0, 1].

    Args:
        listed: candidate ids in rank order, at most k.
        u: of the whole roster.
        k: the most entries allowed; it may exceed the roster.
    """
    return _normalised(_terms(listed, u, k), u, k)


# ---- certificates ---------------------------------------------------------------------------------------------------


def r_cert(judged: Sequence[Outcome], k: int) -> float:
    """Coverage of the valid entries, over k."""
    return fsum(o.coverage for o in judged if o.valid) / k if k else 0.0


def r_cycle(judged: Sequence[Outcome], k: int) -> float:
    """Share of k whose candidate the verifier recovers, valid or not."""
    return sum(o.recovered for o in judged) / k if k else 0.0


# ---- rewards of the RL stage ----------------------------------------------------------------------------------------


def gains(judged: Sequence[Outcome], u: Utilities, k: int) -> list[float]:
    """What each entry adds to the gated reward: discounted utility over the ideal where certified, else 0."""
    best = ideal(u, k)
    return [term / best if best else 0.0 for term in _gated_terms(judged, u, k)]


def gated(judged: Sequence[Outcome], u: Utilities, k: int) -> float:
    """Ranking utility of the certified entries alone; at most `r_rank` of the same list."""
    return _normalised(_gated_terms(judged, u, k), u, k)


def additive(judged: Sequence[Outcome], u: Utilities, k: int, *, certificate: float, cycle: float) -> float:
    """r_rank + certificate · r_cert + cycle · r_cycle - 0.1 per rejected bundle: an ablation, its parts can be traded.

    Args:
        certificate, cycle: the two λ.
    """
    rejected = sum(not o.valid for o in judged)
    parts = (
        r_rank([o.candidate_id for o in judged], u, k),
        certificate * r_cert(judged, k),
        cycle * r_cycle(judged, k),
        -PENALTY * rejected,
    )
    return fsum(parts)


def _terms(listed: Sequence[str], u: Utilities, k: int) -> list[float]:
    """Discounted utility by rank, 0 for a repetition."""
    if len(listed) > k:
        raise ValueError(f"{len(listed)} entries, at most {k} are allowed")
    first = {c: rank for rank, c in reversed(list(enumerate(listed, 1)))}
    return [discount(rank) * u[c] if first[c] == rank else 0.0 for rank, c in enumerate(listed, 1)]


def _gated_terms(judged: Sequence[Outcome], u: Utilities, k: int) -> list[float]:
    terms = _terms([o.candidate_id for o in judged], u, k)
    return [term if o.certified else 0.0 for term, o in zip(terms, judged, strict=True)]


def _normalised(terms: Sequence[float], u: Utilities, k: int) -> float:
    best = ideal(u, k)
    return fsum(terms) / best if best else 0.0
