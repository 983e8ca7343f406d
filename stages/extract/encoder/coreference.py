"""Which mentions of a window are one participant: the string rule first, then a small trained scorer.

The rule (`stages.extract.clusters`) joins equal and abbreviated names. The scorer looks at each cluster that is left
and at the clusters told shortly before it, and joins it to the best of them where it is sure enough. It is a logistic
regression over a dozen features, one of them the likeness of the mentions' vectors; it is fitted on the tune split.
Its threshold is the one with the best B-cubed F1 under cross-validation by halves, which may well be "never".

Bagga and Baldwin, "Algorithms for scoring coreference chains", LREC 1998 (B-cubed).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from pipeline.windows import stable_seed
from stages.extract.clusters import cluster
from stages.extract.hashing import Floats, Ints
from stages.extract.words import class_of, lemma_of
from stages.ingest.clusters import DETERMINERS, PRONOUNS

RECENT = 12
"""Mentions looked back for an antecedent."""
NEVER = 2.0
THRESHOLDS = (NEVER, 0.9, 0.8, 0.7, 0.6, 0.5)
L2 = 1.0
FEATURES = 13

Merge = tuple[int, int, float]
"""(cluster, its best antecedent, probability): clusters by their first mention's index in the window."""


@dataclass(frozen=True, slots=True, eq=False)
class People:
    """The mentions of one window in text order.

    Args:
        surfaces, sorts: of each; sorts may be None.
        documents: of each.
        sentence_M: number of the sentence, running over the window.
        vector_MD: unit vectors.
    """

    surfaces: list[str]
    sorts: list[str | None]
    documents: list[str]
    sentence_M: Ints
    vector_MD: Floats


@dataclass(frozen=True, slots=True)
class Coreference:
    """The fitted scorer; `threshold` NEVER leaves the string rule alone."""

    weights: tuple[float, ...] = (0.0,) * FEATURES
    threshold: float = NEVER

    def link(self, people: People) -> list[int]:
        """For each mention the index of the first mention of its cluster."""
        own = cluster(people.surfaces)
        if self.threshold > 1:
            return own
        return join(own, [m for m in self.merges(people, own) if m[2] >= self.threshold])

    def merges(self, people: People, own: list[int]) -> list[Merge]:
        """The best antecedent of every cluster that has one."""
        pairs, features = list_antecedents(people, own)
        if not pairs:
            return []
        p = 1 / (1 + np.exp(-(features @ np.array(self.weights))))
        best: dict[int, tuple[float, int]] = {}
        for (later, earlier), value in zip(pairs, p.tolist(), strict=True):
            if later not in best or value > best[later][0]:
                best[later] = (value, earlier)
        return [(later, earlier, value) for later, (value, earlier) in best.items()]


def join(own: list[int], merges: Sequence[Merge]) -> list[int]:
    """Clusters after the merges; a cluster's number is the index of its first mention."""
    top: dict[int, int] = {}
    # Antecedents begin earlier, so they are done before those that join them.
    for later, earlier, _ in sorted(merges):
        top[later] = top.get(earlier, earlier)
    return [top.get(first, first) for first in own]


def list_antecedents(people: People, own: list[int]) -> tuple[list[tuple[int, int]], Floats]:
    """(cluster, earlier cluster) pairs to judge, and their features [pairs, FEATURES]."""
    members: dict[int, list[int]] = {}
    for i, first in enumerate(own):
        members.setdefault(first, []).append(i)
    means = {first: people.vector_MD[ids].mean(axis=0) for first, ids in members.items()}
    pairs: list[tuple[int, int]] = []
    rows: list[list[float]] = []
    for later in members:
        seen: dict[int, int] = {}
        for i in range(later - 1, max(-1, later - 1 - RECENT), -1):
            seen.setdefault(own[i], i)
        for earlier, nearest in sorted(seen.items()):
            pairs.append((later, earlier))
            rows.append(_features(people, later, earlier, nearest, means, len(members[earlier])))
    return pairs, np.array(rows, dtype=np.float64).reshape(-1, FEATURES)


