"""Generation of several samples per prompt, the prompt encoded once and its keys and values kept once.

`model.generate(num_return_sequences=G)` encodes every prompt G times, keeps G copies of its cache, copies them at every
step to append a token, and (latent attention) expands all latents into keys and values at every step. Here a prompt is
encoded once, its keys and values are expanded once and shared by its samples; a step attends in two parts, the shared
prompt (all samples of a prompt as rows of one matrix product) and the sample's own few tokens in memory taken once, and
merges the parts by their log-sum-exp, which is exact (flash decoding; "cascade" or "bifurcated" attention, arXiv
2403.08845). Samples that end early leave the batch.

A sample depends on its prompt, the seed, its prompt's key and its number alone: random numbers come from a generator of
its own, one per token, turned into a token through the cumulative distribution in vocabulary order. (Batches of other
shapes may move a logit in its last bits; no more than that.)

When not to use it: one sample per prompt, or prompts that are short against what is generated, gain little.

Axes: B prompts, G samples of a prompt, N rows (tokens of one prompt while encoding, B·G while decoding), D hidden,
H query heads, J key heads, Q = H / J query heads of a key head, K key, V value, P prompt tokens, S own tokens,
W vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random
from typing import Literal

import torch
from torch import Tensor

from pipeline.decoders import Decoder, Shape
from pipeline.errors import DataError, ParamError
from pipeline.mla import attend

NUCLEUS = 256
"""How many of the likeliest tokens top-p looks at before it sorts the vocabulary."""
SHRINK = 0.7
"""The batch is made smaller when at most this share of its rows is still going."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt under a name: `key` and the seed alone decide what is drawn, so it must not change between runs."""

    key: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen.

    Args:
        max_new_tokens: the most tokens of a sample, its stop token included.
        temperature: 0 is greedy.
        top_p: only the likeliest tokens that together reach this probability (after temperature) are drawn.
        stop: tokens that end a sample; the one that did is its last token.
        seed: of all generators.

    Raises:
        ParamError: a value is out of its range.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: frozenset[int] = frozenset()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ParamError(f"must be at least 1, not {self.max_new_tokens}", field="max_new_tokens")
        if not 0 <= self.temperature < float("inf"):
            raise ParamError(f"must be 0 or more, not {self.temperature}", field="temperature")
        if not 0 < self.top_p <= 1:
            raise ParamError(f"must be above 0 and at most 1, not {self.top_p}", field="top_p")


@dataclass(slots=True)
class Sample:
    """One sample, while it is generated and afterwards.

    Attributes:
        prompt: index of its prompt in the call.
        number: its number among the samples of its prompt.
        tokens: ids generated so far, stop token included.
        log_probs: of each token under the distribution it was drawn from (mask, temperature, top-p; greedy: 0).
        model_log_probs: of each token under the model's own distribution (no mask, temperature 1).
        finish: "stop" (a stop token), "length" (all tokens used), None while it is going.
    """

    prompt: int
    number: int
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    model_log_probs: list[float] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None

    def take(self, token: int, log_prob: float, model_log_prob: float, sampling: Sampling) -> None:
        """The next token, and whether it is the last."""
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        self.model_log_probs.append(model_log_prob)
        if token in sampling.stop:
            self.finish = "stop"
        elif len(self.tokens) == sampling.max_new_tokens:
            self.finish = "length"


Mask = Callable[[Tensor, Sequence[Sample]], Tensor]
"""Given logits [N, W] (a copy, float32) and the samples of these rows, all still going: the logits with the tokens that
must not come next at -inf. What a sample has so far is in its `tokens`; every live sample is asked once per token."""


@dataclass(slots=True)
class Prefix:
    """Keys [J, P, K] and values [J, P, V] of one prompt per layer, and the logits [W] of what comes after it."""

    keys: list[Tensor]
    values: list[Tensor]
    logits_W: Tensor


