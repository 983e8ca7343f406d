"""Hard negatives on train windows: trajectories and certificates that are wrong in exactly one way.

They are made from extracted trajectories and skeletons alone, never from labels. A *base* is a candidate whose
extracted trajectory fills the climax slot; strongest bases first. `candidate_id` always names the base. By kind:

altered trajectories of the base (`steps`; only ever paired with their base)
    drop_climax      every step that fills the climax slot removed
    swap_steps       the two steps across a precedence edge have exchanged their places
    swap_role        the climax steps' role replaced by one that the slot forbids, taken from the window
real candidates that should rank below the base (`other_id`)
    co_participant   takes part in the base's climax event, but fills the climax slot nowhere
    same_type        acts in another event of the climax type, shares no event with the base, and fits the plan less
    same_head        its name ends in the same word, and it fits the plan less
certificates (`spans`)
    shifted_spans    the base's evidence replaced by the like spans one sentence on (or back)
    other_candidate  the base's evidence, given to `other_id`, whom it does not show
    cite_all         every span of the base's trajectory
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.skeletons import Alignment, Intent, Skeleton, align
from pipeline.spans import Span
from pipeline.windows import Handle, Step, Window

PER_KIND = 2
"""At most so many negatives of each kind per (window, intent)."""


@dataclass(frozen=True, slots=True)
class Negative:
    """One hard negative; which of the optional parts are set depends on its kind (see the module)."""

    kind: str
    candidate_id: str
    other_id: str | None = None
    steps: tuple[tuple[str, str, int], ...] | None = None
    spans: tuple[Span, ...] | None = None

    def row(self, window_id: str, intent_id: str, n: int) -> dict[str, object]:
        """As a row of `trajectories/negatives`; `n` tells apart negatives of one kind."""
        return {
            "window_id": window_id,
            "intent_id": intent_id,
            "negative_id": f"{window_id}|{intent_id}|{self.kind}|{n}",
            "kind": self.kind,
            "candidate_id": self.candidate_id,
            "other_id": self.other_id,
            "steps": None if self.steps is None else json.dumps(self.steps, ensure_ascii=False),
            "spans": None if self.spans is None else [str(span) for span in self.spans],
        }


@dataclass(frozen=True, slots=True)
class Fit:
    """How well one candidate's extracted trajectory fits the plan; `evidence` are the spans of the best alignment."""

    candidate_id: str
    steps: list[Step]
    chosen: tuple[Step | None, ...]
    weight: int

    @property
    def evidence(self) -> tuple[Span, ...]:
        return tuple(sorted({span for s in self.chosen if s is not None for span in (s.trigger, s.mention)}))

    @property
    def triggers(self) -> set[Span]:
        return {step.trigger for step in self.steps}


def fit(candidate_id: str, steps: list[Step], skeleton: Skeleton) -> Fit:
    """Best alignment of a trajectory, the extractor's surest steps first; one trigger span counts as one event."""
    ranked = sorted(steps, key=lambda s: -s.confidence)
    best: Alignment = align(skeleton, [(str(s.trigger), s.type, s.role) for s in ranked])
    chosen = tuple(None if i is None else ranked[i] for i in best.chosen)
    return Fit(candidate_id, steps, chosen, best.weight)


def window_negatives(window: Window, intent: Intent) -> list[dict[str, object]]:
    """Rows of `trajectories/negatives` for one window and intent, at most `PER_KIND` of each kind."""
    skeleton = intent.skeleton
    climax = skeleton.slots[skeleton.climax]
    if not any(climax.fits(step.type, step.role) for step in window.steps):
        return []  # no base; most intents are about something else
    fits = {c: fit(c, steps, skeleton) for c, steps in window.trajectories.items()}
    bases = sorted(
        (f for f in fits.values() if f.chosen[skeleton.climax] is not None), key=lambda f: (-f.weight, f.candidate_id)
    )
    rows: list[dict[str, object]] = []
    for make in MAKERS:
        found: list[Negative] = []
        for base in bases:
            found += make(base, fits, window, skeleton)
            if len(found) >= PER_KIND:
                break
        rows += [negative.row(window.window_id, intent.intent_id, n) for n, negative in enumerate(found[:PER_KIND])]
    return rows


def _plain(steps: list[Step]) -> tuple[tuple[str, str, int], ...]:
    return tuple((s.type, s.role, s.order) for s in sorted(steps, key=lambda s: s.order))


def _drop_climax(base: Fit, fits: dict[str, Fit], window: Window, skeleton: Skeleton) -> Iterator[Negative]:
    climax = skeleton.slots[skeleton.climax]
    yield Negative("drop_climax", base.candidate_id,
                   steps=_plain([s for s in base.steps if not climax.fits(s.type, s.role)]))  # fmt: skip


