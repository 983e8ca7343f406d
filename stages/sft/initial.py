"""Initial weights of tiny-mla that already relate the tokens of a prompt: mimetic initialisation.

A transformer drawn at random needs many millions of tokens before heads form that look up what stands behind an
earlier occurrence (Olsson et al., "In-context learning and induction heads", 2022); tiny-mla sees a few million. So
some heads start as what such heads become (Trockman and Kolter, "Mimetic initialization of self-attention layers",
ICML 2023), and training goes on from there. Nothing is frozen and the model is a plain one, whose residual stream
begins with a division of labour:

| block | holds, from | written by |
|---|---|---|
| own | a code of the token | the embedding |
| before | a code of the token before | layer 0, head 0 |
| candidate | the last candidate's name, own one included | layer 0, head 1 |
| slot | the last slot's name, or `~` | layer 0, head 2 |
| sentence | the last sentence's number, or `Answer` | layer 0, head 3 |
| reading | a summary of the sentence that a roster line names | layer 1, head 1 |
| climax | the name of the plan's climax | layer 1, head 2 |
| next | the code of the token to come | layer 1, head 0 and layer 2, heads 0 and 1 |
| kind | which kind of name a token is; a constant | the embedding |

Layer 1, head 0 is an induction head: it finds where the same token stood before under the same candidate and slot, and
proposes the token behind it; head 3 proposes the candidate's next slot. Layer 2, head 0 lets the ends of roster lines
vote for their candidate, about as the rule of `rule_attach` does; head 1 takes back the names that the answer has used.
So the start is a rule, not nothing. Which lines are to be believed, how they are weighed, when a list ends and
everything else is learned. All other weights are drawn.

Not for other prompts than those of `pipeline.prompts`: the names of the tokenizer are assumed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import ParamError
from pipeline.mla import MLAConfig, MLAForCausalLM

BLOCKS = {
    "own": 64, "before": 20, "candidate": 24, "slot": 16, "sentence": 24, "climax": 16, "reading": 20, "next": 64,
    "kind": 8,
}  # fmt: skip
"""Widths in the residual stream, one behind the other; together the width of the model."""

KINDS: Mapping[str, tuple[str, slice]] = {
    "candidate": (r"C\d\d", slice(0, 24)),
    "sentence": (r"S\d+", slice(24, 48)),
    "slot": (r"s\d+|~", slice(48, 64)),
    "bucket": (r" ?(?:high|medium|low)", slice(0, 48)),
    "climax": (r" climax", slice(0, 48)),
    "answer": (r"Answer", slice(24, 48)),
}
"""Kinds of tokens that heads look for, by their text, and where in the block `own` their code stands."""

CONSTANT = len(KINDS)
"""Place in the block `kind` of the number that is equal for all tokens."""

BLANKS = (" ", "\n")
"""Tokens behind which a decision is taken, where copying does not help."""
CODE = 8.0
"""Length of a code."""
FLAG = 4.0
"""Size of a kind's flag and of the constant."""
SHARP = 1.5
"""Length of a token's row in the output matrix."""
NAMED = 2.0
"""How much the output rows of candidates point to where a candidate is to be named."""
CLEAN = 0.02
"""Spread of the drawn embedding beside the codes."""
QUIET = 0.25
"""What is left of the drawn output of feed-forward networks and of heads without a task."""
NEAR = 8
"""Rotary pairs, the fastest ones, that tell a token from its neighbours."""
FIRST, LATER = 1.7, 0.9
"""By what the norm scales the residual stream before layer 0 and before the others, about."""


