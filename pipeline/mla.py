"""`tiny-mla`: a small causal language model with multi-head latent attention (DeepSeek-V2/V3), dense, in plain PyTorch.

Per token a layer keeps a latent of 512 numbers and one rotary key of 64 that all heads share; keys and values of the
heads are linear maps of the latent. Two ways of attending are the same function: *expanded* builds the heads' keys and
values (training, prompts), *absorbed* moves those maps to the query and the output and attends over the latents
themselves (decoding, and what the FP8 kernels of serving do). Source: DeepSeek-V2 (arXiv 2405.04434, section 2.1),
DeepSeek-V3 (arXiv 2412.19437); without mixture of experts, query compression optional.

A saved model is a folder that transformers' `DeepseekV3ForCausalLM` and vLLM read: the same tensor names, every layer
dense. Cache width, rotary width and the interleaved rotation are those of DeepSeek, so kernels written for it fit.

Not meant for large models: no tensor parallelism, no YaRN, no biases.

Axes: B rows, T new tokens, S tokens seen so far (cached and new), D hidden, H heads, N key part without position,
R rotary key part, K = N + R, V value, C latent, W vocabulary.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - its customary name
from torch import Tensor, nn

from pipeline.errors import DataError, ParamError

EPSILON = 1e-6
"""Of every RMSNorm. transformers fixes it for the norm of the latent, so it cannot be a setting of the others."""

IGNORED = -100
"""Label of a token that is not to be predicted (the prompt, padding)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MLAConfig:
    """Sizes of a model, under the names of transformers' `DeepseekV3Config`.

    The defaults are tiny-mla: 4.6 million parameters without the vocabulary.

    Raises:
        ParamError: a size is not a positive number, or the rotary size is odd.
    """

    vocab_size: int
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    q_lora_rank: int | None = None
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 64
    qk_rope_head_dim: int = 64
    v_head_dim: int = 64
    max_position_embeddings: int = 4096
    rope_theta: float = 10_000.0
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name.endswith("_token_id") or name == "tie_word_embeddings" or (name == "q_lora_rank" and value is None):
                continue
            kinds = (int, float) if name in ("rope_theta", "initializer_range") else (int,)
            if not isinstance(value, kinds) or isinstance(value, bool) or not value > 0:
                raise ParamError(f"must be a positive number, not {value!r}", field=name)
        if self.qk_rope_head_dim % 2:
            raise ParamError(f"must be even, not {self.qk_rope_head_dim}", field="qk_rope_head_dim")

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim


class LatentCache:
    """Latents and rotary keys of the tokens seen so far, for all layers, in memory taken once.

    Args:
        config: the model's.
        rows: how many sequences.
        capacity: the most tokens of one sequence.
    """

    def __init__(
        self, config: MLAConfig, rows: int, capacity: int, *, dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        layers = config.num_hidden_layers
        self.latent_LBSC = torch.empty(layers, rows, capacity, config.kv_lora_rank, dtype=dtype, device=device)
        self.rotary_LBSR = torch.empty(layers, rows, capacity, config.qk_rope_head_dim, dtype=dtype, device=device)
        self.segments_BS = torch.ones(rows, capacity, dtype=torch.long, device=device)
        self.capacity, self.length, self.segmented = capacity, 0, False

    def write(self, layer: int, latent_BTC: Tensor, rotary_BTR: Tensor) -> tuple[Tensor, Tensor]:
        """Put one layer's new tokens behind the old ones; give all of them. `length` moves on after the last layer."""
        end = self.length + latent_BTC.shape[1]
        self.latent_LBSC[layer, :, self.length : end] = latent_BTC
        self.rotary_LBSR[layer, :, self.length : end] = rotary_BTR
        return self.latent_LBSC[layer, :, :end], self.rotary_LBSR[layer, :, :end]


@dataclass(frozen=True, slots=True)
class Pass:
    """What all layers of one forward pass share."""

    cos_BTR: Tensor
    sin_BTR: Tensor
    mask_B1TS: Tensor | None
    """Which keys a query sees; None: all up to its own (`causal`), or all."""
    causal: bool
    cache: LatentCache | None = None
    absorbed: bool = False


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last axis."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        # Under autocast the input may be narrower than the weight, which has no fast kernel.
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, EPSILON)