def _features(
    people: People, later: int, earlier: int, nearest: int, means: dict[int, Floats], size: int
) -> list[float]:
    one, other = _words(people.surfaces[later]), _words(people.surfaces[earlier])
    norm = float(np.linalg.norm(means[later]) * np.linalg.norm(means[earlier]))
    likeness = float(means[later] @ means[earlier]) / max(norm, 1e-9)
    pronoun = people.surfaces[later].casefold() in PRONOUNS
    same_sort = people.sorts[later] is not None and people.sorts[later] == people.sorts[earlier]
    shared = len(set(one) & set(other)) / max(len(set(one) | set(other)), 1)
    away = int(people.sentence_M[later] - people.sentence_M[nearest])
    definite = class_of(people.surfaces[later].split()[0]) in ("demonstrative", "possessive") or (
        people.surfaces[later].casefold().startswith("the ")
    )
    return [
        1.0, likeness, float(same_sort), float(bool(one and other) and one[-1] == other[-1]), shared, float(pronoun),
        float(people.surfaces[earlier].casefold() in PRONOUNS),
        float(people.surfaces[later][:1].isupper() and people.surfaces[earlier][:1].isupper()),
        math.log1p(away), float(people.documents[later] == people.documents[nearest]), float(definite),
        math.log(size), likeness * pronoun,
    ]  # fmt: skip


def _words(surface: str) -> list[str]:
    words = [lemma_of(word) for word in surface.split()]
    return [word for word in words if word not in DETERMINERS]


def fit_coreference(windows: Sequence[tuple[str, People, list[str]]]) -> tuple[Coreference, dict[str, float]]:
    """Fit on annotated mentions.

    Args:
        windows: window id, its gold mentions, and their gold clusters.

    Returns:
        The scorer, and the cross-validated B-cubed F1 of the `rule` alone and of what is used (`used`).
    """
    examples = []
    for window_id, people, gold in windows:
        own = cluster(people.surfaces)
        pairs, features = list_antecedents(people, own)
        same = np.array([gold[a] == gold[b] for a, b in pairs], dtype=bool)
        examples.append((stable_seed("half", window_id) % 2, own, features, same))
    halves = [_fit([(f, s) for h, _, f, s in examples if h != half]) for half in (0, 1)]
    scores: dict[float, float] = {}
    for threshold in THRESHOLDS:
        counts = np.zeros(3)
        for (_, people, gold), (half, own, _, _) in zip(windows, examples, strict=True):
            scorer = Coreference(halves[half], threshold)
            counts += b_cubed(join(own, [m for m in scorer.merges(people, own) if m[2] >= threshold]), gold)
        precision, recall = counts[:2] / max(counts[2], 1.0)
        scores[threshold] = float(2 * precision * recall / max(precision + recall, 1e-9))
    best = max(THRESHOLDS, key=lambda threshold: (round(scores[threshold], 4), threshold))
    weights = _fit([(f, s) for _, _, f, s in examples])
    return Coreference(weights, best), {"rule": round(scores[NEVER], 4), "used": round(scores[best], 4)}


def _fit(examples: Sequence[tuple[Floats, np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]]) -> tuple[float, ...]:
    """Logistic regression by L-BFGS."""
    if not any(len(same) for _, same in examples):
        return (0.0,) * FEATURES
    x = np.concatenate([features for features, _ in examples])
    y = np.concatenate([same for _, same in examples]).astype(np.float64)

    def loss(w: Floats) -> tuple[float, Floats]:
        z = x @ w
        value = float((np.logaddexp(0, z) - y * z).sum()) + 0.5 * L2 * float(w[1:] @ w[1:])
        gradient = x.T @ (1 / (1 + np.exp(-z)) - y)
        gradient[1:] += L2 * w[1:]
        return value, gradient

    found = optimize.minimize(loss, np.zeros(FEATURES), jac=True, method="L-BFGS-B").x
    return tuple(round(float(w), 6) for w in found)


def b_cubed(found: Sequence[int], gold: Sequence[str]) -> tuple[float, float, int]:
    """Sums over mentions of precision and of recall, and the number of mentions."""
    by_found: dict[int, list[int]] = {}
    by_gold: dict[str, list[int]] = {}
    for i, (f, g) in enumerate(zip(found, gold, strict=True)):
        by_found.setdefault(f, []).append(i)
        by_gold.setdefault(g, []).append(i)
    precision = recall = 0.0
    for f, g in zip(found, gold, strict=True):
        shared = sum(gold[j] == g for j in by_found[f])
        precision += shared / len(by_found[f])
        recall += shared / len(by_gold[g])
    return precision, recall, len(gold)
