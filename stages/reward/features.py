"""φ(τ, S): what the reward model sees of a candidate's trajectory τ under a skeleton S (task definition, section 4).

Every feature is a small function of a `Case`. Trajectories are lattices of hypotheses, so wherever a definition counts
steps, a step counts with its confidence: without ambiguity (all confidences 1) the counts are the plain ones, and a
role hypothesis of 0.05 is not a role. Nothing here reads a label, an id or a document's text, and nothing depends on
the order in which sets or dicts are walked. Features are standardised over the window's roster before they meet θ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.certificates import Limits, attach
from pipeline.skeletons import MICRO, Skeleton, align
from pipeline.spans import Span
from pipeline.verifier import Verifier
from pipeline.windows import Step, Window

FloatArray = NDArray[np.float64]
Group = Literal["skeleton", "arguments", "graph", "nuisance", "certifiability"]

GAP = 100_000
"""Cost of skipping a slot or an event in the monotone alignment, in 1e-6."""

LIKELY = 0.5
"""Hypotheses from this confidence on make two candidates co-participants in the event graph."""


@dataclass(frozen=True, slots=True)
class Judge:
    """The verifier's settings, which the certifiability features need.

    Args:
        limits: of a legal bundle.
        accept, margin: thresholds of acceptance in 1e-6.
    """

    limits: Limits
    accept: int
    margin: int


class Plan:
    """A skeleton prepared for many trajectories: its slots in plan order, and which slots a (type, role) fits."""

    def __init__(self, skeleton: Skeleton) -> None:
        self.skeleton = skeleton
        self.order = plan_order(skeleton)
        self._fits: dict[tuple[str, str], tuple[int, ...]] = {}
        self._typed: dict[str, bool] = {}

    def fits(self, event_type: str, role: str) -> tuple[int, ...]:
        """Indices of the slots that such a step fills."""
        key = (event_type, role)
        if key not in self._fits:
            slots = enumerate(self.skeleton.slots)
            self._fits[key] = tuple(j for j, slot in slots if slot.fits(event_type, role))
        return self._fits[key]

    def names(self, event_type: str) -> bool:
        """Whether some slot names the event type, whatever the role."""
        if event_type not in self._typed:
            self._typed[event_type] = any(slot.fits_type(event_type) for slot in self.skeleton.slots)
        return self._typed[event_type]


def plan_order(skeleton: Skeleton) -> tuple[int, ...]:
    """Slot indices in plan order: predecessors first, otherwise as declared."""
    done: list[int] = []
    ids = [slot.slot_id for slot in skeleton.slots]
    while len(done) < len(ids):
        known = {ids[j] for j in done}
        done.append(next(j for j, s in enumerate(skeleton.slots) if j not in done and known.issuperset(s.predecessors)))
    return tuple(done)


@dataclass(frozen=True, slots=True)
class Track:
    """What a trajectory is before any intent is known.

    Args:
        steps: of one candidate, most confident first; ties as in the trajectory.
        events: trigger spans in extracted order. One trigger span is one event, whatever its type hypotheses.
        company: event -> other candidates that are likely in it.
        role_entropy, role_conflict: see the features of that name.
    """

    steps: tuple[Step, ...]
    events: tuple[Span, ...]
    company: dict[Span, frozenset[str]]
    role_entropy: float
    role_conflict: float


def tracks(window: Window, only: Sequence[str] | None = None) -> dict[str, Track]:
    """candidate_id -> its track, for every candidate of the window or those named by `only`."""
    likely: dict[Span, set[str]] = {}
    for step in window.steps:
        if step.confidence >= LIKELY:
            likely.setdefault(step.trigger, set()).add(step.candidate_id)
    wanted = window.trajectories if only is None else only
    return {c: _track(c, window.trajectories[c], likely) for c in wanted}


def _track(candidate_id: str, steps: Sequence[Step], likely: dict[Span, set[str]]) -> Track:
    events = [span for _, span in sorted({(step.order, step.trigger) for step in steps})]
    events = list(dict.fromkeys(events))
    mine = [event for event in events if candidate_id in likely.get(event, ())]
    company = {event: frozenset(likely[event] - {candidate_id}) for event in mine}
    return Track(
        tuple(sorted(steps, key=lambda s: -s.confidence)), tuple(events), company, _entropy(steps), _conflict(steps)
    )


def _entropy(steps: Iterable[Step]) -> float:
    mass: dict[str, float] = {}
    for step in steps:
        mass[step.role] = mass.get(step.role, 0.0) + step.confidence
    total = math.fsum(mass.values())
    return -math.fsum(m / total * math.log(m / total) for m in mass.values() if m > 0) if total > 0 else 0.0


def _conflict(steps: Iterable[Step]) -> float:
    best: dict[Span, dict[str, float]] = {}
    for step in steps:
        roles = best.setdefault(step.trigger, {})
        roles[step.role] = max(roles.get(step.role, 0.0), step.confidence)
    return math.fsum(sorted(roles.values())[-2] for roles in best.values() if len(roles) > 1)


@dataclass(frozen=True, slots=True)
class Case:
    """One candidate under one skeleton: the argument of every feature.

    Args:
        plan: the prepared skeleton.
        track: the candidate's track.
        chosen: per slot the step that fills it in the best order-free alignment, the most confident among equals.
        accepted: whether the verifier recovers the candidate from its deterministic attachment alone.
        margin: support of the candidate from that attachment minus the best other candidate's, in 1e-6; 0 without one.
    """

    plan: Plan
    track: Track
    chosen: tuple[Step | None, ...]
    accepted: bool = False
    margin: int = 0

    @property
    def filled(self) -> list[tuple[int, Step]]:
        """(slot index, step) of the filled slots in plan order."""
        return [(j, step) for j in self.plan.order if (step := self.chosen[j]) is not None]


def make_case(plan: Plan, track: Track) -> Case:
    """Align a trajectory with a skeleton; the certificate's part is left at "none"."""
    fitting = [step for step in track.steps if plan.fits(step.type, step.role)]
    if not fitting:
        return Case(plan, track, (None,) * len(plan.skeleton.slots))
    best = align(plan.skeleton, [(str(step.trigger), step.type, step.role) for step in fitting])
    return Case(plan, track, tuple(None if i is None else fitting[i] for i in best.chosen))


