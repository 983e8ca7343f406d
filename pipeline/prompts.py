"""A window rendered for a policy, under names drawn anew for every epoch; documents are untrusted.

    prompter = Prompter(load_template(), count, budget=2048, specials=tokenizer.all_special_tokens)
    prompt = prompter.render(window, intent, seed=7, epoch=3)
    entries = certificates.parse(completion, prompt.window, intent.skeleton, window.k, limits)

`prompt.window` is the window as printed: the renamed ids, and only the handles and steps that the policy saw. Grammar,
parser and labels (`certificates.render(entries, prompt.window)`) therefore need nothing else; entries are canonical.

Everything that comes from documents (sentences, names) or from an ontology (types, roles, titles) passes `Untrusted`:
it stays on its line, shows every character, and holds no special token and no mark. The words of documents stand
between two lines with a tag that occurs nowhere in them. This does not stop a policy from believing what it reads;
`tests/golden/injections.yaml` is there to measure that. Not for prompts in which a document's exact bytes matter.
"""

from __future__ import annotations

import base64
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from string import Template
from typing import TYPE_CHECKING, Self

from pipeline.errors import DataError, ParamError
from pipeline.naming import Naming, draw_names
from pipeline.skeletons import MICRO, Intent, Slot
from pipeline.spans import Span
from pipeline.templates import TAG, TEMPLATE, load_template
from pipeline.untrusted import Untrusted, escape
from pipeline.validity import Limits
from pipeline.windows import Handle, Step, Window

if TYPE_CHECKING:
    from pipeline.params import Params

__all__ = ["TEMPLATE", "Dropped", "Prompt", "Prompter", "load_template"]

TAG_LENGTH = 10

CONTEXT = 300
"""Characters shown on either side of a marked span; longer sentences are shown in part, so that a text without any
sentence break cannot crowd out everything else."""

NAME = 80
"""Characters of a candidate's name."""

BUCKETS = ("high", "medium", "low")


