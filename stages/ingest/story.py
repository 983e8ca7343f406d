"""What happens in one synthetic affair, before anybody writes about it: a cast, and events with days.

The window's main plan is followed by `followers` candidates: the first in full, the others in part (one of them with
the climax, one without). `distractors` follow another plan, fully or in part, or take part in events of no plan.
Officials, companies and authorities are those whom the events concern; distractors are, too. Those who did not do what
the plan aims at are falsely said to have followed it: `unreal` such events per event that did happen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

from pipeline.params import Sample
from stages.ingest.lexicon import EventType, Lexicon, Plan

SPARE_KINDS = ("official", "firm", "agency", "firm")
"""Kinds of the participants who follow no plan of their own; more are invented when an event needs another kind."""

MAIN_PLAN = 0.6
"""Share of a distractor's rumours that say the window's main plan of it; the others say the first distractor's."""

Draft = tuple[float, EventType, int, int, int | None]
"""Day, event type, participants in the first and the second role, thread."""


@dataclass(frozen=True, slots=True)
class Participant:
    """A member of the cast.

    Args:
        key: index in the cast.
        kind: one of `lexicon.KINDS`.
        name: the full name.
        short: surname, or the first part of an organisation's name.
        acronym: of an organisation with at least three words, else None.
        description: "magnate"; no two of the cast share one.
        pronoun: She, He or It.
    """

    key: int
    kind: str
    name: str
    short: str
    acronym: str | None
    description: str
    pronoun: str


@dataclass(frozen=True, slots=True)
class Happening:
    """An event of the affair.

    Args:
        key: index in the story; mentions of one happening corefer.
        type: its event type.
        a, b: participants in the first and the second role.
        day: from 0; no two happenings share a day.
        thread: whose plan it belongs to (a key of the cast), None for events of no plan.
    """

    key: int
    type: EventType
    a: int
    b: int
    day: int
    thread: int | None


@dataclass(frozen=True, slots=True)
class Story:
    """An affair.

    Args:
        cast: everybody; the candidates with acts of their own come first.
        actors: how many those are.
        happenings: what happened, by day.
        rumours: what is told but did not happen; their keys follow those of the happenings.
        shuffled: the threads that the reports tell out of order.
    """

    cast: tuple[Participant, ...]
    actors: int
    happenings: tuple[Happening, ...]
    rumours: tuple[Happening, ...]
    shuffled: frozenset[int]


class _Casting:
    """Invents participants with names and descriptions that the story has not used."""

    def __init__(self, lexicon: Lexicon, random: Random, same_surname: bool) -> None:
        self._names, self._random = lexicon.names, random
        self._used: set[str] = set()
        self._same_surname = same_surname
        self.cast: list[Participant] = []

    def add(self, kind: str) -> int:
        """A new participant's key."""
        key, random, names = len(self.cast), self._random, self._names
        if kind in ("figure", "official"):
            pronoun = random.choice(("She", "He"))
            first = self._fresh(names[pronoun.lower()])
            bearers = [p.short for p in self.cast if p.kind in ("figure", "official")]
            if self._same_surname and bearers:
                short, self._same_surname = random.choice(bearers), False
            else:
                short = self._fresh(names["surnames"])
            name, acronym = f"{first} {short}", None
        else:
            pronoun = "It"
            if kind == "group":
                short = name = self._fresh(names["groups"])
            else:
                short = self._fresh(names[f"{kind}_heads"])
                name = f"{short} {random.choice(names[f'{kind}_tails'])}"
            words = name.split()
            acronym = "".join(word[0] for word in words) if len(words) >= 3 else None
            if kind == "agency":
                short = name
        self.cast.append(Participant(key, kind, name, short, acronym, self._describe(kind), pronoun))
        return key

    def _describe(self, kind: str) -> str:
        """A description that no other member of the cast has."""
        return self._fresh(self._names["descriptions"][kind])

    def _fresh(self, words: Sequence[str]) -> str:
        """A word that the story has not used; when all are used up, one with a number."""
        left = [word for word in words if word not in self._used]
        word = self._random.choice(left) if left else f"{self._random.choice(words)} {len(self._used)}"
        self._used.add(word)
        return word


