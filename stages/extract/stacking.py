"""Fitting the maps of the stacked extractor on held-out documents; the two extractors are fitted and calibrated before.

A hypothesis is right by the rule of `stages.extract.encoder.calibrate`. The maps are fitted on the documents that the
two were calibrated on: they have three to four numbers each.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from stages.extract.annotated import Annotated
from stages.extract.calibrate import WORTH, by_token, matches
from stages.extract.encoder.calibrate import Evidence, calibration_error, gold_roles, half_of
from stages.extract.encoder.model import EncoderExtractor
from stages.extract.encoder.targets import Goal, Placed, read_goal
from stages.extract.hashing import Floats, Ints
from stages.extract.linear import Floors, LinearExtractor
from stages.extract.softmax import Calibration, Mask, fit_calibration
from stages.extract.stacked import Analysis, StackedExtractor, locate, role_columns

LEAST = 20
"""Right, and wrong, hypotheses from which on a map is fitted."""


def fit_stack(
    one: LinearExtractor, other: EncoderExtractor, held_out: Annotated, floors: Floors
) -> tuple[StackedExtractor, dict[str, float]]:
    """Weigh two extractors.

    Args:
        one, other: fitted on the same documents, calibrated.
        held_out: documents that they were not fitted on, possibly none.
        floors: stored with the model.

    Returns:
        The stacked extractor, and the expected calibration error of `event`, `mention` and `argument`: each half of the
        held-out windows is judged by a map fitted on the other (the two extractors' own calibrations saw both halves).
    """
    model = StackedExtractor.of(one, other, floors)
    errors: dict[str, float] = {}
    if held_out.gold["events"].is_empty():
        return model, errors
    analysis = model.analyse(held_out.documents, held_out.sentences)
    goal = read_goal(analysis.text, other.network.labels, Placed.of(analysis.text, held_out.gold))
    evidence = event_evidence(model, analysis, goal)
    errors["event"] = calibration_error(evidence)
    model = replace(model, event_map=fitted(evidence, model.event_map))
    if not len(goal.mention_first):
        return model, errors
    evidence = mention_evidence(model, analysis, goal)
    errors["mention"] = calibration_error(evidence)
    model = replace(model, mention_map=fitted(evidence, model.mention_map))
    if model.candidate_kind == "entity" and len(goal.role_A):
        evidence = role_evidence(model, analysis, goal)
        errors["argument"] = calibration_error(evidence)
        model = replace(model, role_map=fitted(evidence, model.role_map))
    return model, errors


def fitted(evidence: Evidence, otherwise: Calibration) -> Calibration:
    """The map of greatest likelihood, or another one where little is known."""
    right = int(evidence.correct.sum())
    if not LEAST <= right <= len(evidence.correct) - LEAST:
        return otherwise
    return fit_calibration(evidence.parts, evidence.correct)


def event_evidence(model: StackedExtractor, analysis: Analysis, goal: Goal) -> Evidence:
    """All (span, type) hypotheses of either extractor in annotated sentences."""
    triggers = model.triggers(analysis)
    held = np.maximum(triggers.linear_GK, triggers.encoder_GK) >= WORTH
    span, kind = np.nonzero(held & goal.events_T[triggers.first][:, None])
    truth = by_token(goal.event_first, goal.event_last, goal.event_kind)
    first, last = triggers.first[span], triggers.last[span]
    rows = zip(first.tolist(), last.tolist(), kind.tolist(), strict=True)
    correct = np.array([k in matches(truth, a, b) for a, b, k in rows], dtype=bool)
    parts = triggers.linear_GK[span, kind], triggers.encoder_GK[span, kind]
    return _evidence(parts, correct, analysis, first)


def mention_evidence(model: StackedExtractor, analysis: Analysis, goal: Goal) -> Evidence:
    """All spans that do not overlap likelier ones, in annotated sentences."""
    first, last, _ = model.mention_spans(analysis)
    use = goal.mentions_T[first]
    first, last = first[use], last[use]
    truth = by_token(goal.mention_first, goal.mention_last, np.zeros(len(goal.mention_first), dtype=np.int64))
    rows = zip(first.tolist(), last.tolist(), strict=True)
    correct = np.array([bool(matches(truth, a, b)) for a, b in rows], dtype=bool)
    return _evidence(model.mention_parts(analysis, first, last), correct, analysis, first)


def role_evidence(model: StackedExtractor, analysis: Analysis, goal: Goal) -> Evidence:
    """All roles of found mentions in found events that are right: what a role is worth, given its event."""
    events, _ = model.events(analysis)
    mentions = model.mentions(analysis)
    first, last = locate(analysis.text, events)
    truth = by_token(goal.event_first, goal.event_last, goal.event_kind)
    index = {name: k for k, name in enumerate(model.kinds)}
    kinds = [index[name] for name in events["type"].to_list()]
    # Where no mention is annotated, no argument is: nothing there is right or wrong.
    known = (goal.events_T & goal.mentions_T)[first]
    true = [k in matches(truth, a, b) for a, b, k in zip(first.tolist(), last.tolist(), kinds, strict=True)]
    taught = events.filter(pl.Series(known & np.array(true, dtype=bool), dtype=pl.Boolean))
    parts = model.role_parts(analysis, taught, mentions).filter(pl.max_horizontal("linear", "encoder") >= WORTH)
    right = gold_roles(model.encoder, analysis.text, goal, taught, mentions)
    event_of, mention_of = (
        {key: row for row, key in enumerate(frame[f"{name}_id"].to_list())}
        for name, frame in (("event", taught), ("mention", mentions))
    )
    role_of = {name: i for i, name in enumerate(model.encoder.network.labels.roles)}
    correct = np.array(
        [role_of.get(role, -1) in right(event_of[event], mention_of[mention])
         for event, mention, role in parts.select("event_id", "mention_id", "role").iter_rows()], dtype=bool,
    )  # fmt: skip
    token, _ = locate(analysis.text, taught)
    rows = np.array([event_of[event] for event in parts["event_id"].to_list()], dtype=np.int64)
    return _evidence(tuple(role_columns(parts)), correct, analysis, token[rows])


def _evidence(parts: tuple[Floats, ...], correct: Mask, analysis: Analysis, token: Ints) -> Evidence:
    """Evidence about hypotheses that stand at these tokens."""
    return Evidence(parts, correct, half_of(analysis.text, token), np.ones(len(correct), dtype=bool))
