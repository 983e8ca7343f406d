"""What is read off the token vectors: spans, their types, roles between them, and relations.

N tokens, D width of a token vector, W longest span in tokens, V width of a span vector, H width inside, J spans,
E events, M mentions, Q pairs, K event types, R roles, L relation types.

A span head gives every token a distribution over "no span begins here" and the spans that begin here, by length: the
score of a span joins a bilinear form of its ends (Dozat and Manning, "Deep biaffine attention", ICLR 2017; for spans
Yu et al., "Named entity recognition as dependency parsing", ACL 2020) with the sum of its tokens' own scores. Roles are
given to all mentions around an event at once, which see each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.extract.encoder.geometry import HOPS, PLACES, SHAPES, Near
from stages.extract.encoder.targets import Labels
from stages.extract.hashing import Ints

FORBIDDEN = -1e4

DROPOUT = 0.2
SPELLING, SPAN, ROLE, LINK = 24, 256, 192, 128
"""Widths of the spelling embedding, of span vectors, inside the role head and inside the relation head."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Token vectors and their running sums, zero first, in double precision: [N, D] and [N + 1, D]."""

    x_ND: Tensor
    total_ND: Tensor

    @classmethod
    def of(cls, x_ND: Tensor) -> Tokens:
        return cls(x_ND, functional.pad(x_ND.cumsum(0, dtype=torch.float64), (0, 0, 1, 0)))

    def mean(self, low_J: Tensor, high_J: Tensor) -> Tensor:
        """[J, D] mean of low..high (half-open); zero where empty."""
        mean = (self.total_ND[high_J] - self.total_ND[low_J]) / torch.clamp(high_J - low_J, min=1)[:, None]
        return mean.to(self.x_ND.dtype)


class Spans(nn.Module):
    """Log-probabilities of spans by first token and length.

    Args:
        size: D.
        longest: W.
        inner: width of the projections of the ends.
    """

    def __init__(self, size: int, longest: int, inner: int = 128) -> None:
        super().__init__()
        self.longest = longest
        self.dropout = nn.Dropout(DROPOUT)
        self.ends = nn.Linear(size, 2 * inner)
        self.form = nn.Linear(inner, inner)
        self.alone = nn.Linear(size, 3)
        self.length = nn.Parameter(torch.zeros(longest))
        self.none = nn.Parameter(torch.tensor(3.0))

    def forward(self, tokens: Tokens, room_N: Tensor) -> Tensor:
        """[N, 1 + W] log-probabilities: none, then length 1 to W; `room_N` = tokens left in the segment, from here."""
        x_ND = self.dropout(tokens.x_ND)
        first, last = functional.gelu(self.ends(x_ND)).chunk(2, dim=-1)
        first = self.form(first) * first.shape[1] ** -0.5
        begin, end, inside = self.alone(x_ND).unbind(-1)
        n = len(x_ND)
        within = torch.zeros_like(inside)
        columns = [self.none.expand(n)]
        for length in range(1, self.longest + 1):
            stop = torch.clamp(torch.arange(length - 1, n + length - 1), max=n - 1)
            within = within + inside[stop]
            score = (first * last[stop]).sum(-1) + begin + end[stop] + within + self.length[length - 1]
            columns.append(torch.where(room_N >= length, score, FORBIDDEN))
        return torch.log_softmax(torch.stack(columns, dim=1), dim=1)


class Vectors(nn.Module):
    """Span vectors: both ends and the mean of the span, projected."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(DROPOUT)
        self.project = nn.Linear(3 * size, SPAN)

    def forward(self, tokens: Tokens, first_J: Ints, last_J: Ints) -> Tensor:
        """[J, V] vectors of the spans first..last, both inclusive."""
        first, last = torch.from_numpy(first_J), torch.from_numpy(last_J)
        parts = tokens.x_ND[first], tokens.x_ND[last], tokens.mean(first, last + 1)
        return functional.gelu(self.project(self.dropout(torch.cat(parts, dim=-1))))


class Joined(nn.Module):
    """A vector for a pair of spans: both, their product, the tokens between them, and how far apart they stand."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.one = nn.Linear(SPAN, inner)
        self.other = nn.Linear(SPAN, inner)
        self.product = nn.Linear(inner, inner)
        self.between = nn.Linear(size, inner)
        self.place = nn.Embedding(PLACES, inner)
        self.hop = nn.Embedding(HOPS, inner)
        self.dropout = nn.Dropout(DROPOUT)
        self.norm = nn.LayerNorm(inner)

    def forward(self, tokens: Tokens, one: Tensor, other: Tensor, near: Near, extra: Tensor | None = None) -> Tensor:
        """[Q, H]; `extra` [Q, H] is added before the activation."""
        a = self.one(one)[torch.from_numpy(near.event_Q)]
        b = self.other(other)[torch.from_numpy(near.mention_Q)]
        between = tokens.mean(torch.from_numpy(near.low_Q), torch.from_numpy(near.high_Q))
        x = a + b + self.product(a * b) + self.between(between)
        x = x + self.place(torch.from_numpy(near.place_Q)) + self.hop(torch.from_numpy(near.hop_Q))
        if extra is not None:
            x = x + extra
        return self.norm(functional.gelu(self.dropout(x)))  # type: ignore[no-any-return]


