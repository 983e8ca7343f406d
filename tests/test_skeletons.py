"""Intents, plan skeletons, alignment and grades."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ParamError
from pipeline.skeletons import MICRO, Alignment, Skeleton, Slot, align, grade, load_intents, parse_intent
from tests.builders import PLAN

INTENTS = sorted(p for p in (Path(__file__).parent.parent / "intents").iterdir() if p.is_dir())

RAW: dict[str, Any] = {
    "id": "who_attacked",
    "version": 1,
    "title": "Who attacked?",
    "slots": [
        {"id": "s1", "types": ["attack"], "roles": ["attacker"], "weight": 0.5, "required": True, "climax": True,
         "after": ["s2"]},
        {"id": "s2", "types": ["buy"], "roles": ["buyer"], "weight": 0.35},
        {"id": "s3", "types": ["attack"], "roles": ["*", "!attacker"], "weight": 0.15},
    ],
}  # fmt: skip


def changed(**changes: Any) -> dict[str, Any]:
    return {**RAW, **changes}


def with_slot(i: int, **changes: Any) -> dict[str, Any]:
    return changed(slots=[{**s, **changes} if i == j else s for j, s in enumerate(RAW["slots"])])


# ---- intents --------------------------------------------------------------------------------------------------------


def test_a_well_formed_intent() -> None:
    intent = parse_intent(RAW)
    assert intent.skeleton == PLAN
    assert intent.skeleton.climax == 0 and intent.skeleton.precedences == ((1, 0),)
    assert sum(slot.weight for slot in intent.skeleton.slots) == MICRO


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (changed(note="x"), "note"),
        ({k: v for k, v in RAW.items() if k != "slots"}, "slots"),
        (changed(slots=[]), "slots"),
        (changed(id="Who"), "id"),
        (changed(version=0), "version"),
        (changed(version=True), "version"),
        (with_slot(0, climax=False), "slots"),
        (with_slot(1, climax=True), "slots"),
        (with_slot(1, weight=0.4), "slots"),
        (with_slot(1, weight=0), "slots.1.weight"),
        (with_slot(1, id="s1"), "slots"),
        (with_slot(1, id="slot"), "slots.1.id"),
        (with_slot(1, types=[]), "slots.1.types"),
        (with_slot(1, roles="buyer"), "slots.1.roles"),
        (with_slot(1, after=["s7"]), "s2.after"),
        (with_slot(1, after=["s1"]), "slots"),
        (with_slot(1, after=["s2"]), "slots"),
    ],
)
def test_a_broken_intent_names_its_file_and_field(raw: Any, field: str) -> None:
    with pytest.raises(ParamError) as caught:
        parse_intent(raw, "intents/x/broken.yaml")
    assert caught.value.field == field
    assert str(caught.value).startswith("intents/x/broken.yaml: ")


def test_the_hash_covers_content_and_not_status() -> None:
    assert parse_intent(RAW).sha256 == parse_intent(changed(status="mined")).sha256
    assert parse_intent(RAW).sha256 != parse_intent(changed(version=2)).sha256


def test_folder_of_intents(tmp_path: Path) -> None:
    with pytest.raises(ParamError, match="no intents here"):
        load_intents(tmp_path)
    text = "id: a\nversion: 1\ntitle: A\nslots:\n- {id: s1, types: [x], roles: ['*'], weight: 1.0, climax: true}\n"
    (tmp_path / "b.yaml").write_text(text.replace("id: a", "id: b"))
    (tmp_path / "a.yaml").write_text(text)
    assert [intent.intent_id for intent in load_intents(tmp_path)] == ["a", "b"]
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ParamError, match="used twice"):
        load_intents(tmp_path)
    (tmp_path / "c.yaml").write_text("id: [")
    with pytest.raises(ParamError, match="not valid YAML"):
        load_intents(tmp_path)


@pytest.mark.parametrize("folder", INTENTS, ids=lambda p: p.name)
def test_every_registered_intent_can_be_certified_by_any_of_its_slots(folder: Path) -> None:
    """Task definition, section 11, item 6: the smallest slot weight exceeds the acceptance threshold of 0.10."""
    for intent in load_intents(folder):
        assert min(slot.weight for slot in intent.skeleton.slots) > 100_000, intent.intent_id


# ---- slots ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("types", "event_type", "fits"),
    [
        (("attack",), "attack", True),
        (("attack",), "attack.bomb", False),
        (("attack.*",), "attack.bomb", True),
        (("attack.*",), "attack", False),
        (("attack.*",), "attacking.x", False),
        (("buy", "attack.*"), "buy", True),
    ],
)
def test_types_and_families(types: tuple[str, ...], event_type: str, fits: bool) -> None:
    assert Slot("s1", types, ("*",), MICRO).fits_type(event_type) is fits


@pytest.mark.parametrize(
    ("roles", "role", "fits"),
    [
        (("buyer",), "buyer", True),
        (("buyer",), "seller", False),
        (("*",), "seller", True),
        (("*", "!buyer"), "buyer", False),
        (("*", "!buyer"), "seller", True),
        (("buyer", "!buyer"), "buyer", False),
    ],
)
def test_roles(roles: tuple[str, ...], role: str, fits: bool) -> None:
    assert Slot("s1", ("t",), roles, MICRO).fits_role(role) is fits


# ---- alignment and grades -------------------------------------------------------------------------------------------


def exhaustive(skeleton: Skeleton, steps: list[tuple[str, str, str]]) -> int:
    """Greatest weight over every choice of a step or nothing per slot, no event twice."""
    best = 0
    for chosen in product([None, *range(len(steps))], repeat=len(skeleton.slots)):
        events = [steps[i][0] for i in chosen if i is not None]
        fits = all(
            slot.fits(steps[i][1], steps[i][2]) for slot, i in zip(skeleton.slots, chosen, strict=True) if i is not None
        )
        if fits and len(set(events)) == len(events):
            weights = (s.weight for s, i in zip(skeleton.slots, chosen, strict=True) if i is not None)
            best = max(best, sum(weights))
    return best


SKELETONS = st.lists(
    st.tuples(st.sets(st.sampled_from("xyz"), min_size=1), st.sets(st.sampled_from("pq"), min_size=1),
              st.integers(1, 5)),
    min_size=1, max_size=4,
).map(lambda rows: Skeleton(tuple(
    Slot(f"s{j}", tuple(sorted(types)), tuple(sorted(roles)), weight, j == 0, j == 0)
    for j, (types, roles, weight) in enumerate(rows)
)))  # fmt: skip
STEPS = st.lists(st.tuples(st.sampled_from("123456"), st.sampled_from("xyz"), st.sampled_from("pqr")), max_size=6)


@given(SKELETONS, STEPS)
@settings(max_examples=200, deadline=None)
def test_alignment_is_the_exhaustive_maximum(skeleton: Skeleton, steps: list[tuple[str, str, str]]) -> None:
    found = align(skeleton, steps)
    assert found.weight == exhaustive(skeleton, steps)
    assert found.weight == sum(s.weight for s, i in zip(skeleton.slots, found.chosen, strict=True) if i is not None)
    filled = [(s, steps[i]) for s, i in zip(skeleton.slots, found.chosen, strict=True) if i is not None]
    assert all(slot.fits(step[1], step[2]) for slot, step in filled)
    assert len({step[0] for _, step in filled}) == len(filled)


def test_text_order_does_not_matter_and_ties_go_to_the_earliest_step() -> None:
    steps = [("e1", "attack", "attacker"), ("e2", "attack", "attacker"), ("e3", "buy", "buyer")]
    assert align(PLAN, steps) == Alignment((0, 2, None), 850_000)
    assert align(PLAN, steps[::-1]) == Alignment((1, 0, None), 850_000)


def test_many_events_are_aligned_at_once() -> None:
    steps = [(f"e{i}", "attack", "attacker" if i % 2 else "target") for i in range(20_000)]
    assert align(PLAN, steps) == Alignment((1, None, 0), 650_000)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], 0),
        ([("e", "attack", "attacker")], 2),
        ([("e", "attack", "attacker"), ("f", "buy", "buyer")], 3),
        ([("e", "attack", "attacker"), ("f", "attack", "target")], 3),
        ([("e", "attack", "attacker"), ("e", "attack", "target")], 2),
        ([("e", "buy", "buyer")], 1),
        ([("e", "attack", "target")], 1),
        ([("e", "buy", "seller")], 0),
    ],
)
def test_grades(steps: list[tuple[str, str, str]], expected: int) -> None:
    """3 climax and another slot, 2 climax, 1 another slot, 0 none (task definition, section 3)."""
    assert grade(PLAN, align(PLAN, steps)) == expected
