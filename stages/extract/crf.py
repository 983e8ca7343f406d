"""A linear-chain conditional random field with three tags: outside, begin, inside.

It finds spans (triggers, or participant mentions) and gives for every span the probability that exactly this span is
one. Sequences are processed together, step by step, longest first, so the work is array arithmetic.

Lafferty, McCallum, Pereira, "Conditional random fields", ICML 2001; scaling of the forward pass as in Rabiner,
"A tutorial on hidden Markov models", 1989.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.extract.hashing import Floats, Ints, Layer, Rows, frequent, to_matrix
from stages.extract.optimise import minimise

OUT, BEGIN, INSIDE = 0, 1, 2
_FREE = np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1]], dtype=np.float64)
_START = np.array([1.0, 1.0, 0.0])
"""An inside tag follows begin or inside only."""


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """Sequences laid side by side: `order_T` lists tokens step by step, each step's sequences longest first."""

    order_T: Ints
    steps: Ints

    @classmethod
    def of(cls, first_Q: Ints) -> Packing:
        lengths = np.diff(first_Q)
        by_length = np.argsort(-lengths, kind="stable")
        longest = int(lengths.max(initial=0))
        active = np.searchsorted(-lengths[by_length], -np.arange(longest), side="left")
        starts = first_Q[:-1][by_length]
        order = [starts[:n] + step for step, n in enumerate(active)]
        return cls(np.concatenate(order) if order else np.zeros(0, np.int64), np.cumsum([0, *active]))


@dataclass(frozen=True, slots=True, eq=False)
class Posterior:
    """Scaled forward and backward values of T tokens x 3 tags, in text order.

    Args:
        forward, backward: their product is the marginal of each tag.
        inward: potential of tag INSIDE over the scale, given the tag before: [T, 3].
        closing: backward values restricted to a next tag that is not INSIDE.
        log_likelihood: log of the partition function, summed.
    """

    forward: Floats
    backward: Floats
    inward: Floats
    closing: Floats
    log_z: float


def infer(emission: Floats, transition: Floats, packing: Packing) -> Posterior:
    """Forward-backward.

    Args:
        emission: [T, 3] scores, text order.
        transition: [3, 3] scores from tag to tag; forbidden ones are ignored.
        packing: of the sequences.
    """
    size = len(emission)
    edge = np.exp(transition) * _FREE
    score = emission[packing.order_T]
    top = score.max(axis=1, initial=0.0)
    node = np.exp(score - top[:, None])
    forward, backward, closing = np.empty((size, 3)), np.ones((size, 3)), np.ones((size, 3))
    scale = np.empty(size)
    s = packing.steps
    for i in range(len(s) - 1):
        here = slice(s[i], s[i + 1])
        width = s[i + 1] - s[i]
        before = _START if i == 0 else forward[s[i - 1] : s[i - 1] + width] @ edge
        value = before * node[here]
        scale[here] = value.sum(axis=1)
        forward[here] = value / scale[here, None]
    for i in range(len(s) - 3, -1, -1):
        after = slice(s[i + 1], s[i + 2])
        here = slice(s[i], s[i] + s[i + 2] - s[i + 1])
        weighted = node[after] * backward[after] / scale[after, None]
        backward[here] = weighted @ edge.T
        closing[here] = weighted[:, :INSIDE] @ edge[:, :INSIDE].T
    back = np.empty(size, dtype=np.int64)
    back[packing.order_T] = np.arange(size)
    inward = node[:, INSIDE, None] / scale[:, None] * edge[:, INSIDE]
    log_z = float(np.log(scale).sum() + top.sum())
    return Posterior(forward[back], backward[back], inward[back], closing[back], log_z)


def span_probabilities(posterior: Posterior, first: Ints, last: Ints) -> Floats:
    """P(first..last is exactly one span) for N spans, each within one sequence."""
    out = posterior.forward[first, BEGIN].copy()
    for n in range(1, int((last - first).max(initial=0)) + 1):
        longer = last - first >= n
        tag = BEGIN if n == 1 else INSIDE
        out[longer] *= posterior.inward[first[longer] + n, tag]
    end = np.where(last > first, INSIDE, BEGIN)
    return np.asarray(np.minimum(out * posterior.closing[last, end], 1.0))


def list_spans(posterior: Posterior, first_Q: Ints, floor: float, longest: int) -> tuple[Ints, Ints, Floats]:
    """All spans of at most `longest` tokens whose probability is at least `floor`, by (first, last)."""
    size = len(posterior.forward)
    end_T = np.repeat(first_Q[1:], np.diff(first_Q)) if size else np.zeros(0, np.int64)
    begins = np.flatnonzero(posterior.forward[:, BEGIN] * posterior.backward[:, BEGIN] >= floor)
    firsts, lasts = [], []
    for n in range(longest):
        fits = begins[begins + n < end_T[begins]]
        firsts.append(fits)
        lasts.append(fits + n)
    first, last = np.concatenate(firsts), np.concatenate(lasts)
    p = span_probabilities(posterior, first, last)
    kept = p >= floor
    first, last, p = first[kept], last[kept], p[kept]
    order = np.lexsort((last, first))
    return first[order], last[order], p[order]


