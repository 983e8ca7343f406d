"""The joint loss of all heads on a batch of chunks.

N tokens of the batch, G gold triggers, E gold events, M mention candidates, Q pairs. Indices are rows of the batch
unless they are said to be tokens (of the shard).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from stages.extract.encoder.geometry import list_near, list_neighbours, room
from stages.extract.encoder.heads import Heads, Tokens
from stages.extract.encoder.network import Batch
from stages.extract.encoder.targets import Goal, Labels
from stages.extract.hashing import Ints
from stages.extract.tokens import Text

PROPOSED = 0.05
"""Wrong mention spans of at least this probability are shown to the role head as what they are."""


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """A shard with its targets: everything that a batch looks up."""

    text: Text
    segments: Ints
    shape_T: Ints
    goal: Goal
    labels: Labels


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A batch as the losses see it.

    Args:
        tokens: vectors of its tokens.
        room_N: tokens left in the segment.
        sentence_N: sentences, far apart from chunk to chunk.
        core_N: whether the token's chunk answers for it.
    """

    batch: Batch
    tokens: Tokens
    room_N: Tensor
    sentence_N: Ints
    core_N: NDArray[np.bool_]

    @classmethod
    def of(cls, heads: Heads, hidden_ND: Tensor, batch: Batch, lesson: Lesson) -> View:
        token = batch.token_N
        chunk_N = np.repeat(np.arange(len(batch.chunks)), np.diff(batch.first_B))
        begin, end, last = (
            np.array(column)[chunk_N] for column in zip(*((c.begin, c.end, c.last) for c in batch.chunks), strict=True)
        )
        return cls(
            batch, heads.read(hidden_ND, torch.from_numpy(lesson.shape_T[token])),
            torch.from_numpy(room(lesson.segments, token, last)),
            lesson.text.sentence_T[token] + chunk_N * (len(lesson.text.number_S) + 8),
            (token >= begin) & (token < end),
        )  # fmt: skip

    def place(self, first: Ints, last: Ints) -> tuple[Ints, Ints]:
        """Spans of tokens -> (indices of those that begin in some core and end in its chunk, their first rows).

        In the order of the rows. A span may run out of its chunk where a very long sentence had to be cut.
        """
        chunks = self.batch.chunks
        order = np.argsort([c.begin for c in chunks])
        columns = zip(*((c.begin, c.end, c.first, c.last) for c in chunks), strict=True)
        begin, end, origin, limit = (np.array(column)[order] for column in columns)
        found = np.searchsorted(begin, first, side="right") - 1
        at = np.maximum(found, 0)
        index = np.flatnonzero((found >= 0) & (first < end[at]) & (last < limit[at]))
        found = found[index]
        row = self.batch.first_B[order[found]] + first[index] - origin[found]
        by_row = np.argsort(row, kind="stable")
        return index[by_row], row[by_row]


def losses(heads: Heads, hidden_ND: Tensor, batch: Batch, lesson: Lesson) -> dict[str, Tensor]:
    """Loss of every head, each per gold item.

    Args:
        heads: the heads.
        hidden_ND: token vectors of the batch.
        batch: the chunks.
        lesson: their shard.
    """
    goal = lesson.goal
    view = View.of(heads, hidden_ND, batch, lesson)
    x, token = view.tokens, batch.token_N
    out: dict[str, Tensor] = {}

    triggers, row = view.place(goal.trigger_first, goal.trigger_last)
    last = row + goal.trigger_last[triggers] - goal.trigger_first[triggers]
    log_p = heads.triggers(x, view.room_N)
    out["trigger"] = _span_loss(log_p, row, last, view.core_N & goal.events_T[token], view.room_N.numpy())
    if len(triggers):
        vectors = heads.trigger_vectors(x, row, last)
        share = torch.from_numpy(goal.kind_GK[triggers]).to(vectors.dtype)
        out["type"] = -(share * torch.log_softmax(heads.kind(vectors), dim=-1)).sum() / len(triggers)
    if heads.links is not None:
        out.update(_link_loss(heads, view, triggers, row, last, lesson))

    if heads.mentions is None or heads.mention_vectors is None:
        return out
    mentions, row = view.place(goal.mention_first, goal.mention_last)
    last = row + goal.mention_last[mentions] - goal.mention_first[mentions]
    log_p = heads.mentions(x, view.room_N)
    out["mention"] = _span_loss(log_p, row, last, view.core_N & goal.mentions_T[token], view.room_N.numpy())
    sort = goal.mention_sort[mentions]
    if heads.sort is not None and (sort >= 0).any():
        scores = heads.sort(heads.mention_vectors(x, row[sort >= 0], last[sort >= 0]))
        out["sort"] = functional.cross_entropy(scores, torch.from_numpy(sort[sort >= 0]))
    if heads.roles is not None:
        out.update(_role_loss(heads, view, log_p.detach(), lesson))
    return out


def _span_loss(log_p: Tensor, first: Ints, last: Ints, taught: NDArray[np.bool_], room: Ints) -> Tensor:
    """Negative log-likelihood per gold span; tokens where a span begins that does not fit are left out."""
    target = np.zeros(len(taught), dtype=np.int64)
    target[first] = last - first + 1
    taught = taught & (target <= room)
    where = torch.from_numpy(np.flatnonzero(taught))
    return -log_p[where, torch.from_numpy(target)[where]].sum() / max(int((target[taught] > 0).sum()), 1)


