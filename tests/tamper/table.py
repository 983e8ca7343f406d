"""The tamper table: every way to break a certificate that we know of, and the reject code it must get.

The untouched list below is valid in every form: as a line, as entries, as JSON and against the documents. Each row
changes one thing and names the code. `tests/tamper/test_tamper.py` runs the rows and checks that every reject code is
fired by at least one of them. To add a case, add a row: nothing else needs to change.

    LINES      name -> (compact line, code)                  read by `parse`
    ENTRIES    name -> (entry, code)                         judged by `check`
    LISTS      name -> (entries, k, certifiable, code)       judged by `check_list`
    JSON       name -> (old text, new text, code)            one replacement in the JSON form, read by `from_json`
    QUOTES     name -> (old text, new text, code)            one that still reads, found by `check_documents`
    EXCHANGED  name -> (entries, rank, code)                 written as JSON, read, and found by `check_documents`
    CORPORA    name -> (change of the documents, code)       the list stays, the corpus changes

What an offset moved by one character is caught by depends on who looks: with the window at hand the span is no evidence
handle any more (`not_a_handle`); with the documents alone it no longer shows the quoted text (`text_mismatch`); and
where it cuts a trigger, the verifier no longer finds the atom at all (tests/test_verifier.py).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

from pipeline.certificates import Corpus, Entry, Limits, Source, to_json
from pipeline.spans import Span
from tests.builders import PLAN, act, build_window, document, find

LIMITS = Limits()
K = 2
CERTIFIABLE = 2

_ONE = document(
    "news-1",
    "Zoé Brändle then attacked the vault of Cay.\n"
    + "Bob raided the old mill at night.\n"
    + f"The raided archive lists {'item ' * 60}and more.\n"
    + "Nobody else was seen anywhere near that night.",
)
_TWO = document("news:2", "Zoé Brändle had bought a drill.\nCay had not.")
_OTHER = document("elsewhere", "Zoé Brändle attacked another vault. Bob raided it too.")

ZOE, ATTACKED, VAULT, CAY = (find(_ONE, s) for s in ("Zoé Brändle", "attacked", "the vault of Cay", "Cay"))
BOB, RAIDED, NIGHT = find(_ONE, "Bob"), find(_ONE, "raided"), find(_ONE, "night")
BUYER, BOUGHT = find(_TWO, "Zoé Brändle"), find(_TWO, "bought")
CROSSING = Span("news-1", CAY.start, RAIDED.end)
"""Runs over a sentence boundary, and holds a whole trigger."""
LISTED = find(_ONE, "raided", 1)
LONG = Span("news-1", LISTED.start, LISTED.start + 241)
HALVES = (find(_ONE, "item " * 16), find(_ONE, "item " * 12, 17))
"""80 and 60 characters: together more than this window's limit of 120, each fine for a slot."""

WINDOW = build_window(
    [_ONE, _TWO],
    ["zoe", "bob", "cay", "dot"],
    [
        act("zoe", "attack", "attacker", ATTACKED, ZOE, order=1),
        act("zoe", "buy", "buyer", BOUGHT, BUYER, order=0),
        act("cay", "attack", "target", ATTACKED, CAY, order=1),
        act("bob", "attack", "attacker", RAIDED, BOB, order=2),
        act("dot", "attack", "attacker", LISTED, LONG, order=3),
    ],
    extra=[VAULT, NIGHT, CROSSING, *HALVES],
    k=K,
)

BASE = (
    Entry("zoe", (("s1", (ATTACKED, ZOE)), ("s2", (BOUGHT, BUYER)))),
    Entry("bob", (("s1", (RAIDED, BOB)),)),
)
BASE_JSON = to_json(BASE, WINDOW, "who_attacked")

_C = {c.candidate_id: c.local_id for c in WINDOW.candidates}
_E = {span: handle.handle_id for span, handle in WINDOW.handle_of.items()}
_ZOE_LINE = f"{_C['zoe']} s1={_E[ATTACKED]},{_E[ZOE]} s2={_E[BOUGHT]},{_E[BUYER]}"
_BOB_LINE = f"{_C['bob']} s1={_E[RAIDED]},{_E[BOB]}"
BASE_LINE = f"{_ZOE_LINE} | {_BOB_LINE} ."

