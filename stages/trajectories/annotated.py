"""What gold candidates do according to the corpus' own annotation.

Read by `reference` (every split) and by the mining of intents (train split only); the stage `trajectories` itself never
imports this module, and nothing that ranks does.

A candidate of kind `entity` has one step per gold argument that one of its mentions fills. A candidate of kind
`event_chain` has a step in the role `self` in each of its own event mentions, and one step per gold relation from one
of them to another chain's event, in the role that `steps.LINK_ROLES` names.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipeline import tables
from pipeline.spans import Span
from pipeline.windows import Step
from stages.trajectories.steps import LINK_ROLES, SELF


@dataclass(frozen=True, slots=True)
class Annotated:
    """Gold of one window.

    Args:
        window_id: id.
        mentions: entity_id -> its spans in the closed roster; the gold candidates, sorted by id.
        steps: their steps (`candidate_id` is the entity_id, confidence 1), sorted by candidate, order and spans.
        chains: event_id -> coreference chain.
        edges: pairs of chains that some relation directs, (earlier or part, later or whole).
    """

    window_id: str
    mentions: dict[str, tuple[Span, ...]]
    steps: tuple[Step, ...]
    chains: dict[str, str]
    edges: frozenset[tuple[str, str]]

    def trajectories(self) -> dict[str, list[Step]]:
        """entity_id -> its steps; every candidate has an entry."""
        out: dict[str, list[Step]] = {entity: [] for entity in self.mentions}
        for step in self.steps:
            out[step.candidate_id].append(step)
        return out

    def plan_steps(self) -> dict[str, list[tuple[str, str, str]]]:
        """entity_id -> (chain, type, role) of its steps: the input of `skeletons.align`.

        Coreferent mentions are one event here, so that two reports of one attack never fill two slots.
        """
        return {
            e: [(self.chains[s.event_id], s.type, s.role) for s in steps] for e, steps in self.trajectories().items()
        }


Rows = list[dict[str, Any]]


class AnnotatedReader:
    """Streams gold windows of some splits, shard by shard.

    Args:
        splits: which splits' gold to read.
        root: data directory.
    """

    def __init__(self, splits: Sequence[str], root: str | Path = "data") -> None:
        names = ("mentions", "events", "arguments", "relations")
        self._gold = {n: [tables.Reader(f"ingest/gold/{s}/{n}", root) for s in splits] for n in names}
        self._documents = tables.Reader("ingest/documents", root)
        self._roster = tables.Reader("ingest/roster", root)
        self._splits = list(splits)

    def windows(self, shard: tuple[str, str]) -> Iterator[Annotated]:
        """Windows of the shard that have gold candidates, by id."""
        documents = self._documents.frame(shard).filter(pl.col("split").is_in(self._splits))
        positions = group_rows(documents.select("window_id", "doc_id", "position"))
        roster = group_rows(self._roster.frame(shard))
        gold = {n: group_rows(pl.concat([r.frame(shard) for r in readers])) for n, readers in self._gold.items()}
        for window_id in sorted(roster.keys() & positions.keys()):
            rows = {name: by_window.get(window_id, []) for name, by_window in gold.items()}
            yield annotate(window_id, positions[window_id], roster[window_id], **rows)


def group_rows(frame: pl.DataFrame) -> dict[str, Rows]:
    """window_id -> its rows, in the frame's order."""
    out: dict[str, Rows] = {}
    for row in frame.iter_rows(named=True):
        out.setdefault(row["window_id"], []).append(row)
    return out


