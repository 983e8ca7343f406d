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
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from pipeline.skeletons import Alignment, Intent, Skeleton, align
from pipeline.spans import Span
from pipeline.windows import Handle, Step, Window

PER_KIND = 2
"""At most so many negatives of each kind per (window, intent)."""

MAX_BASES = 100
"""Bases tried for each kind, the best fits first. Some kinds compare a base with the whole roster, so in a window of
10,000 candidates who all fit equally well trying every one would take hours to find nothing."""


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
    triggers: frozenset[Span]

    @property
    def evidence(self) -> tuple[Span, ...]:
        return tuple(sorted({span for s in self.chosen if s is not None for span in (s.trigger, s.mention)}))


@dataclass(frozen=True, slots=True)
class Scene:
    """What a base is compared with.

    Args:
        window, skeleton: of the instance.
        fits: of all candidates, in roster order.
        heads: candidate_id -> head noun of its name.
        handles: (document, sentence) -> its handles, sorted by span.
    """

    window: Window
    skeleton: Skeleton
    fits: list[Fit]
    heads: dict[str, str]
    handles: dict[tuple[str, int], list[Handle]]


def fit(candidate_id: str, steps: list[Step], skeleton: Skeleton) -> Fit:
    """Best alignment of a trajectory, the extractor's surest steps first; one trigger span counts as one event."""
    ranked = sorted(steps, key=lambda s: -s.confidence)
    best: Alignment = align(skeleton, [(str(s.trigger), s.type, s.role) for s in ranked])
    chosen = tuple(None if i is None else ranked[i] for i in best.chosen)
    return Fit(candidate_id, steps, chosen, best.weight, frozenset(step.trigger for step in steps))


def window_negatives(window: Window, intent: Intent, cut: Counter[str] | None = None) -> list[dict[str, object]]:
    """Rows of `trajectories/negatives` for one window and intent, at most `PER_KIND` of each kind.

    Args:
        window, intent: the instance.
        cut: receives how many bases were left out of how many instances (keys `bases`, `instances`).
    """
    skeleton = intent.skeleton
    climax = skeleton.slots[skeleton.climax]
    if not any(climax.fits(step.type, step.role) for step in window.steps):
        return []  # no base; most intents are about something else
    fits = [fit(c, steps, skeleton) for c, steps in window.trajectories.items()]
    bases = sorted(
        (f for f in fits if f.chosen[skeleton.climax] is not None), key=lambda f: (-f.weight, f.candidate_id)
    )
    if cut is not None and len(bases) > MAX_BASES:
        cut.update(bases=len(bases) - MAX_BASES, instances=1)
    handles: dict[tuple[str, int], list[Handle]] = {}
    for handle in window.handles:
        handles.setdefault((handle.span.doc_id, handle.sentence), []).append(handle)
    scene = Scene(window, skeleton, fits, {c.candidate_id: head_noun(c.name) for c in window.candidates}, handles)
    rows: list[dict[str, object]] = []
    for make in MAKERS:
        found = islice((negative for base in bases[:MAX_BASES] for negative in make(base, scene)), PER_KIND)
        rows += [negative.row(window.window_id, intent.intent_id, n) for n, negative in enumerate(found)]
    return rows


def _plain(steps: list[Step]) -> tuple[tuple[str, str, int], ...]:
    return tuple((s.type, s.role, s.order) for s in sorted(steps, key=lambda s: s.order))


def _drop_climax(base: Fit, scene: Scene) -> Iterator[Negative]:
    climax = scene.skeleton.slots[scene.skeleton.climax]
    yield Negative("drop_climax", base.candidate_id,
                   steps=_plain([s for s in base.steps if not climax.fits(s.type, s.role)]))  # fmt: skip


def _swap_steps(base: Fit, scene: Scene) -> Iterator[Negative]:
    for earlier, later in scene.skeleton.precedences:
        a, b = base.chosen[earlier], base.chosen[later]
        if a is None or b is None or a.order >= b.order:
            continue
        place = {a.trigger: b.order, b.trigger: a.order}
        swapped = [(s.type, s.role, place.get(s.trigger, s.order)) for s in base.steps]
        yield Negative("swap_steps", base.candidate_id, steps=tuple(sorted(swapped, key=lambda s: s[2])))