def choose(first: Ints, last: Ints, p: Floats) -> Ints:
    """Indices of non-overlapping spans, the most probable first (ties: earlier, shorter), in text order."""
    taken: set[int] = set()
    chosen = []
    for i in np.lexsort((last, first, -p)):
        cells = range(int(first[i]), int(last[i]) + 1)
        if taken.isdisjoint(cells):
            taken.update(cells)
            chosen.append(int(i))
    return np.array(sorted(chosen, key=lambda i: int(first[i])), dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Tagger:
    """A fitted field: `layer` gives the emissions, `longest` is the most tokens a span may have."""

    layer: Layer
    transition: Floats
    longest: int

    def posterior(self, rows: Rows, first_Q: Ints) -> Posterior:
        return infer(self.layer.scores(rows), self.transition, Packing.of(first_Q))


def tags_of(size: int, first: Ints, last: Ints) -> Ints:
    """Gold tags; of overlapping spans the one listed first counts."""
    tags = np.zeros(size, dtype=np.int64)
    for a, b in zip(first.tolist(), last.tolist(), strict=True):
        if not tags[a : b + 1].any():
            tags[a] = BEGIN
            tags[a + 1 : b + 1] = INSIDE
    return tags


def fit_tagger(
    rows: Rows,
    tags: Ints,
    first_Q: Ints,
    l2: float,
    rounds: int,
    longest: int,
    least: int = 2,
    start: Sequence[Tagger] = (),
) -> Tagger:
    """Maximise the conditional likelihood by L-BFGS.

    Args:
        rows: [T, F] buckets of the training tokens.
        tags: [T] gold tags.
        first_Q: sequences.
        l2: half the inverse variance of the weights.
        rounds: at most so many iterations.
        longest: stored with the tagger.
        least: drop features seen in fewer places.
        start: begin at the mean of these; it only saves iterations.
    """
    buckets = frequent(rows, least)
    x = to_matrix(rows, buckets)
    xt = x.T.tocsr()
    size, n = x.shape
    packing = Packing.of(first_Q)
    gold = np.zeros((size, 3))
    gold[np.arange(size), tags] = 1.0
    starts = np.zeros(size, dtype=bool)
    starts[first_Q[:-1]] = True
    inner = np.flatnonzero(~starts)
    gold_pairs = np.zeros((3, 3))
    np.add.at(gold_pairs, (tags[inner - 1], tags[inner]), 1.0)

    def loss(theta: Floats) -> tuple[float, Floats]:
        weights = theta[: 3 * n].reshape(n, 3)
        bias, transition = theta[3 * n : 3 * n + 3], theta[3 * n + 3 :].reshape(3, 3)
        emission = x @ weights + bias
        posterior = infer(emission, transition, packing)
        marginal = posterior.forward * posterior.backward
        # P(tag, next tag): the share of the forward value that goes on into the next token's backward value.
        edge = np.exp(transition) * _FREE
        pairs = posterior.forward[inner - 1].T @ (_outward(emission, posterior, inner, edge))
        pairs = pairs * edge
        value = posterior.log_z - float((emission * gold).sum()) - float((transition * gold_pairs).sum())
        residual = marginal - gold
        gradient = np.concatenate([
            (xt @ residual + l2 * weights).ravel(), residual.sum(axis=0),
            ((pairs - gold_pairs) * _FREE + l2 * transition).ravel(),
        ])  # fmt: skip
        value += 0.5 * l2 * (float(weights.ravel() @ weights.ravel()) + float((transition**2).sum()))
        return value, gradient

    theta = minimise(loss, _mean(start, buckets), rounds)
    layer = Layer.of(buckets, theta[: 3 * n].reshape(n, 3), theta[3 * n : 3 * n + 3])
    return Tagger(layer, theta[3 * n + 3 :].reshape(3, 3), longest)


def _mean(taggers: Sequence[Tagger], buckets: Ints) -> Floats:
    """Their mean as a vector of parameters over the given buckets; zeros without any."""
    total = np.zeros(3 * len(buckets) + 12)
    for tagger in taggers:
        weights = tagger.layer.weights_NK[tagger.layer.column_B[buckets]]
        total += np.concatenate([weights.ravel(), tagger.layer.bias_K, tagger.transition.ravel()]) / len(taggers)
    return total


def _outward(emission: Floats, posterior: Posterior, inner: Ints, edge: Floats) -> Floats:
    """node * backward / scale of the given tokens, recovered from the forward recursion."""
    node = np.exp(emission[inner] - emission[inner].max(axis=1, keepdims=True))
    scale = ((posterior.forward[inner - 1] @ edge) * node).sum(axis=1, keepdims=True)
    return np.asarray(node * posterior.backward[inner] / scale)
