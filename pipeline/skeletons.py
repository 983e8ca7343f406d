"""Intents and plan skeletons: what a ranking asks for, and how well a trajectory fits it.

An intent (`intents/<source>/<intent_id>.yaml`, written or mined, then frozen by a person) reads as "rank candidates by
how well their documented events fit this plan". Its skeleton is an acyclic set of weighted slots; an event fills a slot
for a candidate when its type is one of the slot's types and the candidate's role in it one of the slot's roles.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import ParamError

MICRO = 1_000_000
"""Weights and support are integers of 1e-6, so that sums do not depend on their order or on the machine."""

MAX_SLOTS = 6


@dataclass(frozen=True, slots=True)
class Slot:
    """One step of a plan.

    Args:
        slot_id: `s1`, `s2`, ...
        types: event types; `family.*` stands for every type that begins with `family.`.
        roles: allowed roles; `*` allows any, `!role` forbids one.
        weight: in integers of 1e-6; a skeleton's weights sum to 1e6.
        required: whether the plan needs it (missing ones are a feature, and coverage counts them).
        climax: whether it is the target event in a target role; exactly one slot is.
        predecessors: slots that come before it in the plan.
    """

    slot_id: str
    types: tuple[str, ...]
    roles: tuple[str, ...]
    weight: int
    required: bool = False
    climax: bool = False
    predecessors: tuple[str, ...] = ()

    def fits_type(self, event_type: str) -> bool:
        return _matches(event_type, self.types)

    def fits_role(self, role: str) -> bool:
        return f"!{role}" not in self.roles and ("*" in self.roles or role in self.roles)

    def fits(self, event_type: str, role: str) -> bool:
        return self.fits_role(role) and self.fits_type(event_type)


@lru_cache(maxsize=65_536)
def _matches(event_type: str, patterns: tuple[str, ...]) -> bool:
    return any(event_type == p or (p.endswith(".*") and event_type.startswith(p[:-1])) for p in patterns)


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A plan: slots in declared order. `precedences` are the pairs (earlier, later) of slot indices."""

    slots: tuple[Slot, ...]

    @property
    def climax(self) -> int:
        return next(j for j, slot in enumerate(self.slots) if slot.climax)

    @property
    def precedences(self) -> tuple[tuple[int, int], ...]:
        index = {slot.slot_id: j for j, slot in enumerate(self.slots)}
        return tuple((index[p], j) for j, slot in enumerate(self.slots) for p in slot.predecessors)


@dataclass(frozen=True, slots=True)
class Intent:
    """A registered intent. `sha256` identifies its exact content."""

    intent_id: str
    version: int
    title: str
    skeleton: Skeleton
    sha256: str


class _SlotFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    id: Annotated[str, Field(pattern=r"^s[1-9]$")]
    types: Annotated[list[str], Field(min_length=1)]
    roles: Annotated[list[str], Field(min_length=1)]
    weight: Annotated[float, Field(gt=0, le=1)]
    required: bool = False
    climax: bool = False
    after: list[str] = []


class _IntentFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    id: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    version: Annotated[int, Field(ge=1)]
    title: str
    status: Literal["mined", "frozen"] = "frozen"
    slots: Annotated[list[_SlotFile], Field(min_length=1, max_length=MAX_SLOTS)]


def parse_intent(raw: Any, file: str | Path = "intent") -> Intent:
    """Check one intent.

    Raises:
        ParamError: unknown key, not exactly one climax, weights that do not sum to 1, an unknown predecessor, a cycle.
    """
    try:
        parsed = _IntentFile.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ParamError(first["msg"], file=file, field=".".join(str(p) for p in first["loc"])) from None
    slots = tuple(
        Slot(s.id, tuple(s.types), tuple(s.roles), round(s.weight * MICRO), s.required, s.climax, tuple(s.after))
        for s in parsed.slots
    )
    ids = [slot.slot_id for slot in slots]
    if len(set(ids)) != len(ids):
        raise ParamError("slot ids repeat", file=file, field="slots")
    if sum(slot.climax for slot in slots) != 1:
        raise ParamError("exactly one slot must be the climax", file=file, field="slots")
    if sum(slot.weight for slot in slots) != MICRO:
        raise ParamError(f"weights sum to {sum(s.weight for s in slots) / MICRO}, not 1", file=file, field="slots")
    done: set[str] = set()
    for slot in slots:
        if unknown := set(slot.predecessors) - set(ids):
            raise ParamError(f"unknown slot {sorted(unknown)[0]!r}", file=file, field=f"{slot.slot_id}.after")
    while len(done) < len(slots):
        ready = [s.slot_id for s in slots if s.slot_id not in done and set(s.predecessors) <= done]
        if not ready:
            raise ParamError("the slots' order has a cycle", file=file, field="slots")
        done.update(ready)
    canonical = json.dumps(parsed.model_dump(exclude={"status"}), sort_keys=True, ensure_ascii=False)
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return Intent(parsed.id, parsed.version, parsed.title, Skeleton(slots), digest)