# ---- skeleton -----------------------------------------------------------------------------------------------------


def filled_weight(case: Case) -> float:
    """Σ_j w_j·filled_j of the best order-free alignment, in [0, 1]."""
    return sum(case.plan.skeleton.slots[j].weight for j, _ in case.filled) / MICRO


def monotone_score(case: Case) -> float:
    """Smith-Waterman score of the events in extracted order against the slots in plan order, in [0, 1].

    An event that fits a slot scores the slot's weight; skipping an event or a slot costs 0.1.
    """
    fits: dict[Span, set[int]] = {}
    for step in case.track.steps:
        fits.setdefault(step.trigger, set()).update(case.plan.fits(step.type, step.role))
    slots, order = case.plan.skeleton.slots, case.plan.order
    best, row = 0, [0] * (len(order) + 1)
    for event in case.track.events:
        above, row = row, [0]
        for column, j in enumerate(order):
            match = above[column] + slots[j].weight if j in fits[event] else 0
            row.append(max(0, match, above[column + 1] - GAP, row[column] - GAP))
        best = max(best, *row)
    return best / MICRO


def missing_required(case: Case) -> float:
    """Number of required slots that stay empty."""
    return float(sum(slot.required and case.chosen[j] is None for j, slot in enumerate(case.plan.skeleton.slots)))


def inversions(case: Case) -> float:
    """Share of the pairs of filled slots whose events stand in extracted order against the plan order; 0 if no pair."""
    pairs = [(a.order, b.order) for (_, a), (_, b) in combinations(case.filled, 2)]
    return sum(a > b for a, b in pairs) / len(pairs) if pairs else 0.0


# ---- arguments ----------------------------------------------------------------------------------------------------


def allowed_role_share(case: Case) -> float:
    """Share of the steps with an allowed role, among the steps whose event type some slot names; 0 if there is none."""
    named = [step for step in case.track.steps if case.plan.names(step.type)]
    total = math.fsum(step.confidence for step in named)
    allowed = math.fsum(step.confidence for step in named if case.plan.fits(step.type, step.role))
    return allowed / total if total > 0 else 0.0


def role_entropy(case: Case) -> float:
    """Entropy of the candidate's roles over all its steps, in nats."""
    return case.track.role_entropy


def illegal_roles(case: Case) -> float:
    """Number of steps whose event type some slot names, in a role that none of these slots allows."""
    plan = case.plan
    return math.fsum(s.confidence for s in case.track.steps if plan.names(s.type) and not plan.fits(s.type, s.role))


def role_conflict(case: Case) -> float:
    """Number of events in which the candidate has two different roles; each counts as its second-best hypothesis."""
    return case.track.role_conflict


# ---- graph --------------------------------------------------------------------------------------------------------


def log_degree(case: Case) -> float:
    """log(1 + number of other candidates that share a likely event with this one)."""
    return math.log1p(len(frozenset[str]().union(*case.track.company.values())))


def joined_slots(case: Case) -> float:
    """Share of consecutive filled slots whose two events are joined by an edge: another candidate likely in both."""
    nothing: frozenset[str] = frozenset()
    company = [case.track.company.get(step.trigger, nothing) for _, step in case.filled]
    joined = [bool(a & b) for a, b in pairwise(company)]
    return sum(joined) / len(joined) if joined else 0.0


def order_violations(case: Case) -> float:
    """Share of the precedence pairs with both slots filled that stand against the extracted order; 0 if no pair."""
    both = [(case.chosen[i], case.chosen[j]) for i, j in case.plan.skeleton.precedences]
    pairs = [(a.order, b.order) for a, b in both if a is not None and b is not None]
    return sum(a > b for a, b in pairs) / len(pairs) if pairs else 0.0


# ---- nuisance -----------------------------------------------------------------------------------------------------