@torch.inference_mode()
def encode(decoder: Decoder, ids: Sequence[int]) -> Prefix:
    """Run a prompt once."""
    shape, device = decoder.shape, decoder.weight.device
    ids_N = torch.tensor(ids, device=device)
    x_ND, rotary = decoder.embed(ids_N, torch.arange(len(ids), device=device))
    keys, values = [], []
    for layer in range(shape.layers):
        q_NHK, k_NJK, v_NJV = decoder.project(layer, x_ND, rotary)
        keys.append(k_NJK.transpose(0, 1).contiguous())
        values.append(v_NJV.transpose(0, 1).contiguous())
        last = layer == shape.layers - 1
        if last:  # nothing but the last token's output is needed of the last layer
            q_NHK, x_ND = q_NHK[-1:], x_ND[-1:]
        q_HNK = q_NHK.transpose(0, 1)
        out_HNV = attend(q_HNK[None], keys[-1][None], values[-1][None], shape.scale, None, causal=not last)[0]
        x_ND = decoder.finish(layer, x_ND, out_HNV.transpose(0, 1).flatten(1))
    return Prefix(keys, values, decoder.logits(x_ND)[0])


class Batch:
    """The samples being generated and their caches, a rectangle of B prompts times G samples.

    Rows of a prompt that has fewer live samples than others are filled with ended ones, whose output is not used.
    """

    def __init__(self, decoder: Decoder, prefixes: Sequence[Prefix], samples: list[list[Sample]], capacity: int):
        shape, weight = decoder.shape, decoder.weight
        self.decoder, self.samples, self.length = decoder, samples, 0
        lengths = torch.tensor([prefix.keys[0].shape[1] for prefix in prefixes])
        # Prompts of a batch are padded behind; `hidden_BP` marks padding.
        hidden_BP = torch.arange(int(lengths.max())) >= lengths[:, None]
        self.lengths_B = lengths.to(weight.device)
        self.hidden_BP = hidden_BP.to(weight.device) if bool(hidden_BP.any()) else None
        layers = range(shape.layers)
        self.keys = [_stack([prefix.keys[layer] for prefix in prefixes]) for layer in layers]
        self.values = [_stack([prefix.values[layer] for prefix in prefixes]) for layer in layers]
        rows = (len(samples), len(samples[0]), shape.key_heads, capacity)
        self.own_keys = [weight.new_empty(*rows, shape.key_size) for _ in layers]
        self.own_values = [weight.new_empty(*rows, shape.value_size) for _ in layers]

    def step(self, ids_BG: Tensor) -> Tensor:
        """Take one more token of every row in; logits [B, G, W] of the next."""
        decoder, shape = self.decoder, self.decoder.shape
        rows, now = ids_BG.shape, self.length
        positions_BG = (self.lengths_B[:, None] + now).expand(rows)
        x_ND, rotary = decoder.embed(ids_BG.flatten(), positions_BG.flatten())
        self.length += 1
        for layer in range(shape.layers):
            q_NHK, k_NJK, v_NJV = decoder.project(layer, x_ND, rotary)
            keys, values = self.own_keys[layer], self.own_values[layer]
            keys[:, :, :, now], values[:, :, :, now] = (
                k_NJK.view_as(keys[:, :, :, 0]),
                v_NJV.view_as(values[:, :, :, 0]),
            )
            out_BGHV = attend_in_parts(
                q_NHK.view(*rows, shape.heads, shape.key_size), self.keys[layer], self.values[layer], self.hidden_BP,
                keys[:, :, :, : now + 1], values[:, :, :, : now + 1], shape.scale,
            )  # fmt: skip
            x_ND = decoder.finish(layer, x_ND, out_BGHV.reshape(len(x_ND), -1))
        return decoder.logits(x_ND).view(*rows, shape.vocabulary)

    def shrink(self) -> None:
        """Drop ended samples, where enough of them are gone to pay for the copy."""
        live = [[g for g, sample in enumerate(group) if sample.finish is None] for group in self.samples]
        prompts, widest = [b for b, group in enumerate(live) if group], max(map(len, live))
        if not prompts or len(prompts) * widest > SHRINK * len(self.samples) * len(self.samples[0]):
            return
        ended = [[g for g in range(len(self.samples[b])) if g not in live[b]] for b in range(len(self.samples))]
        kept = [(live[b] + ended[b])[:widest] for b in prompts]
        self.samples = [[self.samples[b][g] for g in group] for b, group in zip(prompts, kept, strict=True)]
        device = self.lengths_B.device
        at_B, at_BG = torch.tensor(prompts, device=device), torch.tensor(kept, device=device)
        if len(prompts) < len(self.lengths_B):
            self.keys, self.values = [x[at_B] for x in self.keys], [x[at_B] for x in self.values]
            self.hidden_BP = None if self.hidden_BP is None else self.hidden_BP[at_B]
            self.lengths_B = self.lengths_B[at_B]
        self.own_keys = [x[at_B[:, None], at_BG] for x in self.own_keys]
        self.own_values = [x[at_B[:, None], at_BG] for x in self.own_values]


