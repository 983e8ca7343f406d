"""The exact search for support, against exhaustive enumeration over sets of characters."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import floor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import verifier as verifier_module
from pipeline.skeletons import Skeleton, Slot
from pipeline.spans import Span
from pipeline.support import length, strip, union
from pipeline.verifier import Verifier
from pipeline.windows import Step
from tests.builders import PLAN, act, random_window


def exhaustive(candidate: str, steps: list[Step], spans: set[Span], skeleton: Skeleton) -> int | None:
    """Support by definition: every assignment, characters as sets, shares as fractions. Written apart from the product.

    Returns None when no slot can be filled.
    """
    cited = {(s.doc_id, at) for s in spans for at in range(s.start, s.end)}

    def characters(span: Span) -> set[tuple[str, int]]:
        return {(span.doc_id, at) for at in range(span.start, span.end)}

    atoms = [s for s in steps if s.candidate_id == candidate and characters(s.trigger) | characters(s.mention) <= cited]
    events = sorted({a.event_id for a in atoms})
    trigger = {a.event_id: a.trigger for a in atoms}
    order = {a.event_id: a.order for a in atoms}
    best = None
    for chosen in product([None, *events], repeat=len(skeleton.slots)):
        used = [e for e in chosen if e is not None]
        if not used or len({trigger[e] for e in used}) < len(used):
            continue
        filling = {
            j: [a for a in atoms if a.event_id == e and slot.fits(a.type, a.role)]
            for j, (slot, e) in enumerate(zip(skeleton.slots, chosen, strict=True))
            if e is not None
        }
        if not all(filling.values()):
            continue
        weight = sum(skeleton.slots[j].weight for j in filling)
        role = Fraction(sum(map(len, filling.values())), sum(a.event_id in used for a in atoms))
        pairs = [
            order[chosen[a]] < order[chosen[b]]  # type: ignore[index]
            for a, b in skeleton.precedences
            if chosen[a] is not None and chosen[b] is not None
        ]
        held = Fraction(sum(pairs), len(pairs)) if pairs else Fraction(0)
        covered = set().union(*(characters(a.trigger) | characters(a.mention) for f in filling.values() for a in f))
        unused = Fraction(len(cited - covered), len(cited))
        sigma = weight + floor(100_000 * role) + floor(100_000 * held) - floor(200_000 * unused)
        best = sigma if best is None else max(best, sigma)
    return best


WIDE = Skeleton(
    (
        Slot("s1", ("t0", "t1"), ("r0", "r1"), 500_000, True, True, ("s2", "s4")),
        Slot("s2", ("t1", "t2"), ("r0",), 150_000, False, False, ("s3",)),
        Slot("s3", ("t2", "t3"), ("*", "!r1"), 120_000),
        Slot("s4", ("t0",), ("*", "!r0"), 230_000, False, False, ("s3",)),
    )
)


@st.composite
def crowded(draw: st.DrawFn) -> tuple[list[Step], set[Span]]:
    """Steps and citations on one line of thirty characters, so that nearly everything overlaps, nests and abuts."""
    span = st.builds(lambda at, n: Span("d", at, at + n), st.integers(0, 24), st.integers(1, 6))
    events = draw(st.lists(st.tuples(span, st.sampled_from("0123")), min_size=1, max_size=4, unique=True))
    orders = draw(st.permutations(range(len(events))))
    steps = [
        act(draw(st.sampled_from(["a", "b"])), f"t{kind}", draw(st.sampled_from(["r0", "r1", "r2"])), trigger,
            draw(span), order=orders[e])
        for e, (trigger, kind) in enumerate(events)
        for _ in range(draw(st.integers(1, 3)))
    ]  # fmt: skip
    offered = [s.trigger for s in steps] + [s.mention for s in steps]
    cited = draw(st.sets(st.one_of(st.sampled_from(offered), span), min_size=1, max_size=7))
    return list(dict.fromkeys(steps)), cited


@given(crowded())
@settings(max_examples=100, deadline=None)
def test_support_is_the_exhaustive_maximum_on_crowded_text(case: tuple[list[Step], set[Span]]) -> None:
    steps, cited = case
    expected = {c: s for c in ("a", "b") if (s := exhaustive(c, steps, cited, WIDE)) is not None}
    assert Verifier(["b", "a"], steps, WIDE).support(cited) == expected


@given(st.integers(0, 10_000), st.data())
@settings(max_examples=40, deadline=None)
def test_support_is_the_exhaustive_maximum_on_windows(seed: int, data: st.DataObject) -> None:
    window = random_window(seed, candidates=4, events=4)
    cited = data.draw(st.sets(st.sampled_from([h.span for h in window.handles]), min_size=1, max_size=10))
    ids = [c.candidate_id for c in window.candidates]
    expected = {c: s for c in sorted(ids) if (s := exhaustive(c, list(window.steps), cited, WIDE)) is not None}
    assert Verifier(ids, window.steps, WIDE).support(cited) == expected


def test_a_later_event_is_chosen_when_the_first_would_break_the_order() -> None:
    """Greedy by slot takes the earliest purchase... and would lose the order bonus of the pair."""
    steps = [
        act("a", "attack", "attacker", Span("d", 0, 5), Span("d", 6, 9), order=1),
        act("a", "buy", "buyer", Span("d", 20, 25), Span("d", 26, 29), order=2),
        act("a", "buy", "buyer", Span("d", 40, 45), Span("d", 46, 49), order=0),
    ]
    cited = [span for step in steps for span in (step.trigger, step.mention)]
    unused = 200_000 * 8 // 24
    assert Verifier(["a"], steps, PLAN).support(cited) == {"a": 850_000 + 100_000 + 100_000 - unused}


def test_two_types_of_one_trigger_are_one_event() -> None:
    trigger, mention = Span("d", 0, 5), Span("d", 6, 9)
    steps = [act("a", "attack", "attacker", trigger, mention), act("a", "buy", "buyer", trigger, mention)]
    assert Verifier(["a"], steps, PLAN).support([trigger, mention]) == {"a": 500_000 + 100_000}


def test_search_beyond_its_cap_supports_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    window = random_window(5, candidates=4, events=12)
    verifier = Verifier([c.candidate_id for c in window.candidates], window.steps, WIDE)
    everything = [h.span for h in window.handles]
    assert verifier.support(everything)
    monkeypatch.setattr(verifier_module, "MAX_NODES", 5)
    assert verifier.support(everything) == {}
    assert verifier.verify([everything])[0].candidate_id is None


def test_union_joins_what_overlaps_or_abuts_and_nothing_else() -> None:
    intervals = [("d", 4, 6), ("d", 0, 2), ("d", 2, 3), ("e", 1, 2), ("d", 5, 9)]
    assert union(intervals) == (("d", 0, 3), ("d", 4, 9), ("e", 1, 2))
    assert length(intervals) == 3 + 5 + 1
    assert union([]) == ()


@given(st.lists(st.builds(lambda d, at, n: Span(d, at, at + n), st.sampled_from("de"), st.integers(0, 20),
                          st.integers(1, 8))))  # fmt: skip
def test_stripping_keeps_exactly_the_cited_characters(spans: list[Span]) -> None:
    characters = {(s.doc_id, at) for s in spans for at in range(s.start, s.end)}
    evidence = strip(spans)
    assert {(d, at) for d, a, b in evidence for at in range(a, b)} == characters
    assert sum(b - a for _, a, b in evidence) == len(characters)
    assert strip(Span(*interval) for interval in reversed(evidence)) == evidence
