"""The label-free verifier: which candidate do these cited spans, and nothing else, speak for?

A bundle of cited spans is stripped of every claim (rank, candidate, handle, slot, role, prose) down to an unordered set
of spans. From the extractor's trajectories alone the verifier then works out how well the cited characters support each
candidate of the roster, assigns the bundles of one list to candidates, and accepts an assignment only where the support
is large enough and clearly larger than any other candidate's (task definition, section 6; this is level L2).

    verifier = Verifier([c.candidate_id for c in window.candidates], window.steps, intent.skeleton)
    for verdict in verifier.verify([entry.spans for entry in entries]):
        print(verdict.candidate_id, verdict.sigma, verdict.margin)

Support sigma of candidate c by evidence E, an integer in units of 1e-6, each share rounded down:

    sigma = max over assignments of cited events to slots (one event per slot, one slot per event, in any order) of
              sum of the filled slots' weights
            + 0.1 * share of c's cited atoms on the chosen events that have an allowed role of their slot
            + 0.1 * share of the precedence pairs with both slots filled that stand in extracted order
            - 0.2 * share of the cited characters that no atom filling its slot covers

An atom is an extracted (event, candidate, role) with trigger and mention; it is cited when both lie wholly inside cited
characters. Two hypotheses about one trigger are one event. A share with denominator 0 is 0; a candidate for which no
slot can be filled is not supported at all. The maximum is exact (`pipeline.support`). Its work per bundle is capped at
`MAX_NODES`; beyond that the bundle supports nobody: it is refused, never guessed at.

Deterministic on any machine: integers only, and ties are broken by the cited spans and the canonical candidate ids,
never by local id, rank or the order in which anything was passed. This module does no I/O and imports no model, no
network and no numerics library; a test holds it to that. When not to use it: it does not judge whether a certificate
is valid, `pipeline.certificates.check` does, and a verdict counts only for a valid one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from pipeline.assignment import assign, distinct_maxima
from pipeline.errors import DataError
from pipeline.spans import Span
from pipeline.support import (
    ORDER_BONUS,
    ROLE_BONUS,
    Atom,
    CapReachedError,
    Evidence,
    Interval,
    Plan,
    Support,
    best_support,
    length,
    strip,
)

if TYPE_CHECKING:
    from pipeline.skeletons import Skeleton, Slot
    from pipeline.windows import Step

MAX_NODES = 20_000
"""Search nodes per bundle, all candidates together. Bundles within the validity limits need a few dozen."""

CLAIM_ACCEPT = 350_000
"""Acceptance threshold of the ablations L0 and L1: the value of the reference code."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the verifier says of one bundle of a list.

    Args:
        candidate_id: the recovered candidate, or None.
        sigma: support of the assigned candidate in 1e-6, also where it was not accepted; 0 where none was assigned.
        margin: by how much `sigma` exceeds the best other candidate's support (unsupported ones count 0), in 1e-6.
    """

    candidate_id: str | None
    sigma: int
    margin: int


NONE = Verdict(None, 0, 0)


class Verifier:
    """The verifier of one window and one intent; build it once and verify any number of lists.

    Args:
        candidates: canonical ids of the roster, in any order.
        steps: the extractor's trajectories of all candidates, in any order.
        skeleton: the intent's plan.
        accept: least support that is accepted, in 1e-6.
        margin: least lead over every other candidate, in 1e-6.

    Raises:
        DataError: a repeated candidate, a step of an unknown candidate, or an event with two triggers or orders.
    """

    def __init__(
        self,
        candidates: Sequence[str],
        steps: Sequence[Step],
        skeleton: Skeleton,
        accept: int = 100_000,
        margin: int = 50_000,
    ) -> None:
        self.candidates = tuple(sorted(candidates))
        self.accept, self.margin = accept, margin
        self._index = {c: i for i, c in enumerate(self.candidates)}
        if len(self._index) != len(self.candidates):
            raise DataError("a candidate stands in the roster twice", field="candidate_id")
        self._slot_ids = tuple(slot.slot_id for slot in skeleton.slots)
        self._plan = Plan(tuple(slot.weight for slot in skeleton.slots), skeleton.precedences)
        self._index_atoms(steps, skeleton)

    def _index_atoms(self, steps: Sequence[Step], skeleton: Skeleton) -> None:
        """Index atoms by trigger and spans by position, so that verifying touches only what is cited."""
        for step in steps:
            if step.candidate_id not in self._index:
                raise DataError(f"step of {step.candidate_id!r}, who is not in the roster", field="candidate_id")
        relevant = [s for s in steps if any(slot.fits_type(s.type) for slot in skeleton.slots)]
        self._units = sorted({_interval(span) for s in relevant for span in (s.trigger, s.mention)})
        unit_of = {interval: unit for unit, interval in enumerate(self._units)}
        event_of = {event: i for i, event in enumerate(sorted({s.event_id for s in relevant}))}
        self._atoms: list[list[Atom]] = [[] for _ in self._units]
        known: dict[str, tuple[Interval, int]] = {}
        for step in relevant:
            trigger, mention = _interval(step.trigger), _interval(step.mention)
            if known.setdefault(step.event_id, (trigger, step.order)) != (trigger, step.order):
                raise DataError(f"event {step.event_id!r} has two triggers or orders", field="event_id")
            fills = tuple(j for j, slot in enumerate(skeleton.slots) if slot.fits(step.type, step.role))
            self._atoms[unit_of[trigger]].append(
                Atom(
                    unit_of[mention], unit_of[trigger], self._index[step.candidate_id], event_of[step.event_id],
                    step.order, fills, frozenset((trigger, mention)), length((trigger, mention)),
                )
            )  # fmt: skip
        self._starts: dict[str, list[int]] = {}
        self._first: dict[str, int] = {}
        for unit, (doc_id, start, _) in enumerate(self._units):
            self._first.setdefault(doc_id, unit)
            self._starts.setdefault(doc_id, []).append(start)
        self._inside = {interval: self._units_inside(interval) for interval in self._units}

    def _units_inside(self, interval: Interval) -> list[int]:
        """The units (indices of distinct trigger and mention spans) that lie wholly inside an interval."""
        doc_id, start, end = interval
        starts, first = self._starts.get(doc_id, []), self._first.get(doc_id, 0)
        beginning = range(first + bisect_left(starts, start), first + bisect_left(starts, end))
        return [unit for unit in beginning if self._units[unit][2] <= end]

    # ---- support ---------------------------------------------------------------------------------------------------

    def support(self, spans: Iterable[Span]) -> dict[str, int]:
        """Support of every candidate with a filled slot, in 1e-6, by canonical id; {} beyond the search cap."""
        supported = self._support(strip(spans))
        return {self.candidates[c]: supported[c].sigma for c in sorted(supported)}

    def filled(self, candidate_id: str, spans: Iterable[Span]) -> tuple[str, ...]:
        """The slots, in plan order, that the spans fill for a candidate in its best assignment."""
        found = self._support(strip(spans)).get(self._index[candidate_id])
        return tuple(self._slot_ids[j] for j in found.slots) if found is not None else ()

    def _support(self, evidence: Evidence) -> dict[int, Support]:
        """Candidate index -> support, of candidates with a filled slot."""
        inside, characters = self._inside, 0
        cited: list[int] = []
        for interval in evidence:
            characters += interval[2] - interval[1]
            known = inside.get(interval)
            cited += self._units_inside(interval) if known is None else known
        units = set(cited)
        atoms_of: dict[int, list[Atom]] = {}
        for trigger in cited:
            for atom in self._atoms[trigger]:
                if atom.mention in units:
                    if atom.candidate in atoms_of:
                        atoms_of[atom.candidate].append(atom)
                    else:
                        atoms_of[atom.candidate] = [atom]
        supported: dict[int, Support] = {}
        nodes = MAX_NODES
        for candidate, atoms in atoms_of.items():
            try:
                best, visited = best_support(self._plan, atoms, characters, nodes)
            except CapReachedError:
                return {}
            nodes -= visited
            if best is not None:
                supported[candidate] = best
        return supported

    # ---- verdicts --------------------------------------------------------------------------------------------------

    def verify(self, bundles: Sequence[Collection[Span]]) -> list[Verdict]:
        """Recover the candidate behind each bundle of one list.

        Args:
            bundles: the cited spans of each entry; neither their order nor that of the spans matters.

        Returns:
            One verdict per bundle. Bundles that cite the same characters all get none.
        """
        evidence = [strip(bundle) for bundle in bundles]
        repeated = {e for e, n in Counter(evidence).items() if n > 1} if len(set(evidence)) < len(evidence) else set()
        rows = [
            {} if e in repeated else {c: support.sigma for c, support in self._support(e).items()} for e in evidence
        ]
        chosen = distinct_maxima(rows)
        if chosen is None:
            by_content = sorted(range(len(rows)), key=evidence.__getitem__)
            chosen = [None] * len(rows)
            for i, candidate in zip(by_content, assign([rows[i] for i in by_content]), strict=True):
                chosen[i] = candidate
        return [self._verdict(row, candidate) for row, candidate in zip(rows, chosen, strict=True)]

    def _verdict(self, row: Mapping[int, int], candidate: int | None) -> Verdict:
        if candidate is None:
            return NONE
        sigma = row[candidate]
        margin = sigma - max([value for c, value in row.items() if c != candidate], default=0)
        margin = min(margin, sigma)
        accepted = sigma >= self.accept and margin >= self.margin
        return Verdict(self.candidates[candidate] if accepted else None, sigma, margin)

    def sufficient(self, candidate_id: str, spans: Collection[Span]) -> bool:
        """Whether the spans, alone on a list of one, recover the candidate."""
        return self.verify([spans])[0].candidate_id == candidate_id

    def minimal(self, candidate_id: str, spans: Collection[Span]) -> bool:
        """Whether the spans are sufficient, and are so no longer once any one of them is removed."""
        distinct = set(spans)
        return self.sufficient(candidate_id, distinct) and not any(
            self.sufficient(candidate_id, distinct - {span}) for span in distinct
        )


def _interval(span: Span) -> Interval:
    return span.doc_id, span.start, span.end


# ---- ablations: verifiers that trust claims ------------------------------------------------------------------------


class Claim(Protocol):
    """A certificate entry with its claims, such as `pipeline.certificates.Entry`."""

    @property
    def candidate_id(self) -> str: ...
    @property
    def slots(self) -> Sequence[tuple[str, Sequence[Span]]]: ...


def claimed_support(claim: Claim, candidate_id: str, steps: Sequence[Step], skeleton: Skeleton) -> int:
    """Support of a candidate when slot and role are taken from the claim, in 1e-6; 0 where nothing is filled.

    A claimed slot counts as filled when any of its spans overlaps, by one character, the trigger or the mention of a
    step of the candidate whose type fits the slot. The role is believed, so is the order, and citing too much is free:
    the vacuous rule of the reference code, kept to measure what each of these costs.
    """
    by_id = {slot.slot_id: j for j, slot in enumerate(skeleton.slots)}
    filled = {
        by_id[slot_id]
        for slot_id, spans in claim.slots
        if slot_id in by_id and _touches(spans, candidate_id, steps, skeleton.slots[by_id[slot_id]])
    }
    if not filled:
        return 0
    ordered = any(a in filled and b in filled for a, b in skeleton.precedences)
    return sum(skeleton.slots[j].weight for j in filled) + ROLE_BONUS + (ORDER_BONUS if ordered else 0)


def _touches(spans: Sequence[Span], candidate_id: str, steps: Sequence[Step], slot: Slot) -> bool:
    return any(
        span.overlaps(step.trigger) or span.overlaps(step.mention)
        for step in steps
        if step.candidate_id == candidate_id and slot.fits_type(step.type)
        for span in spans
    )


def verify_claims(
    claims: Sequence[Claim],
    candidates: Sequence[str],
    steps: Sequence[Step],
    skeleton: Skeleton,
    level: Literal["L0", "L1"],
    accept: int = CLAIM_ACCEPT,
) -> list[Verdict]:
    """The ablations L0 and L1 of the verifier (task definition, section 6). For the audit only: both are easily fooled.

    Args:
        claims: the entries of one list.
        level: L0 asks only whether the claimed candidate's support reaches `accept`; L1 takes slot and role from the
            claim but works out the candidate, one per entry (ties by canonical id). Neither asks for a margin.
    """
    by_candidate: dict[str, list[Step]] = {}
    for step in steps:
        by_candidate.setdefault(step.candidate_id, []).append(step)
    ordered = sorted(candidates)
    verdicts = []
    for claim in claims:
        asked = ordered if level == "L1" else [c for c in candidates if c == claim.candidate_id]
        supports = [(claimed_support(claim, c, by_candidate.get(c, ()), skeleton), c) for c in asked]
        sigma, candidate = max(supports, key=lambda pair: pair[0], default=(0, None))
        other = max((s for s, c in supports if c != candidate), default=0)
        verdicts.append(Verdict(candidate if sigma >= accept else None, sigma, sigma - other))
    return verdicts
