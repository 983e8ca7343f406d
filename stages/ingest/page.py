"""The text of one synthetic report while it is written: names for participants, and the range of every span.

Templates hold {A}, {B}, {W}, {X}, {Y} for participants ({A's} possessive), [ ] around triggers, {source}, {when}.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date, timedelta
from random import Random
from typing import Any

from stages.ingest.story import Happening, Participant

_TOKEN = re.compile(r"(\{A's\}|\{[ABWXY]\}|\[|\])")

PEOPLE = ("figure", "official")
PARAGRAPH = 4
"""Sentences per paragraph."""
DATED = 0.4
"""Chance that an event is dated."""

Range = tuple[int, int]


@dataclass(slots=True)
class Told:
    """An event mention: its happening, the trigger's range, and the ranges of its two participants' mentions."""

    happening: Happening
    start: int
    end: int
    a: Range
    b: Range


@dataclass(slots=True)
class Report:
    """A written report; ranges index `text`.

    Args:
        mentions: range -> key of the participant.
        orders: pairs of indices of `told` (earlier, later) that a connective or a compound sentence orders.
    """

    title: str
    date: str
    text: str = ""
    sentences: list[tuple[int, int]] = field(default_factory=list)
    mentions: dict[tuple[int, int], int] = field(default_factory=dict)
    told: list[Told] = field(default_factory=list)
    orders: list[tuple[int, int]] = field(default_factory=list)


class Page:
    """A report being written.

    Args:
        report: its title and date; the text is added by `finish`.
        phrases: phrases.yaml.
        aliases: share of later mentions by another name.
        start: day 0 of the story.
        random: the window's own generator.
    """

    def __init__(self, report: Report, phrases: dict[str, Any], aliases: float, start: date, random: Random) -> None:
        self.report, self.phrases, self.aliases, self.start, self.random = report, phrases, aliases, start, random
        self.known: set[int] = set()
        self._described: set[int] = set()
        self._abbreviated: set[int] = set()
        self._bearer: dict[str, int] = {}
        self._pieces: list[str] = []
        self._at = 0

    def finish(self) -> Report:
        """The report with its text."""
        self.report.text = "".join(self._pieces)
        return self.report

    def introduce(self, who: Participant) -> None:
        """A sentence that ties a description or an acronym to a name."""
        if who.acronym and self.random.random() < 0.6:
            template = self.random.choice(self.phrases["profile_acronym"])
            self._abbreviated.add(who.key)
        else:
            profiles = "profile_person" if who.kind in PEOPLE else "profile_organisation"
            template = self.random.choice(self.phrases[profiles])
        regions: list[str] = self.phrases["regions"]
        article = "an" if who.description[0] in "aeiou" else "a"
        template = template.replace("a {description}", f"{article} {who.description}")
        template = template.replace("{region}", regions[len(who.name) % len(regions)])
        self.sentence(template, {"X": who}, introduced=who)
        self._described.add(who.key)

    def _name(self, who: Participant) -> str:
        """What this mention calls a participant."""
        names = []
        if who.key in self.known and self.random.random() < self.aliases:
            if who.short != who.name and self._bearer.get(who.short) == who.key:
                names.append(who.short)
            if who.key in self._abbreviated and who.acronym:
                names.append(who.acronym)
            if who.key in self._described:
                names.append(f"the {who.description}")
        self.known.add(who.key)
        self._bearer[who.short] = who.key
        return self.random.choice(names) if names else who.name

    def sentence(
        self, template: str, who: dict[str, Participant], happening: Happening | None = None,
        introduced: Participant | None = None,
    ) -> tuple[dict[str, Range], list[Range]]:  # fmt: skip
        """Write a sentence: ({letter: range of its mention}, ranges in brackets)."""
        random, phrases = self.random, self.phrases
        if "{source}" in template:
            template = template.replace("{source}", random.choice(phrases["sources"]))
        when = ""
        if happening is not None and random.random() < DATED:
            day = self.start + timedelta(days=happening.day)
            when = f" on {day.day} {day:%B}"
        template = template.replace("{when}", when)
        template = template.replace("{ACRONYM}", "{Y}")
        self._gap()
        begin, ranges, triggers, opened = self._at, {}, [], 0
        for token in _TOKEN.split(template):
            if token == "[":
                opened = self._at
            elif token == "]":
                triggers.append((opened, self._at))
            elif token.startswith("{"):
                letter = token[1]
                if letter == "Y" and introduced is not None:
                    word, person = str(introduced.acronym), introduced
                else:
                    # An introduction ties what it says to the name, so it always spells the name out.
                    person = who[letter]
                    word = person.name if introduced is not None else self._name(person)
                    if person.kind == "agency" and not word.startswith("the "):
                        self._emit("the ", begin)
                ranges[letter] = (self._at, self._at + len(word))
                self.report.mentions[ranges[letter]] = person.key
                self._emit(word, begin)
                if token == "{A's}":
                    self._emit("'" if word.endswith("s") else "'s", begin)
            elif token:
                self._emit(token, begin)
        if introduced is not None:
            self.known.add(introduced.key)
            self._bearer[introduced.short] = introduced.key
        self.report.sentences.append((begin, self._at))
        return ranges, triggers

    def _gap(self) -> None:
        written = len(self.report.sentences)
        if written:
            space = "\n\n" if written % PARAGRAPH == 0 else " "
            self._pieces.append(space)
            self._at += len(space)

    def _emit(self, word: str, begin: int) -> None:
        if self._at == begin:
            word = word[0].upper() + word[1:]
        self._pieces.append(word)
        self._at += len(word)