def _swap_role(base: Fit, scene: Scene) -> Iterator[Negative]:
    climax = scene.skeleton.slots[scene.skeleton.climax]
    target = base.chosen[scene.skeleton.climax]
    assert target is not None
    wrong = [s for s in scene.window.steps if climax.fits_type(s.type) and not climax.fits_role(s.role)]
    if not wrong:
        return
    # The role of a companion in the very same event is the hardest; then whichever is surest in the window.
    role = min(wrong, key=lambda s: (s.trigger != target.trigger, -s.confidence, s.role)).role
    altered = [(s.type, role if climax.fits(s.type, s.role) else s.role, s.order) for s in base.steps]
    yield Negative("swap_role", base.candidate_id, steps=tuple(sorted(altered, key=lambda s: s[2])))


def _co_participant(base: Fit, scene: Scene) -> Iterator[Negative]:
    climax = scene.skeleton.climax
    target = base.chosen[climax]
    assert target is not None
    for other in scene.fits:
        if target.trigger in other.triggers and other.chosen[climax] is None:
            yield Negative("co_participant", base.candidate_id, other.candidate_id)


def _same_type(base: Fit, scene: Scene) -> Iterator[Negative]:
    climax = scene.skeleton.slots[scene.skeleton.climax]
    for other in scene.fits:
        apart = other.weight < base.weight and other.triggers.isdisjoint(base.triggers)
        if apart and any(climax.fits_type(s.type) for s in other.steps):
            yield Negative("same_type", base.candidate_id, other.candidate_id)


def _same_head(base: Fit, scene: Scene) -> Iterator[Negative]:
    head = scene.heads[base.candidate_id]
    for other in scene.fits:
        # Nobody fits less than itself.
        if other.weight < base.weight and scene.heads[other.candidate_id] == head != "":
            yield Negative("same_head", base.candidate_id, other.candidate_id)


def head_noun(name: str) -> str:
    """Last word of a name, casefolded; empty when it is shorter than three letters."""
    words = "".join(c if c.isalnum() else " " for c in name.casefold()).split()
    return words[-1] if words and len(words[-1]) >= 3 else ""


def _shifted_spans(base: Fit, scene: Scene) -> Iterator[Negative]:
    for step in (1, -1):
        moved = [_neighbour(scene.window.handle_of[span], step, scene) for span in base.evidence]
        spans = {handle.span for handle in moved if handle is not None}
        if None not in moved and len(spans) == len(moved) and not spans & set(base.evidence):
            yield Negative("shifted_spans", base.candidate_id, spans=tuple(sorted(spans)))
            return


def _neighbour(handle: Handle, step: int, scene: Scene) -> Handle | None:
    """The nearest handle of a like kind `step` sentences on, in the same document."""
    there = scene.handles.get((handle.span.doc_id, handle.sentence + step), [])
    like = [h for h in there if h.kind == handle.kind or "both" in (h.kind, handle.kind)]
    return min(like, key=lambda h: (abs(h.span.start - handle.span.start), h.span), default=None)


def _other_candidate(base: Fit, scene: Scene) -> Iterator[Negative]:
    shown = set(base.evidence)
    others = (f for f in scene.fits if not any({s.trigger, s.mention} <= shown for s in f.steps))
    # The strongest rival is the likeliest to be confused with the base.
    other = min(others, key=lambda f: (-f.weight, f.candidate_id), default=None)
    if other is not None:
        yield Negative("other_candidate", base.candidate_id, other.candidate_id, spans=base.evidence)


def _cite_all(base: Fit, scene: Scene) -> Iterator[Negative]:
    everything = tuple(sorted({span for s in base.steps for span in (s.trigger, s.mention)}))
    if everything != base.evidence:
        yield Negative("cite_all", base.candidate_id, spans=everything)


MAKERS: tuple[Callable[[Fit, Scene], Iterator[Negative]], ...] = (
    _drop_climax, _swap_steps, _swap_role, _co_participant, _same_type, _same_head, _shifted_spans, _other_candidate,
    _cite_all,
)  # fmt: skip