def rotation(positions: Tensor, size: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine [..., size / 2] of the angles by which pairs of numbers are turned at the positions [...]."""
    powers = torch.arange(0, size, 2, dtype=torch.float32, device=positions.device) / size
    angles = positions[..., None].float() * (1.0 / theta**powers)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (0, 1), (2, 3), … of the last axis; firsts of all pairs come out before seconds.

    The order of the output is that of transformers; as queries and keys share it, it does not change their products.
    """
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attend(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSV: Tensor, scale: float, mask_B1TS: Tensor | None, causal: bool
) -> Tensor:
    """Softmax attention [B, H, T, V]; fewer key heads than query heads are shared in order.

    Values are padded to the width of the keys, because torch has its fast kernels for equal widths only (on a CPU 2.5
    times as fast, forward and backward).
    """
    width = v_BHSV.shape[-1]
    padded = F.pad(v_BHSV, (0, k_BHSK.shape[-1] - width)) if width < k_BHSK.shape[-1] else v_BHSV
    out = F.scaled_dot_product_attention(
        q_BHTK, k_BHSK, padded, attn_mask=mask_B1TS, is_causal=causal, scale=scale,
        enable_gqa=q_BHTK.shape[1] != k_BHSK.shape[1],
    )  # fmt: skip
    return out[..., :width]


class LatentAttention(nn.Module):
    """Multi-head latent attention of one layer."""

    def __init__(self, config: MLAConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.heads, self.scale = config.num_attention_heads, config.qk_head_dim**-0.5
        width, latent = self.heads * config.qk_head_dim, config.kv_lora_rank
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        else:
            self.q_a_proj = nn.Linear(config.hidden_size, config.q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank)
            self.q_b_proj = nn.Linear(config.q_lora_rank, width, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(config.hidden_size, latent + config.qk_rope_head_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(latent)
        self.kv_b_proj = nn.Linear(latent, self.heads * (config.qk_nope_head_dim + config.v_head_dim), bias=False)
        self.o_proj = nn.Linear(self.heads * config.v_head_dim, config.hidden_size, bias=False)

    def query(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries [..., H, K] of normed hidden states [..., D], their rotary part turned; cos and sin [..., R / 2]."""
        config = self.config
        q = self.q_proj(x) if config.q_lora_rank is None else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q = q.unflatten(-1, (self.heads, config.qk_head_dim))
        plain, turned = q.split((config.qk_nope_head_dim, config.qk_rope_head_dim), dim=-1)
        return torch.cat((plain, rotate(turned, cos.unsqueeze(-2), sin.unsqueeze(-2))), dim=-1)

    def compress(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Latent [..., C] and turned rotary key [..., R] of normed hidden states [..., D]: what a cache keeps."""
        sizes = (self.config.kv_lora_rank, self.config.qk_rope_head_dim)
        latent, key = self.kv_a_proj_with_mqa(x).split(sizes, dim=-1)
        return self.kv_a_layernorm(latent), rotate(key, cos, sin)

    def expand(self, latent: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [..., H, K] and values [..., H, V] of the heads."""
        config = self.config
        both = self.kv_b_proj(latent).unflatten(-1, (self.heads, config.qk_nope_head_dim + config.v_head_dim))
        plain, value = both.split((config.qk_nope_head_dim, config.v_head_dim), dim=-1)
        shared = key.unsqueeze(-2).expand(*plain.shape[:-1], config.qk_rope_head_dim)
        return torch.cat((plain, shared), dim=-1), value

    def forward(self, x_BTD: Tensor, run: Pass) -> Tensor:
        q_BTHK = self.query(x_BTD, run.cos_BTR, run.sin_BTR)
        latent_BSC, key_BSR = self.compress(x_BTD, run.cos_BTR, run.sin_BTR)
        if run.cache is not None:
            latent_BSC, key_BSR = run.cache.write(self.layer, latent_BSC, key_BSR)
        if run.absorbed:
            out_BHTV = self.attend_latents(q_BTHK.transpose(1, 2), latent_BSC, key_BSR, run)
        else:
            k_BSHK, v_BSHV = self.expand(latent_BSC, key_BSR)
            out_BHTV = attend(
                q_BTHK.transpose(1, 2), k_BSHK.transpose(1, 2), v_BSHV.transpose(1, 2), self.scale, run.mask_B1TS,
                run.causal,
            )  # fmt: skip
        out: Tensor = self.o_proj(out_BHTV.transpose(1, 2).flatten(2))
        return out

    def attend_latents(self, q_BHTK: Tensor, latent_BSC: Tensor, key_BSR: Tensor, run: Pass) -> Tensor:
        """Attention over the latents themselves [B, H, T, V]: the heads' maps are applied to query and output."""
        cut = self.config.qk_nope_head_dim
        maps_HXC = self.kv_b_proj.weight.view(self.heads, -1, self.config.kv_lora_rank)
        to_key_HNC, to_value_HVC = maps_HXC[:, :cut], maps_HXC[:, cut:]
        plain_BHTN, turned_BHTR = q_BHTK[..., :cut], q_BHTK[..., cut:]
        plain_BHTC = torch.einsum("bhtn,hnc->bhtc", plain_BHTN, to_key_HNC)
        scores_BHTS = plain_BHTC @ latent_BSC[:, None].mT + turned_BHTR @ key_BSR[:, None].mT
        scores_BHTS = scores_BHTS.float() * self.scale
        if run.mask_B1TS is not None:
            scores_BHTS = scores_BHTS.masked_fill(~run.mask_B1TS, -torch.inf)
        elif run.causal:
            seen = torch.ones(scores_BHTS.shape[-2:], dtype=torch.bool, device=q_BHTK.device).tril()
            scores_BHTS = scores_BHTS.masked_fill(~seen, -torch.inf)
        out_BHTC = scores_BHTS.softmax(-1).to(latent_BSC.dtype) @ latent_BSC[:, None]
        return torch.einsum("bhtc,hvc->bhtv", out_BHTC, to_value_HVC)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x))."""

    def __init__(self, config: MLAConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """Attention, then the feed-forward network, each normed before and added after."""

    def __init__(self, config: MLAConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = LatentAttention(config, layer)
        self.mlp = SwiGLU(config)
        self.input_layernorm = RMSNorm(config.hidden_size)
        self.post_attention_layernorm = RMSNorm(config.hidden_size)

    def forward(self, x_BTD: Tensor, run: Pass) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), run)
        out: Tensor = x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))
        return out


class Trunk(nn.Module):
    """Embedding, layers, last norm. A module of its own only because the tensor names say `model.`."""

    def __init__(self, config: MLAConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size)


@dataclass(frozen=True, slots=True)
class Loss:
    """Weighted negative log-likelihood, its sum and weight kept apart so that batches of any size can be averaged."""

    total: Tensor
    weight: Tensor

    @property
    def mean(self) -> Tensor:
        return self.total / self.weight


class MLAForCausalLM(nn.Module):
    """The model. Weights are drawn from a generator of their own: equal seeds give equal weights, nothing else moves.

    `segments_BT` says to which sequence a token belongs: 0 is padding, 1, 2, … are sequences packed into one row one
    after another. A token sees its own segment up to itself, and positions start anew in every segment, so a sequence
    gets the logits that it gets alone. Without it a row is one sequence.
    """

    def __init__(self, config: MLAConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.device("meta"):  # no draw from torch's global generator, and no work done twice
            self.model = Trunk(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.to_empty(device="cpu")
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self._draw(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _draw(self, generator: torch.Generator) -> None:
        """Normal weights; those that write into the residual are smaller by its number of summands (GPT-2)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
                continue
            spread = self.config.initializer_range
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                spread /= (2 * self.config.num_hidden_layers) ** 0.5
            parameter.normal_(0.0, spread, generator=generator)

    def hidden(
        self, ids_BT: Tensor, *, segments_BT: Tensor | None = None, cache: LatentCache | None = None,
        absorbed: bool = False,
    ) -> Tensor:  # fmt: skip
        """Normed hidden states [B, T, D] of the last layer.

        Args:
            ids_BT: token ids; with a cache, those that come behind the cached ones.
            segments_BT: see the class; with a cache, a sequence goes on where its number does.
            cache: is filled; the row's tokens so far are in it.
            absorbed: attend over latents instead of expanded keys and values.

        Raises:
            DataError: more tokens than the cache holds.
        """
        run = self._prepare(ids_BT, segments_BT, cache, absorbed)
        x_BTD: Tensor = self.model.embed_tokens(ids_BT)
        for layer in self.model.layers:
            x_BTD = layer(x_BTD, run)
        if cache is not None:
            cache.length += ids_BT.shape[1]
        normed: Tensor = self.model.norm(x_BTD)
        return normed

    def _prepare(self, ids_BT: Tensor, segments_BT: Tensor | None, cache: LatentCache | None, absorbed: bool) -> Pass:
        begin = 0 if cache is None else cache.length
        new, end = ids_BT.shape[1], begin + ids_BT.shape[1]
        if cache is not None:
            if end > cache.capacity:
                raise DataError(f"{end} tokens for a cache of {cache.capacity}")
            if segments_BT is not None:
                cache.segments_BS[:, begin:end] = segments_BT
                cache.segmented = True
            segments_BS = cache.segments_BS[:, :end] if cache.segmented else None
        else:
            segments_BS = segments_BT
        index_S = torch.arange(end, device=ids_BT.device)
        mask = None
        if segments_BS is not None:
            positions_BT = segment_positions(segments_BS)[:, begin:]
            # Padding sees padding: a query that sees nothing at all would be not-a-number.
            same_BTS = segments_BS[:, begin:, None] == segments_BS[:, None, :]
            mask = (same_BTS & (index_S[begin:, None] >= index_S))[:, None]
        else:
            positions_BT = index_S[begin:].expand(ids_BT.shape[0], new)
            if begin and new > 1:
                mask = (index_S[begin:, None] >= index_S)[None, None]
        config, dtype = self.config, self.model.embed_tokens.weight.dtype
        cos, sin = rotation(positions_BT, config.qk_rope_head_dim, config.rope_theta, dtype)
        return Pass(cos, sin, mask, mask is None and not begin, cache, absorbed)

    def forward(
        self, ids_BT: Tensor, *, segments_BT: Tensor | None = None, cache: LatentCache | None = None,
        absorbed: bool = False,
    ) -> Tensor:  # fmt: skip
        """Logits [B, T, W] of the next token after each; arguments as for `hidden`."""
        logits: Tensor = self.lm_head(self.hidden(ids_BT, segments_BT=segments_BT, cache=cache, absorbed=absorbed))
        return logits

    def log_probs(self, ids_BT: Tensor, labels_BT: Tensor, *, segments_BT: Tensor | None = None) -> Tensor:
        """Log-probability [B, T] of every labelled token given what stands before it; 0 elsewhere.

        Labels are the ids themselves or `IGNORED`. The first token of a segment is never predicted. The vocabulary is
        computed at labelled places only, so a long prompt costs no logits.
        """
        labelled_BT = labelled(labels_BT, segments_BT)
        hidden_BTD = self.hidden(ids_BT, segments_BT=segments_BT)
        before_MD = hidden_BTD[:, :-1][labelled_BT[:, 1:]]
        found_M = self.lm_head(before_MD).float().log_softmax(-1).gather(1, labels_BT[labelled_BT][:, None])[:, 0]
        return torch.zeros(ids_BT.shape, device=ids_BT.device).masked_scatter(labelled_BT, found_M)

    def loss(
        self, ids_BT: Tensor, labels_BT: Tensor, *, segments_BT: Tensor | None = None, weights_BT: Tensor | None = None
    ) -> Loss:
        """Negative log-likelihood of the labelled tokens, each counted by its weight (1 where none is given)."""
        labelled_BT = labelled(labels_BT, segments_BT)
        weights = labelled_BT.float() if weights_BT is None else weights_BT.float() * labelled_BT
        return Loss(-(self.log_probs(ids_BT, labels_BT, segments_BT=segments_BT) * weights).sum(), weights.sum())


def labelled(labels_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
    """Which tokens [B, T] count as predicted: labelled, and not the first of their row or segment."""
    found_BT = labels_BT != IGNORED
    found_BT[:, 0] = False
    if segments_BT is not None:
        found_BT[:, 1:] &= (segments_BT[:, 1:] == segments_BT[:, :-1]) & (segments_BT[:, 1:] > 0)
    return found_BT


def segment_positions(segments_BS: Tensor) -> Tensor:
    """Place of every token in its segment, from 0."""
    index_BS = torch.arange(segments_BS.shape[1], device=segments_BS.device).expand_as(segments_BS)
    first_BS = torch.zeros_like(index_BS)
    first_BS[:, 1:] = torch.where(segments_BS[:, 1:] != segments_BS[:, :-1], index_BS[:, 1:], 0)
    return index_BS - first_BS.cummax(1).values
