"""Calibrating confidence on the tune split: temperatures of the softmax heads, then one logistic map per table.

A temperature is one number per head, fitted by likelihood (Guo et al., "On calibration of modern neural networks", ICML
2017). What it leaves over (an argument is right only if its event is, too) goes into the same logistic maps as for the
linear model, and by the same rule: a hypothesis is right when a gold span of its label overlaps its span by half or
more of their union, in words; that is also what the audit asks of a cited span.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy import optimize

from stages.extract.annotated import fold_of
from stages.extract.calibrate import WORTH, by_token, matches
from stages.extract.encoder.model import Analysis, EncoderExtractor, Temperatures
from stages.extract.encoder.reading import SPAN_FLOOR, list_likely
from stages.extract.encoder.step import link_targets, role_shares
from stages.extract.encoder.targets import Goal
from stages.extract.encoder.train import reproducible
from stages.extract.hashing import Floats, Ints
from stages.extract.softmax import Calibration, Mask, fit_calibration, normalise
from stages.extract.tokens import Text

BINS = 10
FEW = 30
"""Right, and wrong, hypotheses from which on a part of them is calibrated by itself."""
LEAST = 20
"""Items from which on a temperature is fitted."""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """Hypotheses about held-out text: the parts of their confidence, whether each is right, its half of the text."""

    parts: tuple[Floats, ...]
    correct: Mask
    half: Ints
    same: Mask
    """Of roles: whether event and mention stand in one sentence; of anything else true."""


def calibrate(model: EncoderExtractor, analysis: Analysis, goal: Goal) -> tuple[EncoderExtractor, dict[str, float]]:
    """Fit temperatures and calibrations on held-out text.

    Args:
        model: as trained.
        analysis: of the held-out documents.
        goal: their annotation.

    Returns:
        The calibrated model, and the expected calibration error of `event`, `mention` and `argument`: each half of the
        text is judged by a calibration fitted on the other.
    """
    errors: dict[str, float] = {}
    if not len(goal.event_first):
        return model, errors
    model = replace(model, temperatures=_temperatures(model, analysis, goal))
    evidence = event_evidence(model, analysis, goal)
    errors["event"] = calibration_error(evidence)
    model = replace(model, event_calibration=fit_calibration(evidence.parts, evidence.correct))
    if analysis.mention_TW is None or not len(goal.mention_first):
        return model, errors
    evidence = mention_evidence(analysis, goal)
    errors["mention"] = calibration_error(evidence)
    model = replace(model, mention_calibration=fit_calibration(evidence.parts, evidence.correct))
    if model.network.heads.roles is not None and len(goal.role_A):
        evidence = role_evidence(model, analysis, goal)
        errors["argument"] = calibration_error(evidence)
        whole = fit_calibration(evidence.parts, evidence.correct)
        near, far = _of(evidence, evidence.same, whole), _of(evidence, ~evidence.same, whole)
        model = replace(model, role_calibration=near, far_calibration=far)
    return model, errors


def _of(evidence: Evidence, own: Mask, otherwise: Calibration) -> Calibration:
    """The calibration of a part of the hypotheses, or another one where the part is too small."""
    right = int(evidence.correct[own].sum())
    if not FEW <= right <= own.sum() - FEW:
        return otherwise
    return fit_calibration(tuple(part[own] for part in evidence.parts), evidence.correct[own])


def event_evidence(model: EncoderExtractor, analysis: Analysis, goal: Goal) -> Evidence:
    """All (span, type) hypotheses in annotated sentences."""
    p_type = model.types(analysis)
    taught = goal.events_T[analysis.first]
    span, kind = np.nonzero((p_type * analysis.p_span[:, None] >= WORTH) & taught[:, None])
    truth = by_token(goal.event_first, goal.event_last, goal.event_kind)
    first, last = analysis.first[span], analysis.last[span]
    rows = zip(first.tolist(), last.tolist(), kind.tolist(), strict=True)
    correct = np.array([k in matches(truth, a, b) for a, b, k in rows], dtype=bool)
    same = np.ones(len(correct), dtype=bool)
    return Evidence((analysis.p_span[span] * p_type[span, kind],), correct, half_of(analysis.text, first), same)


def mention_evidence(analysis: Analysis, goal: Goal) -> Evidence:
    """All mention spans that do not overlap likelier ones, in annotated sentences."""
    assert analysis.mention_TW is not None
    first, last, p = list_likely(analysis.mention_TW, SPAN_FLOOR)
    use = goal.mentions_T[first]
    first, last, p = first[use], last[use], p[use]
    truth = by_token(goal.mention_first, goal.mention_last, np.zeros(len(goal.mention_first), dtype=np.int64))
    rows = zip(first.tolist(), last.tolist(), strict=True)
    correct = np.array([bool(matches(truth, a, b)) for a, b in rows], dtype=bool)
    return Evidence((p,), correct, half_of(analysis.text, first), np.ones(len(correct), dtype=bool))


def role_evidence(model: EncoderExtractor, analysis: Analysis, goal: Goal) -> Evidence:
    """All roles of found mentions in found events: right when the event is, and the filler of the role."""
    text = analysis.text
    events, _ = model.events(analysis)
    pairs = model.score_pairs(analysis, events, model.mentions(analysis))
    p_role = normalise(pairs.log_p / model.temperatures.role)[:, 1:]
    first, _ = text.locate(pairs.events["doc_id"].to_list(), pairs.events["start"].to_numpy(),
                           pairs.events["end"].to_numpy())  # fmt: skip
    # Where no mention is annotated, no argument is: nothing there is right or wrong.
    known_T = goal.events_T & goal.mentions_T
    taught = known_T[first][pairs.event_Q] if len(first) else np.zeros(0, dtype=bool)
    pair, role = np.nonzero((p_role >= WORTH) & taught[:, None])
    right = gold_roles(model, text, goal, pairs.events, pairs.mentions)
    rows = zip(pairs.event_Q[pair].tolist(), pairs.mention_Q[pair].tolist(), role.tolist(), strict=True)
    correct = np.array([r in right(e, m) for e, m, r in rows], dtype=bool)
    certainty = pairs.events["confidence"].to_numpy()[pairs.event_Q[pair]]
    return Evidence(
        (p_role[pair, role] * certainty,), correct, half_of(text, first[pairs.event_Q[pair]]), pairs.same_Q[pair]
    )  # fmt: skip


def gold_roles(
    model: EncoderExtractor, text: Text, goal: Goal, events: pl.DataFrame, mentions: pl.DataFrame
) -> Callable[[int, int], set[int]]:
    """Right roles of (row of `events`, row of `mentions`)."""
    index = {name: k for k, name in enumerate(model.network.labels.kinds)}
    event_truth = by_token(goal.event_first, goal.event_last, np.arange(len(goal.event_first)))
    mention_truth = by_token(goal.mention_first, goal.mention_last, np.arange(len(goal.mention_first)))
    roles: dict[tuple[int, int], set[int]] = {}
    for event, mention, role in goal.role_A.tolist():
        roles.setdefault((event, mention), set()).add(role)
    kinds = [index[name] for name in events["type"].to_list()]
    own = [
        [g for g in sorted(matches(event_truth, a, b)) if goal.event_kind[g] == kind]
        for a, b, kind in zip(*_tokens(text, events), kinds, strict=True)
    ]
    people = [sorted(matches(mention_truth, a, b)) for a, b in zip(*_tokens(text, mentions), strict=True)]

    def right(event: int, mention: int) -> set[int]:
        return {role for g in own[event] for m in people[mention] for role in roles.get((g, m), ())}

    return right


def _tokens(text: Text, frame: pl.DataFrame) -> tuple[list[int], list[int]]:
    first, last = text.locate(frame["doc_id"].to_list(), frame["start"].to_numpy(), frame["end"].to_numpy())
    return first.tolist(), last.tolist()


def _temperatures(model: EncoderExtractor, analysis: Analysis, goal: Goal) -> Temperatures:
    network = model.network
    truth = by_token(goal.event_first, goal.event_last, goal.event_kind)
    spans = zip(analysis.first.tolist(), analysis.last.tolist(), strict=True)
    found = [(g, min(kinds)) for g, (a, b) in enumerate(spans) if (kinds := matches(truth, a, b))]
    rows, target = np.array(found, dtype=np.int64).reshape(-1, 2).T
    kind = fit_temperature(analysis.kind_GK[rows], target)
    role = link = 1.0
    with reproducible(0), torch.inference_mode():
        if network.heads.roles is not None and len(goal.role_A):
            event_Q, mention_Q, log_p = network.pairs(
                analysis.shard, goal.event_first, goal.event_last, goal.event_kind, goal.mention_first,
                goal.mention_last,
            )  # fmt: skip
            share, _ = role_shares(goal, event_Q, mention_Q, len(network.labels.roles))
            role = fit_temperature(log_p, share.argmax(axis=1))
        taught = goal.links_T[goal.trigger_first]
        if network.heads.links is not None and taught.any():
            spans_G = np.flatnonzero(taught)
            ones, others, scores = network.links(
                analysis.shard, goal.trigger_first[spans_G], goal.trigger_last[spans_G]
            )
            held = link_targets(goal, spans_G[ones], spans_G[others], len(network.labels.links))
            # Log-odds are the scores of two classes, one of them 0.
            both = np.stack([np.zeros(scores.size), scores.ravel()], axis=1)
            link = fit_temperature(both, held.ravel().astype(np.int64))
    return Temperatures(kind, role, link)


def fit_temperature(scores: Floats, target: Ints) -> float:
    """The temperature, 1/5 to 5, of greatest likelihood; 1 with fewer than `LEAST` items.

    Args:
        scores: [items, classes].
        target: [items] right classes.
    """
    if len(target) < LEAST:
        return 1.0
    at = np.arange(len(target))

    def loss(log_t: float) -> float:
        p = normalise(scores / np.exp(log_t))[at, target]
        return -float(np.log(np.maximum(p, 1e-12)).sum())

    bound = np.log(5.0)
    found = optimize.minimize_scalar(loss, bounds=(-bound, bound), method="bounded")
    return round(float(np.exp(found.x)), 4)


def half_of(text: Text, token: Ints) -> Ints:
    """0 or 1 for every token's window."""
    half = {window: fold_of(window) for window in dict.fromkeys(text.window_ids)}
    return np.array([half[window] for window in text.window_ids], dtype=np.int64)[text.doc_T[token]]


def calibration_error(evidence: Evidence) -> float:
    """Expected calibration error of a calibration that is fitted on one half and judged on the other, both ways."""
    p = np.zeros(len(evidence.correct))
    for half in (0, 1):
        own = evidence.half == half
        other = fit_calibration(tuple(part[~own] for part in evidence.parts), evidence.correct[~own])
        p[own] = other.apply(*(part[own] for part in evidence.parts))
    return round(sum(abs(row.share - row.confidence) * row.weight for row in reliability(p, evidence.correct)), 6)


@dataclass(frozen=True, slots=True)
class Bin:
    """Hypotheses of similar confidence: their mean confidence, the share that is right, their share of all."""

    confidence: float
    share: float
    weight: float


def reliability(p: Floats, correct: NDArray[np.bool_], bins: int = BINS) -> list[Bin]:
    """The reliability diagram: non-empty bins of equal width, ascending."""
    place = np.minimum((p * bins).astype(np.int64), bins - 1)
    return [
        Bin(float(p[own].mean()), float(correct[own].mean()), float(own.mean()))
        for b in range(bins)
        if (own := place == b).any()
    ]
