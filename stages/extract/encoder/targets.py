"""Annotation as what the heads are trained on: what they choose from, and the right choices, in tokens of the shard.

T tokens, G trigger spans, E events, M mentions, K event types, R roles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.extract.hashing import Floats, Ints
from stages.extract.linear import family_of
from stages.extract.tokens import Text

LONGEST_TRIGGER, LONGEST_MENTION = 12, 20
"""Tokens, at most; less where training holds hardly any span as long."""
REACH = 2
"""Sentences between an event and an argument, at most; less where training holds hardly any as far."""

Frames = Mapping[str, pl.DataFrame]


@dataclass(frozen=True, slots=True)
class Labels:
    """What the heads choose from.

    Args:
        kinds, sorts, roles, links: event types, mention types, roles and relation types, each sorted; none where
            training has no such annotation.
        allowed: per event type the indices of the roles that it may take.
        longest_trigger, longest_mention: tokens.
        reach: sentences between a trigger and its arguments.
    """

    kinds: tuple[str, ...]
    sorts: tuple[str, ...]
    roles: tuple[str, ...]
    links: tuple[str, ...]
    allowed: tuple[tuple[int, ...], ...]
    longest_trigger: int
    longest_mention: int
    reach: int

    def mask(self) -> NDArray[np.bool_]:
        """[K, 1 + R]; the first column, no role, is always allowed."""
        out = np.zeros((len(self.kinds), 1 + len(self.roles)), dtype=bool)
        out[:, 0] = True
        for kind, roles in enumerate(self.allowed):
            out[kind, [1 + role for role in roles]] = True
        return out


@dataclass(frozen=True, slots=True, eq=False)
class Goal:
    """The right choices of a shard.

    Args:
        trigger_first, trigger_last: [G] distinct trigger spans, ascending.
        kind_GK: types of each, as shares.
        event_first, event_last, event_kind: [E] distinct (span, type), ascending.
        mention_first, mention_last, mention_sort: [M] distinct spans, ascending; sort -1 where unknown.
        role_A: [arguments, 3] distinct (event, mention, role), ascending.
        link_L: [relations, 3] distinct (head event, tail event, relation), ascending.
        events_T, mentions_T: tokens of sentences where what is not annotated is not there.
        links_T: tokens of windows in which relations are annotated.
    """

    trigger_first: Ints
    trigger_last: Ints
    kind_GK: Floats
    event_first: Ints
    event_last: Ints
    event_kind: Ints
    mention_first: Ints
    mention_last: Ints
    mention_sort: Ints
    role_A: Ints
    link_L: Ints
    events_T: NDArray[np.bool_]
    mentions_T: NDArray[np.bool_]
    links_T: NDArray[np.bool_]

    def arrays(self) -> Iterable[NDArray[np.generic]]:
        return (getattr(self, name) for name in self.__slots__)


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """Gold tables of a shard's documents, with the tokens `first` and `last` of their spans."""

    events: pl.DataFrame
    mentions: pl.DataFrame
    arguments: pl.DataFrame
    relations: pl.DataFrame
    labelled: pl.DataFrame

    @classmethod
    def of(cls, text: Text, gold: Frames) -> Placed:
        """Rows of other documents are left out, and rows whose span touches no token."""
        documents = pl.DataFrame({"doc_id": text.doc_ids}, schema={"doc_id": pl.String})
        events, mentions = (_place(text, gold[name].join(documents, on="doc_id", how="semi", maintain_order="left"))
                            for name in ("events", "mentions"))  # fmt: skip
        head = events.select("event_id", e_first="first", e_last="last", kind="type")
        tail = mentions.select("mention_id", m_first="first", m_last="last")
        arguments = gold["arguments"].join(head, on="event_id", maintain_order="left")
        arguments = arguments.join(tail, on="mention_id", maintain_order="left")
        relations = _chained(gold["relations"], gold["events"])
        for end in ("head", "tail"):
            own = {f"{end}_first": "first", f"{end}_last": "last", f"{end}_kind": "type"}
            relations = relations.join(
                events.select(pl.col("event_id").alias(f"{end}_event_id"), **{k: pl.col(v) for k, v in own.items()}),
                on=f"{end}_event_id", maintain_order="left",
            )  # fmt: skip
        labelled = gold["labelled"].join(documents, on="doc_id", how="semi", maintain_order="left")
        return cls(events, mentions, arguments, relations, labelled)


