"""A shard as read by the network: token vectors block by block, trigger spans, mention probabilities, role scores.

A block is a run of whole documents, or a part of a very long one. Its token vectors are kept while the shard is worked
on, up to a limit; beyond it a block is read again when its roles are asked for, so memory stays bounded however long
the texts are. All spans are (first, last) tokens of the shard, both inclusive.

T tokens of the shard, W longest span, N tokens of a block, D width, E events, M mentions, Q pairs, R roles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import torch
from tokenizers import Tokenizer
from torch import Tensor

from pipeline.params import Encoder
from stages.extract.crf import choose
from stages.extract.encoder.chunks import Chunk, Pieces, bucket, cut_chunks, cut_pieces, cut_segments
from stages.extract.encoder.geometry import Near, list_near, list_neighbours, room, spelling
from stages.extract.encoder.heads import Heads, Spans, Tokens
from stages.extract.encoder.network import Backbone, Special, lay_out, pool
from stages.extract.encoder.targets import Labels
from stages.extract.hashing import Floats, Ints
from stages.extract.tokens import Text, read_text

BATCH = 2048
"""Word pieces per forward pass, padding included: 8192 take a third longer, their activations fit into no cache."""
BLOCK = 16_384
"""Tokens per block, about; a document is divided only where it has more than twice as many."""
KEPT_TOKENS = 1 << 20
"""Token vectors kept per shard, at most: 1.7 GB for an encoder of width 384."""
EVENTS = 256
"""Events whose roles are scored together."""
SPAN_FLOOR = 0.02
"""Raw probability below which a span is not looked at any further."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Tokens `low` to `high` (half-open) of the shard, as chunks."""

    low: int
    high: int
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """A shard's text ready for the network."""

    text: Text
    pieces: Pieces
    segments: Ints
    shape_T: Ints
    sentence_T: Ints
    blocks: tuple[Block, ...]
    kept: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """Everything between text and probabilities."""

    backbone: Backbone
    heads: Heads
    tokenizer: Tokenizer
    special: Special
    settings: Encoder
    labels: Labels

    def prepare(self, documents: pl.DataFrame, sentences: pl.DataFrame) -> Shard:
        """Cut the documents of a shard (rows of ingest/documents, ingest/sentences) into blocks and chunks."""
        text = read_text(documents, sentences)
        pieces, segments, chunks = cut_text(text, self.tokenizer, self.special, self.settings)
        # Sentences run over the shard; documents are set apart, so that nothing is related across them.
        return Shard(
            text, pieces, segments, spelling(text), text.sentence_T + 16 * text.doc_T, tuple(_blocks(text, chunks))
        )

    def vectors(self, shard: Shard, index: int) -> Tokens:
        """Token vectors of one block."""
        block = shard.blocks[index]
        x_ND = shard.kept.get(index)
        if x_ND is None:
            x_ND = self._encode(shard, block)
            if sum(len(kept) for kept in shard.kept.values()) + len(x_ND) <= KEPT_TOKENS:
                shard.kept[index] = x_ND
        return self.heads.read(x_ND, torch.from_numpy(shard.shape_T[block.low : block.high]))

    def _encode(self, shard: Shard, block: Block) -> Tensor:
        out = torch.empty(block.high - block.low, self.backbone.size)
        for batch in bucket(list(block.chunks), BATCH, self.special.count):
            laid = lay_out(shard.pieces, [block.chunks[c] for c in batch], self.special)
            lower = self.backbone.lower(laid.ids_BS, laid.mask_BS)
            upper = self.backbone.upper(lower, laid.mask_BS)
            x_ND = self.heads.combine(pool(lower, laid), pool(upper, laid))
            for begin, chunk in zip(laid.first_B.tolist(), laid.chunks, strict=False):
                out[chunk.begin - block.low : chunk.end - block.low] = x_ND[
                    begin + chunk.begin - chunk.first : begin + chunk.end - chunk.first
                ]
        return out

    def spans(self, shard: Shard, index: int, tokens: Tokens, head: Spans) -> Floats:
        """[N, W] probability of the span that begins at each token of a block and has length 1 to W."""
        block = shard.blocks[index]
        token = np.arange(block.low, block.high)
        room_N = room(shard.segments, token, np.full(len(token), block.high))
        log_p = head(tokens, torch.from_numpy(room_N))
        return np.asarray(log_p[:, 1:].exp().numpy(), dtype=np.float64)

    def kinds(self, tokens: Tokens, first: Ints, last: Ints) -> Floats:
        """[J, K] scores of event types of spans (rows of the block)."""
        return self.heads.kind(self.heads.trigger_vectors(tokens, first, last)).double().numpy()  # type: ignore[no-any-return]

    def sorts(self, shard: Shard, first: Ints, last: Ints) -> list[str | None]:
        """Mention types of spans, ascending by first token."""
        heads = self.heads
        out: list[str | None] = [None] * len(first)
        if heads.sort is None or heads.mention_vectors is None:
            return out
        for index, low, own in self.blocks_of(shard, first):
            if own.stop > own.start:
                vectors = heads.mention_vectors(self.vectors(shard, index), first[own] - low, last[own] - low)
                out[own] = [self.labels.sorts[k] for k in heads.sort(vectors).argmax(dim=1).tolist()]
        return out

    def means(self, shard: Shard, first: Ints, last: Ints) -> Floats:
        """[J, D] unit vectors of spans, ascending by first token: the mean of their tokens'."""
        out = np.zeros((len(first), self.backbone.size))
        for index, low, own in self.blocks_of(shard, first):
            if own.stop > own.start:
                tokens = self.vectors(shard, index)
                mean = tokens.mean(torch.from_numpy(first[own] - low), torch.from_numpy(last[own] - low + 1))
                out[own] = mean[:, : self.backbone.size].double().numpy()
        return np.asarray(out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9))

    def pairs(
        self, shard: Shard, e_first: Ints, e_last: Ints, kind_E: Ints, m_first: Ints, m_last: Ints
    ) -> tuple[Ints, Ints, Floats]:
        """Role log-probabilities of all pairs within reach; events and mentions ascending by first token.

        Returns:
            Indices of events and of mentions [Q] and log-probabilities [Q, 1 + R], no role first.
        """
        events, mentions, scores = [], [], []
        for index, low, near, part, people in self._near(shard, e_first, e_last, m_first, m_last):
            log_p = self.heads.role_log_probabilities(
                self.vectors(shard, index), e_first[part] - low, e_last[part] - low, kind_E[part],
                m_first[people] - low, m_last[people] - low, near,
            )  # fmt: skip
            events.append(near.event_Q + part.start)
            mentions.append(near.mention_Q + people.start)
            scores.append(log_p.double().numpy())
        if not events:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 1 + len(self.labels.roles)))
        return np.concatenate(events), np.concatenate(mentions), np.concatenate(scores)

    def _near(
        self, shard: Shard, e_first: Ints, e_last: Ints, m_first: Ints, m_last: Ints
    ) -> Iterator[tuple[int, int, Near, slice, slice]]:
        """Pairs, block by block and a bounded number of events at a time, in rows of the block."""
        for index, low, own in self.blocks_of(shard, e_first):
            people = slice(*np.searchsorted(m_first, [low, shard.blocks[index].high]).tolist())
            sentence_N = shard.sentence_T[low : shard.blocks[index].high]
            for begin in range(own.start, own.stop, EVENTS):
                part = slice(begin, min(begin + EVENTS, own.stop))
                near = list_near(
                    sentence_N, e_first[part] - low, e_last[part] - low, m_first[people] - low, m_last[people] - low,
                    self.labels.reach,
                )  # fmt: skip
                if len(near.event_Q):
                    yield index, low, near, part, people

    def links(self, shard: Shard, first: Ints, last: Ints) -> tuple[Ints, Ints, Floats]:
        """Relations of each trigger with the few told after it: indices of both, and log-odds [Q, 2 L]."""
        ones, others, scores = [], [], []
        for index, low, own in self.blocks_of(shard, first):
            high = shard.blocks[index].high
            near = list_neighbours(shard.sentence_T[low:high], first[own] - low, last[own] - low)
            if len(near.event_Q):
                found = self.heads.link_scores(self.vectors(shard, index), first[own] - low, last[own] - low, near)
                ones.append(near.event_Q + own.start)
                others.append(near.mention_Q + own.start)
                scores.append(found.double().numpy())
        if not ones:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 2 * len(self.labels.links)))
        return np.concatenate(ones), np.concatenate(others), np.concatenate(scores)

    def blocks_of(self, shard: Shard, first: Ints) -> Iterator[tuple[int, int, slice]]:
        """For every block its number, its first token and which of the ascending spans begin in it."""
        for index, block in enumerate(shard.blocks):
            yield index, block.low, slice(*np.searchsorted(first, [block.low, block.high]).tolist())