class Roles(nn.Module):
    """Role of a mention in an event."""

    def __init__(self, size: int, kinds: int, roles: int) -> None:
        super().__init__()
        self.joined = Joined(size, ROLE)
        self.kind = nn.Embedding(kinds, ROLE)
        self.rivals = nn.TransformerEncoderLayer(ROLE, 4, 2 * ROLE, 0.1, "gelu", batch_first=True, norm_first=True)
        self.hidden = nn.Linear(ROLE, ROLE)
        self.dropout = nn.Dropout(DROPOUT)
        self.out = nn.Linear(ROLE, roles + 1)

    def forward(self, tokens: Tokens, event_EV: Tensor, kind_E: Tensor, mention_MV: Tensor, near: Near) -> Tensor:
        """[Q, 1 + R] scores: no role, then the roles."""
        event_Q = torch.from_numpy(near.event_Q)
        x = self.joined(tokens, event_EV, mention_MV, near, self.kind(kind_E)[event_Q])
        x = x + self._compare(x, event_Q)
        return self.out(self.dropout(functional.gelu(self.hidden(x))))  # type: ignore[no-any-return]

    def _compare(self, x_QH: Tensor, event_Q: Tensor) -> Tensor:
        """Attention among the pairs of each event."""
        _, row_Q, counts = torch.unique_consecutive(event_Q, return_inverse=True, return_counts=True)
        column_Q = torch.arange(len(event_Q)) - (counts.cumsum(0) - counts)[row_Q]
        grid = x_QH.new_zeros(len(counts), int(counts.max()), x_QH.shape[1])
        grid[row_Q, column_Q] = x_QH
        padding = torch.arange(grid.shape[1])[None, :] >= counts[:, None]
        return self.rivals(grid, src_key_padding_mask=padding)[row_Q, column_Q]  # type: ignore[no-any-return]


class Links(nn.Module):
    """Relations between two triggers, the first told first; each is judged on its own."""

    def __init__(self, size: int, links: int) -> None:
        super().__init__()
        self.joined = Joined(size, LINK)
        self.dropout = nn.Dropout(DROPOUT)
        self.out = nn.Linear(LINK, 2 * links)
        nn.init.constant_(self.out.bias, -3.0)  # most pairs bear none

    def forward(self, tokens: Tokens, trigger_GV: Tensor, near: Near) -> Tensor:
        """[Q, 2 L] log-odds of the relations of the first to the second, then of the second to the first."""
        return self.out(self.dropout(self.joined(tokens, trigger_GV, trigger_GV, near)))  # type: ignore[no-any-return]


class Heads(nn.Module):
    """All heads over one forward pass; those are None for which training has no annotation.

    Args:
        hidden: width of the encoder.
        labels: what the heads choose from.
        mentions: whether mentions are annotated.
    """

    def __init__(self, hidden: int, labels: Labels, mentions: bool) -> None:
        super().__init__()
        size = hidden + SPELLING
        self.mix = nn.Linear(2 * hidden, hidden)
        with torch.no_grad():
            # In the beginning the last layer's output is passed on as it is.
            self.mix.bias.zero_()
            self.mix.weight.copy_(torch.cat([torch.zeros(hidden, hidden), torch.eye(hidden)], dim=1))
        self.spelling = nn.Embedding(SHAPES, SPELLING)
        self.triggers = Spans(size, labels.longest_trigger)
        self.trigger_vectors = Vectors(size)
        self.kind = nn.Linear(SPAN, len(labels.kinds))
        self.mentions = Spans(size, labels.longest_mention) if mentions else None
        self.mention_vectors = Vectors(size) if mentions else None
        self.sort = nn.Linear(SPAN, len(labels.sorts)) if mentions and labels.sorts else None
        self.roles = Roles(size, len(labels.kinds), len(labels.roles)) if mentions and labels.roles else None
        self.links = Links(size, len(labels.links)) if labels.links else None
        self.allowed: Tensor
        self.register_buffer("allowed", torch.from_numpy(labels.mask()), persistent=False)

    def combine(self, lower_ND: Tensor, upper_ND: Tensor) -> Tensor:
        """[N, D] token vectors out of those of the last frozen and of the last layer: spelling and meaning."""
        return self.mix(torch.cat([lower_ND, upper_ND], dim=-1))  # type: ignore[no-any-return]

    def read(self, x_ND: Tensor, shape_N: Tensor) -> Tokens:
        """Token vectors with their spelling, which an uncased encoder does not see."""
        return Tokens.of(torch.cat([x_ND, self.spelling(shape_N)], dim=-1))

    def role_log_probabilities(
        self, tokens: Tokens, e_first: Ints, e_last: Ints, kind_E: Ints, m_first: Ints, m_last: Ints, near: Near
    ) -> Tensor:
        """[Q, 1 + R]: no role, then the roles; those that an event type never takes have (next to) none."""
        assert self.roles is not None and self.mention_vectors is not None
        kinds = torch.from_numpy(kind_E)
        events = self.trigger_vectors(tokens, e_first, e_last)
        mentions = self.mention_vectors(tokens, m_first, m_last)
        scores = self.roles(tokens, events, kinds, mentions, near)
        allowed = self.allowed[kinds][torch.from_numpy(near.event_Q)]
        return torch.log_softmax(scores.masked_fill(~allowed, FORBIDDEN), dim=-1)

    def link_scores(self, tokens: Tokens, first_G: Ints, last_G: Ints, near: Near) -> Tensor:
        """[Q, 2 L] log-odds of the relations of pairs of triggers."""
        assert self.links is not None
        return self.links(tokens, self.trigger_vectors(tokens, first_G, last_G), near)  # type: ignore[no-any-return]