LINES: dict[str, tuple[str, str]] = {
    "truncated line": (BASE_LINE[:-2], "truncated"),
    "truncated within a handle": (BASE_LINE[:-4], "truncated"),
    "nothing at all": ("", "truncated"),
    "arbitrary digits are no ranking": ("3 1 2 .", "syntax"),
    "bracketed citation": ("[1] [0] .", "syntax"),
    "apology": ("I cannot rank these candidates.", "syntax"),
    "text before": ("Answer: " + BASE_LINE, "syntax"),
    "text after": (BASE_LINE + " Done.", "syntax"),
    "two lists on one line": (f"{_ZOE_LINE} . {_BOB_LINE} .", "syntax"),
    "line feed at the end": (BASE_LINE + "\n", "syntax"),
    "CRLF at the end": (BASE_LINE + "\r\n", "syntax"),
    "zero-width space in a handle": (BASE_LINE.replace("s1=E", "s1=E\u200b", 1), "syntax"),
    "zero-width joiner between entries": (BASE_LINE.replace(" | ", " \u200d| "), "syntax"),
    "no-break space": (BASE_LINE.replace(" s1", "\u00a0s1", 1), "syntax"),
    "byte order mark": ("\ufeff" + BASE_LINE, "syntax"),
    "digits of another script": (BASE_LINE.replace("s1=E", "s1=E\u0661", 1), "syntax"),
    "full-width letters": (BASE_LINE.replace("C", "\uff23", 1), "syntax"),
    "combining accent (NFD) in an id": (BASE_LINE.replace("C", "C\u0327", 1), "syntax"),
    "two spaces": (BASE_LINE.replace(" s1", "  s1", 1), "syntax"),
    "no space before the full stop": (BASE_LINE.replace(" .", "."), "syntax"),
    "separator without an entry": (BASE_LINE.replace(" | ", " |  | "), "syntax"),
    "empty line with a space": (" .", "syntax"),
    "slot without equals sign": (f"{_C['zoe']} s1 .", "syntax"),
    "comma at the end of a slot": (f"{_C['zoe']} s1={_E[ATTACKED]}, .", "syntax"),
    "negative handle": (f"{_C['zoe']} s1=E-1 .", "syntax"),
    "K+1 entries": (f"{_ZOE_LINE} | {_BOB_LINE} | {_C['cay']} s3={_E[ATTACKED]},{_E[CAY]} .", "too_many_entries"),
    "unknown candidate": (BASE_LINE.replace(_C["zoe"], "C99"), "unknown_candidate"),
    "candidate 0": (BASE_LINE.replace(_C["zoe"], "C00"), "unknown_candidate"),
    "candidate without its leading zero": (BASE_LINE.replace(_C["zoe"], "C" + _C["zoe"][2:]), "unknown_candidate"),
    "candidate in lower case": (BASE_LINE.replace(_C["zoe"], _C["zoe"].lower()), "unknown_candidate"),
    "canonical id instead of the local one": (BASE_LINE.replace(_C["zoe"], "zoe"), "unknown_candidate"),
    "a handle as candidate": (BASE_LINE.replace(_C["zoe"], _E[ZOE]), "unknown_candidate"),
    "unknown handle": (BASE_LINE.replace(_E[ZOE], "E99"), "unknown_handle"),
    "handle 0 is not the last one": (BASE_LINE.replace(_E[ZOE], "E00"), "unknown_handle"),
    "unknown slot": (BASE_LINE.replace("s2=", "s4="), "unknown_slot"),
    "repeated slot": (BASE_LINE.replace("s2=", "s1="), "repeated_slot"),
    "slots out of order": (BASE_LINE.replace("s1=", "s3=", 1), "slot_order"),
    "too many handles": (f"{_C['zoe']} s1={_E[ATTACKED]},{_E[ZOE]},{_E[CAY]} .", "too_many_handles"),
    "empty slot": (f"{_C['zoe']} s1= .", "empty_slot"),
}

