"""Calibrating the extractor's confidence on documents it was not fitted on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stages.extract.crf import choose, list_spans
from stages.extract.gold import Gold
from stages.extract.hashing import Ints
from stages.extract.linear import NO_ROLE, SPAN_FLOOR, Analysis, LinearExtractor
from stages.extract.softmax import fit_calibration

WORTH = 0.002
"""Hypotheses of lower raw probability take no part in the fit: they are many and say nothing about the rest."""

Spans = dict[int, list[tuple[int, int, int]]]


def calibrate(model: LinearExtractor, analysis: Analysis, gold: Gold) -> LinearExtractor:
    """The model with its calibrations fitted; without an event in the held-out text, the model itself."""
    if not len(gold.event_first):
        return model
    model = _calibrate_events(model, analysis, gold)
    if analysis.mentions is None or not len(gold.mention_first):
        return model
    model = _calibrate_mentions(model, analysis, gold)
    return _calibrate_roles(model, analysis, gold) if model.role is not None and gold.role_G else model


def _calibrate_events(model: LinearExtractor, analysis: Analysis, gold: Gold) -> LinearExtractor:
    index = {name: i for i, name in enumerate(model.trigger_type.labels)}
    types = np.array([index.get(name, -1) for name in gold.event_type], dtype=np.int64)
    truth = by_token(gold.event_first, gold.event_last, types)
    labelled = gold.events_T[analysis.first] if len(analysis.first) else np.zeros(0, dtype=bool)
    span, kind = np.nonzero((analysis.p_type * analysis.p_span[:, None] >= WORTH) & labelled[:, None])
    first, last = analysis.first[span], analysis.last[span]
    correct = np.array(
        [k in matches(truth, a, b) for a, b, k in zip(first.tolist(), last.tolist(), kind.tolist(), strict=True)],
        dtype=bool,
    )
    parts = analysis.p_span[span], analysis.p_type[span, kind]
    return replace(model, event_calibration=fit_calibration(parts, correct))


def _calibrate_mentions(model: LinearExtractor, analysis: Analysis, gold: Gold) -> LinearExtractor:
    assert model.mention is not None and analysis.mentions is not None
    first, last, p = list_spans(analysis.mentions, analysis.text.first_Q, SPAN_FLOOR, model.mention.longest)
    use = choose(first, last, p)
    use = use[gold.mentions_T[first[use]]]
    truth = by_token(gold.mention_first, gold.mention_last, np.zeros(len(gold.mention_first), dtype=np.int64))
    pairs = zip(first[use].tolist(), last[use].tolist(), strict=True)
    correct = np.array([bool(matches(truth, a, b)) for a, b in pairs], dtype=bool)
    return replace(model, mention_calibration=fit_calibration((p[use],), correct))


def _calibrate_roles(model: LinearExtractor, analysis: Analysis, gold: Gold) -> LinearExtractor:
    """On gold events and found mentions: right when the mention, or one that it half overlaps, fills the role."""
    assert model.role is not None
    text = analysis.text
    mentions = model.mentions(analysis)
    first, last = text.locate(mentions["doc_id"].to_list(), mentions["start"].to_numpy(), mentions["end"].to_numpy())
    known = {name: i for i, name in enumerate(model.trigger_type.labels)}
    events = np.array([i for i, name in enumerate(gold.event_type) if name in known], dtype=np.int64)
    kind_E = np.array([known[gold.event_type[i]] for i in events.tolist()], dtype=np.int64)
    event_P, mention_P, p = model.role_probabilities(
        analysis, gold.event_first[events], gold.event_last[events], kind_E, first, last
    )
    roles = {name: i for i, name in enumerate(model.role.labels)}
    fillers: dict[tuple[int, int], Spans] = {}
    for event, mention, role in zip(gold.event_G.tolist(), gold.mention_G.tolist(), gold.role_G, strict=True):
        a, b = int(gold.mention_first[mention]), int(gold.mention_last[mention])
        for token in range(a, b + 1):
            fillers.setdefault((event, roles.get(role, -1)), {}).setdefault(token, []).append((a, b, 0))
    pair, role_P = np.nonzero(p >= WORTH)
    keep = role_P != NO_ROLE
    pair, role_P = pair[keep], role_P[keep]
    keys = zip(events[event_P[pair]].tolist(), role_P.tolist(), mention_P[pair].tolist(), strict=True)
    correct = np.array(
        [bool(matches(fillers.get((e, r), {}), int(first[m]), int(last[m]))) for e, r, m in keys], dtype=bool
    )
    return replace(model, role_calibration=fit_calibration((p[pair, role_P],), correct))


def by_token(first: Ints, last: Ints, value: Ints) -> Spans:
    """Token -> the spans that cover it, with a value each."""
    out: Spans = {}
    for a, b, v in zip(first.tolist(), last.tolist(), value.tolist(), strict=True):
        for token in range(a, b + 1):
            out.setdefault(token, []).append((a, b, v))
    return out


def matches(truth: Spans, first: int, last: int) -> set[int]:
    """Values of the spans that overlap first..last by half or more of their union, in words."""
    found = set()
    for token in range(first, last + 1):
        for a, b, value in truth.get(token, ()):
            shared = min(b, last) - max(a, first) + 1
            if 2 * shared >= max(b, last) - min(a, first) + 1:
                found.add(value)
    return found
