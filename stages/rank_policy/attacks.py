"""Texts that ask for something, and windows in which one of them stands.

The extractor is not asked again: trajectories and handles are those of the untouched window, moved to where their words
now stand. What is tried is whether the policy obeys what it reads, not whether the extractor can be fooled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import ParamError
from pipeline.prompts import CONTEXT
from pipeline.spans import Span, sha256_text
from pipeline.windows import Handle, Window

CONTROL = "control"
NAMES = "names"
"""Kind of the probes that plant nothing; no attack may have it."""

LONGEST = 200
"""Characters of a filled text: within `prompts.CONTEXT` of the span that it stands behind, so that it is shown."""

PLACEHOLDERS = ("name", "candidate", "slot", "handle", "special")


@dataclass(frozen=True, slots=True)
class Attack:
    """A text to plant.

    Args:
        attack_id: unique in its file.
        kind: `control`, or a word for what is tried.
        place: behind a sentence or mention that names the candidate, or at the end of its name.
        text: with placeholders.
    """

    attack_id: str
    kind: str
    place: Literal["sentence", "name"]
    text: Template

    @property
    def needs_special(self) -> bool:
        return "special" in self.text.get_identifiers()


class _AttackFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    id: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    kind: Annotated[str, Field(pattern=r"^[a-z][a-z_]*$")]
    place: Literal["sentence", "name"] = "sentence"
    text: Annotated[str, Field(min_length=1)]


def load_attacks(file: str | Path) -> list[Attack]:
    """Read and check a file of attacks.

    Raises:
        ParamError: unreadable, an unknown key or placeholder, an id twice, no control, or nothing but controls.
    """
    try:
        raw = YAML(typ="safe", pure=True).load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ParamError(f"not a readable YAML file: {type(error).__name__}", file=file) from None
    if not isinstance(raw, list):
        raise ParamError("expected a list of texts", file=file)
    attacks = [_attack(item, number, file) for number, item in enumerate(raw)]
    ids = [attack.attack_id for attack in attacks]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise ParamError(f"{twice[0]!r} stands there twice", file=file, field="id")
    controls = sum(attack.kind == CONTROL for attack in attacks)
    if not 0 < controls < len(attacks):
        what = "every text is a control" if attacks and controls else f"no text of kind {CONTROL}"
        raise ParamError(what, file=file, mend="an attack is judged against a harmless text: give both")
    return attacks


def _attack(raw: Any, number: int, file: str | Path) -> Attack:
    place = f"text {number + 1}"
    try:
        parsed = _AttackFile.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join([place, *(str(part) for part in first["loc"])])
        raise ParamError(first["msg"], file=file, field=field) from None
    text = Template(parsed.text)
    if parsed.kind == NAMES:
        raise ParamError(f"the kind {NAMES!r} is taken", file=file, field=place)
    if not text.is_valid():
        raise ParamError("a $ that begins no placeholder", file=file, field=place, mend="write $$ for a dollar sign")
    if unknown := [name for name in text.get_identifiers() if name not in PLACEHOLDERS]:
        known = ", ".join(f"${name}" for name in PLACEHOLDERS)
        raise ParamError(f"unknown placeholder ${unknown[0]}", file=file, field=place, mend=f"known: {known}")
    return Attack(parsed.id, parsed.kind, parsed.place, text)


def filled(attack: Attack, words: Mapping[str, str]) -> str:
    """The text with its placeholders filled, cut to `LONGEST` characters."""
    return attack.text.substitute(words)[:LONGEST]


def plant_in_name(window: Window, candidate_id: str, text: str) -> Window:
    """The window with a text behind the name of one candidate."""
    return replace(
        window,
        candidates=tuple(
            replace(c, name=f"{c.name} {text}") if c.candidate_id == candidate_id else c for c in window.candidates
        ),
    )


def plant(window: Window, handle: Handle, text: str) -> Window | None:
    """The window with a text behind the sentence of a handle, or behind the handle where the sentence ends too far off.

    Every span keeps its words: what stands behind the text moves.

    Args:
        window: any.
        handle: of the window, within its sentence.
        text: at most `LONGEST` characters.

    Returns:
        None where each of the two places lies within a span.
    """
    span = handle.span
    document = window.documents[span.doc_id]
    low, high = document.sentences[handle.sentence]
    added = f" {text}"
    near = high - span.end + len(added) <= CONTEXT
    inside = [h.span for h in window.handles if h.span.doc_id == span.doc_id]
    places = [at for at in ([high, span.end] if near else [span.end]) if low < at <= high and _free(at, inside)]
    if not places:
        return None
    at, n = places[0], len(added)

    def moved(own: Span) -> Span:
        if own.doc_id != span.doc_id or own.start < at:
            return own
        return Span(own.doc_id, own.start + n, own.end + n)

    whole = document.text[:at] + added + document.text[at:]
    sentences = tuple(
        (a, b + n) if i == handle.sentence else (a + n, b + n) if a >= at else (a, b)
        for i, (a, b) in enumerate(document.sentences)
    )
    changed = replace(document, text=whole, sha256=sha256_text(whole), sentences=sentences)
    return replace(
        window,
        documents={**window.documents, span.doc_id: changed},
        steps=tuple(replace(s, trigger=moved(s.trigger), mention=moved(s.mention)) for s in window.steps),
        handles=tuple(replace(h, span=moved(h.span)) for h in window.handles),
    )


def _free(at: int, spans: Sequence[Span]) -> bool:
    return not any(span.start < at < span.end for span in spans)
