"""Validity of a certificate: the rules, their limits and a reject code for each (task definition, section 5).

An `Entry` is one ranked candidate with its cited spans per matched slot. `check` names the first rule that it breaks,
`check_list` the first rule that a whole list breaks. Validity is form, not meaning: whether the spans speak for the
candidate is the verifier's business (`pipeline.verifier`). Import these names from `pipeline.certificates`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from pipeline.spans import Span

if TYPE_CHECKING:
    from pipeline.params import Verifier as VerifierParams
    from pipeline.skeletons import Skeleton
    from pipeline.windows import Handle, Window

REJECT_CODES: dict[str, str] = {
    # the compact line
    "syntax": "the line is not of the form `C07 s1=E12,E02 s3=E15 | C02 s1=E03 .`",
    "truncated": "the line does not end in a full stop",
    "unknown_handle": "no such evidence handle in this window",
    "slot_order": "slots are not in the order of the plan",
    # an entry
    "unknown_candidate": "no such candidate in this window's roster",
    "unknown_slot": "no such slot in this plan",
    "repeated_slot": "a slot stands twice in one entry",
    "empty_slot": "a slot is named but cites nothing",
    "no_slot": "the entry matches no slot and cites nothing",
    "too_many_handles": "a slot cites more spans than allowed",
    "unknown_document": "a span cites a document that does not exist here",
    "out_of_text": "a span ends beyond the end of its document",
    "not_a_handle": "a span is none of the window's evidence handles: shifted, cut or invented",
    "repeated_span": "a span is cited twice in one entry",
    "overlapping_spans": "two spans of one entry share characters",
    "cross_sentence": "a span does not lie within one sentence",
    "slot_characters": "a slot cites more characters than allowed",
    "bundle_characters": "an entry cites more characters than allowed for this window",
    "no_trigger": "a matched slot cites no full trigger",
    # a list
    "too_many_entries": "the list has more than K entries",
    "too_few_entries": "the list is shorter than min(K, number of candidates that can be certified)",
    "repeated_candidate": "a candidate stands on the list twice",
    # the JSON form
    "json": "not a JSON object",
    "duplicate_key": "a key stands twice in one JSON object",
    "missing_key": "a required key is absent",
    "unknown_key": "a key that this format does not have",
    "version": "the version of the format is not 1",
    "field_type": "a value has the wrong type",
    "offset_type": "an offset is not a plain integer (true, 1.0, NaN and \"1\" are not)",
    "negative_offset": "a span starts before its document",
    "empty_span": "a span does not start before it ends",
    "rank_order": "ranks are not 1, 2, 3 ... in the order of the list",
    "listed_documents": "`documents` does not list exactly the cited documents",
    # documents
    "foreign_document": "a span cites a document of another window",
    "document_changed": "a cited document's text is not the one that was cited: its sha256 differs",
    "text_mismatch": "the characters at a span are not the text quoted for it",
    # outcomes that are no error of form
    "not_recovered": "valid, but the verifier does not recover this candidate from the cited spans",
    "no_trigger_handle": "the window holds no trigger handle, so nothing can be certified and the list is empty",
}  # fmt: skip
"""Reject code -> what it means, in one line."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a certificate may cite.

    Args:
        max_handles: spans per slot (B).
        slot_characters: characters per slot.
        bundle_share: share of the window's text that one entry may cite in total ...
        bundle_characters: ... where that is more than so many characters.
    """

    max_handles: int = 2
    slot_characters: int = 240
    bundle_share: float = 0.15
    bundle_characters: int = 120

    @classmethod
    def of(cls, params: VerifierParams) -> Limits:
        """The limits in the section `verifier` of params.yaml."""
        return cls(params.max_handles, params.slot_characters, params.bundle_share, params.bundle_characters)

    def bundle_limit(self, window_characters: int) -> int:
        """Characters that one entry may cite in a window of so many characters."""
        return max(int(self.bundle_share * window_characters), self.bundle_characters)


@dataclass(frozen=True, slots=True)
class Entry:
    """A ranked candidate (canonical id) and the spans it cites for each matched slot, slots in plan order."""

    candidate_id: str
    slots: tuple[tuple[str, tuple[Span, ...]], ...] = ()

    @property
    def spans(self) -> tuple[Span, ...]:
        """All cited spans in the order of citation: what the verifier gets to see, as a set."""
        return tuple(span for _, spans in self.slots for span in spans)


def check(entry: Entry, window: Window, skeleton: Skeleton, limits: Limits) -> str | None:
    """The first validity rule that an entry breaks, as reject code; None when it is valid."""
    known_slots = [slot.slot_id for slot in skeleton.slots]
    if all(candidate.candidate_id != entry.candidate_id for candidate in window.candidates):
        return "unknown_candidate"
    if any(slot_id not in known_slots for slot_id, _ in entry.slots):
        return "unknown_slot"
    places = [known_slots.index(slot_id) for slot_id, _ in entry.slots]
    return (
        check_shape(entry, limits)
        or ("slot_order" if places != sorted(places) else None)
        or _first(_check_span(span, window) for span in entry.spans)
        or check_overlap(entry.spans)
        or _first("cross_sentence" if not _in_one_sentence(span, window) else None for span in entry.spans)
        or check_characters(entry, limits, window.characters)
        or _first("no_trigger" if not _cites_trigger(spans, window) else None for _, spans in entry.slots)
    )


def check_list(
    entries: Sequence[Entry], window: Window, skeleton: Skeleton, limits: Limits, k: int, certifiable: int
) -> str | None:
    """The first rule that a list breaks; None when it is feasible.

    Args:
        entries: the emitted entries.
        k: the most entries allowed.
        certifiable: number of candidates for which the verifier accepts some legal bundle; a list may stop early, but
            not before min(k, certifiable) entries.
    """
    if len(entries) > k:
        return "too_many_entries"
    if len({entry.candidate_id for entry in entries}) < len(entries):
        return "repeated_candidate"
    if len(entries) < min(k, certifiable):
        return "too_few_entries"
    return _first(check(entry, window, skeleton, limits) for entry in entries)


def feasible(
    entries: Sequence[Entry], window: Window, skeleton: Skeleton, limits: Limits, k: int, certifiable: int
) -> bool:
    """Whether a list keeps every rule; arguments as for `check_list`."""
    return check_list(entries, window, skeleton, limits, k, certifiable) is None


def has_trigger(window: Window) -> bool:
    """Whether anything can be certified at all; where not, the list is empty with the code `no_trigger_handle`."""
    return any(handle.kind != "mention" for handle in window.handles)


# ---- rules that need no extraction, shared with `pipeline.interchange` ----------------------------------------------


def check_shape(entry: Entry, limits: Limits) -> str | None:
    """Slots: at least one, none twice, none empty, none with too many spans."""
    if not entry.slots:
        return "no_slot"
    if len({slot_id for slot_id, _ in entry.slots}) < len(entry.slots):
        return "repeated_slot"
    if any(not spans for _, spans in entry.slots):
        return "empty_slot"
    if any(len(spans) > limits.max_handles for _, spans in entry.slots):
        return "too_many_handles"
    return None


def check_overlap(spans: Sequence[Span]) -> str | None:
    """No character is cited twice."""
    ordered = sorted(spans)
    if len(set(ordered)) < len(ordered):
        return "repeated_span"
    if any(a.overlaps(b) for a, b in pairwise(ordered)):
        return "overlapping_spans"
    return None


def check_characters(entry: Entry, limits: Limits, window_characters: int) -> str | None:
    """Slots and the whole entry keep to their number of characters; spans are known not to overlap."""
    sizes = [sum(len(span) for span in spans) for _, spans in entry.slots]
    if any(size > limits.slot_characters for size in sizes):
        return "slot_characters"
    if sum(sizes) > limits.bundle_limit(window_characters):
        return "bundle_characters"
    return None


# ---- rules on one span ----------------------------------------------------------------------------------------------


def _first(codes: Iterable[str | None]) -> str | None:
    return next((code for code in codes if code is not None), None)


def _check_span(span: Span, window: Window) -> str | None:
    document = window.documents.get(span.doc_id)
    if document is None:
        return "unknown_document"
    if span.end > len(document.text):
        return "out_of_text"
    return None if span in window.handle_of else "not_a_handle"


def _in_one_sentence(span: Span, window: Window) -> bool:
    sentences = window.documents[span.doc_id].sentences
    i = bisect_right(sentences, span.start, key=lambda sentence: sentence[0]) - 1
    return i >= 0 and span.end <= sentences[i][1]


def _cites_trigger(spans: Sequence[Span], window: Window) -> bool:
    """Whether a span is a trigger, or a mention that contains a whole one."""
    return any(
        window.handle_of[span].kind != "mention" or any(h.kind != "mention" for h in _handles_inside(span, window))
        for span in spans
    )


def _handles_inside(span: Span, window: Window) -> Iterator[Handle]:
    handles = window.handles  # sorted by span
    i = bisect_left(handles, (span.doc_id, span.start), key=lambda h: (h.span.doc_id, h.span.start))
    while i < len(handles) and handles[i].span.overlaps(span):
        if span.contains(handles[i].span):
            yield handles[i]
        i += 1
