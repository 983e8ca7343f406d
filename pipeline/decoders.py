"""Causal language models run layer by layer, their attention left to the caller.

Axes: N rows (tokens), D hidden, H query heads, J key heads, K key, V value, W vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from pipeline.errors import SetupError
from pipeline.mla import LatentAttention, Layer, MLAForCausalLM, rotation

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

Rotary = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a decoder's attention looks like."""

    layers: int
    heads: int
    key_heads: int
    key_size: int
    value_size: int
    scale: float
    vocabulary: int
    positions: int


class Decoder(Protocol):
    """A causal language model run layer by layer on rows [N, …], with attention left to the caller."""

    @property
    def shape(self) -> Shape: ...

    @property
    def weight(self) -> Tensor:
        """Any weight: tells device and precision."""
        ...

    def embed(self, ids_N: Tensor, positions_N: Tensor) -> tuple[Tensor, Rotary]:
        """Hidden states [N, D], and what turns queries and keys at these positions."""
        ...

    def project(self, layer: int, x_ND: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [N, H, K], keys [N, J, K] and values [N, J, V] of a layer."""
        ...

    def finish(self, layer: int, x_ND: Tensor, attended_NX: Tensor) -> Tensor:
        """The layer's output [N, D], given the heads' attention outputs side by side [N, H·V]."""
        ...

    def logits(self, x_ND: Tensor) -> Tensor:
        """Logits [N, W] of the next token."""
        ...


def _vocabulary(matrix: nn.Module, x_ND: Tensor) -> Tensor:
    """Logits [N, W]. On a CPU, few rows times a tall matrix is up to 3 times as fast the other way round."""
    plain = type(matrix) is nn.Linear and "bias" not in dict(matrix.named_parameters())
    if plain and x_ND.device.type == "cpu":
        return (matrix.get_parameter("weight") @ x_ND.T).T.contiguous()
    out: Tensor = matrix(x_ND)
    return out


class MLADecoder:
    """`pipeline.mla`: latents are expanded to the heads' keys and values once, when their token comes in."""

    def __init__(self, model: MLAForCausalLM) -> None:
        self.model, config = model, model.config
        self.weight: Tensor = model.model.embed_tokens.weight
        self.shape = Shape(
            config.num_hidden_layers, config.num_attention_heads, config.num_attention_heads, config.qk_head_dim,
            config.v_head_dim, config.qk_head_dim**-0.5, config.vocab_size, config.max_position_embeddings,
        )  # fmt: skip

    def _layer(self, layer: int) -> Layer:
        found = self.model.model.layers[layer]
        assert isinstance(found, Layer)
        return found

    def embed(self, ids_N: Tensor, positions_N: Tensor) -> tuple[Tensor, Rotary]:
        config = self.model.config
        x_ND: Tensor = self.model.model.embed_tokens(ids_N)
        return x_ND, rotation(positions_N, config.qk_rope_head_dim, config.rope_theta, x_ND.dtype)

    def project(self, layer: int, x_ND: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        block = self._layer(layer)
        attention: LatentAttention = block.self_attn
        normed = block.input_layernorm(x_ND)
        return attention.query(normed, *rotary), *attention.expand(*attention.compress(normed, *rotary))

    def finish(self, layer: int, x_ND: Tensor, attended_NX: Tensor) -> Tensor:
        block = self._layer(layer)
        x_ND = x_ND + block.self_attn.o_proj(attended_NX)
        out: Tensor = x_ND + block.mlp(block.post_attention_layernorm(x_ND))
        return out

    def logits(self, x_ND: Tensor) -> Tensor:
        return _vocabulary(self.model.lm_head, self.model.model.norm(x_ND))


class LlamaDecoder:
    """A transformers Llama (SmolLM2 among them): its own modules, adapters of peft inside them included.

    Raises:
        SetupError: the model is not a Llama, or its rotary positions depend on the length of the text.
    """

    def __init__(self, model: LlamaForCausalLM) -> None:
        from transformers.models.llama import modeling_llama

        if type(model) is not modeling_llama.LlamaForCausalLM:
            raise SetupError(f"a {type(model).__name__} cannot be run layer by layer", mend="take a LlamaForCausalLM")
        config: Any = model.config
        if config.rope_parameters["rope_type"] not in ("default", "linear", "llama3"):
            raise SetupError(f"rotary positions of type {config.rope_parameters['rope_type']!r} are not supported")
        self.model, self._rotate = model, modeling_llama.apply_rotary_pos_emb
        self.weight: Tensor = model.model.embed_tokens.weight
        attention: Any = model.model.layers[0].self_attn
        self.shape = Shape(
            config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads, attention.head_dim,
            attention.head_dim, attention.scaling, config.vocab_size, config.max_position_embeddings,
        )  # fmt: skip

    def embed(self, ids_N: Tensor, positions_N: Tensor) -> tuple[Tensor, Rotary]:
        x_ND: Tensor = self.model.model.embed_tokens(ids_N)
        cos, sin = self.model.model.rotary_emb(x_ND, positions_N)
        return x_ND, (cos, sin)

    def project(self, layer: int, x_ND: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        block: Any = self.model.model.layers[layer]
        attention, normed, size = block.self_attn, block.input_layernorm(x_ND), self.shape.key_size
        q_NHK = attention.q_proj(normed).unflatten(-1, (self.shape.heads, size))
        k_NJK = attention.k_proj(normed).unflatten(-1, (self.shape.key_heads, size))
        q_NHK, k_NJK = self._rotate(q_NHK, k_NJK, *rotary)  # the heads' axis is 1, as transformers takes it
        return q_NHK, k_NJK, attention.v_proj(normed).unflatten(-1, (self.shape.key_heads, size))

    def finish(self, layer: int, x_ND: Tensor, attended_NX: Tensor) -> Tensor:
        block: Any = self.model.model.layers[layer]
        x_ND = x_ND + block.self_attn.o_proj(attended_NX)
        out: Tensor = x_ND + block.mlp(block.post_attention_layernorm(x_ND))
        return out

    def logits(self, x_ND: Tensor) -> Tensor:
        return _vocabulary(self.model.lm_head, self.model.model.norm(x_ND))


def decoder_for(model: Any) -> Decoder:
    """The decoder of a model: `MLAForCausalLM` or transformers' `LlamaForCausalLM`.

    Raises:
        SetupError: a model of another kind.
    """
    return MLADecoder(model) if isinstance(model, MLAForCausalLM) else LlamaDecoder(model)