# ---- rendering ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dropped:
    """What a prompt does not show. Everything counts steps, but for the last three.

    Args:
        steps: left out because of the budget, of which ...
        no_slot: ... fit no slot of the intent, and ...
        low: ... fit one and are in the bucket `low`.
        uncitable: never shown: one of their spans crosses a sentence or is longer than a slot may cite.
        unasked: never shown: they fit no slot, and the prompter shows fitting steps only.
        handles, sentences: that only steps left out because of the budget refer to.
        characters: of the shown sentences, too far from any marked span.
    """

    steps: int
    no_slot: int
    low: int
    uncitable: int
    unasked: int
    handles: int
    sentences: int
    characters: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered window.

    Args:
        text: what the policy reads; the answer line follows immediately.
        tokens: its length by the given count.
        window: the window as printed: renamed, with the printed handles and steps only.
        naming: between the window's own ids and the printed ones.
        tag: the delimiter.
        dropped: what is not shown.
    """

    text: str
    tokens: int
    window: Window
    naming: Naming
    tag: str
    dropped: Dropped


@dataclass(frozen=True)
class Prompter:
    """Renders windows. Pure: equal arguments give equal prompts.

    Args:
        template: of `load_template`.
        count: length of a text in tokens.
        budget: the most tokens of a prompt.
        specials: special tokens of the tokenizer.
        limits: of a legal bundle.
        buckets: least confidence of `high` and of `medium` (`trajectories.buckets` of params.yaml).
        fitting: show only steps that fit a slot of the intent: prompts a third as long, for small models.

    Raises:
        ParamError: the template itself holds a special token.
    """

    template: Template
    count: Callable[[str], int]
    budget: int
    specials: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)
    buckets: tuple[float, float] = (0.5, 0.2)
    fitting: bool = False

    def __post_init__(self) -> None:
        self._check(self.template.template, "the template")

    @classmethod
    def of(cls, params: Params, count: Callable[[str], int], specials: Sequence[str]) -> Self:
        """The prompter that params.yaml asks for, for a tokenizer that counts so and has these special tokens.

        Raises:
            ParamError: see `load_template`; the template holds a special token.
        """
        settings, (high, medium) = params.policy, params.trajectories.buckets
        template, limits = load_template(settings.template), Limits.of(params.verifier)
        return cls(template, count, settings.budget, specials, limits, (high, medium), settings.steps == "fitting")

    @cached_property
    def untrusted(self) -> Untrusted:
        return Untrusted(self.specials)

    def render(self, window: Window, intent: Intent, seed: int, epoch: int = 0) -> Prompt:
        """Render one instance.

        While the prompt is over the budget, whole steps are left out: first those that fit no slot, then those of lower
        confidence buckets, then later ones. Handles and sentences go with the last step that refers to them. The
        number of steps is found by bisection over fixed midpoints, so a larger budget never shows less, whatever
        `count` does.

        Raises:
            DataError: plan and roster alone are over the budget.
            ParamError: a special token came about where the parts meet.
        """
        page = _Page(self, window, intent, draw_names(window, seed, epoch), _tag(window, intent, seed, epoch))
        n, text, tokens = self._fitting(page)
        if tokens > self.budget:
            raise DataError(
                f"plan and roster alone need {tokens} tokens, the budget is {self.budget}",
                field=f"{window.window_id}, {intent.intent_id}", mend="raise the budget or leave the window out",
            )  # fmt: skip
        self._check(text, f"the prompt of window {window.window_id!r}")
        return Prompt(text, tokens, page.window(n), page.naming, page.tag, page.dropped(n))

    def _fitting(self, page: _Page) -> tuple[int, str, int]:
        """Number of steps, text and tokens of the page with all steps, else of the one that bisection ends at."""
        over = len(page.ranked)
        best = self._measured(page, over)
        if best[2] <= self.budget:
            return best
        best = (0, "", 0)
        while over - best[0] > 1:
            tried = self._measured(page, (best[0] + over) // 2)
            if tried[2] <= self.budget:
                best = tried
            else:
                over = tried[0]
        return best if best[0] else self._measured(page, 0)

    def _measured(self, page: _Page, n: int) -> tuple[int, str, int]:
        text = page.text(n)
        return n, text, self.count(text)

    def _check(self, text: str, what: str) -> None:
        for token in self.specials:
            if token in text:
                raise ParamError(f"{what} holds the special token {token!r}", field="template", mend="reword it")

    def bucket(self, confidence: float) -> int:
        """Index into `BUCKETS`."""
        high, medium = self.buckets
        return 0 if confidence >= high else 1 if confidence >= medium else 2


def _tag(window: Window, intent: Intent, seed: int, epoch: int) -> str:
    """Letters and digits that depend on all texts and occur in none."""
    words = [d.text for d in window.documents.values()] + [c.name for c in window.candidates] + [intent.title]
    words += sorted({word for s in window.steps for word in (s.type, s.role)})
    folded = "\n".join(words).casefold()
    place = f"{seed}|{epoch}|{window.window_id}|{intent.intent_id}|{folded}".encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(place).digest()
    while (tag := base64.b32encode(digest)[:TAG_LENGTH].decode().lower()) in folded:
        digest = hashlib.sha256(digest).digest()
    return tag


@dataclass(frozen=True, slots=True)
class _Act:
    """A step that can be printed, with its handles (one if trigger and mention are one span) and the slots it fits."""

    step: Step
    handles: tuple[Handle, ...]
    slots: str
    bucket: int


Place = tuple[int, int]
"""Positions of a document in the window and of a sentence in the document."""


class _Page:
    """One window, prepared so that it can be printed with any number of steps."""

    def __init__(self, prompter: Prompter, window: Window, intent: Intent, naming: Naming, tag: str) -> None:
        self.naming, self.tag = naming, tag
        self._own, self._prompter, self._clean = window, prompter, prompter.untrusted
        self._documents = list(window.documents.values())
        self._position = {doc_id: i for i, doc_id in enumerate(window.documents)}
        self._before = list(accumulate((len(d.sentences) for d in self._documents), initial=1))
        self._units: dict[Place, Sequence[str]] = {}
        pairs = {(step.type, step.role) for step in window.steps}
        self._slots = {pair: "/".join(s.slot_id for s in intent.skeleton.slots if s.fits(*pair)) for pair in pairs}
        self._order = {slot.slot_id: j for j, slot in enumerate(intent.skeleton.slots)}
        self._label = {word: _label(word, self._clean) for pair in pairs for word in pair}
        self._fixed = {
            "question": self._clean(intent.title),
            "plan": "\n".join(_slot_line(slot, self._clean) for slot in intent.skeleton.slots),
            "k": str(window.k), "handles": str(prompter.limits.max_handles), TAG: tag,
        }  # fmt: skip
        self._heads = {
            c.candidate_id: f"{naming.printed[c.local_id]}: {self._clean(_cut(c.name))}" for c in window.candidates
        }
        acts = [act for step in window.steps if (act := self._act(step)) is not None]
        self._acts = [act for act in acts if act.slots or not prompter.fitting]
        self._unasked = len(acts) - len(self._acts)
        self.ranked = sorted(range(len(self._acts)), key=lambda i: (*_rank(self._acts[i]), i))
        """Indices of steps, the most useful first."""

    def _act(self, step: Step) -> _Act | None:
        """None where one of its spans can be cited by no valid certificate."""
        trigger, mention = self._own.handle_of[step.trigger], self._own.handle_of[step.mention]
        handles = (trigger,) if trigger is mention else (trigger, mention)
        for handle in handles:
            low, high = self._own.documents[handle.span.doc_id].sentences[handle.sentence]
            span = handle.span
            if span.start < low or span.end > high or len(span) > self._prompter.limits.slot_characters:
                return None
        return _Act(step, handles, self._slots[step.type, step.role], self._prompter.bucket(step.confidence))

    def _kept(self, n: int) -> list[_Act]:
        """The n most useful steps, in trajectory order."""
        return [self._acts[i] for i in sorted(self.ranked[:n])]

    def text(self, n: int) -> str:
        """The prompt with the n most useful steps."""
        kept = self._kept(n)
        texts, candidates = "\n".join(self._sentences(kept)), "\n".join(self._roster(kept))
        return self._prompter.template.substitute(self._fixed, texts=texts, candidates=candidates)

    def window(self, n: int) -> Window:
        """The window as printed with n steps."""
        kept, printed = self._kept(n), self.naming.printed
        cited = _cited(kept)
        return replace(
            self._own,
            candidates=tuple(replace(c, local_id=printed[c.local_id]) for c in self._own.candidates),
            steps=tuple(act.step for act in kept),
            handles=tuple(
                replace(h, handle_id=printed[h.handle_id]) for h in self._own.handles if h.handle_id in cited
            ),
        )  # fmt: skip

    def dropped(self, n: int) -> Dropped:
        """What the page with n steps does not show."""
        kept, lost = self._kept(n), [self._acts[i] for i in self.ranked[n:]]
        shown = self._places(kept)
        return Dropped(
            steps=len(lost),
            no_slot=sum(not act.slots for act in lost),
            low=sum(bool(act.slots) and BUCKETS[act.bucket] == "low" for act in lost),
            uncitable=len(self._own.steps) - len(self._acts) - self._unasked,
            unasked=self._unasked,
            handles=len(_cited(lost) - _cited(kept)),
            sentences=len(self._places(lost).keys() - shown.keys()),
            characters=sum(self._hidden(place, handles) for place, handles in shown.items()),
        )

    # the roster

    def _roster(self, kept: list[_Act]) -> list[str]:
        """A line per candidate, below it one per event, mention and slots with the roles it may play.

        A candidate's lines stand in the order of the plan, the surest of a slot first; lines without a slot last.
        """
        events: dict[str, dict[tuple[str, ...], list[_Act]]] = {key: {} for key in self._heads}
        for act in kept:
            key = (act.slots, act.step.event_id, *(handle.handle_id for handle in act.handles))
            events[act.step.candidate_id].setdefault(key, []).append(act)
        lines = []
        for candidate_id, head in self._heads.items():
            lines.append(head)
            local_id = head.partition(":")[0]
            seen: set[str] = set()
            for acts in sorted(events[candidate_id].values(), key=self._in_plan):
                slots = set(acts[0].slots.split("/"))
                lines.append(f"{local_id} {self._event(acts, surest=bool(slots - seen))}")
                seen |= slots
        return lines

    def _in_plan(self, acts: list[_Act]) -> tuple[int, float, int, Span, Span]:
        """Sorts a candidate's lines; within a slot as attachment prefers them."""
        first = acts[0].slots.split("/")[0]
        surest = min(acts, key=lambda act: -act.step.confidence).step
        place = self._order.get(first, len(self._order))
        return place, -surest.confidence, surest.order, surest.trigger, surest.mention

    def _event(self, acts: list[_Act], *, surest: bool) -> str:
        """`s1=E05,E03 S4 attack: attacker high`, as an answer would cite it; `s1~E05,E03 ...` where surer evidence for
        all its slots stands above; `E05,E03 ...` where no slot fits."""
        slots = f"{acts[0].slots}{'=' if surest else '~'}" if acts[0].slots else ""
        handles = ",".join(self.naming.printed[handle.handle_id] for handle in acts[0].handles)
        places = ",".join(dict.fromkeys(f"S{self._number(self._place(handle))}" for handle in acts[0].handles))
        roles = (f"{self._label[a.step.role]} {BUCKETS[a.bucket]}" for a in acts)
        return f"{slots}{handles} {places} {self._label[acts[0].step.type]}: {', '.join(roles)}"

    # the sentences

    def _place(self, handle: Handle) -> Place:
        return self._position[handle.span.doc_id], handle.sentence

    def _number(self, place: Place) -> int:
        """A sentence's number in the window, from 1; gaps are sentences that are not shown."""
        return self._before[place[0]] + place[1]

    def _places(self, acts: Iterable[_Act]) -> dict[Place, set[Span]]:
        """The cited spans by the sentence that they stand in."""
        handles = {handle.handle_id: handle for act in acts for handle in act.handles}
        places: dict[Place, set[Span]] = {}
        for handle in handles.values():
            places.setdefault(self._place(handle), set()).add(handle.span)
        return places

    def _sentences(self, kept: list[_Act]) -> list[str]:
        """A line per sentence that a step refers to, and one before the first of a document."""
        lines, last = [], -1
        for place, spans in sorted(self._places(kept).items()):
            if place[0] != last:
                lines.append(f"D{place[0] + 1}")
            lines.append(f"S{self._number(place)} {self._marked(place, spans)}")
            last = place[0]
        return lines

    def _marked(self, place: Place, spans: set[Span]) -> str:
        """A sentence with `{E12 words}` around the spans."""
        document = self._documents[place[0]]
        low, high = document.sentences[place[1]]
        if place not in self._units:
            self._units[place] = self._clean.units(document.text[low:high])
        units, marks, parts = self._units[place], self._marks(spans), list[str]()
        ranges = _around(spans, low, high)
        for at, end in ranges:
            while marks and marks[0][0] <= end:
                position, mark = marks.popleft()
                parts += ["".join(units[at - low : position - low]), mark]
                at = position
            parts += ["".join(units[at - low : end - low]), " … "]
        before, after = "… " if ranges[0][0] > low else "", " …" if ranges[-1][1] < high else ""
        return f"{before}{''.join(parts[:-1])}{after}"

    def _hidden(self, place: Place, spans: set[Span]) -> int:
        """How many characters of a sentence are not shown."""
        low, high = self._documents[place[0]].sentences[place[1]]
        return high - low - sum(end - start for start, end in _around(spans, low, high))

    def _marks(self, spans: set[Span]) -> deque[tuple[int, str]]:
        """Marks by position. Spans may be nested; one that crosses another is only marked where it begins: `{E12}`."""
        marks: deque[tuple[int, str]] = deque()
        begun: list[Span] = []
        for span in sorted(spans, key=lambda s: (s.start, -s.end)):
            while begun and begun[-1].end <= span.start:
                marks.append((begun.pop().end, "}"))
            name = self.naming.printed[self._own.handle_of[span].handle_id]
            if begun and begun[-1].end < span.end:
                marks.append((span.start, f"{{{name}}}"))
            else:
                marks.append((span.start, f"{{{name} "))
                begun.append(span)
        marks.extend((span.end, "}") for span in reversed(begun))
        return marks