def _candidates(view: View, mention_logp: Tensor, goal: Goal) -> tuple[Ints, Ints, Ints]:
    """Mention spans for the role head: gold ones, context included, and the likelier wrong ones; by (first, last).

    Returns:
        First rows, last rows, and the gold mention or -1.
    """
    token = view.batch.token_N
    rows, size = (column.numpy() for column in torch.nonzero(mention_logp[:, 1:].exp() >= PROPOSED, as_tuple=True))
    taught = goal.mentions_T[token[rows]]
    firsts, lasts, indices = [rows[taught]], [(rows + size)[taught]], [np.full(int(taught.sum()), -1)]
    for begin, chunk in zip(view.batch.first_B.tolist(), view.batch.chunks, strict=False):
        index = np.arange(*np.searchsorted(goal.mention_first, [chunk.first, chunk.last]))
        index = index[goal.mention_last[index] < chunk.last]
        firsts.append(begin + goal.mention_first[index] - chunk.first)
        lasts.append(begin + goal.mention_last[index] - chunk.first)
        indices.append(index)
    first, last, index = (np.concatenate(parts) for parts in (firsts, lasts, indices))
    order = np.lexsort((-index, last, first))
    first, last, index = first[order], last[order], index[order]
    fresh = np.ones(len(first), dtype=bool)
    fresh[1:] = (np.diff(first) != 0) | (np.diff(last) != 0)
    return first[fresh], last[fresh], index[fresh]


def _role_loss(heads: Heads, view: View, mention_logp: Tensor, lesson: Lesson) -> dict[str, Tensor]:
    goal = lesson.goal
    events, e_first = view.place(goal.event_first, goal.event_last)
    e_last = e_first + goal.event_last[events] - goal.event_first[events]
    m_first, m_last, mentions = _candidates(view, mention_logp, goal)
    near = list_near(view.sentence_N, e_first, e_last, m_first, m_last, lesson.labels.reach)
    if not len(near.event_Q):
        return {}
    share, right = role_shares(goal, events[near.event_Q], mentions[near.mention_Q], len(lesson.labels.roles))
    kinds = goal.event_kind[events]
    log_p = heads.role_log_probabilities(view.tokens, e_first, e_last, kinds, m_first, m_last, near)
    return {"role": -(torch.from_numpy(share) * log_p).sum() / max(right, 1)}


def role_shares(goal: Goal, event_Q: Ints, mention_Q: Ints, roles: int) -> tuple[NDArray[np.float32], int]:
    """[Q, 1 + R] right roles of pairs as shares (column 0: none), and how many pairs have one."""
    width = len(goal.mention_first) + 1
    key_A = goal.role_A[:, 0] * width + goal.role_A[:, 1]
    key_Q = event_Q * width + mention_Q
    low = np.searchsorted(key_A, key_Q, side="left")
    counts = np.where(mention_Q >= 0, np.searchsorted(key_A, key_Q, side="right") - low, 0)
    out = np.zeros((len(key_Q), 1 + roles), dtype=np.float32)
    out[counts == 0, 0] = 1.0
    pair = np.repeat(np.arange(len(key_Q)), counts)
    rank = np.arange(len(pair)) - np.repeat(np.cumsum(counts) - counts, counts)
    out[pair, 1 + goal.role_A[low[pair] + rank, 2]] = 1.0 / counts[pair]
    return out, int((counts > 0).sum())


def _link_loss(heads: Heads, view: View, triggers: Ints, first: Ints, last: Ints, lesson: Lesson) -> dict[str, Tensor]:
    assert heads.links is not None
    goal = lesson.goal
    taught = goal.links_T[goal.trigger_first[triggers]]
    triggers, first, last = triggers[taught], first[taught], last[taught]
    near = list_neighbours(view.sentence_N, first, last)
    if not len(near.event_Q):
        return {}
    target = link_targets(goal, triggers[near.event_Q], triggers[near.mention_Q], len(lesson.labels.links))
    scores = heads.link_scores(view.tokens, first, last, near)
    odds = torch.from_numpy(target).to(scores.dtype)
    loss = functional.binary_cross_entropy_with_logits(scores, odds, reduction="sum")
    return {"relation": loss / max(int(target.sum()), 1)}


def link_targets(goal: Goal, head_Q: Ints, tail_Q: Ints, links: int) -> NDArray[np.bool_]:
    """[Q, 2 L] which relations hold in pairs of triggers: r where the first bears it to the second, L + r vice versa.

    Relations are independent of each other: what causes another event also comes before it.
    """
    triggers = zip(goal.trigger_first.tolist(), goal.trigger_last.tolist(), strict=True)
    span_of = {span: g for g, span in enumerate(triggers)}
    spans = [span_of[span] for span in zip(goal.event_first.tolist(), goal.event_last.tolist(), strict=True)]
    known: dict[tuple[int, int], set[int]] = {}
    for head, tail, link in goal.link_L.tolist():
        known.setdefault((spans[head], spans[tail]), set()).add(link)
        known.setdefault((spans[tail], spans[head]), set()).add(links + link)
    out = np.zeros((len(head_Q), 2 * links), dtype=bool)
    for q, pair in enumerate(zip(head_Q.tolist(), tail_Q.tolist(), strict=True)):
        out[q, sorted(known.get(pair, ()))] = True
    return out