def initialise(model: MLAForCausalLM, texts: Mapping[int, str], seed: int) -> None:
    """Put the described heads over the drawn weights of a model, in place.

    Args:
        model: untied, at least three layers of four heads, as wide as the blocks, value width 64.
        texts: what every token id stands for.
        seed: of the codes.

    Raises:
        ParamError: the model has other sizes.
    """
    _check(model.config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        codes_WX = _codes(texts, model.config.vocab_size, generator)
        slots_PX = _numbered(codes_WX, texts, "slot", generator)
        _numbered(codes_WX, texts, "candidate", generator)
        flags_WY = _flags(texts, model.config.vocab_size)
        embedding_WD = model.model.embed_tokens.weight.normal_(0.0, CLEAN, generator=generator)
        embedding_WD[:, _block("own")] = codes_WX
        embedding_WD[:, _block("kind")] = flags_WY
        head_WD = model.lm_head.weight.normal_(0.0, CLEAN, generator=generator)
        head_WD[:, _block("next")] = codes_WX / CODE * SHARP
        for block in _layers(model):
            block.mlp.down_proj.weight.mul_(QUIET)
            block.self_attn.o_proj.weight.mul_(QUIET)
        heads = [[_Head(model, layer, head) for head in range(4)] for layer in range(3)]
        for layer in range(3):
            _open_latent(model, layer, generator)
        mixed_XD = _mixed(BLOCKS["before"], generator)
        _local(heads[0], mixed_XD)
        blanks_YD = torch.cat([_direction(codes_WX, texts, text) for text in BLANKS]) @ _select(_block("own"))
        between_1X = _direction(codes_WX, texts, "|") @ mixed_XD[:, _block("own")].T
        between_1D = between_1X @ _select(_block("before"))
        _matching(heads[1], mixed_XD, _mixed(BLOCKS["reading"], generator), slots_PX, blanks_YD, between_1D)
        asked_1D = blanks_YD[1:] + between_1D
        for token, text in texts.items():
            if re.fullmatch(KINDS["candidate"][0], text) and int(text[1:]) < BLOCKS["candidate"]:
                head_WD[token] += NAMED * asked_1D[0]
        surer_1D = _direction(codes_WX, texts, " high") - _direction(codes_WX, texts, " low")
        _deciding(heads[2], slots_PX, asked_1D, surer_1D @ _select(_block("own")))


def _check(config: MLAConfig) -> None:
    wanted = {
        "hidden_size": sum(BLOCKS.values()), "num_attention_heads": 4, "v_head_dim": 64, "qk_nope_head_dim": 64,
        "q_lora_rank": None, "tie_word_embeddings": False,
    }  # fmt: skip
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise ParamError(f"must be {value!r} for this initialisation", field=name)
    if config.num_hidden_layers < 3 or config.kv_lora_rank < config.hidden_size:
        raise ParamError("three layers and a latent as wide as the model are needed", field="num_hidden_layers")


def _layers(model: MLAForCausalLM) -> Any:
    """The layers; a `ModuleList` does not say of what kind its members are."""
    return model.model.layers


def _block(name: str) -> slice:
    names = list(BLOCKS)
    begin = sum(BLOCKS[other] for other in names[: names.index(name)])
    return slice(begin, begin + BLOCKS[name])


def _codes(texts: Mapping[int, str], size: int, generator: torch.Generator) -> Tensor:
    """Codes [W, 64]: random directions of equal length, those of a kind of name within the kind's part."""
    codes_WX = torch.randn(size, BLOCKS["own"], generator=generator)
    codes_WX[:, KINDS["slot"][1]] = 0.0  # of slots alone, which heads compare by this part
    for token, text in texts.items():
        for pattern, part in KINDS.values():
            if re.fullmatch(pattern, text):
                kept = codes_WX[token, part].clone()
                codes_WX[token] = 0.0
                codes_WX[token, part] = kept
    scaled_WX: Tensor = codes_WX / codes_WX.norm(dim=1, keepdim=True) * CODE
    return scaled_WX


def _numbered(codes_WX: Tensor, texts: Mapping[int, str], kind: str, generator: torch.Generator) -> Tensor:
    """Give a kind's names orthogonal codes, in place; the directions [P, X] by number, that of `~` is 0.

    So that one may point to the next, and none takes back a part of another. Numbers from the width on stay as drawn.
    """
    pattern, part = KINDS[kind]
    width = part.stop - part.start
    basis_PX: Tensor = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    for token, text in texts.items():
        if re.fullmatch(pattern, text) and int(text[1:] or 0) < width:
            codes_WX[token] = 0.0
            codes_WX[token, part] = CODE * basis_PX[int(text[1:] or 0)]
    return basis_PX


def _direction(codes_WX: Tensor, texts: Mapping[int, str], text: str) -> Tensor:
    """The direction [1, X] of a token's code; nothing where the tokenizer has no such token."""
    found = [token for token, other in texts.items() if other == text]
    return codes_WX[found[:1]] / CODE if found else torch.zeros(1, codes_WX.shape[1])


def _flags(texts: Mapping[int, str], size: int) -> Tensor:
    flags_WY = torch.zeros(size, BLOCKS["kind"])
    flags_WY[:, CONSTANT] = FLAG
    for token, text in texts.items():
        for place, (pattern, _) in enumerate(KINDS.values()):
            if re.fullmatch(pattern, text):
                flags_WY[token, place] = FLAG
    return flags_WY


def _open_latent(model: MLAForCausalLM, layer: int, generator: torch.Generator) -> None:
    """Make the latent an isometric image of the normed state and the shared rotary key a constant direction.

    With orthonormal columns the norm of the latent is known, so that `expand` after it can be any linear map.
    """
    attention, width = _layers(model)[layer].self_attn, model.config.hidden_size
    latent = model.config.kv_lora_rank
    basis_CD, _ = torch.linalg.qr(torch.randn(latent, width, generator=generator))
    weight = attention.kv_a_proj_with_mqa.weight
    weight[:latent] = basis_CD
    weight[latent:] = 0.0
    weight[latent::2, _block("kind").start + CONSTANT] = 1.0
    # Maps that were drawn for a latent of variance one keep their spread on the state that it now stands for.


class _Head:
    """One head's weights as maps of the normed state."""

    def __init__(self, model: MLAForCausalLM, layer: int, head: int) -> None:
        self.config = model.config
        self.attention = _layers(model)[layer].self_attn
        self.head = head
        self.filled = 0
        self.norm = FIRST if layer == 0 else LATER

    @property
    def _query(self) -> Tensor:
        width = self.config.qk_head_dim
        rows: Tensor = self.attention.q_proj.weight[self.head * width : (self.head + 1) * width]
        return rows

    def _from_latent(self, map_XD: Tensor) -> Tensor:
        """The map of the latent [X, C] that is this map of the normed state."""
        latent, width = self.config.kv_lora_rank, self.config.hidden_size
        basis_CD: Tensor = self.attention.kv_a_proj_with_mqa.weight[:latent]
        found: Tensor = map_XD @ basis_CD.T * math.sqrt(width / latent)
        return found

    def silence(self) -> None:
        """Attend alike to everything and write nothing, before tasks are added."""
        keys = self.config.qk_nope_head_dim
        width = keys + self.config.v_head_dim
        self._query.zero_()
        self.attention.kv_b_proj.weight[self.head * width : (self.head + 1) * width] = 0.0
        self.attention.o_proj.weight[:, self._values] = 0.0

    @property
    def _values(self) -> slice:
        return slice(self.head * self.config.v_head_dim, (self.head + 1) * self.config.v_head_dim)

    def match(self, query_XD: Tensor, key_XD: Tensor, nats: float, typical: float) -> None:
        """Add the product of two maps of query and key state to the scores: `nats` where the product is `typical`."""
        strength = nats / typical
        keys = self.config.qk_nope_head_dim
        size = len(query_XD)
        assert self.filled + size <= keys
        gain = (abs(strength) / self.attention.scale) ** 0.5
        begin = self.head * (keys + self.config.v_head_dim) + self.filled
        self._query[self.filled : self.filled + size] = query_XD * math.copysign(gain, strength)
        self.attention.kv_b_proj.weight[begin : begin + size] = self._from_latent(key_XD * gain)
        self.filled += size

    def place(self, tent: Callable[[Tensor], Tensor], offset: int, nats: float) -> None:
        """Add to the scores a sum of cos(frequency · (distance - offset)) over rotary pairs: `nats` at most.

        Args:
            tent: weights of the frequencies [R / 2], which are in radians per token.
        """
        size = self.config.qk_rope_head_dim
        frequencies = self.config.rope_theta ** (-torch.arange(0, size, 2).float() / size)
        weights = tent(frequencies)
        amounts = weights / weights.sum() * nats / self.attention.scale / (self.norm * FLAG) ** 2
        # The key is (constant, 0) in every pair; a query turned by `offset` beforehand meets it at that distance.
        rows = self._query[self.config.qk_nope_head_dim :]
        at = _block("kind").start + CONSTANT
        rows[0::2, at] = amounts * (frequencies * offset).cos()
        rows[1::2, at] = -amounts * (frequencies * offset).sin()

    def copy(self, value_XD: Tensor, to: slice, strength: float) -> None:
        """Write a map of the attended state, at most as wide as a value, to places of the residual stream."""
        keys, width, size = self.config.qk_nope_head_dim, self.config.v_head_dim, len(value_XD)
        begin = self.head * (keys + width) + keys
        self.attention.kv_b_proj.weight[begin : begin + size] = self._from_latent(value_XD)
        out = self.attention.o_proj.weight[:, self._values]
        out[to, :size] = torch.eye(size) * strength


def _select(places: slice) -> Tensor:
    """The map [X, D] that reads so many places of the state."""
    return torch.eye(sum(BLOCKS.values()))[places]


def _part(block: str, part: slice) -> slice:
    begin = _block(block).start
    return slice(begin + part.start, begin + part.stop)


def _kind(name: str) -> Tensor:
    at = _block("kind").start + list(KINDS).index(name)
    return _select(slice(at, at + 1))


def _constant() -> Tensor:
    at = _block("kind").start + CONSTANT
    return _select(slice(at, at + 1))


def _mixed(size: int, generator: torch.Generator) -> Tensor:
    """A map [X, D] of the own code to so many numbers, isometric on average."""
    basis_XY: Tensor = torch.linalg.qr(torch.randn(BLOCKS["own"], size, generator=generator)).Q
    found: Tensor = math.sqrt(BLOCKS["own"] / size) * basis_XY.T @ _select(_block("own"))
    return found


def _fast(frequencies: Tensor) -> Tensor:
    """Falls within one token."""
    return (torch.arange(len(frequencies)) < NEAR).float()


def _falling(tokens: float) -> Callable[[Tensor], Tensor]:
    """Falls with distance as exp(-distance / tokens), whose transform this is on frequencies in geometric order."""
    return lambda frequencies: frequencies * tokens / (1 + (frequencies * tokens) ** 2)


def _local(heads: list[_Head], mixed_XD: Tensor) -> None:
    """Layer 0: the token before; the last candidate, slot and sentence."""
    flags = (FIRST * FLAG) ** 2
    for head in heads:
        head.silence()
    heads[0].place(_fast, 1, 60.0)
    heads[0].copy(mixed_XD, _block("before"), 1 / FIRST)
    for head, name in zip(heads[1:], ("candidate", "slot", "sentence"), strict=True):
        # `Answer` ends what stands before it and is a sentence of its own, to the end; a candidate's name ends the slot
        # before it. What is copied from them to the block in question is nothing.
        kinds = _kind(name) + (1.3 if name == "sentence" else 0.9) * _kind("answer")
        if name == "slot":
            kinds += 0.9 * _kind("candidate")
        head.match(_constant(), kinds, 36.0, flags)
        head.place(_falling(30.0), 0, 27.0)
        head.copy(_select(_part("own", KINDS[name][1])), _block(name), 1 / FIRST)


def _matching(
    heads: list[_Head], mixed_XD: Tensor, summary_XD: Tensor, slots_PX: Tensor, blanks_YD: Tensor, between_1D: Tensor
) -> None:  # fmt: skip
    """Layer 1: what stood behind this token under the same candidate and slot; the sentence; the climax; after a space,
    the candidate's next slot (a successor head: Gould et al., 2023)."""
    codes, flags = (LATER * CODE) ** 2, (LATER * FLAG) ** 2
    for head in heads:
        head.silence()
    # After a blank the blank itself says nothing.
    seen_XD = mixed_XD - mixed_XD @ torch.linalg.pinv(blanks_YD) @ blanks_YD
    heads[0].match(seen_XD, _select(_block("before")), 10.0, codes)
    for name in ("candidate", "slot"):
        heads[0].match(_select(_block(name)), _select(_block(name)), 8.0, codes)
    heads[0].match(_constant(), _kind("slot") + _kind("sentence") + _kind("candidate"), -12.0, flags)
    heads[0].copy(_select(_block("own")), _block("next"), 2.0)
    heads[1].match(_select(_block("sentence")), _select(_block("sentence")), 12.0, codes)
    heads[1].copy(summary_XD, _block("reading"), 2.0)
    heads[2].match(_constant(), _kind("climax"), 12.0, flags)
    heads[2].copy(_select(_block("slot")), _block("climax"), 1 / LATER)
    numbers = torch.arange(len(slots_PX))
    ahead_PP = (numbers - numbers[:, None]).float()
    bonus_PP = torch.where(ahead_PP > 0, 12.0 - 2.0 * ahead_PP, -14.0) * (numbers[:, None] > 0)
    own_XD, name_XD = _select(_block("slot")), _select(_part("own", KINDS["slot"][1]))
    named_XD = name_XD - torch.outer(slots_PX[0], slots_PX[0]) @ name_XD  # `~` is in no answer
    heads[3].match(_select(_block("candidate")), _select(_block("candidate")), 10.0, codes)
    heads[3].match(slots_PX @ own_XD, bonus_PP @ slots_PX @ named_XD, 1.0, codes)
    heads[3].match(_constant(), -(numbers.float() @ slots_PX)[None] @ name_XD, 2.0, LATER**2 * FLAG * CODE)
    heads[3].match(blanks_YD[:1] - between_1D, _kind("slot"), 30.0, LATER**2 * CODE * FLAG)
    heads[3].copy(named_XD, _part("next", KINDS["slot"][1]), 2.0)


def _deciding(heads: list[_Head], slots_PX: Tensor, asked_1D: Tensor, surer_1D: Tensor) -> None:
    """Layer 2, where a candidate is to be named: the surest line of every slot votes for its candidate by the slot's
    weight and its own bucket; names in the answer are taken back."""
    codes = (LATER * CODE) ** 2
    mixed = LATER**2 * FLAG * CODE
    next_candidate = _part("next", KINDS["candidate"][1])
    for head in heads[:2]:
        head.silence()
    heads[0].match(asked_1D, _kind("bucket"), 16.0, mixed)
    heads[0].match(_select(_block("climax")), _select(_block("slot")), 2.8, codes)
    heads[0].match(_constant(), slots_PX[:1] @ _select(_block("slot")), -4.0, mixed)
    heads[0].match(_constant(), surer_1D, 1.0, mixed)
    heads[0].copy(_select(_block("candidate")), next_candidate, 1.2)
    heads[1].match(asked_1D, _kind("candidate"), 9.0, mixed)
    heads[1].match(_select(_block("sentence")), _select(_block("sentence")), 30.0, codes)
    heads[1].copy(_select(_block("candidate")), next_candidate, -6.0)
