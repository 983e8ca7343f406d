"""The certificate language: grammar, rendering, parsing. Fails closed and repairs nothing (task definition, section 2).

A system answers with one line: entries in rank order, each a local candidate id and, for every matched plan slot in
plan order, the evidence handles it cites; then a full stop. A list may stop early, and an empty one is a bare `.`:

    C07 s1=E12,E02 s3=E15,E04 | C02 s1=E03,E07 .

`parse` resolves such a line against a window to entries of canonical ids and spans, or raises `CertificateError` with a
reject code. It accepts exactly the lines of the form above whose ids, slots and numbers the window allows; `render` is
its inverse. `grammar` is the same language for masked decoding, less the entries without any slot, which parse but are
never valid. This module is also the one to import from for everything about certificates: validity
(`pipeline.validity`), the JSON form (`pipeline.interchange`) and attachment (`pipeline.attachment`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.attachment import attach, certifiable
from pipeline.errors import CertificateError
from pipeline.interchange import Certified, Corpus, Source, check_documents, check_json, from_json, to_json
from pipeline.spans import Span
from pipeline.validity import REJECT_CODES, Entry, Limits, check, check_list, feasible, has_trigger

if TYPE_CHECKING:
    from pipeline.skeletons import Skeleton
    from pipeline.windows import Window

__all__ = [
    "REJECT_CODES", "CertificateError", "Certified", "Corpus", "Entry", "Limits", "Source", "attach", "certifiable",
    "check", "check_documents", "check_json", "check_list", "feasible", "from_json", "grammar", "has_trigger",
    "longest_answer", "parse", "render", "shortest_answer", "to_json",
]  # fmt: skip

END = "."
BETWEEN = " | "

_FORBIDDEN = re.compile(r"[^A-Za-z0-9=,| .]")
_ID = re.compile(r"[A-Za-z0-9]+")


def parse(text: str, window: Window, skeleton: Skeleton, k: int, limits: Limits) -> list[Entry]:
    """Read a compact line.

    Args:
        text: the whole line, without a line feed.
        k: the most entries allowed.

    Returns:
        The entries in rank order. They may still be invalid: `check` and `check_list` judge what no grammar can say.

    Raises:
        CertificateError: on anything else than a well-formed line; never another exception.
    """
    blocks = _split(text)
    if len(blocks) > k:
        raise CertificateError("too_many_entries", f"{len(blocks)} entries, at most {k} are allowed")
    order = {slot.slot_id: j for j, slot in enumerate(skeleton.slots)}
    return [_entry(local_id, slots, window, order, limits) for local_id, slots in blocks]


def render(entries: Sequence[Entry], window: Window) -> str:
    """Write entries as a compact line, the inverse of `parse`.

    Raises:
        CertificateError: a candidate or span that is not of this window, or an empty slot, for which there is no form.
    """
    local_ids = {candidate.candidate_id: candidate.local_id for candidate in window.candidates}
    blocks = []
    for entry in entries:
        if entry.candidate_id not in local_ids:
            raise CertificateError("unknown_candidate", f"{entry.candidate_id!r} is not in the roster")
        words = [local_ids[entry.candidate_id]]
        for slot_id, spans in entry.slots:
            if not spans:
                raise CertificateError("empty_slot", f"slot {slot_id} of {entry.candidate_id!r} cites nothing")
            if missing := [span for span in spans if span not in window.handle_of]:
                raise CertificateError("not_a_handle", f"{missing[0]} is no evidence handle of {window.window_id!r}")
            words.append(f"{slot_id}={','.join(window.handle_of[span].handle_id for span in spans)}")
        blocks.append(" ".join(words))
    return f"{BETWEEN.join(blocks)} {END}" if blocks else END


Block = tuple[str, list[tuple[str, list[str]]]]
"""A local candidate id and, per slot, handle ids: an entry as written."""


def _split(text: str) -> list[Block]:
    """The form of the line, ids not yet looked up."""
    if stray := _FORBIDDEN.search(text):
        raise CertificateError("syntax", f"character {stray[0]!r} at position {stray.start()}")
    if not text.endswith(END):
        raise CertificateError("truncated", f"the line ends in {text[-20:]!r}")
    if text == END:
        return []
    if not text.endswith(f" {END}"):
        raise CertificateError("syntax", "no space before the full stop")
    return [_split_block(block) for block in text[: -len(END) - 1].split(BETWEEN)]


def _split_block(block: str) -> Block:
    local_id, *words = block.split(" ")
    if not _ID.fullmatch(local_id):
        raise CertificateError("syntax", f"no candidate at the start of {block[:40]!r}")
    slots = []
    for word in words:
        slot_id, equals, cited = word.partition("=")
        if not equals or not _ID.fullmatch(slot_id):
            raise CertificateError("syntax", f"{word[:40]!r} is not of the form slot=handle,handle")
        if not cited:
            raise CertificateError("empty_slot", f"slot {slot_id[:40]} cites nothing")
        handles = cited.split(",")
        if not all(_ID.fullmatch(handle) for handle in handles):
            raise CertificateError("syntax", f"{word[:40]!r} is not of the form slot=handle,handle")
        slots.append((slot_id, handles))
    return local_id, slots


def _entry(
    local_id: str, slots: list[tuple[str, list[str]]], window: Window, order: dict[str, int], limits: Limits
) -> Entry:
    """Look up the ids of one entry."""
    if local_id not in window.by_local_id:
        raise CertificateError("unknown_candidate", f"{local_id[:40]} is not in the roster")
    resolved: list[tuple[str, tuple[Span, ...]]] = []
    last = -1
    for slot_id, handles in slots:
        if slot_id not in order:
            raise CertificateError("unknown_slot", f"{slot_id[:40]} is no slot of the plan")
        if slot_id in [known for known, _ in resolved]:
            raise CertificateError("repeated_slot", f"{slot_id} stands twice in the entry of {local_id}")
        if order[slot_id] < last:
            raise CertificateError("slot_order", f"{slot_id} of {local_id} stands after a later slot of the plan")
        if len(handles) > limits.max_handles:
            raise CertificateError("too_many_handles", f"{slot_id} of {local_id} cites {len(handles)} handles")
        if unknown := [handle for handle in handles if handle not in window.by_handle]:
            raise CertificateError("unknown_handle", f"{unknown[0][:40]} is no handle of this window")
        last = order[slot_id]
        resolved.append((slot_id, tuple(window.by_handle[handle].span for handle in handles)))
    return Entry(window.by_local_id[local_id].candidate_id, tuple(resolved))


def grammar(window: Window, skeleton: Skeleton, k: int, limits: Limits) -> str:
    """The language as a GBNF grammar, for decoding under a mask.

    Every sentence of it parses; every line that parses and in which each entry matches a slot is a sentence of it.
    Only literals, groups, `|` and `?` are used, so that any GBNF engine reads it.
    """
    if not (window.candidates and window.handles and k >= 1):
        return f'root ::= "{END}"\n'
    slots = [slot.slot_id for slot in skeleton.slots]
    from_slot = [" ".join([slots[j], *(f"{later}?" for later in slots[j + 1 :])]) for j in range(len(slots))]
    more_entries = _optional(f'"{BETWEEN}" entry', k - 1)
    more_handles = _optional('"," handle', limits.max_handles - 1)
    candidates = sorted(candidate.local_id for candidate in window.candidates)
    handles = sorted(handle.handle_id for handle in window.handles)
    rules = {
        "root": f'"{END}" | entry{more_entries} " {END}"',
        "entry": "candidate slots",
        "slots": " | ".join(from_slot),
        **{slot_id: f'" {slot_id}=" handles' for slot_id in slots},
        "handles": f"handle{more_handles}",
        "candidate": " | ".join(f'"{local_id}"' for local_id in candidates),
        "handle": " | ".join(f'"{handle_id}"' for handle_id in handles),
    }
    return "".join(f"{name} ::= {body}\n" for name, body in rules.items())


def _optional(item: str, times: int) -> str:
    """Up to `times` repetitions, as nested options, each after a space."""
    return f" ({item}{_optional(item, times - 1)})?" if times > 0 else ""


def shortest_answer(window: Window, skeleton: Skeleton, entries: int) -> str:
    """A shortest line with so many entries that each match a slot: what a generation budget must at least allow.

    Args:
        entries: min(k, number of candidates that can be certified) for the shortest feasible answer.
    """
    return _answer(window, [min((s.slot_id for s in skeleton.slots), key=len)], 1, entries, longest=False)


def longest_answer(window: Window, skeleton: Skeleton, k: int, limits: Limits) -> str:
    """A longest line of the grammar: with a generation budget of its length no answer is ever cut off."""
    slots = [slot.slot_id for slot in skeleton.slots]
    return _answer(window, slots, limits.max_handles, k, longest=True)


def _answer(window: Window, slots: Sequence[str], handles: int, entries: int, *, longest: bool) -> str:
    sign = -1 if longest else 1
    candidates = sorted((c.local_id for c in window.candidates), key=lambda i: (sign * len(i), i))[:entries]
    cited = sorted((h.handle_id for h in window.handles), key=lambda i: (sign * len(i), i))[:1] * handles
    if not candidates or not cited:
        return END
    slots_text = " ".join(f"{slot_id}={','.join(cited)}" for slot_id in slots)
    return f"{BETWEEN.join(f'{local_id} {slots_text}' for local_id in candidates)} {END}"
