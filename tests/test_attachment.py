"""Attachment: what is cited, that it is always valid, and who can be certified at all."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.certificates import Entry, Limits, attach, certifiable, check
from pipeline.skeletons import align, grade
from pipeline.spans import Span
from pipeline.verifier import Verifier
from pipeline.windows import Window
from tests.builders import PLAN, act, build_window, document, find, random_window, skeleton_of, story
from tests.test_verifier import PLAIN

LIMITS = Limits()


def verifier_of(window: Window, skeleton: object) -> Verifier:
    return Verifier([c.candidate_id for c in window.candidates], window.steps, skeleton)  # type: ignore[arg-type]


def test_trigger_and_mention_of_every_filled_slot() -> None:
    window = story()
    assert attach(window, PLAN, "Ada", LIMITS) == Entry(
        "Ada",
        (
            ("s1", (Span("news:2", 9, 17), Span("news:2", 0, 3))),
            ("s2", (Span("news-1", 4, 10), Span("news-1", 0, 3))),
        ),
    )
    assert attach(window, PLAN, "Dot", LIMITS) is None


def test_a_shared_span_is_cited_once_in_the_first_slot() -> None:
    doc = document("d", "Ada bought the mill and raided the vault.")
    ada = find(doc, "Ada")
    steps = [
        act("a", "buy", "buyer", find(doc, "bought"), ada),
        act("a", "attack", "attacker", find(doc, "raided"), ada, order=1),
    ]
    window = build_window([doc], ["a", "b", "c", "e"], steps)
    assert attach(window, PLAN, "a", LIMITS) == Entry(
        "a", (("s1", (find(doc, "raided"), ada)), ("s2", (find(doc, "bought"),)))
    )


def test_the_most_confident_hypothesis_fills_the_slot() -> None:
    doc = document("d", "Ada hit Bob. Ada struck Cay.")
    steps = [
        act("a", "attack", "attacker", find(doc, "hit"), find(doc, "Ada"), confidence=0.3),
        act("a", "attack", "attacker", find(doc, "struck"), find(doc, "Ada", 1), confidence=0.6, order=1),
    ]
    window = build_window([doc], ["a", "b", "c", "e"], steps)
    one_slot = skeleton_of(("s1", ["attack"], ["attacker"], 1.0))
    entry = attach(window, one_slot, "a", LIMITS)
    assert entry is not None and entry.spans[0] == find(doc, "struck")


def test_the_lightest_slots_are_dropped_until_the_certificate_is_valid() -> None:
    window = story()
    cited = attach(window, PLAN, "Ada", replace(LIMITS, bundle_share=0.0, bundle_characters=12))
    assert cited is not None and [slot_id for slot_id, _ in cited.slots] == ["s1"]
    assert attach(window, PLAN, "Ada", replace(LIMITS, bundle_share=0.0, bundle_characters=3)) is None


def test_a_mention_that_contains_the_trigger_is_cited_alone() -> None:
    doc = document("d", "Bombing suspect Ada fled.")
    steps = [act("a", "attack", "attacker", find(doc, "Bombing"), find(doc, "Bombing suspect Ada"))]
    window = build_window([doc], ["a", "b", "c", "e"], steps)
    assert attach(window, PLAN, "a", LIMITS) == Entry("a", (("s1", (find(doc, "Bombing suspect Ada"),)),))


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_whatever_is_attached_or_certified_is_valid_and_recovered(seed: int) -> None:
    window = random_window(seed)
    verifier = verifier_of(window, PLAIN)
    for candidate in window.candidates:
        entry = attach(window, PLAIN, candidate.candidate_id, LIMITS)
        assert entry is None or check(entry, window, PLAIN, LIMITS) is None
    for candidate_id, entry in certifiable(window, PLAIN, LIMITS, verifier).items():
        assert entry.candidate_id == candidate_id
        assert check(entry, window, PLAIN, LIMITS) is None
        assert verifier.sufficient(candidate_id, entry.spans)


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_with_unambiguous_trajectories_relevant_means_certifiable(seed: int) -> None:
    """Task definition, section 11, item 6: nothing that the grades reward is beyond the verifier."""
    window = random_window(seed, lattice=False)
    relevant = {
        c
        for c, steps in window.trajectories.items()
        if grade(PLAIN, align(PLAIN, [(s.event_id, s.type, s.role) for s in steps])) > 0
    }
    assert set(certifiable(window, PLAIN, LIMITS, verifier_of(window, PLAIN))) == relevant


def test_shared_evidence_makes_both_uncertifiable() -> None:
    doc = document("d", "The pair raided the vault.")
    spans = find(doc, "raided"), find(doc, "The pair")
    steps = [act(c, "attack", "attacker", *spans) for c in ("a", "b")]
    window = build_window([doc], ["a", "b", "c", "e"], steps)
    assert attach(window, PLAN, "a", LIMITS) is not None
    assert certifiable(window, PLAN, LIMITS, verifier_of(window, PLAN)) == {}


def test_a_pair_of_steps_tells_apart_what_neither_step_does() -> None:
    """a and b share the raid and the first purchase; the second alone speaks more for b, a robber by mistake."""
    doc = document("d", "The pair raided the vault. The pair bought a map. The pair took a drill.")
    pairs = {verb: (find(doc, verb), find(doc, "The pair", i)) for i, verb in enumerate(("raided", "bought", "took"))}
    steps = [
        *(act(c, "attack", "attacker", *pairs["raided"], order=2) for c in ("a", "b")),
        *(act(c, "buy", "buyer", *pairs["bought"], order=0) for c in ("a", "b")),
        act("a", "buy", "buyer", *pairs["took"], order=1, confidence=0.3),
        act("b", "attack", "attacker", *pairs["took"], order=1, confidence=0.3),
    ]
    window = build_window([doc], ["a", "b", "c", "e"], steps)
    verifier = verifier_of(window, PLAN)
    attached = attach(window, PLAN, "a", LIMITS)
    assert attached is not None and not verifier.sufficient("a", attached.spans)
    assert not any(verifier.sufficient("a", spans) for spans in pairs.values())
    found = certifiable(window, PLAN, LIMITS, verifier)
    assert set(found["a"].spans) == {*pairs["raided"], *pairs["took"]}
