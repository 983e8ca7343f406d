"""How much each token of a right answer counts: not all of them decide anything.

    uniform   1 each: plain supervised training
    fait      more where the answer differs from a wrong twin, the more the less the model prefers it (arXiv 2503.16913)
    sstoken   1 on the share of tokens that the model has improved most on since a former state, 0 elsewhere
              (arXiv 2510.18250): needs no label and no twin

Weights are constants (no gradient flows through them), have mean 1 over an answer, and are exactly 1 where there is
nothing to go by, so that such a step is the plain one to the bit. FAIT costs one forward of the twins, ssToken one of
the former weights over each epoch's examples.

Axes: N tokens of an answer (end token included), M tokens of its twin's answer, B rows, T tokens of a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.errors import ParamError
from pipeline.mla import IGNORED
from stages.sft.lessons import Example
from stages.sft.likelihood import log_probs
from stages.sft.packing import pack, plan_rows

Weighting = Literal["uniform", "fait", "sstoken"]
MOST = 3.0
"""FAIT: the weight that a token approaches as the model prefers the wrong one ever more, before rescaling."""
SHARE = 0.6
"""ssToken: share of an answer's tokens that count."""

Pairs = Sequence[tuple[int, int]]
Rows = Sequence[Sequence[int]]
"""Indices of the examples in each row."""


def aligned(right: Sequence[int], wrong: Sequence[int]) -> list[tuple[int, int]]:
    """Places (in the right answer, in the wrong one) of tokens that stand in for each other and differ.

    Runs of differing tokens between equal ones are paired from their beginnings; what one of them has more, nothing
    stands in for.
    """
    pairs: list[tuple[int, int]] = []
    for kind, a, b, c, d in SequenceMatcher(None, right, wrong, autojunk=False).get_opcodes():
        if kind == "replace":
            pairs += [(i, j) for i, j in zip(range(a, b), range(c, d), strict=False) if right[i] != wrong[j]]
    return pairs


def fait(right_N: Tensor, wrong_M: Tensor, pairs: Pairs, most: float = MOST) -> Tensor:
    """Weights [N]: 1 + (most - 1) * sigmoid(-margin) at paired tokens, 1 elsewhere, then divided by their mean.

    Args:
        right_N: log-probabilities of the right answer's tokens.
        wrong_M: of the twin's, each after the twin's own beginning.
        pairs: of `aligned`; a token's margin is right minus wrong. None at all gives ones.
        most: at least 1.

    Raises:
        ParamError: `most` is below 1.
    """
    if not most >= 1:
        raise ParamError(f"must be at least 1, not {most}", field="most")
    weights_N = torch.ones_like(right_N, requires_grad=False)
    if not pairs:
        return weights_N
    i, j = (torch.tensor(places, device=right_N.device) for places in zip(*pairs, strict=True))
    margins = right_N.detach()[i] - wrong_M.detach()[j]
    weights_N[i] = 1 + (most - 1) * torch.sigmoid(-margins)
    return weights_N / weights_N.mean()


def sstoken(now_N: Tensor, former_N: Tensor, share: float = SHARE) -> Tensor:
    """Weights [N]: N / k on the k = ceil(share * N) tokens whose log-probability has risen most, 0 elsewhere.

    The paper adds an attention score; this is its form without one (gamma = 1), in which its normalisation changes no
    order and is left out. Of equals the earlier token counts.

    Args:
        now_N, former_N: log-probabilities of the answer's tokens under the weights in training and under former ones.
        share: in (0, 1]; 1 gives ones.

    Raises:
        ParamError: `share` is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ParamError(f"must be above 0 and at most 1, not {share}", field="share")
    n = len(now_N)
    kept = math.ceil(share * n)
    weights_N = torch.zeros_like(now_N, requires_grad=False)
    order_N = torch.sort(now_N.detach() - former_N.detach(), descending=True, stable=True).indices
    weights_N[order_N[:kept]] = n / kept
    return weights_N


# ---- in packed rows -------------------------------------------------------------------------------------------------


def by_twins(
    model: nn.Module, examples: Sequence[Example], rows: Rows, found_BT: Tensor, twins: Mapping[int, Example],
    most: float = MOST,
) -> Tensor:  # fmt: skip
    """FAIT's weights [B, T] for the loss over packed rows. One forward of the twins, without gradient.

    Args:
        model: in training.
        examples: of the batch.
        rows: those that `found_BT` was computed for, as given to `packing.pack`.
        found_BT: log-probabilities of the labelled tokens.
        twins: index of an example -> its twin; those without one are weighted plainly.
    """
    right = answers(found_BT, examples, rows)
    having = [i for i in right if i in twins]
    if not having:
        return torch.ones_like(found_BT, requires_grad=False)
    wrong = [twins[i] for i in having]
    plan = plan_rows([len(example) for example in wrong], max(map(len, wrong)))
    packed = pack(wrong, plan)
    labels_BT = packed.labels_BT.masked_fill(~packed.answer_BT, IGNORED)
    place = found_BT.device
    with torch.no_grad():
        told_BT = log_probs(model, packed.ids_BT.to(place), labels_BT.to(place), packed.segments_BT.to(place))
    read = answers(told_BT, wrong, plan)
    pairs = [aligned(_answer(examples[i]), _answer(example)) for i, example in zip(having, wrong, strict=True)]
    weights = {i: fait(right[i], read[n], pairs[n], most) for n, i in enumerate(having)}
    return laid_out(weights, examples, rows, found_BT)


def by_progress(
    examples: Sequence[Example], rows: Rows, found_BT: Tensor, former: Mapping[int, Tensor], share: float = SHARE
) -> Tensor:
    """ssToken's weights [B, T] for the loss over packed rows; arguments as for `by_twins`.

    Args:
        former: index of an example -> log-probabilities of its answer under former weights, by `answers`; those
            without are weighted plainly.
    """
    now = answers(found_BT, examples, rows)
    weights = {i: sstoken(values, former[i], share) for i, values in now.items() if i in former}
    return laid_out(weights, examples, rows, found_BT)


def _answer(example: Example) -> tuple[int, ...]:
    return example.ids[example.prompt :]


def answers(values_BT: Tensor, examples: Sequence[Example], rows: Rows) -> dict[int, Tensor]:
    """Index of an example -> what `packing.pack` of these rows has at its answer's tokens [N], detached."""
    return {i: values_BT[b, place].detach() for i, b, place in _places(examples, rows)}


def laid_out(weights: Mapping[int, Tensor], examples: Sequence[Example], rows: Rows, like_BT: Tensor) -> Tensor:
    """Weights [B, T] for `packing.pack` of these rows, the inverse of `answers`; 1 wherever no weights are given."""
    weights_BT = torch.ones_like(like_BT, requires_grad=False)
    for i, b, place in _places(examples, rows):
        if i in weights:
            weights_BT[b, place] = weights[i]
    return weights_BT


def _places(examples: Sequence[Example], rows: Rows) -> list[tuple[int, int, slice]]:
    """(example, row, its answer's places there)."""
    found = []
    for b, row in enumerate(rows):
        at = 0
        for i in row:
            found.append((i, b, slice(at + examples[i].prompt, at + len(examples[i]))))
            at += len(examples[i])
    return found
