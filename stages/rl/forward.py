"""The training forward over a group of rollouts, their prompt run through the model once.

    states_MD = shared(decoder, prompt, responses)      # what each response token is predicted from, one after another
    log_probs, entropies = score(decoder.logits(states_MD), tokens, heat, legal)

A group is one row [prompt; response 1; …; response G]: a response's positions go on behind the prompt, its tokens see
the prompt and their own response. Gradients are those of the repeated forward: what G copies of the prompt would add
up, its one copy gets. Source: Prefix Grouper, arXiv 2506.05433.

Token work, shared over repeated, is (P + G·R) / (G·(P + R)). `split` attends in two calls (the prompt, causal; the
responses over prompt and own tokens) and computes nothing in vain; `block_mask` is one call under a dense mask, whose
(P + G·R)² scores lose once R/P > 1/√G. The vocabulary is computed for the tokens asked for alone, in either.

Not for models with dropout, or with a balancing loss over prompt tokens.

Axes: N tokens of the row, G responses, R tokens of the longest, P prompt tokens, M response tokens one after another,
D hidden, H query heads, J key heads, K key, V value, W vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.decoders import Decoder
from pipeline.mla import MLAForCausalLM, attend

Way = Literal["split", "block_mask"]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where the tokens of a group stand.

    A response's last token is predicted and never read, so a response of r tokens takes r - 1 places.

    Args:
        ids_N, positions_N: of the row.
        prompt: P.
        real_GR: which places of the rectangle of responses are tokens; None when all are.
        states_M: for every response token the place in the row whose state predicts it.
    """

    ids_N: Tensor
    positions_N: Tensor
    prompt: int
    real_GR: Tensor
    states_M: Tensor

    @classmethod
    def of(cls, prompt: Sequence[int], responses: Sequence[Sequence[int]], device: torch.device) -> Layout:
        """Of a prompt and its responses, none of them empty."""
        begin, width = len(prompt), max(len(r) for r in responses) - 1
        ids, positions = list(prompt), list(range(begin))
        states: list[int] = []
        for response in responses:
            states += [begin - 1, *range(len(ids), len(ids) + len(response) - 1)]
            ids += response[:-1]
            positions += range(begin, begin + len(response) - 1)
        lengths_G1 = torch.tensor([[len(r) - 1] for r in responses])
        return cls(
            torch.tensor(ids, device=device), torch.tensor(positions, device=device), begin,
            (torch.arange(width) < lengths_G1).to(device), torch.tensor(states, device=device),
        )  # fmt: skip

    def rectangle(self, x_NX: Tensor) -> Tensor:
        """The responses' part of [N, …] as [G, R, …], zeros behind the shorter ones."""
        own = x_NX[self.prompt :]
        if bool(self.real_GR.all()):
            return own.view(*self.real_GR.shape, *own.shape[1:])
        out = own.new_zeros(*self.real_GR.shape, *own.shape[1:])
        out[self.real_GR] = own
        return out

    def row(self, x_GRX: Tensor) -> Tensor:
        """`rectangle` undone."""
        return x_GRX.flatten(0, 1) if bool(self.real_GR.all()) else x_GRX[self.real_GR]


def shared(
    decoder: Decoder, prompt: Sequence[int], responses: Sequence[Sequence[int]], way: Way = "split"
) -> Tensor:  # fmt: skip
    """Hidden states [M, D] before the last norm that predict every token of every response, in order."""
    layout = Layout.of(prompt, responses, decoder.weight.device)
    masks = _masks(layout, way)
    x_ND, rotary = decoder.embed(layout.ids_N, layout.positions_N)
    needed_N = None
    for layer in range(decoder.shape.layers):
        q_NHK, k_NJK, v_NJV = decoder.project(layer, x_ND, rotary)
        out_NHV = masks(q_NHK, k_NJK, v_NJV, decoder.shape.scale)
        if layer == decoder.shape.layers - 1:  # of the prompt only the last token's state is asked for
            needed_N = torch.arange(layout.prompt - 1, len(layout.ids_N), device=x_ND.device)
            x_ND, out_NHV = x_ND[needed_N], out_NHV[needed_N]
        x_ND = decoder.finish(layer, x_ND, out_NHV.flatten(1))
    return x_ND[layout.states_M - (layout.prompt - 1)]


