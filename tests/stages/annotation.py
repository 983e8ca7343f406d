"""Gold annotation of one window from a compact description, for the tests of `trajectories` and `reference`.

    annotated(
        {"d1": "Ann shot Dan. Bob met Ann."},
        {"Ann": ["d1:Ann", "d1:Ann:1"], "Dan": ["d1:Dan"], "Bob": ["d1:Bob"]},
        [("shot", "d1:shot", "Attack")],
        [("shot", "d1:Ann", "attacker"), ("shot", "d1:Dan", "target")],
    )

A place is `doc:surface` or `doc:surface:nth`, nth from 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stages.trajectories.annotated import Annotated, annotate

Texts = Mapping[str, str]


def place(texts: Texts, where: str) -> dict[str, Any]:
    """`doc:surface[:nth]` as doc_id, start, end and surface."""
    doc_id, surface, *nth = where.split(":")
    start = -1
    for _ in range(int(nth[0]) + 1 if nth else 1):
        start = texts[doc_id].index(surface, start + 1)
    return {"doc_id": doc_id, "start": start, "end": start + len(surface), "surface": surface}


def annotated(
    texts: Texts,
    entities: Mapping[str, Sequence[str]],
    events: Sequence[tuple[str, ...]],
    arguments: Sequence[tuple[str, str, str]] = (),
    relations: Sequence[tuple[str, str, str]] = (),
    kind: str = "entity",
    window_id: str = "w1",
) -> Annotated:
    """Gold of one window.

    Args:
        texts: doc_id -> text, in window order.
        entities: candidate -> places of its mentions; for `event_chain` of its events.
        events: (event, place, type) or (event, place, type, chain).
        arguments: (event, place of the mention, role).
        relations: (head, tail, type).
        kind: entity or event_chain.
        window_id: id.
    """
    roster = [
        {"entity_id": entity, "kind": kind, **place(texts, where)} for entity, at in entities.items() for where in at
    ]
    mentions = [{**row, "mention_id": f"m{row['doc_id']}{row['start']}-{row['end']}"} for row in roster]
    return annotate(
        window_id,
        [{"doc_id": d, "position": i} for i, d in enumerate(texts)],
        roster,
        mentions,
        [{"event_id": e[0], "type": e[2], "chain_id": (*e, e[0])[3], **place(texts, e[1])} for e in events],
        [{"event_id": e, "role": r, "mention_id": _mention(texts, where)} for e, where, r in arguments],
        [{"head_event_id": a, "tail_event_id": b, "type": t} for a, b, t in relations],
    )


def _mention(texts: Texts, where: str) -> str:
    at = place(texts, where)
    return f"m{at['doc_id']}{at['start']}-{at['end']}"
