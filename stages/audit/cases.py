"""One instance in one roster setting, with everything that systems are judged by; verdicts are shared between systems.

Validity, verification and the gold gate are computed here anew. What a system's own stage said about its list is only
compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeVar, cast

from pipeline import certificates, metrics
from pipeline.certificates import Entry, Limits
from pipeline.params import Params
from pipeline.skeletons import MICRO, Intent, Slot
from pipeline.spans import Span
from pipeline.verifier import Verdict, Verifier, verify_claims
from pipeline.windows import Step, Window, local_ids
from stages.audit.inputs import Gold

T = TypeVar("T")
Bundles = tuple[tuple[Span, ...], ...]


@dataclass(frozen=True, slots=True)
class EntryFacts:
    """What can be said of one entry without the rest of its list.

    Args:
        code: first reject code, None when valid.
        sigma: support of the entry's own candidate by its bundle, in 1e-6.
        sufficient, minimal: whether the bundle alone recovers the candidate, and whether it does so no longer without
            any one span.
        sufficiency: support by all evidence of the candidate minus support by the bundle, in 1e-6 (low is good).
        comprehensiveness: support by all evidence minus support by what the bundle leaves, in 1e-6 (high is good).
            Both after ERASER.
        precision: (spans needed, spans cited).
        recall: (claimed slots that are supported, claimed slots).
        characters: cited, each once.
        gold_gate: valid, and the bundle contains a minimal sufficient gold set; None without gold.
        iou_f1: None without gold evidence.
        l0, l1: valid, and accepted by the ablations of the verifier that trust claims (candidate, slot and role; slot
            and role).
    """

    code: str | None
    sigma: int
    sufficient: bool
    minimal: bool
    sufficiency: int
    comprehensiveness: int
    precision: tuple[int, int]
    recall: tuple[int, int]
    characters: int
    gold_gate: bool | None
    iou_f1: float | None
    l0: bool
    l1: bool


class View:
    """What all instances of one window share.

    Args:
        window: with its roster and trajectories.
        heldout: what the held-out extractor reads there instead, None where there is no such extractor.
    """

    def __init__(self, window: Window, heldout: Sequence[Step] | None = None) -> None:
        self.window, self.heldout = window, heldout
        self.local = {c.candidate_id: c.local_id for c in window.candidates}
        self.position = {doc_id: i for i, doc_id in enumerate(window.documents)}

    @cached_property
    def mentions(self) -> list[Span]:
        """Every handle in which the extractor saw a participant, sorted."""
        return [handle.span for handle in self.window.handles if handle.kind != "trigger"]

    @cached_property
    def trigger_types(self) -> dict[Span, frozenset[str]]:
        """Trigger span -> its event types."""
        types: dict[Span, frozenset[str]] = {}
        for step in self.window.steps:
            types[step.trigger] = types.get(step.trigger, frozenset()) | {step.type}
        return types

    @cached_property
    def relabelled(self) -> Window:
        """The window with local ids of candidates and handles of another epoch."""
        window = self.window
        c = local_ids("C", len(window.candidates), 0, window.window_id, epoch=1)
        e = local_ids("E", len(window.handles), 0, window.window_id, epoch=1)
        return replace(
            window,
            candidates=tuple(replace(x, local_id=name) for x, name in zip(window.candidates, c, strict=True)),
            handles=tuple(replace(x, handle_id=name) for x, name in zip(window.handles, e, strict=True)),
        )


class Case:
    """An instance in one roster setting.

    Args:
        view: the window with this setting's roster and trajectories.
        intent: what is asked.
        params: thresholds and limits.
        gold: None on a corpus without gold.
    """

    def __init__(self, view: View, intent: Intent, params: Params, gold: Gold | None) -> None:
        self.view, self.window, self.intent, self.gold = view, view.window, intent, gold
        window = view.window
        self.limits = Limits.of(params.verifier)
        self.accept, self.margin = round(params.verifier.accept * MICRO), round(params.verifier.margin * MICRO)
        self.verifier = self._verifier(self.accept, self.margin, window.steps)
        self.ideal = metrics.ideal_dcg(gold.pool, window.k) if gold else 0.0
        self._gold_iou = params.audit.gold_iou
        self._slots = {slot.slot_id: slot for slot in intent.skeleton.slots}
        self._codes: dict[Entry, str | None] = {}
        self._verdicts: dict[Bundles, list[Verdict]] = {}
        self._verdicts_l3: dict[Bundles, list[Verdict]] = {}
        self._facts: dict[Entry, EntryFacts] = {}
        self._memo: dict[tuple[str, Entry], object] = {}
        self._support: dict[tuple[Span, ...], dict[str, int]] = {}

    def _verifier(self, accept: int, margin: int, steps: Sequence[Step]) -> Verifier:
        candidates = [c.candidate_id for c in self.window.candidates]
        return Verifier(candidates, steps, self.intent.skeleton, accept, margin)

    @cached_property
    def lax(self) -> Verifier:
        """The verifier without thresholds: assignments with their support and margin, for the sweep."""
        return self._verifier(0, 0, self.window.steps)

    @cached_property
    def heldout(self) -> Verifier | None:
        """Level L3: the same verifier with the atoms of the held-out extractor."""
        steps = self.view.heldout
        return None if steps is None else self._verifier(self.accept, self.margin, steps)

    @cached_property
    def certifiable(self) -> int:
        """Number of candidates for which the verifier accepts some legal bundle."""
        return len(certificates.certifiable(self.window, self.intent.skeleton, self.limits, self.verifier))

    @cached_property
    def evidence(self) -> dict[str, tuple[Span, ...]]:
        """candidate_id -> all spans of its steps that fit some slot, sorted."""
        slots = self.intent.skeleton.slots
        spans: dict[str, set[Span]] = {c.candidate_id: set() for c in self.window.candidates}
        for step in self.window.steps:
            if any(slot.fits(step.type, step.role) for slot in slots):
                spans[step.candidate_id] |= {step.trigger, step.mention}
        return {candidate: tuple(sorted(found)) for candidate, found in spans.items()}

    # ---- verdicts --------------------------------------------------------------------------------------------------

    def code(self, entry: Entry) -> str | None:
        """First reject code of an entry, None when it is valid."""
        if entry not in self._codes:
            self._codes[entry] = certificates.check(entry, self.window, self.intent.skeleton, self.limits)
        return self._codes[entry]

    def verdicts(self, bundles: Bundles) -> list[Verdict]:
        """The verifier's verdict per bundle of one list."""
        if bundles not in self._verdicts:
            self._verdicts[bundles] = self.verifier.verify(bundles)
        return self._verdicts[bundles]

    def verdicts_l3(self, entries: Sequence[Entry]) -> list[Verdict] | None:
        """The same of a list's entries at level L3; None without a held-out extractor."""
        if self.heldout is None:
            return None
        bundles = tuple(entry.spans for entry in entries)
        if bundles not in self._verdicts_l3:
            self._verdicts_l3[bundles] = self.heldout.verify(bundles)
        return self._verdicts_l3[bundles]

    def gates(self, entries: Sequence[Entry]) -> list[bool]:
        """Per entry: valid, and recovered by the verifier from its spans alone."""
        return self.accepted(entries, self.verdicts(tuple(entry.spans for entry in entries)))

    def accepted(self, entries: Sequence[Entry], verdicts: Sequence[Verdict]) -> list[bool]:
        """Per entry: valid, and the verdict names its candidate."""
        return [
            self.code(entry) is None and verdict.candidate_id == entry.candidate_id
            for entry, verdict in zip(entries, verdicts, strict=True)
        ]

    def grades(self, ranking: Sequence[str]) -> list[int]:
        """Grade by rank; 0 for a candidate that stands for no gold candidate."""
        return [self.gold.grades.get(candidate, 0) for candidate in ranking] if self.gold else [0] * len(ranking)

    def certified(self, ranking: Sequence[str], gates: Sequence[bool] | None) -> float | None:
        """CertNDCG@K of a ranking under given gates (NDCG@K for None); None where nothing is relevant or gold."""
        return metrics.dcg(self.grades(ranking), self.window.k, gates) / self.ideal if self.ideal else None

    def memo(self, name: str, entry: Entry, make: Callable[[Case, Entry], T]) -> T:
        """`make(case, entry)`, computed once per entry: systems often write the same one."""
        if (name, entry) not in self._memo:
            self._memo[name, entry] = make(self, entry)
        return cast(T, self._memo[name, entry])

    # ---- single entries --------------------------------------------------------------------------------------------

    def facts(self, entry: Entry) -> EntryFacts:
        """Judge one entry; shared by all systems that wrote the same one."""
        if entry not in self._facts:
            self._facts[entry] = self._judge(entry)
        return self._facts[entry]

    def support(self, candidate_id: str, spans: tuple[Span, ...]) -> int:
        """Support of one candidate by spans, in 1e-6; 0 when no slot is filled."""
        if spans not in self._support:
            self._support[spans] = self.verifier.support(spans)
        return self._support[spans].get(candidate_id, 0)

    def _judge(self, entry: Entry) -> EntryFacts:
        spans, code = entry.spans, self.code(entry)
        candidate = entry.candidate_id
        own = self.evidence.get(candidate, ())
        left = tuple(span for span in own if not any(span.overlaps(cited) for cited in spans))
        everything, sigma = self.support(candidate, own), self.support(candidate, spans)
        steps: Sequence[Step] = self.window.trajectories.get(candidate, [])
        claimed = self._claimed(entry)
        sets = self.gold.sufficient.get(candidate, ()) if self.gold else ()
        sufficient = bool(spans) and self.verifier.sufficient(candidate, spans)
        return EntryFacts(
            code=code,
            sigma=sigma,
            sufficient=sufficient,
            minimal=sufficient and self.verifier.minimal(candidate, spans),
            sufficiency=everything - sigma,
            comprehensiveness=everything - self.support(candidate, left),
            precision=metrics.citation_precision(spans, claimed, steps),
            recall=metrics.citation_recall(spans, claimed, steps),
            characters=metrics.characters(spans),
            gold_gate=(code is None and metrics.matches_gold(spans, sets, self._gold_iou)) if self.gold else None,
            iou_f1=metrics.iou_f1(spans, sets, self._gold_iou) if self.gold else None,
            l0=code is None and self._by_claims(entry, "L0"),
            l1=code is None and self._by_claims(entry, "L1"),
        )

    def _by_claims(self, entry: Entry, level: Literal["L0", "L1"]) -> bool:
        candidates = [c.candidate_id for c in self.window.candidates]
        verdict = verify_claims([entry], candidates, self.window.steps, self.intent.skeleton, level)[0]
        return verdict.candidate_id == entry.candidate_id

    def _claimed(self, entry: Entry) -> list[Slot]:
        return [self._slots[slot_id] for slot_id, spans in entry.slots if spans and slot_id in self._slots]