def load_intents(folder: str | Path) -> list[Intent]:
    """All intents of a folder, by id.

    Raises:
        ParamError: no folder, no intent in it, a broken file, or two files with one id.
    """
    files = sorted(Path(folder).glob("*.yaml"))
    if not files:
        raise ParamError("no intents here", file=folder, mend="write one, or run `certrank intents mine`")
    intents: dict[str, Intent] = {}
    for file in files:
        try:
            raw = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
        except (YAMLError, UnicodeDecodeError) as error:
            raise ParamError(f"not valid YAML: {getattr(error, 'problem', None) or error}", file=file) from None
        intent = parse_intent(raw, file)
        if intent.intent_id in intents:
            raise ParamError(f"intent id {intent.intent_id!r} is used twice", file=file)
        intents[intent.intent_id] = intent
    return [intents[key] for key in sorted(intents)]


def intents_from_table(frame: pl.DataFrame) -> list[Intent]:
    """Intents as stored in the table `trajectories/skeletons`."""
    out = []
    for rows in frame.sort("intent_id", "slot_id").partition_by("intent_id", maintain_order=True):
        slots = tuple(
            Slot(
                r["slot_id"], tuple(r["types"]), tuple(r["roles"]), round(r["weight"] * MICRO), r["required"],
                r["climax"], tuple(r["predecessors"]),
            )
            for r in rows.iter_rows(named=True)
        )  # fmt: skip
        first = rows.row(0, named=True)
        out.append(Intent(first["intent_id"], first["version"], first["title"], Skeleton(slots), first["sha256"]))
    return out


@dataclass(frozen=True, slots=True)
class Alignment:
    """A best alignment: `chosen[j]` is the index of the step that fills slot j or None; `weight` in 1e-6."""

    chosen: tuple[int | None, ...]
    weight: int


def align(skeleton: Skeleton, steps: Sequence[tuple[str, str, str]]) -> Alignment:
    """Best order-free alignment: one event per slot, an event in at most one slot, the filled weight maximal.

    Args:
        skeleton: the plan.
        steps: (event_id, type, role) of one candidate, in a fixed order; ties go to the earliest steps.

    Returns:
        The alignment of greatest weight (task definition, section 3: A*).
    """
    options = [[i for i, (_, t, r) in enumerate(steps) if slot.fits(t, r)] for slot in skeleton.slots]
    best = Alignment((None,) * len(options), 0)

    def search(j: int, chosen: tuple[int | None, ...], used: frozenset[str], weight: int) -> None:
        nonlocal best
        if j == len(options):
            if weight > best.weight:
                best = Alignment(chosen, weight)
            return
        if weight + sum(s.weight for s in skeleton.slots[j:]) <= best.weight:
            return
        seen: set[str] = set()
        for i in options[j]:
            event = steps[i][0]
            # Beyond as many distinct events as there are slots, another one cannot be needed: the rest conflict less.
            if event in used or event in seen:
                continue
            seen.add(event)
            search(j + 1, (*chosen, i), used | {event}, weight + skeleton.slots[j].weight)
            if len(seen) > len(options):
                break
        search(j + 1, (*chosen, None), used, weight)

    search(0, (), frozenset(), 0)
    return best


def grade(skeleton: Skeleton, alignment: Alignment) -> int:
    """Relevance: 3 climax and another slot, 2 climax, 1 another slot, 0 none (task definition, section 3)."""
    filled = [j for j, i in enumerate(alignment.chosen) if i is not None]
    if skeleton.climax in filled:
        return 3 if len(filled) > 1 else 2
    return 1 if filled else 0