def _chained(relations: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """Relations between all mentions of two coreference chains: annotation names one mention of each (the official
    scorer of MAVEN-ERE expands them, too). Those within a chain are left out."""
    chains = events.select("event_id", "chain_id")
    for end in ("head", "tail"):
        relations = relations.join(
            chains.rename({"event_id": f"{end}_event_id", "chain_id": f"{end}_chain"}),
            on=f"{end}_event_id",
            maintain_order="left",
        ).drop(f"{end}_event_id")
        relations = relations.join(
            chains.rename({"event_id": f"{end}_event_id", "chain_id": f"{end}_chain"}), on=f"{end}_chain",
            maintain_order="left",
        )  # fmt: skip
    return relations.filter(pl.col("head_chain") != pl.col("tail_chain")).drop("head_chain", "tail_chain")


def _place(text: Text, frame: pl.DataFrame) -> pl.DataFrame:
    first, last = text.locate(frame["doc_id"].to_list(), frame["start"].to_numpy(), frame["end"].to_numpy())
    placed = frame.with_columns(first=pl.Series(first, dtype=pl.Int64), last=pl.Series(last, dtype=pl.Int64))
    return placed.filter(pl.col("last") >= pl.col("first"))


def learn_labels(text: Text, gold: Placed) -> Labels:
    """Labels and limits as they occur in training."""
    kinds = tuple(sorted(set(gold.events["type"].to_list())))
    sorts = tuple(sorted(set(gold.mentions["type"].drop_nulls().to_list())))
    roles = tuple(sorted(set(gold.arguments["role"].to_list())))
    links = tuple(sorted(set(gold.relations["type"].to_list())))
    hops = np.abs(text.sentence_T[gold.arguments["m_first"].to_numpy()]
                  - text.sentence_T[gold.arguments["e_first"].to_numpy()])  # fmt: skip
    return Labels(
        kinds, sorts if len(sorts) > 1 else (), roles, links, _allowed(kinds, roles, gold.arguments),
        _limit(_widths(gold.events), 0.998, LONGEST_TRIGGER, 1),
        _limit(_widths(gold.mentions), 0.995, LONGEST_MENTION, 1), _limit(hops, 0.99, REACH, 0),
    )  # fmt: skip


def _widths(frame: pl.DataFrame) -> Ints:
    return (frame["last"] - frame["first"] + 1).to_numpy()


def _limit(values: Ints, share: float, most: int, least: int) -> int:
    """The smallest limit that keeps this share of the values."""
    found = int(np.quantile(values, share, method="higher")) if len(values) else least
    return min(max(found, least), most)


def _allowed(kinds: tuple[str, ...], roles: tuple[str, ...], arguments: pl.DataFrame) -> tuple[tuple[int, ...], ...]:
    """Roles seen with a type; in fine-grained ontologies (types of three parts and more) also with its family."""
    seen: dict[str, set[str]] = {}
    for kind, role in arguments.select("kind", "role").unique(maintain_order=True).iter_rows():
        seen.setdefault(kind, set()).add(role)
        if kind.count(".") >= 2:
            seen.setdefault(f"{family_of(kind)}.*", set()).add(role)
    index = {role: i for i, role in enumerate(roles)}
    return tuple(
        tuple(sorted(index[role] for role in seen.get(kind, set()) | seen.get(f"{family_of(kind)}.*", set())))
        for kind in kinds
    )


def read_goal(text: Text, labels: Labels, gold: Placed) -> Goal:
    """Targets; spans longer than the limits, and labels that are not among `labels`, are left out.

    A sentence counts as annotated for mentions where it is for events, and where some mention is annotated (in RAMS one
    trigger per snippet is annotated, with arguments also in the sentences around it); a window without any mention may
    simply lack their annotation, and teaches none.
    """
    events = _short(gold.events, labels.longest_trigger).filter(pl.col("type").is_in(labels.kinds))
    mentions = _short(gold.mentions, labels.longest_mention)
    kind_of, sort_of, role_of, link_of = (
        {name: i for i, name in enumerate(names)} for names in (labels.kinds, labels.sorts, labels.roles, labels.links)
    )
    spans = events.select("first", "last").unique().sort("first", "last")
    typed = events.select("first", "last", kind=pl.col("type").replace_strict(kind_of, return_dtype=pl.Int64))
    typed = typed.unique().sort("first", "last", "kind")
    trigger_of = {span: g for g, span in enumerate(spans.iter_rows())}
    event_of = {row: e for e, row in enumerate(typed.iter_rows())}
    kind_GK = np.zeros((len(trigger_of), len(labels.kinds)))
    for first, last, kind in event_of:
        kind_GK[trigger_of[first, last], kind] = 1.0
    kind_GK /= np.maximum(kind_GK.sum(axis=1, keepdims=True), 1.0)
    people = mentions.sort("first", "last", "mention_id").unique(["first", "last"], keep="first", maintain_order=True)
    mention_of = {span: m for m, span in enumerate(people.select("first", "last").iter_rows())}
    arguments: set[tuple[int, int, int]] = set()
    for e1, e2, kind, m1, m2, role in gold.arguments.select(
        "e_first", "e_last", "kind", "m_first", "m_last", "role"
    ).iter_rows():
        e, m = event_of.get((e1, e2, kind_of.get(kind, -1))), mention_of.get((m1, m2))
        if e is not None and m is not None and role in role_of:
            arguments.add((e, m, role_of[role]))
    links: set[tuple[int, int, int]] = set()
    for h1, h2, hk, t1, t2, tk, link in gold.relations.select(
        "head_first", "head_last", "head_kind", "tail_first", "tail_last", "tail_kind", "type"
    ).iter_rows():
        h, t = event_of.get((h1, h2, kind_of.get(hk, -1))), event_of.get((t1, t2, kind_of.get(tk, -1)))
        if h is not None and t is not None and link in link_of:
            links.add((h, t, link_of[link]))
    events_S = np.zeros(len(text.number_S), dtype=bool)
    events_S[_labelled(text, gold.labelled)] = True
    events_S[text.sentence_T[events["first"].to_numpy()]] = True
    mentions_S = events_S.copy()
    mentions_S[text.sentence_T[mentions["first"].to_numpy()]] = True
    noted, linked = (_windows(text, frame["window_id"].to_list()) for frame in (gold.mentions, gold.relations))
    trigger_first, trigger_last = _columns(spans, "first", "last")
    event_first, event_last, event_kind = _columns(typed, "first", "last", "kind")
    mention_first, mention_last = _columns(people, "first", "last")
    sorts = np.array([sort_of.get(sort, -1) for sort in people["type"].to_list()], dtype=np.int64)
    return Goal(
        trigger_first, trigger_last, kind_GK, event_first, event_last, event_kind, mention_first, mention_last, sorts,
        _triples(arguments), _triples(links), events_S[text.sentence_T], mentions_S[text.sentence_T] & noted, linked,
    )  # fmt: skip


def _triples(rows: set[tuple[int, int, int]]) -> Ints:
    return np.array(sorted(rows), dtype=np.int64).reshape(-1, 3)


def _short(frame: pl.DataFrame, longest: int) -> pl.DataFrame:
    return frame.filter(pl.col("last") - pl.col("first") < longest)


def _columns(frame: pl.DataFrame, *names: str) -> list[Ints]:
    return [frame[name].to_numpy().astype(np.int64) for name in names]


def _windows(text: Text, named: list[str]) -> NDArray[np.bool_]:
    """[T] whether a token's window is among the named ones."""
    known = set(named)
    return np.array([window in known for window in text.window_ids], dtype=bool)[text.doc_T]


def _labelled(text: Text, labelled: pl.DataFrame) -> Ints:
    """Running numbers of (doc_id, sentence) rows; a document's first sentence is number 0, and each has one."""
    head_of = dict(zip(text.doc_ids, np.flatnonzero(text.number_S == 0).tolist(), strict=True))
    rows = [head_of[document] + number for document, number in labelled.select("doc_id", "sentence").iter_rows()]
    return np.array([row for row in rows if row < len(text.number_S)], dtype=np.int64)