def _stack(parts: Sequence[Tensor]) -> Tensor:
    """[J, P, X] of prompts of different lengths as one contiguous [B, J, P, X], zeros behind the shorter ones."""
    if len(parts) == 1:
        return parts[0][None]
    whole = parts[0].new_zeros(len(parts), parts[0].shape[0], max(part.shape[1] for part in parts), parts[0].shape[2])
    for b, part in enumerate(parts):
        whole[b, :, : part.shape[1]] = part
    return whole


def attend_in_parts(
    q_BGHK: Tensor, keys_BJPK: Tensor, values_BJPV: Tensor, hidden_BP: Tensor | None, own_keys_BGJSK: Tensor,
    own_values_BGJSV: Tensor, scale: float,
) -> Tensor:  # fmt: skip
    """Attention [B, G, H, V] of one query per row over its prompt and then its own tokens.

    The prompt's part is one matrix product per prompt and key head for all its samples. Each part is normalised by its
    own log-sum-exp; the parts' shares of the whole are the softmax over these two numbers.
    """
    prompts, group, heads, size = q_BGHK.shape
    key_heads = keys_BJPK.shape[1]
    q_BGJQK = (q_BGHK * scale).view(prompts, group, key_heads, heads // key_heads, size)
    shared_BJGQK = q_BGJQK.transpose(1, 2)
    scores_BJXP = (shared_BJGQK.flatten(2, 3) @ keys_BJPK.mT).float()
    if hidden_BP is not None:
        scores_BJXP.masked_fill_(hidden_BP[:, None, None], -torch.inf)
    lse_BJX = scores_BJXP.logsumexp(-1)
    prompt_BJXV = (scores_BJXP - lse_BJX[..., None]).exp_().to(values_BJPV.dtype) @ values_BJPV
    prompt_BGJQV = prompt_BJXV.view(prompts, key_heads, group, -1, values_BJPV.shape[-1]).transpose(1, 2)
    prompt_lse_BGJQ = lse_BJX.view(prompts, key_heads, group, -1).transpose(1, 2)

    own_BGJQS = (q_BGJQK @ own_keys_BGJSK.mT).float()
    own_lse_BGJQ = own_BGJQS.logsumexp(-1)
    own_BGJQV = (own_BGJQS - own_lse_BGJQ[..., None]).exp_().to(own_values_BGJSV.dtype) @ own_values_BGJSV

    share_BGJQ1 = (prompt_lse_BGJQ - own_lse_BGJQ).sigmoid()[..., None].to(own_BGJQV.dtype)
    return torch.lerp(own_BGJQV, prompt_BGJQV, share_BGJQ1).flatten(2, 3)


def generator(seed: int, key: str, number: int) -> Random:
    """The generator of one sample: the same on every machine and in every batch."""
    return Random(int.from_bytes(sha256(f"{seed}\x1f{number}\x1f{key}".encode()).digest()))


def choose(
    logits_NW: Tensor, samples: Sequence[Sample], draws: Sequence[float], sampling: Sampling, mask: Mask | None
) -> tuple[list[int], list[float], list[float]]:
    """The next token of every row, its log-probability as drawn, and its log-probability under the model.

    Args:
        draws: a number in [0, 1) per row; not used when greedy.

    Raises:
        DataError: a row has no legal token, or its logits are not numbers.
    """
    logits_NW = logits_NW.float()
    legal_NW = logits_NW if mask is None else mask(logits_NW.clone(), samples)
    best_N, token_N = legal_NW.max(-1)
    for best, sample in zip(best_N.tolist(), samples, strict=True):
        if not -torch.inf < best < torch.inf:
            what = "no token is legal here" if best == -torch.inf else "the model's logits are not finite"
            raise DataError(f"{what}: prompt {sample.prompt}, sample {sample.number}, token {len(sample.tokens)}")
    if sampling.temperature == 0:
        drawn_N = torch.zeros_like(best_N)
    else:
        log_NW = (legal_NW.double() / sampling.temperature).log_softmax(-1)
        if sampling.top_p < 1:
            log_NW = log_NW.masked_fill(log_NW < nucleus(log_NW, sampling.top_p), -torch.inf).log_softmax(-1)
        upto_NW = log_NW.exp().cumsum(-1)
        whole_N1 = upto_NW[:, -1:]
        # Rounding must not push the number to the very end, where a token of probability 0 may stand.
        below_N1 = torch.nextafter(whole_N1, torch.zeros_like(whole_N1))
        at_N1 = torch.minimum(
            torch.tensor(draws, dtype=torch.float64, device=whole_N1.device)[:, None] * whole_N1, below_N1
        )
        token_N = torch.searchsorted(upto_NW, at_N1, right=True)[:, 0]
        drawn_N = log_NW.gather(1, token_N[:, None])[:, 0]
    model_N = logits_NW.gather(1, token_N[:, None])[:, 0] - logits_NW.logsumexp(-1)
    return token_N.tolist(), drawn_N.tolist(), model_N.tolist()


def nucleus(log_NW: Tensor, top_p: float) -> Tensor:
    """The smallest log-probability [N, 1] kept: likelier tokens alone do not reach `top_p`. Ties are kept together."""
    width = log_NW.shape[1]
    for size in (min(NUCLEUS, width), width):
        top_NX = log_NW.topk(size).values
        reached_NX = top_NX.exp().cumsum(-1) >= top_p
        if size == width or bool(reached_NX[:, -1].all()):
            break
    reached_NX[:, -1] = True  # where rounding keeps the whole sum below top_p
    return top_NX.gather(1, reached_NX.int().argmax(-1, keepdim=True))


@torch.inference_mode()
def generate(
    decoder: Decoder, prompts: Sequence[Prompt], group: int, sampling: Sampling, mask: Mask | None = None
) -> list[list[Sample]]:
    """`group` samples of every prompt, in order.

    Args:
        decoder: `decoder_for(model)`; the model is in evaluation mode.
        prompts: batched together; as many as memory holds.
        group: samples per prompt.
        mask: grammar; see `Mask`.

    Raises:
        DataError: a prompt is empty, too long for the model or has unknown ids; or see `choose`.
        ParamError: group is below 1, or two prompts have one key.
    """
    _check(decoder.shape, prompts, group, sampling)
    if not prompts:
        return []
    prefixes = [encode(decoder, prompt.ids) for prompt in prompts]
    samples = [[Sample(b, g) for g in range(group)] for b in range(len(prompts))]
    random = [[generator(sampling.seed, prompt.key, g) for g in range(group)] for prompt in prompts]
    batch = Batch(decoder, prefixes, [list(row) for row in samples], sampling.max_new_tokens - 1)
    logits_BGW = torch.stack([prefix.logits_W for prefix in prefixes])[:, None].expand(-1, group, -1)
    del prefixes
    while True:
        rows = [sample for row in batch.samples for sample in row]
        places = [n for n, sample in enumerate(rows) if sample.finish is None]
        live = [rows[n] for n in places]
        draws = [random[sample.prompt][sample.number].random() for sample in live]
        flat_NW = logits_BGW.flatten(0, 1)
        chosen = choose(flat_NW if len(live) == len(rows) else flat_NW[places], live, draws, sampling, mask)
        for sample, token, drawn, own in zip(live, *chosen, strict=True):
            sample.take(token, drawn, own, sampling)
        if all(sample.finish for sample in live):
            return samples
        batch.shrink()
        ids = [[sample.tokens[-1] for sample in row] for row in batch.samples]
        logits_BGW = batch.step(torch.tensor(ids, device=decoder.weight.device))


def _check(shape: Shape, prompts: Sequence[Prompt], group: int, sampling: Sampling) -> None:
    if group < 1:
        raise ParamError(f"must be at least 1, not {group}", field="group")
    if len({prompt.key for prompt in prompts}) < len(prompts):
        raise ParamError("two prompts have the same key", field="prompts")
    for prompt in prompts:
        place = f"prompt {prompt.key!r}"
        if not prompt.ids:
            raise DataError(f"{place} is empty")
        if not all(0 <= token < shape.vocabulary for token in prompt.ids):
            raise DataError(f"{place} has an id outside the vocabulary of {shape.vocabulary}")
        if len(prompt.ids) + sampling.max_new_tokens > shape.positions:
            raise DataError(
                f"{place} has {len(prompt.ids)} tokens; with {sampling.max_new_tokens} new ones that is more than the "
                f"model's {shape.positions} positions"
            )
