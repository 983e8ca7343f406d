"""Deterministic evidence attachment: certificates for a ranking that brings none of its own.

`attach` cites what the extractor's trajectory offers for the candidate's best fit to the plan. `certifiable` asks the
verifier which candidates have any accepted certificate at all: the cap for every system, and what a list must at least
hold. Neither sees a label. Import both from `pipeline.certificates`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, groupby, islice
from typing import TYPE_CHECKING

from pipeline.skeletons import Skeleton, align
from pipeline.spans import Span
from pipeline.validity import Entry, Limits, check

if TYPE_CHECKING:
    from pipeline.verifier import Verifier
    from pipeline.windows import Step, Window

MAX_TRIED = 256
"""Bundles of two steps tried per candidate before it counts as not certifiable."""

Cited = Mapping[int, "Step"]
"""Slot index -> the step that fills it."""


def attach(window: Window, skeleton: Skeleton, candidate_id: str, limits: Limits) -> Entry | None:
    """The certificate of a candidate's best order-free alignment, highest-confidence step per slot.

    Each filled slot cites the step's trigger and mention; a span that serves several slots stands in the first only.
    The slots of least weight are dropped until the certificate is valid.

    Returns:
        A valid entry, or None where there is none.
    """
    steps = _by_confidence(window, candidate_id)
    # Hypotheses about one trigger compete as one event, as they do in the verifier.
    alignment = align(skeleton, [(str(step.trigger), step.type, step.role) for step in steps])
    cited = {j: steps[i] for j, i in enumerate(alignment.chosen) if i is not None}
    while cited:
        entry = _valid_entry(window, skeleton, candidate_id, cited, limits)
        if entry is not None:
            return entry
        least = min(cited, key=lambda j: (skeleton.slots[j].weight, -j))
        cited = {j: step for j, step in cited.items() if j != least}
    return None


def certifiable(window: Window, skeleton: Skeleton, limits: Limits, verifier: Verifier) -> dict[str, Entry]:
    """Candidates for which the verifier accepts a legal bundle on its own, each with that bundle, in roster order.

    Tried in turn: the attached certificate, every single step that fills a slot, then pairs of steps in two slots (at
    most `MAX_TRIED`), heavier slots and more confident steps first. A candidate that only a larger or later bundle
    would recover is not counted.
    """
    found: dict[str, Entry] = {}
    for candidate in window.candidates:
        key = candidate.candidate_id
        for entry in _attempts(window, skeleton, key, limits):
            if verifier.sufficient(key, entry.spans):
                found[key] = entry
                break
    return found


def _attempts(window: Window, skeleton: Skeleton, candidate_id: str, limits: Limits) -> Iterator[Entry]:
    attached = attach(window, skeleton, candidate_id, limits)
    if attached is not None:
        yield attached
    steps = _by_confidence(window, candidate_id)
    heaviest = sorted(range(len(skeleton.slots)), key=lambda j: (-skeleton.slots[j].weight, j))
    fillers = [(j, step) for j in heaviest for step in steps if skeleton.slots[j].fits(step.type, step.role)]
    for cited in chain(({j: step} for j, step in fillers), islice(_pairs(fillers), MAX_TRIED)):
        entry = _valid_entry(window, skeleton, candidate_id, cited, limits)
        if entry is not None:
            yield entry


def _pairs(fillers: Sequence[tuple[int, Step]]) -> Iterator[Cited]:
    """Pairs of steps about two events in two slots, the first's slot declared before the second's.

    Args:
        fillers: (slot index, step), those of a slot together. Of a slot without a later one nothing is compared.
    """
    by_slot = [(j, [step for _, step in rows]) for j, rows in groupby(fillers, key=lambda filler: filler[0])]
    for j, step in fillers:
        for later, others in by_slot:
            if j < later:
                yield from ({j: step, later: other} for other in others if other.trigger != step.trigger)


def _by_confidence(window: Window, candidate_id: str) -> list[Step]:
    steps = window.trajectories[candidate_id]
    return sorted(steps, key=lambda s: (-s.confidence, s.order, s.trigger, s.mention, s.type, s.role))


def _valid_entry(window: Window, skeleton: Skeleton, candidate_id: str, cited: Cited, limits: Limits) -> Entry | None:
    """The entry that cites these steps, None where it would break a rule."""
    slots: list[tuple[str, tuple[Span, ...]]] = []
    used: list[Span] = []
    for j in sorted(cited):
        spans = _enclosing(cited[j].trigger, cited[j].mention)
        fresh = tuple(span for span in spans if not any(other.contains(span) for other in used))
        slots.append((skeleton.slots[j].slot_id, fresh))
        used += fresh
    entry = Entry(candidate_id, tuple(slots))
    return entry if check(entry, window, skeleton, limits) is None else None


def _enclosing(trigger: Span, mention: Span) -> tuple[Span, ...]:
    """Trigger and mention, or only the one that contains the other."""
    if mention.contains(trigger):
        return (mention,)
    return (trigger,) if trigger.contains(mention) else (trigger, mention)
