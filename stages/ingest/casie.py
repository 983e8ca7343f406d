"""CASIE (Satyapanich, Ferraro, Finin, AAAI 2020): 1,000 news texts on cybersecurity, one window per document.

Reads `casie.jsonl`: one object per document with `doc_id`, `info`, `text`, `offset_shift` (to be added to every
offset), `unresolved` (positions whose offsets do not give their surface; left out and counted) and `hopper`, the
upstream annotation, in which a hopper is a set of coreferent event mentions.

Splits: 70/10/20 by document in the order of sha256(text), identical texts together. Participants' coreference is not
annotated, so candidates are clusters of argument mentions by `clusters.cluster`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from pipeline.params import Params
from pipeline.spans import sha256_text
from stages.ingest.clusters import cluster
from stages.ingest.corpora import Record, index_files, objects, read_windows, want
from stages.ingest.lines import Index, Line, find_files
from stages.ingest.problems import Problems
from stages.ingest.records import (
    Argument,
    Document,
    Event,
    Mention,
    RecordError,
    Window,
    check_span,
    check_text,
    match_surface,
)  # fmt: skip
from stages.ingest.sentences import split_sentences

SHARES = (("train", 0.7), ("tune", 0.1), ("test", 0.2))

TYPES = frozenset({
    "Attack.Databreach", "Attack.Phishing", "Attack.Ransom", "Vulnerability-related.DiscoverVulnerability",
    "Vulnerability-related.PatchVulnerability",
})  # fmt: skip

NOT_PARTICIPANTS = frozenset({"Time", "Money", "Number", "Version", "Purpose", "Capabilities"})
"""Filler types that name no participant, only a value (a date, a sum, a version) or a clause ("to steal data"). Nobody
ranks them, so they become neither mentions nor arguments; how many were left out stands in summary.json."""

Filler = tuple[str, int, int, str, str]
"""(event_id, start, end, role, filler type)."""


def windows(params: Params, index: Index, problems: Problems) -> Iterator[Window]:
    """The corpus as windows in ascending order."""
    index_files(find_files(params.ingest.path, ".jsonl"), index, problems, _register)
    index.divide(SHARES)

    def build(_: str, split: str, parts: Sequence[Window]) -> Window:
        (window,) = parts
        return Window(window.window_id, split, window.documents, entity_types=window.entity_types)

    yield from read_windows(index, problems, lambda record, _: read_document(record, problems), build)


def _register(index: Index, record: Record, line: Line) -> None:
    doc_id, text = want(record, "doc_id", str), want(record, "text", str)
    check_text(text, "text")
    if not doc_id:
        raise RecordError("field", "empty", field="doc_id")
    index.add(line, doc_id, group=doc_id, key=sha256_text(text))


def read_document(record: Record, problems: Problems) -> Window:
    """One line, as a window whose split is still unknown.

    Raises:
        RecordError: a missing key, an unknown type, an offset that does not give its surface.
    """
    doc_id, text, shift = want(record, "doc_id", str), want(record, "text", str), want(record, "offset_shift", int)
    info = want(record, "info", dict)
    places = want(record, "unresolved", list)
    if not all(isinstance(place, list) and [type(i) for i in place] == [int] * 3 for place in places):
        raise RecordError("field", "expected [hopper, event, argument] each", field="unresolved")
    unresolved = {tuple(place) for place in places}
    events: list[Event] = []
    fillers: list[Filler] = []
    left_out: Counter[str] = Counter()
    for h, (hopper_name, hopper) in enumerate(objects(record, "hopper")):
        for e, (name, raw) in enumerate(objects(hopper, "events", hopper_name)):
            if (h, e, -1) in unresolved:
                left_out["unresolved"] += 1
                continue
            event_type = f"{want(raw, 'type', str, name)}.{want(raw, 'subtype', str, name)}"
            if event_type not in TYPES:
                raise RecordError("type", f"unknown event type {event_type!r:.60}", field=f"{name}.subtype")
            realis = want(raw, "realis", str, name)
            start, end = _span(text, want(raw, "nugget", dict, name), shift, f"{name}.nugget")
            event_id = f"{doc_id}#e{len(events)}"
            events.append(
                Event(event_id, f"{doc_id}#c{h}", start, end, event_type, "Generic" if realis == "General" else realis)
            )
            for a, (place, argument) in enumerate(objects(raw, "argument", name)):
                kind = want(argument, "type", str, place)
                if (h, e, a) in unresolved:
                    left_out["unresolved"] += 1
                elif kind in NOT_PARTICIPANTS:
                    left_out[f"filler type {kind}"] += 1
                else:
                    role = want(want(argument, "role", dict, place), "type", str, f"{place}.role")
                    fillers.append((event_id, *_span(text, argument, shift, place), role, kind))
    mentions, arguments = _participants(doc_id, text, events, fillers)
    sentences = split_sentences(text)
    document = Document(
        doc_id, text, sentences, title=_optional(info, "title"), date=_date(_optional(info, "date")),
        url=_optional(info, "link"), labelled=range(len(sentences)), mentions=mentions, events=events,
        arguments=arguments,
    )  # fmt: skip
    for what, count in left_out.items():
        problems.leave_out(what, count)
    return Window(doc_id, "", (document,), entity_types=most_common_types(mentions))


def _span(text: str, raw: Record, shift: int, name: str) -> tuple[int, int]:
    start, end = want(raw, "startOffset", int, name) + shift, want(raw, "endOffset", int, name) + shift
    check_span(text, start, end, name)
    match_surface(text, start, end, want(raw, "text", str, name), name)
    surface = text[start:end]
    if not surface.strip():
        raise RecordError("offset", f"{start}-{end} holds only white space", field=name)
    return start + len(surface) - len(surface.lstrip()), end - len(surface) + len(surface.rstrip())


def _participants(
    doc_id: str, text: str, events: Sequence[Event], fillers: Sequence[Filler]
) -> tuple[list[Mention], list[Argument]]:
    """Mentions, one per distinct span, clustered; and arguments, repeated ones once."""
    types: dict[tuple[int, int], Counter[str]] = {}
    for _, start, end, _, kind in fillers:
        types.setdefault((start, end), Counter())[kind] += 1
    spans = sorted(types)
    place = {span: i for i, span in enumerate(spans)}
    chain = {event.event_id: event.chain_id for event in events}
    groups = cluster(
        [text[start:end] for start, end in spans],
        [(chain[event], event, role, place[start, end]) for event, start, end, role, _ in fillers],
    )
    mentions = [
        Mention(f"{doc_id}#m{i}", f"{doc_id}#p{groups[i]}", *span, type=types[span].most_common(1)[0][0])
        for i, span in enumerate(spans)
    ]
    wanted = {(event, place[start, end], role) for event, start, end, role, _ in fillers}
    return mentions, [Argument(event, f"{doc_id}#m{i}", role) for event, i, role in sorted(wanted)]


def most_common_types(mentions: Sequence[Mention]) -> dict[str, str]:
    """entity_id -> the type most of its mentions have, the first of them on a tie."""
    counts: dict[str, Counter[str]] = {}
    for mention in mentions:
        if mention.type is not None:
            counts.setdefault(mention.entity_id, Counter())[mention.type] += 1
    return {entity: counter.most_common(1)[0][0] for entity, counter in counts.items()}


def _optional(info: Record, key: str) -> str | None:
    return None if info.get(key) is None else want(info, key, str, "info") or None


def _date(value: str | None) -> str | None:
    match = re.fullmatch(r"(\d{4})_(\d\d)_(\d\d)", value or "")
    return "-".join(match.groups()) if match else None
