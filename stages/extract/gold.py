"""The training annotation as token spans, and which sequences of the text it says anything about."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.extract.hashing import Ints, Rows
from stages.extract.tokens import Text


@dataclass(frozen=True, slots=True, eq=False)
class Gold:
    """Annotation of a shard's text. E events, M mentions, G arguments.

    Args:
        event_first, event_last, event_type: tokens (inclusive) and type name of every event.
        mention_first, mention_last, mention_type: the same for mentions.
        event_G, mention_G, role_G: arguments as indices of events and mentions, and role names.
        events_T: tokens of sentences that are annotated exhaustively for events.
        mentions_T: tokens of sentences that are taken to be so for mentions.
    """

    event_first: Ints
    event_last: Ints
    event_type: list[str]
    mention_first: Ints
    mention_last: Ints
    mention_type: list[str | None]
    event_G: Ints
    mention_G: Ints
    role_G: list[str]
    events_T: NDArray[np.bool_]
    mentions_T: NDArray[np.bool_]


def read_gold(text: Text, tables: dict[str, pl.DataFrame]) -> Gold:
    """Put annotation onto tokens.

    Args:
        text: the documents.
        tables: events, mentions, arguments, labelled of ingest/gold/<split>, of at least these documents. Rows of
            other documents are left out.
    """
    documents = pl.DataFrame({"doc_id": text.doc_ids}, schema={"doc_id": pl.String})
    events, mentions, labelled = (
        tables[name].join(documents, on="doc_id", how="semi", maintain_order="left")
        for name in ("events", "mentions", "labelled")
    )
    event_first, event_last, events = _place(text, events)
    mention_first, mention_last, mentions = _place(text, mentions)
    arguments = tables["arguments"].join(_numbered(events, "event_id", "e"), on="event_id", maintain_order="left")
    arguments = arguments.join(_numbered(mentions, "mention_id", "m"), on="mention_id", maintain_order="left")
    events_S = np.zeros(len(text.number_S), dtype=bool)
    events_S[_sentence_rows(text, labelled)] = True
    events_S[text.sentence_T[event_first]] = True
    # A window without any mention may simply lack their annotation (only triggers were labelled): it teaches none.
    windows = set(mentions["window_id"])
    annotated_D = np.array([window in windows for window in text.window_ids], dtype=bool)
    mentions_S = events_S.copy()
    mentions_S[text.sentence_T[mention_first]] = True
    mentions_T = mentions_S[text.sentence_T] & annotated_D[text.doc_T] if text.size else np.zeros(0, dtype=bool)
    return Gold(
        event_first, event_last, events["type"].to_list(), mention_first, mention_last, mentions["type"].to_list(),
        arguments["e"].to_numpy(), arguments["m"].to_numpy(), arguments["role"].to_list(),
        events_S[text.sentence_T] if text.size else np.zeros(0, dtype=bool), mentions_T,
    )  # fmt: skip


def _place(text: Text, frame: pl.DataFrame) -> tuple[Ints, Ints, pl.DataFrame]:
    """Token spans of rows; rows that touch no token are left out."""
    first, last = text.locate(frame["doc_id"].to_list(), frame["start"].to_numpy(), frame["end"].to_numpy())
    kept = np.flatnonzero(last >= first)
    return first[kept], last[kept], frame[kept]


def _numbered(frame: pl.DataFrame, key: str, name: str) -> pl.DataFrame:
    return frame.select(key, pl.int_range(pl.len(), dtype=pl.Int64).alias(name))


def _sentence_rows(text: Text, labelled: pl.DataFrame) -> Ints:
    """Index among the shard's sentences of (doc_id, sentence) rows that exist there."""
    heads = np.flatnonzero(text.number_S == 0)
    index = {doc_id: int(heads[i]) for i, doc_id in enumerate(text.doc_ids)}
    rows = [index[doc_id] + number for doc_id, number in labelled.select("doc_id", "sentence").iter_rows()]
    return np.array([row for row in rows if row < len(text.number_S)], dtype=np.int64)


def restrict(first_Q: Ints, kept_T: NDArray[np.bool_], rows: Rows, tags: Ints) -> tuple[Ints, Rows, Ints]:
    """Whole sequences whose first token is kept: their new boundaries, and their tokens' features and tags."""
    starts, lengths = first_Q[:-1], np.diff(first_Q)
    use = kept_T[starts] if len(starts) else np.zeros(0, dtype=bool)
    token = np.repeat(use, lengths)
    return np.concatenate([[0], np.cumsum(lengths[use])]), rows[token], tags[token]