ENTRIES: dict[str, tuple[Entry, str]] = {
    "unknown candidate": (Entry("eve", BASE[0].slots), "unknown_candidate"),
    "local id instead of the canonical one": (Entry(_C["zoe"], BASE[0].slots), "unknown_candidate"),
    "unknown slot": (Entry("zoe", (("s4", (ATTACKED, ZOE)),)), "unknown_slot"),
    "repeated slot": (Entry("zoe", (("s1", (ATTACKED, ZOE)), ("s1", (BOUGHT, BUYER)))), "repeated_slot"),
    "slots out of order": (Entry("zoe", (("s2", (BOUGHT, BUYER)), ("s1", (ATTACKED, ZOE)))), "slot_order"),
    "empty slot": (Entry("zoe", (("s1", (ATTACKED, ZOE)), ("s2", ()))), "empty_slot"),
    "no slot": (Entry("zoe"), "no_slot"),
    "too many handles": (Entry("zoe", (("s1", (ATTACKED, ZOE, NIGHT)),)), "too_many_handles"),
    "unknown document": (Entry("zoe", (("s1", (Span("news-3", 0, 5), ZOE)),)), "unknown_document"),
    "document of another window": (Entry("zoe", (("s1", (find(_OTHER, "attacked"),)),)), "unknown_document"),
    "document id in another normal form": (
        Entry("zoe", (("s1", (Span("news-1\u200b", ATTACKED.start, ATTACKED.end),)),)), "unknown_document",
    ),
    "end beyond the text": (Entry("zoe", (("s2", (Span("news:2", 0, 4_000), BOUGHT)),)), "out_of_text"),
    "start moved by +1": (
        Entry("zoe", (("s1", (Span("news-1", ATTACKED.start + 1, ATTACKED.end), ZOE)),)), "not_a_handle",
    ),
    "start moved by -1": (
        Entry("zoe", (("s1", (Span("news-1", ATTACKED.start - 1, ATTACKED.end), ZOE)),)), "not_a_handle",
    ),
    "end moved by -1: an inclusive end": (
        Entry("zoe", (("s1", (Span("news-1", ATTACKED.start, ATTACKED.end - 1), ZOE)),)), "not_a_handle",
    ),
    "end moved by +1": (
        Entry("zoe", (("s1", (Span("news-1", ATTACKED.start, ATTACKED.end + 1), ZOE)),)), "not_a_handle",
    ),
    "offsets of the sentence, not of the document": (
        Entry("bob", (("s1", (Span("news-1", 4, 10), Span("news-1", 0, 3))),)), "not_a_handle",
    ),
    "the whole document": (Entry("zoe", (("s2", (Span("news:2", 0, len(_TWO.text)),)),)), "not_a_handle"),
    "duplicate span in a slot": (Entry("zoe", (("s1", (ATTACKED, ATTACKED)),)), "repeated_span"),
    "duplicate span across slots": (Entry("zoe", (("s1", (ATTACKED, ZOE)), ("s2", (BOUGHT, ZOE)))), "repeated_span"),
    "nested spans": (Entry("cay", (("s3", (VAULT, CAY)),)), "overlapping_spans"),
    "partially overlapping spans": (Entry("cay", (("s3", (VAULT, CROSSING)),)), "overlapping_spans"),
    "cross-sentence span": (Entry("bob", (("s1", (CROSSING,)),)), "cross_sentence"),
    "slot characters": (Entry("dot", (("s1", (LONG,)),)), "slot_characters"),
    "bundle characters": (Entry("bob", (("s1", (RAIDED, HALVES[0])), ("s3", (ATTACKED, HALVES[1])))),
                          "bundle_characters"),
    "no trigger in a matched slot": (Entry("zoe", (("s1", (ATTACKED, ZOE)), ("s2", (BUYER,)))), "no_trigger"),
    "a trigger only in another slot": (Entry("zoe", (("s1", (ATTACKED, BOUGHT)), ("s2", (BUYER,)))), "no_trigger"),
}  # fmt: skip

LISTS: dict[str, tuple[tuple[Entry, ...], int, int, str]] = {
    "K+1 entries": ((*BASE, Entry("cay", (("s3", (ATTACKED, CAY)),))), K, CERTIFIABLE, "too_many_entries"),
    "repeated candidate": ((BASE[0], BASE[0]), K, CERTIFIABLE, "repeated_candidate"),
    "repeated candidate, other evidence": (
        (Entry("zoe", BASE[0].slots[:1]), Entry("zoe", BASE[0].slots[1:])), K, CERTIFIABLE, "repeated_candidate",
    ),
    "stopping too early": (BASE[:1], K, CERTIFIABLE, "too_few_entries"),
    "an empty list where something can be certified": ((), K, CERTIFIABLE, "too_few_entries"),
    "all slots unmatched": ((Entry("zoe"), Entry("bob")), K, CERTIFIABLE, "no_slot"),
    "padding with an empty certificate": ((BASE[0], Entry("bob")), K, CERTIFIABLE, "no_slot"),
}  # fmt: skip

