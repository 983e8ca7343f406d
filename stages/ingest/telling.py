"""How the reports of a synthetic affair are worded; every span is recorded while the text is written (page.py).

What did not happen is told in the words of what did. It is the rest of the sentence, or a verdict in the sentence
before or after, that tells them apart (`hidden_cues`), and some of what did happen is doubted and confirmed in the same
words (`disputed`). A telling may name the wrong participant and be corrected by the next sentence (`corrections`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, timedelta
from random import Random
from typing import Any

from pipeline.params import Sample
from stages.ingest.lexicon import Lexicon, Wording
from stages.ingest.page import PEOPLE, Page, Range, Report, Told
from stages.ingest.story import Happening, Participant, Story

_MACRO = re.compile(r"\{(ACTIVE|PASSIVE_BARE|PASSIVE|NOUN_HANDS|NOUN_BY|NOUN|EVENT|WHOM|VP|GER|INF|PART)([12]?)\}")
_VERDICT = re.compile(r"<([^<|>]*)\|([^<|>]*)>")

STYLES = ("active",) * 9 + ("passive",) * 5 + ("relative",) * 3
DOUBTS = ("doubted",) * 2 + ("verdict_after",) * 2 + ("verdict_before",)
"""Where the cue stands that tells what happened from what did not: in the sentence, after it, before it."""
COMPOUND = 0.2
"""Chance that two events of one participant that are told one after the other share a sentence."""
CONNECTED, PROFILED = 0.5, 0.6
"""Chance that a connective orders an event after the one told last, that a newcomer is introduced."""
MUTUAL = 0.6
"""Share of tangled nouns whose participants stand side by side."""
REVERSED = 0.3
"""Share of the corrections that put two participants into each other's place, where their kinds allow."""

Who = dict[str, Participant]
Place = tuple[Range, Range, Range]
"""Ranges of a trigger and of its two participants' mentions."""


def tell_story(story: Story, lexicon: Lexicon, knobs: Sample, novelty: float, random: Random) -> list[Report]:
    """Write the reports of an affair: each event in one of them, `repeats` of them in another one, too.

    Args:
        story: the affair.
        lexicon: the word lists.
        knobs: params.yaml, ingest.sample.
        novelty: share of tellings in words that the train split never uses (0 in the train split).
        random: the window's own generator.
    """
    parts: list[list[Happening]] = [[] for _ in range(knobs.documents)]
    for happening in (*story.happenings, *story.rumours):
        first = random.randrange(len(parts))
        parts[first].append(happening)
        if len(parts) > 1 and random.random() < knobs.repeats:
            parts[(first + random.randrange(1, len(parts))) % len(parts)].append(happening)
    start = date(2021, 1, 1) + timedelta(days=random.randrange(900))
    outlets = random.sample(lexicon.names["outlets"], len(lexicon.names["outlets"]))
    reports = []
    for i, happenings in enumerate(parts):
        featured = story.cast[happenings[0].a] if happenings else story.cast[0]
        headline = random.choice(lexicon.phrases["headlines"]).replace("{X}", featured.short)
        day = start + timedelta(days=150 + i)
        report = Report(f"{outlets[i % len(outlets)]} (synthetic): {headline}", day.isoformat())
        page = Page(report, lexicon.phrases, knobs.aliases, start, random)
        page.sentence(random.choice(lexicon.phrases["opening"]), {"X": featured})
        _Writer(story, page, knobs, novelty, random).write(happenings)
        reports.append(page.finish())
    return reports


