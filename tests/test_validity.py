"""Validity: limits, sentences, triggers and lists. Which code each breach gets is the table in tests/tamper."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.certificates import REJECT_CODES, Entry, Limits, check, check_list, feasible, has_trigger
from pipeline.params import load_params
from pipeline.spans import Span
from pipeline.windows import Window
from tests.builders import PLAN, act, build_window, document, find, story
from tests.tiny import ROOT

LIMITS = Limits()
WINDOW = story()
ADA = Entry("Ada", (("s1", (Span("news:2", 9, 17), Span("news:2", 0, 3))),))
BOB = Entry("Bob", (("s1", (Span("news:2", 40, 46), Span("news:2", 36, 39))),))


def test_limits_come_from_params() -> None:
    assert Limits.of(load_params(ROOT / "params.yaml").verifier) == Limits()


@pytest.mark.parametrize(("characters", "limit"), [(0, 120), (800, 120), (807, 121), (10_000, 1_500)])
def test_bundle_limit_is_a_share_of_the_window_but_never_below_the_floor(characters: int, limit: int) -> None:
    assert LIMITS.bundle_limit(characters) == limit


def test_every_code_has_one_line() -> None:
    for code, meaning in REJECT_CODES.items():
        assert code.replace("_", "").isalpha() and code.islower()
        assert meaning and "\n" not in meaning and not meaning.endswith(".")


def wide(surface_words: int) -> tuple[Window, Entry]:
    """A window with one wide mention (nested trigger), and the entry that cites it."""
    doc = document("d", "hit " + "x" * (surface_words - 4) + ".\n" + "Padding that nobody cites. " * 200)
    whole = Span("d", 0, surface_words)
    steps = [act("a", "attack", "attacker", find(doc, "hit"), whole)]
    return build_window([doc], ["a", "b", "c", "e"], steps), Entry("a", (("s1", (whole,)),))


def test_a_slot_may_cite_up_to_its_limit_and_no_more() -> None:
    window, entry = wide(240)
    assert check(entry, window, PLAN, LIMITS) is None
    window, entry = wide(241)
    assert check(entry, window, PLAN, LIMITS) == "slot_characters"


def test_a_bundle_may_cite_up_to_its_limit_and_no_more() -> None:
    window, entry = wide(200)
    at_limit = replace(LIMITS, bundle_share=200 / window.characters, bundle_characters=1)
    assert check(entry, window, PLAN, at_limit) is None
    assert check(entry, window, PLAN, replace(at_limit, bundle_share=199.5 / window.characters)) == "bundle_characters"


def test_a_mention_that_contains_the_whole_trigger_counts_as_citing_it() -> None:
    window, entry = wide(40)
    assert check(entry, window, PLAN, LIMITS) is None


def test_a_mention_beside_the_trigger_does_not() -> None:
    doc = document("d", "The raiders raided the mill.")
    steps = [act("a", "attack", "attacker", find(doc, "raided"), find(doc, "The raiders"))]
    window = build_window([doc], ["a", "b", "c", "e"], steps, extra=[Span("d", 0, 15)])
    assert check(Entry("a", (("s1", (Span("d", 0, 15),)),)), window, PLAN, LIMITS) == "no_trigger", "cut in the middle"
    assert check(Entry("a", (("s1", (find(doc, "The raiders"),)),)), window, PLAN, LIMITS) == "no_trigger"


def test_spans_of_another_candidate_are_valid_in_form() -> None:
    """Form only: the verifier, not validity, finds out that the spans speak for somebody else."""
    assert check(Entry("Dot", ADA.slots), WINDOW, PLAN, LIMITS) is None


def test_lists() -> None:
    assert feasible([ADA, BOB], WINDOW, PLAN, LIMITS, 2, 3)
    assert check_list([ADA, BOB], WINDOW, PLAN, LIMITS, 1, 3) == "too_many_entries"
    assert check_list([ADA, ADA], WINDOW, PLAN, LIMITS, 2, 3) == "repeated_candidate"
    assert check_list([ADA], WINDOW, PLAN, LIMITS, 2, 3) == "too_few_entries"
    assert feasible([ADA], WINDOW, PLAN, LIMITS, 2, 1), "stopping early is allowed where no more can be certified"
    assert feasible([], WINDOW, PLAN, LIMITS, 2, 0)
    assert not feasible([], WINDOW, PLAN, LIMITS, 2, 1)
    assert check_list([ADA, Entry("Dot")], WINDOW, PLAN, LIMITS, 2, 1) == "no_slot", "padding is never valid"


def test_a_window_without_triggers_can_certify_nothing() -> None:
    assert has_trigger(WINDOW)
    mentions = tuple(h for h in WINDOW.handles if h.kind == "mention")
    assert not has_trigger(replace(WINDOW, handles=mentions))
    assert not has_trigger(replace(WINDOW, handles=()))
