"""The word lists of the synthetic corpus (stages/ingest/sample/*.yaml), read and checked."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import ParamError

M = TypeVar("M", bound=BaseModel)

KINDS = ("figure", "official", "firm", "agency", "group")
"""Kinds of participant: private persons, office holders, companies, authorities, gangs."""

_ATTACHED = ("of", "at", "in")
"""Prepositions that belong to the object ("shares in B"), not to the verb ("money to B")."""


@dataclass(frozen=True, slots=True)
class Wording:
    """One way to tell an event; the trigger stands in brackets, {A} acts and {B} is concerned.

    Args:
        forms: name as in phrases.yaml ("VP", "PASSIVE", ...) -> phrase.
        shared: whether another event type may use the same trigger.
        noun: whether the trigger is a noun.
        novel: whether the train split never uses it.
    """

    forms: dict[str, str]
    shared: bool
    noun: bool
    novel: bool = False


@dataclass(frozen=True, slots=True)
class EventType:
    """An event type.

    Args:
        name: "corruption.bribe".
        roles: of {A} and {B}.
        who, whom: kinds of participant that may fill them.
        wordings: the ways to tell it.
        traces: sentences that follow a shared wording and say which type is meant.
    """

    name: str
    roles: tuple[str, str]
    who: tuple[str, ...]
    whom: tuple[str, ...]
    wordings: tuple[Wording, ...]
    traces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan: per step the alternatives (event type, role of the candidate); `climax` is the index of one step."""

    name: str
    actors: tuple[str, ...]
    climax: int
    steps: tuple[tuple[tuple[str, str], ...], ...]


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Everything the generator draws from; `idle` are the types that belong to no plan."""

    types: dict[str, EventType]
    plans: tuple[Plan, ...]
    idle: tuple[str, ...]
    names: dict[str, Any]
    phrases: dict[str, Any]


class _TypeFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    roles: list[str]
    who: list[str] = ["figure", "firm"]
    whom: list[str]
    verbs: list[str]
    nouns: list[str]
    novel: list[str]
    traces: list[str] = []


class _PlanFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    actors: list[str]
    climax: int
    steps: list[list[list[str]]]


def load_lexicon(folder: str | Path) -> Lexicon:
    """Read events.yaml, plans.yaml, names.yaml and phrases.yaml.

    Raises:
        ParamError: a file is missing or malformed, or a plan names an unknown type or role.
    """
    folder = Path(folder)
    types = {}
    for name, raw in _mapping(folder / "events.yaml").items():
        entry = _check(_TypeFile, raw, folder / "events.yaml", name)
        if len(entry.roles) != 2 or not set(entry.who + entry.whom) <= set(KINDS):
            raise ParamError("needs two roles and known kinds", file=folder / "events.yaml", field=name)
        if not entry.verbs or all("[" in wording for wording in entry.novel):
            raise ParamError("needs a verb, and a novel one", file=folder / "events.yaml", field=name)
        try:
            wordings = [*map(_verb, entry.verbs), *map(_noun, entry.nouns)]
            wordings += [replace(_noun(w) if "[" in w else _verb(w), novel=True) for w in entry.novel]
        except ValueError as error:
            raise ParamError(f"malformed wording: {error}", file=folder / "events.yaml", field=name) from None
        roles = (entry.roles[0], entry.roles[1])
        types[name] = EventType(
            name, roles, tuple(entry.who), tuple(entry.whom), tuple(wordings), tuple(entry.traces)
        )  # fmt: skip
    plans = []
    for name, raw in _mapping(folder / "plans.yaml").items():
        plan = _check(_PlanFile, raw, folder / "plans.yaml", name)
        steps = tuple(tuple((a[0], a[1]) for a in step) for step in plan.steps)
        for event_type, role in (a for step in steps for a in step):
            if event_type not in types or role not in types[event_type].roles:
                raise ParamError(f"unknown step [{event_type}, {role}]", file=folder / "plans.yaml", field=name)
        plans.append(Plan(name, tuple(plan.actors), plan.climax, steps))
    used = {event_type for plan in plans for step in plan.steps for event_type, _ in step}
    return Lexicon(
        types, tuple(plans), tuple(name for name in types if name not in used), _mapping(folder / "names.yaml"),
        _mapping(folder / "phrases.yaml"),
    )  # fmt: skip


def _mapping(file: Path) -> dict[str, Any]:
    try:
        value = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        mend = "ingest.path of the sample is stages/ingest/sample"
        raise ParamError("word list not found", file=file, field="ingest.path", mend=mend) from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamError(f"not valid YAML: {getattr(error, 'problem', None) or error}", file=file) from None
    if not isinstance(value, dict):
        raise ParamError("expected a mapping", file=file)
    return value


def _check(model: type[M], raw: object, file: Path, name: str) -> M:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join([name, *(str(part) for part in first["loc"])])
        raise ParamError(first["msg"], file=file, field=field) from None


def _verb(text: str) -> Wording:
    """`base/past/participle/gerund [| object | preposition]`."""
    shared, text = text.startswith("~"), text.removeprefix("~")
    parts = [part.strip() for part in text.split("|")]
    forms = parts[0].split("/")
    if len(forms) != 4 or len(parts) not in (1, 3):
        raise ValueError(text)
    base, past, participle, gerund = forms
    if len(parts) == 1:
        rest, passive = " {B}", f"{{B}} was [{participle}]"
        whom = f"{{B}}, whom {{A}} [{past}]"
    else:
        thing, preposition = parts[1:]
        rest = f" {thing} {preposition} {{B}}"
        be = "were" if thing.endswith("s") and not thing.startswith("a ") else "was"
        if preposition in _ATTACHED:
            passive = f"{thing} {preposition} {{B}} {be} [{participle}]"
            whom = f"{{B}}, where {{A}} [{past}] {thing}"
        else:
            passive = f"{thing} {be} [{participle}] {preposition} {{B}}"
            whom = f"{{B}}, {preposition} whom {{A}} [{past}] {thing}"
    phrases = {
        "VP": f"[{past}]{rest}", "GER": f"[{gerund}]{rest}", "INF": f"[{base}]{rest}", "PART": f"[{participle}]{rest}",
        "ACTIVE": f"{{A}} [{past}]{rest}", "PASSIVE": f"{passive} by {{A}}", "PASSIVE_BARE": passive,
        "WHOM": whom,
    }  # fmt: skip
    return Wording(phrases, shared, noun=False)


def _noun(text: str) -> Wording:
    shared, text = text.startswith("~"), text.removeprefix("~")
    if not re.fullmatch(r"[^][]*\[[^][]+\][^][]+", text):
        raise ValueError(text)
    phrases = {
        "NOUN": f"{{A's}} {text} {{B}}", "NOUN_BY": f"the {text} {{B}} by {{A}}",
        "NOUN_HANDS": f"the {text} {{B}} at the hands of {{A}}", "EVENT": f"the {text.rsplit(' ', 1)[0]}",
    }  # fmt: skip
    return Wording(phrases, shared, noun=True)