class _Writer:
    """Writes one report."""

    def __init__(self, story: Story, page: Page, knobs: Sample, novelty: float, random: Random) -> None:
        self.story, self.page, self.knobs, self.novelty, self.random = story, page, knobs, novelty, random
        self.report, self.phrases = page.report, page.phrases
        self.connectable: Happening | None = None
        self.filled: set[str] = set()

    def write(self, happenings: Sequence[Happening]) -> None:
        queue = self.order(happenings)
        while queue:
            happening = queue.pop(0)
            for key in (happening.a, happening.b):
                if key not in self.page.known and self.random.random() < PROFILED:
                    self.page.introduce(self.story.cast[key])
            if not self.happened(happening):
                self.mislead(happening)
            elif queue and self.follows(happening, queue[0]) and self.random.random() < COMPOUND:
                self.tell_two(happening, queue.pop(0))
            else:
                self.tell_truly(happening)
            for _ in range(int(self.knobs.noise) + (self.random.random() < self.knobs.noise % 1)):
                self.fill()
        if not self.report.told:
            self.fill()

    def order(self, happenings: Sequence[Happening]) -> list[Happening]:
        """By day, but the events of shuffled threads stand anywhere."""
        keys = {
            h.key: self.random.uniform(0, 100) if h.thread in self.story.shuffled else h.day for h in happenings
        }  # fmt: skip
        return sorted(happenings, key=lambda h: (keys[h.key], h.key))

    def happened(self, happening: Happening) -> bool:
        return happening.key < len(self.story.happenings)

    def follows(self, one: Happening, other: Happening) -> bool:
        """Whether both belong to the plan of one who acts in both."""
        return other.a == one.a and one.thread == one.a == other.thread

    def mislead(self, happening: Happening) -> None:
        """Something that did not happen: no event, but mentions."""
        if self.random.random() < self.knobs.hidden_cues:
            self.doubt(happening)
            return
        template = _expand(self.random.choice(self.phrases["unreal"]), self.word(happening, noun=False))
        self.page.sentence(template, {**self.fillers(happening), "X": self.bystander(happening)})

    def tell_truly(self, happening: Happening) -> None:
        """Something that happened; of the difficulties at most one, so that the text stays readable."""
        random, knobs = self.random, self.knobs
        if random.random() < knobs.corrections:
            self.correct(happening)
        elif random.random() < knobs.disputed:
            self.doubt(happening)
        else:
            self.tell_variously(happening)

    def tell_variously(self, happening: Happening) -> None:
        """With its actor in the sentence or in the one before."""
        if self.random.random() < self.knobs.remote_arguments:
            self.tell_remotely(happening)
        else:
            self.tell(happening)

    def tell(self, happening: Happening) -> None:
        """In one sentence; of `mutual`, sometimes in two."""
        wording = self.word(happening)
        tangled = self.random.random() < self.knobs.ambiguous_roles
        if tangled and wording.noun and self.random.random() < MUTUAL:
            self.tell_mutually(happening, wording)
            return
        if tangled:
            templates = self.phrases["tangled_noun" if wording.noun else "tangled"]
        else:
            style = "nominal" if wording.noun else self.random.choice(STYLES)
            novel = self.random.random() < self.novelty
            templates = self.phrases["novel"][style] if novel else self.phrases[style]
        self.state(happening, wording, self.random.choice(templates))

    def state(self, happening: Happening, wording: Wording, template: str, actor: Range | None = None) -> None:
        """Write an event's sentence and record it; `actor` is the range of an actor named before."""
        template = _expand(template, wording)
        before = self.lead(template, happening)
        who = {**self.fillers(happening), "X": self.bystander(happening)}
        ranges, triggers = self.page.sentence(before + template.replace("{lead}", ""), who, happening)
        self.record(happening, (triggers[0], actor or ranges["A"], ranges["B"]), connected=bool(before))
        self.trace(happening, wording)

    def tell_two(self, first: Happening, second: Happening) -> None:
        """Two events of one participant in one sentence; the connective says which came first."""
        early, late = sorted((first, second), key=lambda h: h.day)
        template = self.random.choice(self.phrases["compound"])
        one, two = (self.word(h, noun=False, plainly=True) for h in (early, late))
        template = _expand(template, one, "1").replace("{B}", "{X}")
        template = _expand(template, two, "2").replace("{B}", "{Y}")
        who = {"A": self.story.cast[early.a], "X": self.story.cast[early.b], "Y": self.story.cast[late.b]}
        early_first = template.index("{X}") < template.index("{Y}")
        ranges, triggers = self.page.sentence(template, who, late)
        index = len(self.report.told)
        order = triggers if early_first else triggers[::-1]
        self.record(early, (order[0], ranges["A"], ranges["X"]))
        self.record(late, (order[1], ranges["A"], ranges["Y"]))
        self.report.orders.append((index, index + 1))

    def tell_remotely(self, happening: Happening) -> None:
        """The acting participant is named in a sentence of its own, before the event."""
        first, second = self.random.choice(self.phrases["remote"])
        actor = self.story.cast[happening.a]
        ranges, _ = self.page.sentence(first, {"A": actor})
        second = second.replace("{He}", actor.pronoun).replace("{he}", actor.pronoun.lower())
        self.state(happening, self.word(happening, noun=False), second, ranges["A"])

    def tell_mutually(self, happening: Happening, wording: Wording) -> None:
        """Both participants stand side by side; who acted is said by "the former" or "the latter"."""
        former = self.random.random() < 0.5
        sentences = self.random.choice(self.phrases["mutual"])
        names = ("{A}", "{B}", "former", "latter") if former else ("{B}", "{A}", "latter", "former")
        for macro, name in zip(("{P}", "{Q}", "{actor}", "{other}"), names, strict=True):
            sentences = [sentence.replace(macro, name) for sentence in sentences]
        ranges, triggers = self.page.sentence(_expand(sentences[0], wording), self.fillers(happening), happening)
        self.record(happening, (triggers[0], ranges["A"], ranges["B"]))
        for sentence in sentences[1:]:
            self.page.sentence(sentence, {})
        self.trace(happening, wording)

    def doubt(self, happening: Happening) -> None:
        """Tell it in words that leave open whether it happened, and say so later or earlier in the text."""
        side = 2 if self.happened(happening) else 1
        kind = self.random.choice(DOUBTS)
        template = _VERDICT.sub(lambda match: match[side], self.random.choice(self.phrases[kind]))
        if kind == "doubted":
            self.state(happening, self.word(happening, noun=False), template)
            return
        if kind == "verdict_before":
            self.page.sentence(template, self.fillers(happening))
            self.tell(happening)
        else:
            self.tell_variously(happening)
            self.page.sentence(template, self.fillers(happening))

    def correct(self, happening: Happening) -> None:
        """Tell it with the wrong participant, or with the two in each other's place, and correct that."""
        wording = self.word(happening, plainly=True)
        template = _expand(self.random.choice(self.phrases["nominal" if wording.noun else "active"]), wording)
        template, who = template.replace("{lead}", ""), self.fillers(happening)
        kinds = who["A"].kind in happening.type.whom and who["B"].kind in happening.type.who
        if kinds and self.random.random() < REVERSED:
            ranges, triggers = self.page.sentence(template, {"A": who["B"], "B": who["A"]}, happening)
            actor, other = ranges["B"], ranges["A"]
            self.page.sentence(self.random.choice(self.phrases["reversed"]), who)
        else:
            wrong = self.suspect(happening)
            ranges, triggers = self.page.sentence(template, {"A": wrong, "B": who["B"]}, happening)
            other = ranges["B"]
            after, _ = self.page.sentence(self.random.choice(self.phrases["corrected"]), {**who, "W": wrong})
            actor = after["A"]
        self.record(happening, (triggers[0], actor, other))

    def suspect(self, happening: Happening) -> Participant:
        """Somebody else who might have done it."""
        cast = self.story.cast
        others = [p for p in cast[: self.story.actors] if p.key not in (happening.a, happening.b)]
        fitting = [p for p in others if p.kind in happening.type.who]
        return self.random.choice(fitting or others or [self.bystander(happening)])

    def bystander(self, happening: Happening) -> Participant:
        others = [p for p in self.story.cast if p.key not in (happening.a, happening.b)]
        return self.random.choice(others)

    def trace(self, happening: Happening, wording: Wording) -> None:
        """After a wording that another type shares, a sentence that tells which type is meant."""
        if wording.shared and happening.type.traces and self.happened(happening):
            self.page.sentence(self.random.choice(happening.type.traces), self.fillers(happening))

    def fill(self) -> None:
        """A sentence without any event, not used in this report before while there are others."""
        people = [p for p in self.story.cast if p.kind in PEOPLE]
        personal = len(people) > 1 and self.random.random() < 0.3
        templates: list[str] = self.phrases["filler_person" if personal else "filler"]
        template = self.random.choice([t for t in templates if t not in self.filled] or templates)
        self.filled.add(template)
        one, two = self.random.sample(people if personal else self.story.cast, 2)
        self.page.sentence(template, {"X": one, "Y": two})

    def word(self, happening: Happening, noun: bool = True, plainly: bool = False) -> Wording:
        """A wording of the event.

        Args:
            happening: the event.
            noun: whether nouns are allowed.
            plainly: only words whose event type is plain without a sentence after them.
        """
        novel = self.random.random() < self.novelty
        shared = not novel and not plainly and self.random.random() < self.knobs.ambiguous_triggers
        usable = [w for w in happening.type.wordings if w.novel == novel and (noun or not w.noun)]
        return self.random.choice([w for w in usable if w.shared == shared] or usable)

    def fillers(self, happening: Happening) -> Who:
        return {"A": self.story.cast[happening.a], "B": self.story.cast[happening.b]}

    def lead(self, template: str, happening: Happening) -> str:
        """A connective to the event told last, if the template takes one."""
        if self.connectable is None or "{lead}" not in template or self.random.random() >= CONNECTED:
            return ""
        if self.connectable.day == happening.day:
            return ""
        return str(self.random.choice(self.phrases["later" if self.connectable.day < happening.day else "earlier"]))

    def record(self, happening: Happening, place: Place, connected: bool = False) -> None:
        """Note an event mention if the event happened, and its order if a connective led to it."""
        if not self.happened(happening):
            # "Later" after it would count from something that did not happen.
            self.connectable = None
            return
        trigger, a, b = place
        told = self.report.told
        told.append(Told(happening, *trigger, a, b))
        if connected:
            i, j = len(told) - 2, len(told) - 1
            self.report.orders.append((i, j) if told[i].happening.day < happening.day else (j, i))
        self.connectable = happening


def _expand(template: str, wording: Wording, number: str = "") -> str:
    """Put an event's phrases into a template's macros of that number."""

    def phrase(match: re.Match[str]) -> Any:
        return wording.forms[match[1]] if match[2] == number else match[0]

    return _MACRO.sub(phrase, template)