def _swap_steps(base: Fit, fits: dict[str, Fit], window: Window, skeleton: Skeleton) -> Iterator[Negative]:
    for earlier, later in skeleton.precedences:
        a, b = base.chosen[earlier], base.chosen[later]
        if a is None or b is None or a.order >= b.order:
            continue
        place = {a.trigger: b.order, b.trigger: a.order}
        swapped = [(s.type, s.role, place.get(s.trigger, s.order)) for s in base.steps]
        yield Negative("swap_steps", base.candidate_id, steps=tuple(sorted(swapped, key=lambda s: s[2])))


def _swap_role(base: Fit, fits: dict[str, Fit], window: Window, skeleton: Skeleton) -> Iterator[Negative]:
    climax = skeleton.slots[skeleton.climax]
    target = base.chosen[skeleton.climax]
    assert target is not None
    wrong = [s for s in window.steps if climax.fits_type(s.type) and not climax.fits_role(s.role)]
    if not wrong:
        return
    # The role of a companion in the very same event is the hardest; then whichever is surest in the window.
    role = min(wrong, key=lambda s: (s.trigger != target.trigger, -s.confidence, s.role)).role
    altered = [(s.type, role if climax.fits(s.type, s.role) else s.role, s.order) for s in base.steps]
    yield Negative("swap_role", base.candidate_id, steps=tuple(sorted(altered, key=lambda s: s[2])))


def _co_participant(base: Fit, fits: dict[str, Fit], window: Window, skeleton: Skeleton) -> Iterator[Negative]:
    target = base.chosen[skeleton.climax]
    assert target is not None
    for other in fits.values():
        if target.trigger in other.triggers and other.chosen[skeleton.climax] is None:
            yield Negative("co_participant", base.candidate_id, other.candidate_id)


def _same_type(base: Fit, fits: dict[str, Fit], window: Window, skeleton: Skeleton) -> Iterator[Negative]:
    climax = skeleton.slots[skeleton.climax]
    for other in fits.values():
        acts = any(climax.fits_type(s.type) for s in other.steps)
        if acts and other.weight < base.weight and not other.triggers & base.triggers:
            yield Negative("same_type", base.candidate_id, other.candidate_id)


def _same_head(base: Fit, fits: dict[str, Fit], window: Window, skeleton: Skeleton) -> Iterator[Negative]:
    heads = {c.candidate_id: head_noun(c.name) for c in window.candidates}
    for other in fits.values():
        if (
            other.candidate_id != base.candidate_id
            and heads[other.candidate_id] == heads[base.candidate_id] != ""
            and other.weight < base.weight
        ):
            yield Negative("same_head", base.candidate_id, other.candidate_id)


def head_noun(name: str) -> str:
    """Last word of a name, casefolded; empty when it is shorter than three letters."""
    words = "".join(c if c.isalnum() else " " for c in name.casefold()).split()
    return words[-1] if words and len(words[-1]) >= 3 else ""


def _shifted_spans(base: Fit, fits: dict[str, Fit], window: Window, skeleton: Skeleton) -> Iterator[Negative]:
    for step in (1, -1):
        moved = [_neighbour(window.handle_of[span], step, window) for span in base.evidence]
        spans = {handle.span for handle in moved if handle is not None}
        if None not in moved and len(spans) == len(moved) and not spans & set(base.evidence):
            yield Negative("shifted_spans", base.candidate_id, spans=tuple(sorted(spans)))
            return


def _neighbour(handle: Handle, step: int, window: Window) -> Handle | None:
    """The nearest handle of a like kind `step` sentences on, in the same document."""
    like = [
        h for h in window.handles
        if h.span.doc_id == handle.span.doc_id and h.sentence == handle.sentence + step
        and (h.kind == handle.kind or "both" in (h.kind, handle.kind))
    ]  # fmt: skip
    return min(like, key=lambda h: (abs(h.span.start - handle.span.start), h.span), default=None)


def _other_candidate(base: Fit, fits: dict[str, Fit], window: Window, skeleton: Skeleton) -> Iterator[Negative]:
    shown = set(base.evidence)
    others = [f for f in fits.values() if not any({s.trigger, s.mention} <= shown for s in f.steps)]
    # The strongest rival is the likeliest to be confused with the base.
    for other in sorted(others, key=lambda f: (-f.weight, f.candidate_id))[:1]:
        yield Negative("other_candidate", base.candidate_id, other.candidate_id, spans=base.evidence)


def _cite_all(base: Fit, fits: dict[str, Fit], window: Window, skeleton: Skeleton) -> Iterator[Negative]:
    everything = tuple(sorted({span for s in base.steps for span in (s.trigger, s.mention)}))
    if everything != base.evidence:
        yield Negative("cite_all", base.candidate_id, spans=everything)


MAKERS: tuple[Callable[[Fit, dict[str, Fit], Window, Skeleton], Iterator[Negative]], ...] = (
    _drop_climax, _swap_steps, _swap_role, _co_participant, _same_type, _same_head, _shifted_spans, _other_candidate,
    _cite_all,
)  # fmt: skip