def annotate(
    window_id: str, documents: Rows, roster: Rows, mentions: Rows, events: Rows, arguments: Rows, relations: Rows
) -> Annotated:
    """Gold trajectories of one window from its rows of the gold tables."""
    place = {d["doc_id"]: d["position"] for d in documents}
    spans: dict[str, set[Span]] = defaultdict(set)
    for row in roster:
        spans[row["entity_id"]].add(Span(row["doc_id"], row["start"], row["end"]))
    trigger = {e["event_id"]: Span(e["doc_id"], e["start"], e["end"]) for e in events}
    chains = {e["event_id"]: e["chain_id"] for e in events}
    types = {e["event_id"]: e["type"] for e in events}
    text_order = sorted(trigger, key=lambda e: (place[trigger[e].doc_id], trigger[e], e))
    before = [(r["head_event_id"], r["tail_event_id"]) for r in relations if r["type"] == "BEFORE"]
    rank = {event: i for i, event in enumerate(order_events(text_order, before))}
    links = _directed(relations)
    if any(row["kind"] == "event_chain" for row in roster):
        acts = _chain_acts(roster, events, trigger, links)
    else:
        acts = _entity_acts(mentions, arguments)
    steps = {
        Step(entity, event, types[event], role, rank[event], 1.0, trigger[event], span)
        for entity, event, role, span in acts
        if entity in spans and span.doc_id == trigger[event].doc_id
    }
    edges = frozenset((chains[a], chains[b]) for a, b, _ in links if chains[a] != chains[b])
    return Annotated(
        window_id,
        {entity: tuple(sorted(spans[entity])) for entity in sorted(spans)},
        tuple(sorted(steps, key=lambda s: (s.candidate_id, s.order, s.trigger, s.mention, s.role, s.event_id))),
        chains,
        edges,
    )


def _entity_acts(mentions: Rows, arguments: Rows) -> Iterator[tuple[str, str, str, Span]]:
    span = {m["mention_id"]: Span(m["doc_id"], m["start"], m["end"]) for m in mentions}
    entity = {m["mention_id"]: m["entity_id"] for m in mentions}
    for a in arguments:
        yield entity[a["mention_id"]], a["event_id"], a["role"], span[a["mention_id"]]


def _chain_acts(
    roster: Rows, events: Rows, trigger: dict[str, Span], links: list[tuple[str, str, str]]
) -> Iterator[tuple[str, str, str, Span]]:
    """Own events by span, because a roster names spans only; then the events these lead to."""
    owner = {(Span(r["doc_id"], r["start"], r["end"])): r["entity_id"] for r in roster}
    candidate = {e["event_id"]: owner[trigger[e["event_id"]]] for e in events if trigger[e["event_id"]] in owner}
    for event, entity in candidate.items():
        yield entity, event, SELF, trigger[event]
    for source, target, role in links:
        if source in candidate and candidate.get(target) != candidate[source]:
            yield candidate[source], target, role, trigger[source]


def _directed(relations: Rows) -> list[tuple[str, str, str]]:
    """(event, event it leads to, role it plays there) of every relation."""
    out = []
    for r in relations:
        pair = (r["head_event_id"], r["tail_event_id"])
        source, target = pair[::-1] if r["type"] == "SUBEVENT" else pair
        out.append((source, target, LINK_ROLES[r["type"]]))
    return sorted(out)


def order_events(text_order: Sequence[str], before: Iterable[tuple[str, str]]) -> list[str]:
    """Topological order of BEFORE edges, ties by text position; in a cycle the earliest in the text goes first.

    Args:
        text_order: event ids by text position.
        before: (earlier, later) pairs; pairs with an unknown event are ignored.
    """
    position = {event: i for i, event in enumerate(text_order)}
    later: dict[int, set[int]] = defaultdict(set)
    waiting = [0] * len(text_order)
    for a, b in before:
        if a in position and b in position and a != b and position[b] not in later[position[a]]:
            later[position[a]].add(position[b])
            waiting[position[b]] += 1
    ready = [i for i, n in enumerate(waiting) if n == 0]
    left = dict.fromkeys(range(len(text_order)))
    out: list[str] = []
    while left:
        i = heapq.heappop(ready) if ready else next(iter(left))
        if i not in left:
            continue
        del left[i]
        out.append(text_order[i])
        for j in sorted(later[i]):
            waiting[j] -= 1
            if waiting[j] == 0 and j in left:
                heapq.heappush(ready, j)
    return out