_START = f'"start": {ATTACKED.start},'
_END = f'"end": {ATTACKED.end},'

JSON: dict[str, tuple[str, str, str]] = {
    "not JSON": (BASE_JSON, "Zoé, then Bob", "json"),
    "truncated JSON": ("}]}]}]}", "}]}", "json"),
    "two objects": (BASE_JSON, BASE_JSON + BASE_JSON, "json"),
    "a list instead of an object": (BASE_JSON, f"[{BASE_JSON}]", "json"),
    "nesting beyond reason": (BASE_JSON, "[" * 200_000, "json"),
    "an integer of ten thousand digits": (_START, f'"start": {"9" * 10_000},', "json"),
    "duplicated key at the top": ('"k": 2', '"k": 2, "k": 5', "duplicate_key"),
    "duplicated offset": (_START, f'{_START} "start": 0,', "duplicate_key"),
    "duplicated key spelt with an escape": (_START, f'{_START} "st\\u0061rt": 0,', "duplicate_key"),
    "missing key": ('"intent_id": "who_attacked", ', "", "missing_key"),
    "span without its text": (', "text": "attacked"', "", "missing_key"),
    "unknown key": ('"k": 2', '"k": 2, "note": "trust me"', "unknown_key"),
    "claimed score in an entry": ('"rank": 1', '"rank": 1, "score": 0.9', "unknown_key"),
    "version 2": ('"version": 1', '"version": 2', "version"),
    "version true": ('"version": 1', '"version": true', "version"),
    "version as text": ('"version": 1', '"version": "1"', "version"),
    "start is true": (_START, '"start": true,', "offset_type"),
    "start is a float": (_START, f'"start": {ATTACKED.start}.0,', "offset_type"),
    "start is NaN": (_START, '"start": NaN,', "offset_type"),
    "end is Infinity": (_END, '"end": Infinity,', "offset_type"),
    "end is text": (_END, f'"end": "{ATTACKED.end}",', "offset_type"),
    "end is null": (_END, '"end": null,', "offset_type"),
    "start is an exponent": (_START, '"start": 1e1,', "offset_type"),
    "negative start": (_START, '"start": -1,', "negative_offset"),
    "start = end": (_START, f'"start": {ATTACKED.end},', "empty_span"),
    "start > end": (_START, f'"start": {ATTACKED.end + 1},', "empty_span"),
    "swapped offsets": (f"{_START} {_END}", f'"start": {ATTACKED.end}, "end": {ATTACKED.start},', "empty_span"),
    "rank true": ('"rank": 1', '"rank": true', "field_type"),
    "K as float": ('"k": 2', '"k": 2.0', "field_type"),
    "documents as list": ('"documents": {', '"documents": [], "x": {', "unknown_key"),
    "entry is null": ('"entries": [', '"entries": [null, ', "field_type"),
    "empty document id": ('{"doc_id": "news-1", ' + _START, '{"doc_id": "", ' + _START, "field_type"),
    "swapped order of entries": ('"rank": 1', '"rank": 2', "rank_order"),
    "ranks from 0": ('"rank": 1', '"rank": 0', "rank_order"),
    "rank twice": ('"rank": 2', '"rank": 1', "rank_order"),
    "cited document not listed": ('"news-1": "', '"news-9": "', "listed_documents"),
    "further document listed": ('"documents": {', '"documents": {"news-9": "00", ', "listed_documents"),
}

