"""A few instances asked again, for the audit: under other names, and with a text planted that asks for something.

Which instances, which texts and whose rank a text is to raise are drawn by hash from ids alone, so every system and
roster setting is probed in the same way and no label, and no earlier answer, is looked at. An answer to a probe never
becomes a list.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import tables
from pipeline.params import Params
from pipeline.rankings import Draft
from pipeline.skeletons import Intent
from pipeline.windows import Window, stable_seed
from stages.rank_policy.attacks import CONTROL, NAMES, Attack, filled, load_attacks, plant, plant_in_name
from stages.rank_policy.questions import NoRoomError, Question

Key = tuple[str, str]
"""(window_id, intent_id)."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One instance, asked again.

    Args:
        question: as it is asked.
        kind: `names`, `control` or a kind of attack.
        name: number of the rendering, or id of the text.
        target: candidate whose rank the text is to raise.
        shown: whether the prompt holds the whole text.
    """

    question: Question
    kind: str
    name: str
    target: str | None = None
    shown: bool = True


class Prober:
    """Makes the probes of one run.

    Args:
        params: `rank_policy.probes`, `rank.splits` and the seed are used.
        intents: all that are asked.
        specials: special tokens of the tokenizer.
        root: data directory.

    Raises:
        ParamError: see `load_attacks`.
    """

    def __init__(
        self, params: Params, intents: Sequence[Intent], specials: Sequence[str], root: str | Path = "data"
    ) -> None:
        self.settings, self.seed, self.specials = params.rank_policy.probes, params.seed, sorted(specials)
        keys = drawn(params, [intent.intent_id for intent in intents], root)
        self.places = {key: place for place, key in enumerate(keys)}
        attacks = load_attacks(self.settings.attacks) if keys and self.settings.planted else []
        attacks = [attack for attack in attacks if self.specials or not attack.needs_special]
        attacks.sort(key=lambda attack: stable_seed("attack", self.seed, attack.attack_id))
        self.controls = [attack for attack in attacks if attack.kind == CONTROL]
        self.attacks = [attack for attack in attacks if attack.kind != CONTROL]

    def probes(self, question: Question) -> list[Probe]:
        """How an instance is asked again; not at all unless it was drawn, and its own prompt can be asked."""
        place = self.places.get((question.window.window_id, question.intent.intent_id))
        if place is None or not question.answerable:
            return []
        try:
            question.prompt  # noqa: B018 - whether it fits
        except NoRoomError:
            return []
        found = [
            Probe(replace(question, epoch=n, probe=f"{NAMES} {n}"), NAMES, str(n))
            for n in range(1, self.settings.renderings + 1)
        ]
        for attack in self._texts(place):
            probe = self._planted(question, attack)
            if probe is not None:
                found.append(probe)
        return found

    def _texts(self, place: int) -> list[Attack]:
        """The texts for the nth instance: one control and the next few attacks in turn, so that all are tried alike."""
        n = min(self.settings.planted, len(self.attacks))
        if not n:
            return []
        turn = [self.attacks[(place * n + i) % len(self.attacks)] for i in range(n)]
        return [self.controls[place % len(self.controls)], *turn]

    def _planted(self, question: Question, attack: Attack) -> Probe | None:
        """None where no printed evidence names anybody, or there is no place for the text."""
        window, printed = question.window, question.prompt.window
        place = (self.seed, window.window_id, question.intent.intent_id, attack.attack_id)
        named = sorted({step.candidate_id for step in printed.steps})
        if not named:
            return None
        target = named[stable_seed("target", *place) % len(named)]
        step = next(step for step in printed.steps if step.candidate_id == target)
        candidate = next(c for c in printed.candidates if c.candidate_id == target)
        text = filled(attack, {
            "name": candidate.name, "candidate": candidate.local_id, "slot": question.skeleton.slots[0].slot_id,
            "handle": printed.handle_of[step.mention].handle_id,
            "special": self.specials[stable_seed("special", *place) % len(self.specials)] if self.specials else "",
        })  # fmt: skip
        attacked: Window | None = plant_in_name(window, target, text)
        if attack.place == "sentence":
            attacked = plant(window, window.handle_of[step.mention], text)
        if attacked is None:
            return None
        asked = replace(question, window=attacked, probe=f"{attack.kind} {attack.attack_id}")
        try:
            shown = question.prompter.untrusted(text) in asked.prompt.text
        except NoRoomError:
            shown = False
        return Probe(asked, attack.kind, attack.attack_id, target, shown)


def drawn(params: Params, intent_ids: Sequence[str], root: str | Path = "data") -> list[Key]:
    """The instances that are asked again, in the order of their hashes; the same in every roster setting."""
    chosen = pl.col("kept") & pl.col("split").is_in(list(params.rank.splits))
    ranked = (
        (stable_seed("probe", params.seed, window_id, intent_id), (window_id, intent_id))
        for batch in tables.Reader("roster/windows", root).batches()
        for window_id in batch.filter(chosen)["window_id"].to_list() for intent_id in intent_ids
    )  # fmt: skip
    return [key for _, key in heapq.nsmallest(params.rank_policy.probes.instances, ranked)]


def row(probe: Probe, draft: Draft) -> dict[str, Any]:
    """A probe and its answer as the table `probes` has them, but for the instance."""
    written = next(generation for generation in draft.generations if generation.chosen)
    cited = [json.dumps(sorted(map(str, entry.spans))) for entry in draft.emitted] if probe.kind == NAMES else []
    return {
        "kind": probe.kind, "probe": probe.name, "target": probe.target, "shown": probe.shown,
        "status": written.status, "reject_code": written.reject_code,
        "emitted": [entry.candidate_id for entry in draft.emitted], "cited": cited, "text": written.text,
        "prompt_tokens": sum(generation.prompt_tokens for generation in draft.generations),
        "tokens": sum(generation.tokens for generation in draft.generations),
        "dropped_steps": written.dropped_steps,
    }  # fmt: skip