def cut_text(text: Text, tokenizer: Tokenizer, special: Special, settings: Encoder) -> tuple[Pieces, Ints, list[Chunk]]:
    """Pieces, segments and chunks of a shard."""
    pieces = cut_pieces(text, tokenizer, special.unknown)
    most = settings.chunk - special.count
    segments = cut_segments(text, pieces, most - 2 * settings.context)
    return pieces, segments, cut_chunks(text, pieces, segments, most, settings.context)


def _blocks(text: Text, chunks: list[Chunk]) -> Iterator[Block]:
    own: list[Chunk] = []
    for chunk in chunks:
        size = chunk.end - own[0].begin if own else 0
        fresh = bool(own) and text.doc_T[chunk.begin] != text.doc_T[own[-1].begin]
        if size > (BLOCK if fresh else 2 * BLOCK):
            yield Block(own[0].begin, own[-1].end, tuple(own))
            own = []
        own.append(chunk)
    if own:
        yield Block(own[0].begin, own[-1].end, tuple(own))


def list_likely(p_NW: Floats, floor: float) -> tuple[Ints, Ints, Floats]:
    """Spans of at least `floor` that do not overlap, the most probable first to be taken; by first token."""
    first, size = np.nonzero(p_NW >= floor)
    p = p_NW[first, size]
    chosen = choose(first, first + size, p)
    return first[chosen], first[chosen] + size[chosen], p[chosen]