QUOTES: dict[str, tuple[str, str, str]] = {
    "start moved by +1": (_START, f'"start": {ATTACKED.start + 1},', "text_mismatch"),
    "start moved by -1": (_START, f'"start": {ATTACKED.start - 1},', "text_mismatch"),
    "end moved by +1": (_END, f'"end": {ATTACKED.end + 1},', "text_mismatch"),
    "end moved by -1": (_END, f'"end": {ATTACKED.end - 1},', "text_mismatch"),
    "quoted text changed": ('"text": "attacked"', '"text": "defended"', "text_mismatch"),
    "quoted text in NFD": ('"end": 11, "text": "Zoé', '"end": 11, "text": "Zoe\u0301', "text_mismatch"),
    "end beyond the text": (_END, '"end": 99999,', "out_of_text"),
    "end far beyond the text": (_END, f'"end": {"9" * 4_000},', "out_of_text"),
    "other sha256": ('"news-1": "', '"news-1": "00', "document_changed"),
    "another window": ('"window_id": "w1"', '"window_id": "w2"', "foreign_document"),
    "shorter K": ('"k": 2', '"k": 0', "too_many_entries"),
}

EXCHANGED: dict[str, tuple[tuple[Entry, ...], int, str]] = {
    "K+1 entries": ((*BASE, Entry("cay", (("s3", (ATTACKED, CAY)),))), 3, "too_many_entries"),
    "repeated candidate": ((BASE[0], BASE[0]), 2, "repeated_candidate"),
    "no slot": ((BASE[0], Entry("bob")), 2, "no_slot"),
    "repeated slot": ((ENTRIES["repeated slot"][0], BASE[1]), 1, "repeated_slot"),
    "empty slot": ((ENTRIES["empty slot"][0], BASE[1]), 1, "empty_slot"),
    "too many handles": ((ENTRIES["too many handles"][0], BASE[1]), 1, "too_many_handles"),
    "duplicate span": ((ENTRIES["duplicate span in a slot"][0], BASE[1]), 1, "repeated_span"),
    "overlapping spans": ((ENTRIES["nested spans"][0], BASE[1]), 1, "overlapping_spans"),
    "slot characters": ((BASE[0], ENTRIES["slot characters"][0]), 2, "slot_characters"),
    "bundle characters": ((BASE[0], ENTRIES["bundle characters"][0]), 2, "bundle_characters"),
}


def _text(change: Callable[[str], str]) -> Callable[[dict[str, Source]], dict[str, Source]]:
    """A corpus in which the text of news-1 is changed."""
    return lambda sources: {**sources, "news-1": Source(change(sources["news-1"].text), "w1")}


CORPORA: dict[str, tuple[Callable[[dict[str, Source]], dict[str, Source]], str]] = {
    "one byte flipped": (_text(lambda t: t.replace("night", "nigit", 1)), "document_changed"),
    "one byte flipped within a cited span": (_text(lambda t: t.replace("attacked", "attackee", 1)), "document_changed"),
    "one character appended": (_text(lambda t: t + " "), "document_changed"),
    "one character cut off": (_text(lambda t: t[:-1]), "document_changed"),
    "NFC text read as NFD": (_text(lambda t: unicodedata.normalize("NFD", t)), "document_changed"),
    "line feeds turned into CRLF": (_text(lambda t: t.replace("\n", "\r\n")), "document_changed"),
    "zero-width space inserted": (_text(lambda t: t.replace("Bob", "Bob\u200b")), "document_changed"),
    "soft hyphen inserted": (_text(lambda t: t.replace("attacked", "attac\u00adked")), "document_changed"),
    "byte order mark in front": (_text(lambda t: "\ufeff" + t), "document_changed"),
    "letter of another script": (_text(lambda t: t.replace("a", "\u0430", 1)), "document_changed"),
    "tab for a space": (_text(lambda t: t.replace(" ", "\t", 1)), "document_changed"),
    "document moved to another window": (
        lambda sources: {**sources, "news-1": Source(sources["news-1"].text, "w2")}, "foreign_document",
    ),
    "document removed": (
        lambda sources: {d: s for d, s in sources.items() if d != "news-1"}, "unknown_document",
    ),
    "document renamed": (
        lambda sources: {("news-1 " if d == "news-1" else d): s for d, s in sources.items()}, "unknown_document",
    ),
    "documents exchanged": (
        lambda sources: {**sources, "news-1": sources["news:2"], "news:2": sources["news-1"]}, "document_changed",
    ),
}  # fmt: skip

SOURCES = {
    "news-1": Source(_ONE.text, "w1"),
    "news:2": Source(_TWO.text, "w1"),
    "elsewhere": Source(_OTHER.text, "w2"),
}
CORPUS = Corpus(SOURCES)
SKELETON = PLAN
