"""Candidate trajectories: the extractor's role hypotheses for a roster, in extracted order.

A step is one hypothesis (event, mention of the candidate, role). For candidates that are event chains the roster's only
role is `self`: the candidate's own mention of the event. What such a candidate *leads to* comes from the extracted
relations: when event a of a chain stands in CAUSE, PRECONDITION or BEFORE to event b, or is part of b (b SUBEVENT a),
the chain has the step (b, role `cause`, `precondition`, `before` or `subevent`) whose argument span is a's trigger.
A step's two spans stand in one document, so a relation across documents makes no step.
"""

from __future__ import annotations

import polars as pl

from pipeline.errors import TableError

SELF = "self"
"""Role of an event chain in its own events."""

LINK_ROLES = {"CAUSE": "cause", "PRECONDITION": "precondition", "BEFORE": "before", "SUBEVENT": "subevent"}
"""Relation -> role that one event plays in another. All but SUBEVENT read head -> tail: the head causes, enables or
precedes the tail. `head SUBEVENT tail` says that the tail is a part of the head, so there the tail plays the role."""

ORDER = (
    "window_id", "candidate_id", "order", "doc_id", "trigger_start", "trigger_end", "mention_start", "mention_end",
    "role", "event_id",
)  # fmt: skip
"""Order of steps within a candidate's trajectory; it is total, because hypotheses are unique."""


def build_steps(
    events: pl.DataFrame, relations: pl.DataFrame, mentions: pl.DataFrame, arguments: pl.DataFrame, setting: str
) -> pl.DataFrame:
    """Join one shard's tables into trajectories.

    Args:
        events, relations: rows of `extract/events` and `extract/relations`.
        mentions, arguments: rows of `roster/<setting>/mentions` and `roster/<setting>/arguments`.
        setting: for error messages.

    Returns:
        The columns of `trajectories/<setting>/steps` but for the two handles, in the order of that table.

    Raises:
        TableError: an argument whose event or mention does not exist, or whose two spans lie in different documents.
    """
    acts = pl.concat([arguments, _links(events, relations, mentions, arguments)], how="vertical")
    event = events.select("window_id", "event_id", "type", "order", "doc_id", trigger_start="start", trigger_end="end")
    mention = mentions.select(
        "window_id", "mention_id", "candidate_id", _doc="doc_id", mention_start="start", mention_end="end"
    )
    joined = acts.join(event, on=["window_id", "event_id"], how="left", maintain_order="left").join(
        mention, on=["window_id", "mention_id"], how="left", maintain_order="left"
    )
    _check(joined, setting)
    steps = joined.sort(ORDER, maintain_order=True)
    return steps.with_columns(
        step=pl.int_range(pl.len(), dtype=pl.Int64).over("window_id", "candidate_id")
    ).select(
        "window_id", "candidate_id", "step", "event_id", "type", "role", "order", "confidence", "doc_id",
        "trigger_start", "trigger_end", "mention_start", "mention_end",
    )  # fmt: skip


def _links(
    events: pl.DataFrame, relations: pl.DataFrame, mentions: pl.DataFrame, arguments: pl.DataFrame
) -> pl.DataFrame:
    """Role hypotheses of event chains in other chains' events, as rows of `roster/<setting>/arguments`."""
    own = arguments.filter(pl.col("role") == SELF).select(
        "window_id", "mention_id", _from="event_id", _own="confidence"
    )
    if own.is_empty() or relations.is_empty():
        return arguments.clear()
    own = own.join(mentions.select("window_id", "mention_id", "candidate_id"), on=["window_id", "mention_id"])
    part = pl.col("type") == "SUBEVENT"
    directed = relations.filter(pl.col("type").is_in(list(LINK_ROLES))).select(
        "window_id",
        _from=pl.when(part).then("tail_event_id").otherwise("head_event_id"),
        event_id=pl.when(part).then("head_event_id").otherwise("tail_event_id"),
        role=pl.col("type").replace_strict(LINK_ROLES, return_dtype=pl.String),
        _relation=pl.col("confidence"),
    )
    target = events.select("window_id", "event_id", "doc_id", _event="confidence")
    source = events.select("window_id", "doc_id", _from="event_id")
    linked = directed.join(target, on=["window_id", "event_id"], how="inner").join(
        own.join(source, on=["window_id", "_from"], how="inner"), on=["window_id", "_from", "doc_id"], how="inner"
    )
    itself = own.select("window_id", "candidate_id", event_id="_from")
    linked = linked.join(itself, on=["window_id", "candidate_id", "event_id"], how="anti")
    # An argument's confidence is that its event and the role in it are right; so here both events and their relation.
    return (
        linked.group_by("window_id", "event_id", "mention_id", "role")
        .agg(confidence=(pl.col("_own") * pl.col("_relation") * pl.col("_event")).max())
        .select(arguments.columns)
        .sort("window_id", "event_id", "mention_id", "role")
    )


def _check(joined: pl.DataFrame, setting: str) -> None:
    broken = joined.filter(
        pl.col("trigger_start").is_null() | pl.col("mention_start").is_null() | (pl.col("doc_id") != pl.col("_doc"))
    )
    if not broken.is_empty():
        row = broken.row(0, named=True)
        what = "unknown event" if row["trigger_start"] is None else "unknown mention"
        if row["doc_id"] is not None and row["_doc"] is not None:
            what = "trigger and argument in different documents"
        raise TableError(
            f"{what}: event {row['event_id']!r}, mention {row['mention_id']!r} of window {row['window_id']!r}",
            field=f"roster/{setting}/arguments",
            mend="run `dvc repro roster`",
        )
