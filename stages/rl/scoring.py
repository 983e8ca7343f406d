"""Groups of rollouts as tensors, and the policy's log-probabilities of what was a choice in them.

Axes: G rollouts of a prompt, T tokens of the longest, F tokens of the group that were a choice, in row order, W
vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its customary name
from torch import Tensor, nn

from pipeline.decoders import decoder_for
from stages.rl import forward
from stages.rl.rollout import Rollout


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A group.

    Args:
        prompt, responses: token ids.
        heat: temperature that the rollouts were drawn at, and are scored at.
        slot_GT: list slot of each token.
        free_GT: which tokens were a choice; behind a short rollout none.
        engine_GT: log-probabilities as drawn, 0 where there was no choice.
        tokens_F: ids of the free tokens.
        legal_FX: packed bits of what was legal there; None without a grammar.
        width: W.
    """

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    heat: float
    slot_GT: Tensor
    free_GT: Tensor
    engine_GT: Tensor
    tokens_F: Tensor
    legal_FX: np.ndarray[tuple[int, int], np.dtype[np.uint8]] | None
    width: int

    @classmethod
    def of(cls, prompt: Sequence[int], rollouts: Sequence[Rollout], heat: float, width: int) -> Table:
        """Of a prompt's rollouts. Lengths alone say where one ends: an end token counts, also where it pads."""
        longest = max(len(r.tokens) for r in rollouts)
        slot_GT = torch.zeros(len(rollouts), longest, dtype=torch.long)
        free_GT = torch.zeros(len(rollouts), longest, dtype=torch.bool)
        engine_GT = torch.zeros(len(rollouts), longest)
        tokens, legal = [], []
        for g, rollout in enumerate(rollouts):
            n, free = len(rollout.tokens), torch.tensor(rollout.free)
            slot_GT[g, :n] = torch.tensor(rollout.slots)
            free_GT[g, :n] = free
            engine_GT[g, :n] = torch.where(free, torch.tensor(rollout.engine), 0.0)
            tokens.append(torch.tensor(rollout.tokens)[free])
            if rollout.legal is not None:
                legal.append(rollout.legal[free.numpy()])
        return cls(
            tuple(prompt), tuple(r.tokens for r in rollouts), heat, slot_GT, free_GT, engine_GT, torch.cat(tokens),
            np.concatenate(legal) if legal else None, width,
        )  # fmt: skip

    @property
    def free_M(self) -> Tensor:  # noqa: N802 - axes in names
        """Which of all tokens of the responses, one after another, were a choice."""
        lengths = torch.tensor([[len(r)] for r in self.responses])
        return self.free_GT[torch.arange(self.free_GT.shape[1]) < lengths]

    def legal(self) -> Tensor | None:
        """The legal tokens [F, W]."""
        if self.legal_FX is None:
            return None
        return torch.from_numpy(np.unpackbits(self.legal_FX, axis=1, bitorder="little", count=self.width).view(bool))

    def spread(self, values_F: Tensor) -> Tensor:
        """Values of the free tokens at their places [G, T], 0 elsewhere."""
        out = torch.zeros(self.free_GT.shape, dtype=values_F.dtype)
        return out.masked_scatter(self.free_GT, values_F)


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Of the free tokens of a group, 0 elsewhere.

    Args:
        log_probs_GT: at the group's temperature, over the legal tokens.
        entropy_GT: exact, at temperature 1, over the legal tokens; without gradient.
        states_FD: that the tokens are predicted from.
    """

    log_probs_GT: Tensor
    entropy_GT: Tensor
    states_FD: Tensor


class Scorer:
    """Scores groups by a model.

    Args:
        model: `Policy.plain`; in evaluation mode, so that no dropout tells two passes apart.
        way: of the forward; `off` repeats the prompt for every rollout.

    Raises:
        SetupError: a shared prompt is asked for of a model that is not run layer by layer.
    """

    def __init__(self, model: nn.Module, way: Literal["split", "block_mask", "off"]) -> None:
        self.model = model
        self.way: forward.Way | None = None if way == "off" else way
        self.decoder = None if way == "off" else decoder_for(model)

    def states(self, table: Table) -> Tensor:
        """States [F, D] that the free tokens are predicted from."""
        if self.decoder is None or self.way is None:
            return forward.repeated(self.model, table.prompt, table.responses)[table.free_M]
        return forward.shared(self.decoder, table.prompt, table.responses, self.way)[table.free_M]

    def score(self, table: Table) -> Scores:
        """See `Scores`."""
        states_FD = self.states(table)
        if self.decoder is None:
            logits_FW = forward.repeated_logits(self.model, states_FD)
        else:
            logits_FW = self.decoder.logits(states_FD)
        legal_FW, heat_F = table.legal(), torch.full((len(states_FD),), table.heat)
        found_F = forward.log_probs(logits_FW, table.tokens_F, heat_F, legal_FW)
        entropy_F = forward.entropies(logits_FW.detach(), legal_FW)
        return Scores(table.spread(found_F), table.spread(entropy_F), states_FD)


class ValueHead(nn.Module):
    """PPO's critic: a linear map of the normed last state, 0 at the start, so that nothing untrained judges."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.out = nn.Linear(size, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, states_FD: Tensor) -> Tensor:
        values_F: Tensor = self.out(F.rms_norm(states_FD.float(), states_FD.shape[-1:]))[:, 0]
        return values_F
