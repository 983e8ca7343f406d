"""Golden values of the verifier: worked out by hand from the formula of task definition, section 6.

Every row is a small scene over one document of plain letters. Its support is written as the sum that the formula
prescribes, so that a reader can check the row without running anything.
"""

from __future__ import annotations

import pytest

from pipeline.skeletons import Skeleton, Slot
from pipeline.spans import Span
from pipeline.verifier import CLAIM_ACCEPT, Verifier, claimed_support
from pipeline.windows import Step
from tests.builders import act

PLAN = Skeleton(
    (
        Slot("s1", ("Attack",), ("attacker",), 500_000, True, True, ("s2",)),
        Slot("s2", ("Buy",), ("buyer",), 200_000, False, False, ("s3",)),
        Slot("s3", ("Meet",), ("visitor", "host"), 150_000),
        Slot("s4", ("Attack",), ("*", "!attacker"), 150_000),
    )
)
"""Default weights: climax 0.5, other slots 0.35 together, the part slot 0.15. Two precedence pairs: s2<s1, s3<s2."""


def at(start: int, length: int = 5) -> Span:
    return Span("d", start, start + length)


ATTACK = act("x", "Attack", "attacker", at(0), at(10), order=5)
BUY = act("x", "Buy", "buyer", at(20), at(30), order=3)
MEET = act("x", "Meet", "visitor", at(40), at(50), order=4)
VICTIM = act("x", "Attack", "victim", at(0), at(10), order=5)
PART = act("x", "Attack", "victim", at(60), at(70), order=6)
Y_VICTIM = act("y", "Attack", "victim", at(0), at(80), order=5)


def spans(*steps: Step) -> list[Span]:
    return [span for step in steps for span in (step.trigger, step.mention)]


ROWS: dict[str, tuple[list[Step], list[Span], dict[str, int]]] = {
    # 0.5 climax + 0.1 role share 1/1; no pair, nothing unused
    "climax alone": ([ATTACK], spans(ATTACK), {"x": 600_000}),
    # 0.2 + 0.1: below the reference code's 0.35, above 0.10
    "one light slot": ([BUY], spans(BUY), {"x": 300_000}),
    # 0.15 + 0.1
    "the part slot": ([PART], spans(PART), {"x": 250_000}),
    # 0.5 + 0.2 + 0.1 + 0.1 * 1/1, buying (3) before attacking (5)
    "two slots in order": ([ATTACK, BUY], spans(ATTACK, BUY), {"x": 900_000}),
    # 0.5 + 0.2 + 0.15 + 0.1 + 0.1 * 1/2: meeting (4) stands after buying (3)
    "three slots, one pair of two in order": ([ATTACK, BUY, MEET], spans(ATTACK, BUY, MEET), {"x": 1_000_000}),
    # s3 and s1 are no pair: 0.5 + 0.15 + 0.1
    "two slots without a pair": ([ATTACK, MEET], spans(ATTACK, MEET), {"x": 750_000}),
    # 0.5 + 0.1 - 0.2 * 10/20
    "half of the characters unused": ([ATTACK], [*spans(ATTACK), at(90, 10)], {"x": 500_000}),
    # 0.5 + 0.1 - 0.2 * 1/11, rounded down to 18181
    "one character too many": ([ATTACK], [at(0, 6), at(10)], {"x": 600_000 - 18_181}),
    # two atoms on the chosen event, one allowed: 0.5 + 0.1 * 1/2, or the part slot: 0.15 + 0.1 * 1/2
    "an ambiguous role": ([ATTACK, VICTIM], spans(ATTACK), {"x": 550_000}),
    # 0.5 + 0.2 + 0.1 * 2/3 (66666) + 0.1
    "ambiguous in one of two": ([ATTACK, VICTIM, BUY], spans(ATTACK, BUY), {"x": 866_666}),
    # 0.5 + 0.15 + 0.1: two attacks fill two slots
    "climax and part": ([ATTACK, PART], spans(ATTACK, PART), {"x": 750_000}),
    # y only shares the trigger; with its mention cited too, x: 0.6 - 0.2 * 5/15, y: 0.15 + 0.1 - 0.2 * 5/15
    "co-participants": ([ATTACK, Y_VICTIM], [*spans(ATTACK), at(80)], {"x": 533_334, "y": 183_334}),
    # trigger without mention
    "no participant cited": ([ATTACK], [at(0)], {}),
    # an event whose role fits nothing is no evidence at all
    "wrong role only": ([act("x", "Buy", "seller", at(20), at(30))], [at(20), at(30)], {}),
}


@pytest.mark.parametrize(("steps", "cited", "expected"), ROWS.values(), ids=ROWS)
def test_support(steps: list[Step], cited: list[Span], expected: dict[str, int]) -> None:
    assert Verifier(["x", "y"], steps, PLAN).support(cited) == expected


@pytest.mark.parametrize("name", ["one light slot", "the part slot"])
def test_the_reference_threshold_would_reject_who_lacks_the_climax(name: str) -> None:
    """0.35 rejects every candidate without the climax slot; 0.10 accepts them."""
    steps, cited, _ = ROWS[name]
    assert Verifier(["x", "y"], steps, PLAN).sufficient("x", cited)
    assert not Verifier(["x", "y"], steps, PLAN, accept=CLAIM_ACCEPT).sufficient("x", cited)


def test_acceptance_needs_a_margin_of_five_hundredths() -> None:
    steps, cited, support = ROWS["co-participants"]
    (verdict,) = Verifier(["x", "y"], steps, PLAN).verify([cited])
    assert (verdict.candidate_id, verdict.sigma, verdict.margin) == ("x", 533_334, support["x"] - support["y"])
    rival = act("y", "Attack", "attacker", at(0), at(80), order=5)
    (verdict,) = Verifier(["x", "y"], [ATTACK, rival], PLAN).verify([cited])
    assert (verdict.candidate_id, verdict.margin) == (None, 0)


class Claim:
    """A claim that x filled the climax, citing one character of the trigger."""

    candidate_id = "x"
    slots = (("s1", (at(0, 1),)),)


def test_one_character_passes_the_reference_rule_and_not_ours() -> None:
    """0.5 + 0.1 for a role that was only claimed: above 0.35, whoever did it."""
    assert claimed_support(Claim(), "x", [VICTIM], PLAN) == 600_000 > CLAIM_ACCEPT
    assert Verifier(["x", "y"], [VICTIM], PLAN).support([at(0, 1)]) == {}
