"""Counterfactual tests: what a list's CertNDCG becomes when its certificates are damaged in a known way.

A certificate that carries the decision must lose by `shuffle`, `delete`, `swap` and `mask_names`; citing everything
must not pay; new names for ids must change nothing. The list and its order stay; only the evidence changes. Which span
is hit depends on the entry alone, so that equal entries of two systems are damaged alike.

    shuffle      certificates dealt to other entries of the list at random (lists with at least two entries)
    delete       one cited span removed from every bundle
    swap         the same span replaced by the nearest other span of its kind (for a trigger: of its event type)
    distract     one handle added that has nothing to do with the candidate; the validity of the original bundle stands,
                 because handles per slot are full anyway
    mask_names   the argument spans hidden from the verifier; validity stands
    relabel      new local ids for candidates and handles: the list written out in them, parsed and judged again
    cite_all     every bundle cites all evidence of its candidate in its first slot
    cite_all_unlimited  the same without the validity rules, which is what they are there for
    empty        no certificate at all
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline import certificates
from pipeline.certificates import Entry
from pipeline.errors import CertificateError
from pipeline.spans import Span
from pipeline.windows import Window, stable_seed
from stages.audit.cases import Case
from stages.audit.inputs import Listed

Gates = list[bool]


def shuffle(case: Case, listed: Listed) -> Gates | None:
    """Gates under a random cyclic permutation of the certificates; None under two entries."""
    entries = listed.entries
    if len(entries) < 2:
        return None
    ids = [entry.candidate_id for entry in entries]
    generator = np.random.default_rng(stable_seed("shuffle", *_place(case), *ids))
    # A random cycle through all entries leaves no certificate where it was.
    cycle = generator.permutation(len(entries)).tolist()
    source = dict(zip(cycle, [*cycle[1:], cycle[0]], strict=True))
    return case.gates([Entry(c, entries[source[i]].slots) for i, c in enumerate(ids)])


def delete(case: Case, listed: Listed) -> Gates:
    """Gates with one cited span removed from every bundle."""
    return case.gates([case.memo("delete", entry, _without_victim) for entry in listed.entries])


def swap(case: Case, listed: Listed) -> Gates:
    """Gates with one cited span of every bundle replaced by its nearest neighbour of the same kind."""
    return case.gates([case.memo("swap", entry, _with_neighbour) for entry in listed.entries])


def distract(case: Case, listed: Listed) -> Gates:
    """Gates with one unrelated handle added to what the verifier sees of every bundle."""
    return _as_valid_as_before(case, listed, [case.memo("distract", entry, _distracted) for entry in listed.entries])


def mask_names(case: Case, listed: Listed) -> Gates:
    """Gates when the verifier cannot see the cited argument spans."""
    return _as_valid_as_before(case, listed, [case.memo("mask_names", entry, _masked) for entry in listed.entries])


def relabel(case: Case, listed: Listed) -> Gates:
    """Gates of the list written in new local ids, parsed back and judged in the relabelled window.

    A list that the parser refuses must be refused with the same code under both namings; its own gates stand.
    """
    window = case.view.relabelled
    skeleton, k = case.intent.skeleton, case.window.k

    def spoken(inside: Window) -> list[Entry] | str:
        try:
            text = certificates.render(listed.entries, inside)
            return certificates.parse(text, inside, skeleton, k, case.limits)
        except CertificateError as error:
            return error.code

    before, after = spoken(case.window), spoken(window)
    if isinstance(before, str) and before == after:
        return case.gates(listed.entries)
    if isinstance(after, str):
        return [False] * len(listed.entries)
    codes = [certificates.check(entry, window, skeleton, case.limits) for entry in after]
    verdicts = case.verdicts(tuple(entry.spans for entry in after))
    return [
        code is None and verdict.candidate_id == entry.candidate_id == original.candidate_id
        for code, verdict, entry, original in zip(codes, verdicts, after, listed.entries, strict=True)
    ]


def cite_all(case: Case, listed: Listed) -> Gates:
    """Gates when every bundle cites all evidence of its candidate."""
    return case.gates(_everything(case, listed))


def cite_all_unlimited(case: Case, listed: Listed) -> Gates:
    """The same by the verifier alone."""
    entries = _everything(case, listed)
    verdicts = case.verdicts(tuple(entry.spans for entry in entries))
    return [v.candidate_id == e.candidate_id for e, v in zip(entries, verdicts, strict=True)]


def empty(case: Case, listed: Listed) -> Gates:
    """Gates without certificates."""
    return case.gates([Entry(entry.candidate_id, ()) for entry in listed.entries])


TESTS: dict[str, Callable[[Case, Listed], Gates | None]] = {
    "shuffle": shuffle,
    "delete": delete,
    "swap": swap,
    "distract": distract,
    "mask_names": mask_names,
    "relabel": relabel,
    "cite_all": cite_all,
    "cite_all_unlimited": cite_all_unlimited,
    "empty": empty,
}


def _place(case: Case) -> tuple[str, str]:
    return case.window.window_id, case.intent.intent_id


def _choose(case: Case, test: str, entry: Entry, n: int) -> int:
    return stable_seed(test, *_place(case), entry.candidate_id, *entry.spans) % n


def _victim(case: Case, entry: Entry) -> Span | None:
    spans = entry.spans
    return spans[_choose(case, "victim", entry, len(spans))] if spans else None


def _without_victim(case: Case, entry: Entry) -> Entry:
    return _replaced(entry, _victim(case, entry), None)


def _with_neighbour(case: Case, entry: Entry) -> Entry:
    victim = _victim(case, entry)
    neighbour = None if victim is None else _nearest(case, victim, entry.spans)
    return entry if neighbour is None else _replaced(entry, victim, neighbour)


def _distracted(case: Case, entry: Entry) -> tuple[Span, ...]:
    cited = entry.spans
    own = {span for s in case.window.trajectories.get(entry.candidate_id, []) for span in (s.trigger, s.mention)}
    free = [h.span for h in case.window.handles if h.span not in own and not _touches(h.span, cited)]
    extra = [free[_choose(case, "distract", entry, len(free))]] if free and cited else []
    return tuple(sorted([*cited, *extra]))


def _masked(case: Case, entry: Entry) -> tuple[Span, ...]:
    return tuple(span for span in entry.spans if not _touches(span, case.view.mentions))


def _touches(span: Span, others: Sequence[Span]) -> bool:
    return any(span.overlaps(other) for other in others)


def _replaced(entry: Entry, old: Span | None, new: Span | None) -> Entry:
    """The entry with one span replaced, or removed together with its slot when nothing is left in it."""
    slots = []
    for slot_id, spans in entry.slots:
        kept = [new if span == old else span for span in spans]
        cited = tuple(sorted(span for span in kept if span is not None))
        if cited:
            slots.append((slot_id, cited))
    return Entry(entry.candidate_id, tuple(slots))


def _nearest(case: Case, span: Span, bundle: Sequence[Span]) -> Span | None:
    """The nearest handle of the same kind that does not touch the bundle: same document first, then window order."""
    types, position = case.view.trigger_types, case.view.position
    if span in types:
        alike = [other for other, theirs in types.items() if theirs & types[span]]
    else:
        alike = case.view.mentions

    def distance(other: Span) -> tuple[int, int, Span]:
        return abs(position[other.doc_id] - position[span.doc_id]), abs(other.start - span.start), other

    return next((other for other in sorted(alike, key=distance) if not _touches(other, bundle)), None)


def _as_valid_as_before(case: Case, listed: Listed, bundles: Sequence[tuple[Span, ...]]) -> Gates:
    verdicts = case.verdicts(tuple(bundles))
    return [
        case.code(entry) is None and verdict.candidate_id == entry.candidate_id
        for entry, verdict in zip(listed.entries, verdicts, strict=True)
    ]


def _everything(case: Case, listed: Listed) -> list[Entry]:
    """Entries that cite the candidate's evidence in full, in their first cited slot (else the plan's first)."""
    first = case.intent.skeleton.slots[0].slot_id

    def everything(case: Case, entry: Entry) -> Entry:
        spans = case.evidence.get(entry.candidate_id, ())
        slot_id = next((slot_id for slot_id, cited in entry.slots if cited), first)
        return Entry(entry.candidate_id, ((slot_id, spans),) if spans else ())

    return [case.memo("cite_all", entry, everything) for entry in listed.entries]