def _rank(act: _Act) -> tuple[bool, int, int, Span, Span]:
    """What is most useful sorts first: fits a slot, confident, early."""
    return not act.slots, act.bucket, act.step.order, act.step.trigger, act.step.mention


def _cited(acts: Iterable[_Act]) -> set[str]:
    """Own ids of the handles."""
    return {handle.handle_id for act in acts for handle in act.handles}


def _around(spans: Iterable[Span], low: int, high: int) -> list[tuple[int, int]]:
    """The parts of the sentence from `low` to `high` that lie within CONTEXT of a span, as disjoint ranges."""
    if high - low <= CONTEXT:
        return [(low, high)]
    ranges: list[tuple[int, int]] = []
    for span in sorted(spans):
        start, end = max(low, span.start - CONTEXT), min(high, span.end + CONTEXT)
        if ranges and start <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]))
        else:
            ranges.append((start, end))
    return ranges


def _cut(name: str) -> str:
    return name if len(name) <= NAME else f"{name[: NAME - 1]}…"


def _label(word: str, untrusted: Untrusted) -> str:
    """An event type or role as one word without a comma: what separates labels is structure."""
    return untrusted(word).replace(" ", "_").replace(",", escape(","))


def _slot_line(slot: Slot, untrusted: Untrusted) -> str:
    """`s1 0.5 climax required after s2: attack, raid / attacker`"""
    words = [slot.slot_id, f"{slot.weight / MICRO:g}"]
    words += [word for word, holds in (("climax", slot.climax), ("required", slot.required)) if holds]
    words += ["after", ",".join(slot.predecessors)] if slot.predecessors else []
    types, roles = (", ".join(_label(word, untrusted) for word in some) for some in (slot.types, slot.roles))
    return f"{' '.join(words)}: {types} / {roles}"