def _masks(layout: Layout, way: Way) -> Any:
    """The attention [N, H, V] of a row, its mask made once for all layers."""
    p, width, device = layout.prompt, layout.real_GR.shape[1], layout.ids_N.device

    if way == "block_mask":
        owner_N = torch.cat((torch.zeros(p, device=device), layout.row(_numbers(layout))))
        index_N = torch.arange(len(layout.ids_N), device=device)
        seen_NN = (index_N[:, None] >= index_N) & ((owner_N == 0) | (owner_N[:, None] == owner_N))

        def whole(q_NHK: Tensor, k_NJK: Tensor, v_NJV: Tensor, scale: float) -> Tensor:
            q, k, v = (x.transpose(0, 1)[None] for x in (q_NHK, k_NJK, v_NJV))
            return attend(q, k, v, scale, seen_NN[None, None], False)[0].transpose(0, 1)

        return whole

    own_RR = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    seen_RS = torch.cat((torch.ones(width, p, dtype=torch.bool, device=device), own_RR), 1)

    def split(q_NHK: Tensor, k_NJK: Tensor, v_NJV: Tensor, scale: float) -> Tensor:
        q, k, v = (x[:p].transpose(0, 1)[None] for x in (q_NHK, k_NJK, v_NJV))
        first_PHV = attend(q, k, v, scale, None, True)[0].transpose(0, 1)
        if not width:  # every response is a single token, predicted from the prompt
            return first_PHV
        q_GHRK = layout.rectangle(q_NHK).transpose(1, 2)
        groups = len(q_GHRK)
        both = [
            torch.cat((x.expand(groups, -1, -1, -1), layout.rectangle(y).transpose(1, 2)), 2)
            for x, y in ((k, k_NJK), (v, v_NJV))
        ]
        # Places behind a short response see its tokens; nobody sees them, and they are dropped.
        own_GHRV = attend(q_GHRK, both[0], both[1], scale, seen_RS[None, None], False)
        return torch.cat((first_PHV, layout.row(own_GHRV.transpose(1, 2))), 0)

    return split


def _numbers(layout: Layout) -> Tensor:
    """[G, R]: number of the response, from 1."""
    count, width = layout.real_GR.shape
    return torch.arange(1.0, count + 1, device=layout.real_GR.device)[:, None].expand(count, width)


def repeated(model: nn.Module, prompt: Sequence[int], responses: Sequence[Sequence[int]]) -> Tensor:
    """As `shared`, by the model's own forward over rows [prompt; response], the prompt once per response.

    The states are those behind the model's last norm; `repeated_logits` goes with them.
    """
    width = len(prompt) + max(len(r) for r in responses) - 1
    device = next(model.parameters()).device
    ids_GT = torch.zeros(len(responses), width, dtype=torch.long, device=device)
    wanted_GT = torch.zeros(len(responses), width, dtype=torch.bool, device=device)
    for g, response in enumerate(responses):
        row = [*prompt, *response[:-1]]
        ids_GT[g, : len(row)] = torch.tensor(row, device=device)
        wanted_GT[g, len(prompt) - 1 : len(row)] = True
    if isinstance(model, MLAForCausalLM):  # padding stands behind, where nobody looks
        states_GTD = model.hidden(ids_GT)
    else:
        own: Any = model
        states_GTD = own.get_decoder()(input_ids=ids_GT, use_cache=False).last_hidden_state
    found: Tensor = states_GTD[wanted_GT]
    return found


def repeated_logits(model: nn.Module, states_MD: Tensor) -> Tensor:
    """Logits [M, W] of states of `repeated`."""
    own: Any = model
    head = own.lm_head if isinstance(model, MLAForCausalLM) else own.get_output_embeddings()
    logits: Tensor = head(states_MD)
    return logits


def log_probs(logits_MW: Tensor, tokens_M: Tensor, heat_M: Tensor, legal_MW: Tensor | None = None) -> Tensor:
    """Log-probability [M] of each token under softmax(logits / heat) over its legal tokens: what it was drawn from.

    Args:
        logits_MW: final ones (after soft-capping and bias).
        heat_M: temperature of each token's sample.
        legal_MW: tokens that the grammar allows there; None: all.
    """
    warm_MW = _precise(logits_MW) / heat_M[:, None]
    if legal_MW is not None:
        warm_MW = warm_MW.masked_fill(~legal_MW, -torch.inf)
    return warm_MW.gather(1, tokens_M[:, None])[:, 0] - warm_MW.logsumexp(-1)


def entropies(logits_MW: Tensor, legal_MW: Tensor | None = None) -> Tensor:
    """Exact entropy [M] in nats at temperature 1 over the legal tokens."""
    own_MW = _precise(logits_MW)
    if legal_MW is not None:
        own_MW = own_MW.masked_fill(~legal_MW, -torch.inf)
    log_MW = own_MW.log_softmax(-1)
    return -(log_MW.exp() * log_MW.clamp(min=torch.finfo(log_MW.dtype).min)).sum(-1)


def _precise(logits_MW: Tensor) -> Tensor:
    return logits_MW if logits_MW.dtype == torch.float64 else logits_MW.float()


def work_ratio(prompt: int, response: int, group: int) -> float:
    """Tokens that go through the model, shared over repeated."""
    return (prompt + group * response) / (group * (prompt + response))


def attention_ratio(prompt: int, response: int, group: int) -> float:
    """The same for attention scores with `split`, all counted as if none were masked."""
    whole = prompt**2 + 2 * group * prompt * response + group * response**2
    return whole / (group * (prompt + response) ** 2)
