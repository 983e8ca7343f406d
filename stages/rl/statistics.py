"""What a group of rollouts tells a controller: dispersion and skewness of its rewards, disagreement of its answers.

Plain numbers in, plain numbers out; no torch. Source: AGPO, arXiv 2605.20722, in the form of its published code
(`wandugu/paper_agpo@11e5596`), with that code's slips mended: fallbacks where a robust spread is 0, the midpoint
median, answers compared list position by list position, and broken answers without a vote.

    found = statistics(rewards, keys=slot_keys(lists), spread="std", reach=1.0)
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import fsum, isnan, log, sqrt
from typing import Literal

Spread = Literal["std", "mad", "iqr"]
SkewKind = Literal["published", "g1"]
Keys = Sequence[Sequence[Hashable]]
"""Vote keys: one row per list position (a single row for answers that are compared as a whole), one key per vote."""

FLAT = 1e-6
"""A group is flat when its largest and smallest reward differ by at most this share of the reward's range."""

SKEW_BOUND = 10.0


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of one group.

    Args:
        dispersion: spread of the rewards, over the declared range of the reward.
        skew: of the rewards, in [-10, 10].
        votes: entropy of the answers in nats, in [0, ln G].
    """

    dispersion: float = 0.0
    skew: float = 0.0
    votes: float = 0.0


def statistics(
    rewards: Sequence[float], keys: Keys, *, spread: Spread = "std", reach: float = 1.0, skew: SkewKind = "g1"
) -> Statistics:
    """Statistics of a group; a reward that is not a number is left out.

    Args:
        rewards: of the group's rollouts.
        keys: their votes, see `Keys`; those of broken answers left out before.
        reach: length of the interval that rewards lie in by their definition, so that a scaled reward changes nothing.
    """
    valid = [reward / reach for reward in rewards if not isnan(reward)]
    return Statistics(dispersion(valid, spread), skewness(valid, skew), vote_entropy(keys))


# ---- rewards ---------------------------------------------------------------------------------------------------------


def is_flat(values: Sequence[float], reach: float = 1.0) -> bool:
    """Whether a group carries no signal: inexact rewards differ in their last bits, and dividing by that spread would
    make advantages of them."""
    return not values or max(values) - min(values) <= FLAT * reach


def dispersion(values: Sequence[float], kind: Spread = "std") -> float:
    """Spread of some values: standard deviation (Bessel), or a robust one scaled to it.

    A robust spread is 0 for one value that differs from all others; the standard deviation takes its place then.
    """
    if len(values) < 2:
        return 0.0
    if kind == "mad":
        middle = quantile(values, 0.5)
        found = 1.4826 * quantile([abs(v - middle) for v in values], 0.5)
    elif kind == "iqr":
        found = (quantile(values, 0.75) - quantile(values, 0.25)) / 1.349
    else:
        found = 0.0
    return found or standard_deviation(values)


def standard_deviation(values: Sequence[float]) -> float:
    """With Bessel's correction; 0 of fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = fsum(values) / len(values)
    return sqrt(fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def quantile(values: Sequence[float], share: float) -> float:
    """Linear between order statistics, so the median of an even number is the midpoint."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def skewness(values: Sequence[float], kind: SkewKind = "g1") -> float:
    """Adjusted Fisher-Pearson skewness (`g1`), 0 for nearly constant or fewer than three values, within ±10.

    `published` corrects twice, that is, it is smaller by ((G - 1) / G)^1.5.
    """
    n, std = len(values), standard_deviation(values)
    if std < 1e-6 or n < 3:
        return 0.0
    mean = fsum(values) / n
    found = fsum(((v - mean) / std) ** 3 for v in values) / n * sqrt(n * (n - 1)) / (n - 2)
    if kind == "g1":
        found *= (n / (n - 1)) ** 1.5
    return min(max(found, -SKEW_BOUND), SKEW_BOUND)


# ---- votes -----------------------------------------------------------------------------------------------------------


def vote_entropy(keys: Keys) -> float:
    """Mean over positions of the entropy of the keys there, in nats; a position with fewer than two votes counts 0."""
    return fsum(entropy(row) for row in keys) / len(keys) if keys else 0.0


def entropy(keys: Sequence[Hashable]) -> float:
    """-Σ p ln p over the shares of distinct keys."""
    if len(keys) < 2:
        return 0.0
    return -fsum(n / len(keys) * log(n / len(keys)) for n in Counter(keys).values()) + 0.0


def slot_keys(lists: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """One row per list position: who stands there, None where a list has ended.

    Whole lists are nearly always distinct; as keys they would say ln G whatever the policy does.

    Args:
        lists: canonical candidate ids in rank order (never window-local names: these are drawn anew).
    """
    most = max(map(len, lists), default=0)
    return [[listed[k] if k < len(listed) else None for listed in lists] for k in range(most)]


def vote_keys(lists: Sequence[Sequence[str]], kind: Literal["slot_mean", "top1", "set", "list"]) -> Keys:
    """Keys of ranked lists: by position, by the first candidate, by the set of candidates, by the whole list."""
    if kind == "slot_mean":
        return slot_keys(lists)
    if kind == "top1":
        return [[listed[0] if listed else None for listed in lists]]
    if kind == "set":
        return [[frozenset(listed) for listed in lists]]
    return [[tuple(listed) for listed in lists]]


_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?")


def text_key(text: str) -> Hashable | None:
    r"""What a free text answers: the last `\boxed{…}`, braces matched, else the last line; None where it is cut off.

    Numbers are compared by value: `1,024` is `1024.0`. None (no answer, or a box that is not closed) casts no vote.
    """
    start = text.rfind("\\boxed{")
    if start >= 0:
        answer = _braced(text, start + len("\\boxed{"))
        if answer is None:
            return None
    else:
        answer = (text.strip().splitlines() or [""])[-1]
    answer = " ".join(answer.split())
    if not answer:
        return None
    plain = answer.removesuffix(".").strip("$ ")
    if any(c.isdigit() for c in plain) and _NUMBER.fullmatch(plain):
        return Fraction(plain.replace(",", ""))
    return answer


def _braced(text: str, start: int) -> str | None:
    """What stands between an open brace before `start` and the one that closes it."""
    depth = 1
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return text[start:at]
    return None


# ---- how much signal there is to expect ------------------------------------------------------------------------------


def flat_share(success: float, group: int) -> float:
    """Expected share of groups of 0/1 rewards without signal: p^G + (1 - p)^G."""
    return success**group + (1 - success) ** group


def binary_extremes(group: int, spread: Spread, skew: SkewKind) -> list[tuple[float, float]]:
    """(dispersion, |skewness|) of every group of 0/1 rewards of a size: what a controller can meet at most."""
    found = []
    for ones in range(group + 1):
        values = [1.0] * ones + [0.0] * (group - ones)
        found.append((dispersion(values, spread), abs(skewness(values, skew))))
    return found