def write_story(lexicon: Lexicon, knobs: Sample, random: Random) -> Story:
    """Invent an affair.

    Args:
        lexicon: the word lists.
        knobs: params.yaml, ingest.sample.
        random: the window's own generator.
    """
    casting = _Casting(lexicon, random, random.random() < knobs.shared_surnames)
    main, *others = random.sample(lexicon.plans, len(lexicon.plans))
    followers = [casting.add(random.choice(main.actors)) for _ in range(knobs.followers)]
    distractors = [
        casting.add(random.choice(others[i % len(others)].actors if i < 2 else ("figure", "firm")))
        for i in range(knobs.distractors)
    ]
    spare = [casting.add(kind) for kind in SPARE_KINDS]

    drafts: list[Draft] = []

    def concern(event_type: EventType, kinds: Sequence[str], actor: int) -> int:
        """Someone for the other role: mostly a bystander, sometimes a distractor."""
        fitting = [k for k in spare if casting.cast[k].kind in kinds]
        if not fitting or random.random() < 0.3:
            fitting += [k for k in distractors if casting.cast[k].kind in kinds and k != actor]
        if not fitting:
            fitting = [casting.add(random.choice(list(kinds)))]
            spare.append(fitting[0])
        return random.choice(fitting)

    def draft(step: tuple[str, str], actor: int, day: float, thread: int | None) -> Draft:
        event_type = lexicon.types[step[0]]
        if step[1] == event_type.roles[0]:
            return day, event_type, actor, concern(event_type, event_type.whom, actor), thread
        return day, event_type, concern(event_type, event_type.who, actor), actor, thread

    def follow(plan: Plan, actor: int, steps: Sequence[int]) -> None:
        day = random.uniform(0, 40)
        for step in steps:
            drafts.append(draft(random.choice(plan.steps[step]), actor, day, actor))
            day += random.uniform(2, 20)

    for i, actor in enumerate(followers):
        follow(main, actor, _choose_steps(main, knobs.plan_steps if i == 0 else 2, i != 2, random))
    for i, actor in enumerate(distractors):
        if i < 2:
            plan = others[i % len(others)]
            follow(plan, actor, _choose_steps(plan, knobs.plan_steps if i == 0 else 2, i == 0, random))
        else:
            for _ in range(random.randint(1, 2)):
                event_type = lexicon.types[random.choice(lexicon.idle)]
                fits = casting.cast[actor].kind in event_type.who
                role = event_type.roles[0 if fits else 1]
                drafts.append(draft((event_type.name, role), actor, random.uniform(0, 80), None))
    if random.random() < knobs.role_swaps:
        _swap_roles(drafts, len(followers), random)
    drafts.sort(key=lambda d: d[0])
    happenings = _happenings(drafts, 0)
    rumours: list[Draft] = []
    wanted = knobs.unreal * len(drafts)
    wanted = int(wanted) + (random.random() < wanted - int(wanted))
    for actor in islice(_suspects(followers, distractors, random), 4 * wanted):
        own = actor in followers or actor == distractors[0]
        plan = main if own or random.random() < MAIN_PLAN else others[0]
        day = random.uniform(0, 40)
        for step in _choose_steps(plan, random.randint(2, knobs.plan_steps), True, random):
            rumour = draft(random.choice(plan.steps[step]), actor, day, None)
            # What is falsely said of somebody must not be true by accident, whoever did it to whom.
            if not any(rumour[1] is d[1] and {rumour[2], rumour[3]} == {d[2], d[3]} for d in drafts):
                rumours.append(rumour)
            day += random.uniform(2, 20)
        if len(rumours) >= wanted:
            break
    threads = sorted({h.thread for h in happenings if h.thread is not None})
    shuffled = frozenset(thread for thread in threads if random.random() < knobs.out_of_order)
    return Story(
        tuple(casting.cast), len(followers) + len(distractors), happenings, _happenings(rumours[:wanted], len(drafts)),
        shuffled,
    )  # fmt: skip


def _happenings(drafts: Sequence[Draft], first: int) -> tuple[Happening, ...]:
    """Drafts with keys from `first` on, and with days that differ."""
    return tuple(Happening(first + i, d[1], d[2], d[3], int(d[0]) + i, d[4]) for i, d in enumerate(drafts))


def _suspects(followers: Sequence[int], distractors: Sequence[int], random: Random) -> Iterator[int]:
    """Whom rumours are about, without end: in every round all who did not do what the main plan aims at."""
    while True:
        round_ = [*followers[2:3], *distractors] or list(followers)
        random.shuffle(round_)
        yield from round_


def _choose_steps(plan: Plan, size: int, climax: bool, random: Random) -> list[int]:
    """Indices of `size` steps in the order of the plan, with or without its climax."""
    rest = [i for i in range(len(plan.steps)) if i != plan.climax]
    chosen = random.sample(rest, min(size - climax, len(rest)))
    return sorted([*chosen, plan.climax] if climax else chosen)


def _swap_roles(drafts: list[Draft], followers: int, random: Random) -> None:
    """Add a later event like one of the followers', with its two participants in each other's role."""
    day, event_type, a, b, _ = random.choice([d for d in drafts if d[4] is not None and d[4] < followers])
    drafts.append((day + random.uniform(1, 15), event_type, b, a, None))
