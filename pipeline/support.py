"""Support of a candidate by cited characters: the exact maximum behind the verifier (task definition, section 6).

An assignment gives slots to cited events of the candidate, one event per slot and one slot per event; two hypotheses
about one trigger count as one event. `best_support` finds the assignment of greatest support by branch and bound over
the plan's slots (at most six). Every bound is an upper bound in the same integers, so the result is the maximum, and
the search is capped: beyond `budget` nodes it raises instead of answering. Pure; integers of 1e-6 only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pipeline.spans import Span

ROLE_BONUS = 100_000
ORDER_BONUS = 100_000
UNUSED_COST = 200_000

Interval = tuple[str, int, int]
"""(doc_id, start, end). Plain tuples: the verifier compares and hashes them in its innermost loop."""

Evidence = tuple[Interval, ...]
"""What claim stripping leaves of a bundle: sorted, disjoint, non-adjacent intervals."""


class CapReachedError(Exception):
    """The exact maximum was not found within the budget of search nodes."""


class Atom(NamedTuple):
    """An extracted (event, candidate, role) with its spans, as the verifier indexes it.

    Args:
        mention, trigger, candidate, event: indices; of spans, of the roster, of the window's events.
        order: extracted order of the event.
        fills: slots (indices, ascending) whose types and roles it fits.
        intervals: trigger and mention.
        size: characters of the two together.
    """

    mention: int
    trigger: int
    candidate: int
    event: int
    order: int
    fills: tuple[int, ...]
    intervals: frozenset[Interval]
    size: int


class Option(NamedTuple):
    """A cited event as filler of one slot for one candidate.

    Args:
        size: characters of its trigger and the mentions of its fitting atoms.
        order: extracted order of the event.
        event, trigger: indices.
        fit, atoms: how many of its cited atoms have an allowed role of the slot, and how many there are.
        intervals: trigger and mentions of the fitting atoms.
    """

    size: int
    order: int
    event: int
    trigger: int
    fit: int
    atoms: int
    intervals: frozenset[Interval]


class Support(NamedTuple):
    """Support of one candidate in 1e-6, and the slots (indices, ascending) filled by the assignment that reaches it."""

    sigma: int
    slots: tuple[int, ...]


LEAST = Support(-UNUSED_COST - 1, ())
"""Less than any assignment can have."""


class Plan(NamedTuple):
    """What the search needs to know of a skeleton: weights in 1e-6, precedence pairs of slot indices."""

    weights: tuple[int, ...]
    precedences: tuple[tuple[int, int], ...]


def strip(spans: Iterable[Span]) -> Evidence:
    """Claim stripping: the cited characters as sorted intervals, overlapping and adjacent spans joined."""
    return union((span.doc_id, span.start, span.end) for span in spans)


def union(intervals: Iterable[Interval]) -> Evidence:
    """The same characters as sorted, disjoint, non-adjacent intervals."""
    merged: list[Interval] = []
    last_doc, last_start, last_end = "", 0, 0
    for interval in sorted(intervals):
        doc_id, start, end = interval
        if doc_id == last_doc and start <= last_end:
            if end > last_end:
                last_end = end
                merged[-1] = (doc_id, last_start, end)
        else:
            merged.append(interval)
            last_doc, last_start, last_end = interval
    return tuple(merged)


def length(intervals: Iterable[Interval]) -> int:
    """Characters of a union of intervals."""
    return sum([end - start for _, start, end in union(intervals)])


Slots = Sequence[tuple[int, Sequence[Option]]]
"""(slot index, its options in order of their events), ascending, no slot without options."""


def best_support(plan: Plan, atoms: Sequence[Atom], cited: int, budget: int) -> tuple[Support | None, int]:
    """The greatest support of one candidate over all assignments that fill at least one slot.

    Args:
        plan: weights and precedences.
        atoms: the candidate's cited atoms, at least one.
        cited: number of cited characters, at least 1.
        budget: search nodes allowed.

    Returns:
        The support, None when no slot can be filled, and the number of nodes visited. Among assignments of equal
        support the one found first, which depends on the events' indices alone.

    Raises:
        CapReachedError: more than `budget` nodes were needed.
    """
    slots = _options(atoms)
    if not slots:
        return None, 0
    if len(slots) == 1 or len(atoms) == 1 or len({o.trigger for _, options in slots for o in options}) == 1:
        return _best_alone(plan, slots, cited), 0
    search = _Search(plan, slots, cited, budget)
    nothing = _Partial(0, 0, 0, 0, ())
    search.descend(0, nothing, search.bound(0, nothing))
    return search.best, search.nodes


def _options(atoms: Sequence[Atom]) -> Slots:
    """Group cited atoms by event, and events by the slots that they can fill."""
    events: dict[int, list[Atom]] = {}
    for atom in atoms:
        if atom.event in events:
            events[atom.event].append(atom)
        else:
            events[atom.event] = [atom]
    slots: dict[int, list[Option]] = {}
    for event in sorted(events):
        group = events[event]
        of, one = len(group), group[0]
        for j in one.fills if of == 1 else sorted({j for atom in group for j in atom.fills}):
            fitting = [atom for atom in group if j in atom.fills]
            intervals, size = fitting[0].intervals, fitting[0].size
            if len(fitting) > 1:
                intervals = intervals.union(*[atom.intervals for atom in fitting])
                size = length(intervals)
            option = Option(size, one.order, event, one.trigger, len(fitting), of, intervals)
            if j in slots:
                slots[j].append(option)
            else:
                slots[j] = [option]
    return sorted(slots.items())


def _best_alone(plan: Plan, slots: Slots, cited: int) -> Support:
    """The maximum where no two options can be chosen together."""
    best = LEAST
    for j, options in slots:
        for option in options:
            share = ROLE_BONUS * option.fit // option.atoms
            sigma = plan.weights[j] + share - UNUSED_COST * (cited - option.size) // cited
            if sigma > best.sigma:
                best = Support(sigma, (j,))
    return best


class _Partial(NamedTuple):
    """Decisions for the first slots: their weight, fitting and all atoms, characters (overlaps counted twice)."""

    weight: int
    fit: int
    atoms: int
    size: int
    chosen: tuple[tuple[int, Option], ...]


class _Search:
    """Branch and bound, the most promising branch first; `best` improves as it descends."""

    def __init__(self, plan: Plan, slots: Slots, cited: int, budget: int) -> None:
        self.plan, self.slots, self.cited, self.budget = plan, slots, cited, budget
        self.best = LEAST
        self.nodes = 0
        index = {j for j, _ in slots}
        self.pairs = [pair for pair in plan.precedences if pair[0] in index and pair[1] in index]
        self.orders = {j: (min([o.order for o in options]), max([o.order for o in options])) for j, options in slots}
        self.rest = [0]  # characters that the slots from position i on can use at most
        for _, options in reversed(slots):
            self.rest.append(self.rest[-1] + max([o.size for o in options]))
        self.rest.reverse()
        self.relaxed: dict[tuple[int, int, int], int] = {}

    def descend(self, i: int, partial: _Partial, bound: int) -> None:
        """Decide the slot at position i in every way that may still beat the best; `bound` is this partial's."""
        if i == len(self.slots):
            self._keep(partial)
            return
        later: list[tuple[int, _Partial]] = []
        for branch in self._branches(i, partial):
            branch_bound = self.bound(i + 1, branch)
            if branch_bound < bound:
                later.append((branch_bound, branch))
                continue
            self.descend(i + 1, branch, branch_bound)  # nothing is lost by this decision: try it at once
            if self.best.sigma >= bound:
                return
        later.sort(key=lambda pair: pair[0], reverse=True)
        for branch_bound, branch in later:
            if branch_bound <= self.best.sigma:
                return
            self.descend(i + 1, branch, branch_bound)

    def _branches(self, i: int, partial: _Partial) -> Iterator[_Partial]:
        """The slot at position i filled in every possible way, then left empty."""
        weight, fit, atoms, size, chosen = partial
        j, options = self.slots[i]
        taken = [option.trigger for _, option in chosen]
        weight += self.plan.weights[j]
        for option in options:
            if option.trigger not in taken:
                self._spend(1)
                yield _Partial(
                    weight, fit + option.fit, atoms + option.atoms, size + option.size, (*chosen, (j, option))
                )
        self._spend(1)
        yield partial

    def _spend(self, nodes: int) -> None:
        self.nodes += nodes
        if self.nodes > self.budget:
            raise CapReachedError

    def bound(self, i: int, partial: _Partial) -> int:
        """No assignment that continues these decisions from position i on has more support than this."""
        weight, fit, atoms, size, chosen = partial
        unused = max(self.cited - size - self.rest[i], 0)
        bound = weight + self._weight_and_roles(i, fit, atoms) - UNUSED_COST * unused // self.cited
        return bound + self._order_bound(i, chosen) if self.pairs else bound

    def _weight_and_roles(self, i: int, fit: int, atoms: int) -> int:
        """Weight of the slots from position i on plus role bonus, at most: as if events never competed."""
        if i == len(self.slots):
            return ROLE_BONUS * fit // atoms if atoms else 0
        key = (i, fit, atoms)
        if key not in self.relaxed:
            self._spend(1)
            j, options = self.slots[i]
            filled = [self._weight_and_roles(i + 1, fit + f, atoms + a) for f, a in {(o.fit, o.atoms) for o in options}]
            empty = self._weight_and_roles(i + 1, fit, atoms)
            self.relaxed[key] = max(empty, self.plan.weights[j] + max(filled))
        return self.relaxed[key]

    def _keep(self, partial: _Partial) -> None:
        """A complete assignment: keep it if it is better than the best so far."""
        weight, fit, atoms, size, chosen = partial
        if not chosen:
            return
        if len(chosen) > 1:
            size = length({interval for _, option in chosen for interval in option.intervals})
        sigma = weight + ROLE_BONUS * fit // atoms - UNUSED_COST * (self.cited - size) // self.cited
        if self.pairs:
            sigma += self._order_bound(len(self.slots), chosen)
        if sigma > self.best.sigma:
            self.best = Support(sigma, tuple(j for j, _ in chosen))

    def _order_bound(self, i: int, chosen: tuple[tuple[int, Option], ...]) -> int:
        """The order bonus at most reachable once the slots before position i are decided; exact when all are."""
        orders = {j: (option.order, option.order) for j, option in chosen}
        decided = set(orders)
        for j, _ in self.slots[i:]:
            orders[j] = self.orders[j]
        held = filled = 0
        for earlier, later in self.pairs:
            if earlier in orders and later in orders:
                stands = orders[earlier][0] < orders[later][1]
                held += stands
                # An undecided pair counts only if it can stand: leaving one of its slots empty removes it.
                filled += stands or (earlier in decided and later in decided)
        return ORDER_BONUS * held // filled if filled else 0