def log_mentions(case: Case) -> float:
    """log(1 + number of different mentions of the candidate that stand in some step)."""
    return math.log1p(len({step.mention for step in case.track.steps}))


def log_steps(case: Case) -> float:
    """log(1 + number of steps)."""
    return math.log1p(len(case.track.steps))


# ---- certifiability -----------------------------------------------------------------------------------------------


def filled_confidence(case: Case) -> float:
    """Σ_j w_j·confidence of the step that fills slot j, in [0, 1]."""
    return math.fsum(case.plan.skeleton.slots[j].weight * step.confidence for j, step in case.filled) / MICRO


def climax_confidence(case: Case) -> float:
    """Best confidence of a step that fits the climax slot, 0 if none does."""
    climax = case.plan.skeleton.climax
    return next((s.confidence for s in case.track.steps if climax in case.plan.fits(s.type, s.role)), 0.0)


def attached(case: Case) -> float:
    """1 if the verifier accepts the candidate from its deterministic attachment, else 0."""
    return float(case.accepted)


def attached_margin(case: Case) -> float:
    """How far the attachment supports the candidate beyond any other one, in support units."""
    return case.margin / MICRO


@dataclass(frozen=True, slots=True)
class Feature:
    """A named feature; its docstring is its function's."""

    name: str
    group: Group
    of: Callable[[Case], float] = field(repr=False)


def _features() -> tuple[Feature, ...]:
    groups: dict[Group, tuple[Callable[[Case], float], ...]] = {
        "skeleton": (filled_weight, monotone_score, missing_required, inversions),
        "arguments": (allowed_role_share, role_entropy, illegal_roles, role_conflict),
        "graph": (log_degree, joined_slots, order_violations),
        "nuisance": (log_mentions, log_steps),
        "certifiability": (filled_confidence, climax_confidence, attached, attached_margin),
    }
    return tuple(Feature(f.__name__, group, f) for group, functions in groups.items() for f in functions)


FEATURES = _features()
FUNCTIONS = {feature.name: feature.of for feature in FEATURES}


def feature_names(graph: bool = True) -> tuple[str, ...]:
    """Names of all features in order; `graph=False` leaves the optional group out."""
    return tuple(f.name for f in FEATURES if graph or f.group != "graph")


# ---- matrices -----------------------------------------------------------------------------------------------------


def cases(
    window: Window, skeletons: Sequence[Skeleton], judge: Judge, only: Sequence[str] | None = None
) -> list[list[Case]]:
    """Per skeleton the cases of all candidates in the order of `window.candidates`, or of those named by `only`."""
    known = tracks(window, only)
    wanted = [c.candidate_id for c in window.candidates] if only is None else only
    return [_cases(window, Plan(skeleton), known, judge, wanted) for skeleton in skeletons]


def _cases(window: Window, plan: Plan, known: dict[str, Track], judge: Judge, wanted: Sequence[str]) -> list[Case]:
    found, verifier = [], None
    for candidate_id in wanted:
        case = make_case(plan, known[candidate_id])
        entry = attach(window, plan.skeleton, candidate_id, judge.limits) if case.filled else None
        if entry is not None:
            if verifier is None:
                roster = [c.candidate_id for c in window.candidates]
                verifier = Verifier(roster, window.steps, plan.skeleton, judge.accept, judge.margin)
            accepted, margin = _judged(verifier, candidate_id, entry.spans)
            case = replace(case, accepted=accepted, margin=margin)
        found.append(case)
    return found


def _judged(verifier: Verifier, candidate_id: str, spans: Sequence[Span]) -> tuple[bool, int]:
    """Whether the spans alone recover the candidate, and its lead over the best other one in 1e-6."""
    verdict = verifier.verify([spans])[0]
    if verdict.candidate_id == candidate_id:
        return True, verdict.margin
    support = verifier.support(spans)
    rival = max((s for c, s in support.items() if c != candidate_id), default=0)
    return False, support.get(candidate_id, 0) - rival


def raw(
    window: Window, skeletons: Sequence[Skeleton], judge: Judge, names: Sequence[str], only: Sequence[str] | None = None
) -> list[FloatArray]:
    """Per skeleton φ before standardisation: one row per candidate (those of `cases`), one column per name."""
    functions = [FUNCTIONS[name] for name in names]
    matrices = []
    for rows in cases(window, skeletons, judge, only):
        matrix = np.array([[function(case) for function in functions] for case in rows], dtype=np.float64)
        matrices.append(matrix.reshape(len(rows), len(names)))
    return matrices


def standardise(rows: FloatArray, roster: FloatArray) -> FloatArray:
    """Rows as deviations from the roster's mean in its standard deviations; a feature that is constant there gives 0.

    Args:
        rows: (any, features).
        roster: (candidates, features), all candidates of the window under the same skeleton.
    """
    if not len(roster):  # without annotation nobody stands in the closed roster; nothing has no mean
        return np.zeros_like(rows)
    mean, deviation = roster.mean(axis=0), roster.std(axis=0)
    constant = deviation <= 1e-9
    scaled: FloatArray = np.where(constant, 0.0, (rows - mean) / np.where(constant, 1.0, deviation))
    return scaled
