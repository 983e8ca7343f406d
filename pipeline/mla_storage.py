"""A tiny-mla model on disk: the folder that transformers' `DeepseekV3ForCausalLM` and vLLM read, too."""

from __future__ import annotations

import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.errors import DataError, ParamError
from pipeline.files import read_json, write_json
from pipeline.mla import EPSILON, MLAConfig, MLAForCausalLM

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FIXED = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_act": "silu",
    "rms_norm_eps": EPSILON, "attention_bias": False, "attention_dropout": 0.0, "rope_interleave": True,
    "use_cache": True, "routed_scaling_factor": 1.0, "n_routed_experts": 1, "n_shared_experts": 1,
    "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1, "moe_layer_freq": 1, "num_nextn_predict_layers": 0,
}  # fmt: skip
"""What config.json says besides the sizes. The settings of experts are read by other programs even where no layer has
any; a factor of 1 keeps vLLM's half-precision guard from rescaling dense layers."""
CHECKED = ("model_type", "hidden_act", "rms_norm_eps", "attention_bias", "rope_interleave")


def save_mla(model: MLAForCausalLM, folder: str | Path) -> None:
    """Write model.safetensors and config.json; equal models give equal bytes.

    The output matrix is written even where it is tied to the embedding: vLLM does not tie it for this architecture.
    """
    folder, config = Path(folder), model.config
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["lm_head.weight"].clone()  # two names for one memory are refused
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    os.chmod(folder / WEIGHTS, 0o644)  # noqa: PTH101 - safetensors writes for the owner alone
    sizes = asdict(config)
    theta = sizes.pop("rope_theta")
    write_json(folder / CONFIG, {
        **FIXED, **sizes, "num_key_value_heads": config.num_attention_heads,
        "first_k_dense_replace": config.num_hidden_layers, "moe_intermediate_size": config.intermediate_size,
        "rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "dtype": str(model.model.embed_tokens.weight.dtype).removeprefix("torch."),
    })  # fmt: skip


def load_mla(folder: str | Path) -> MLAForCausalLM:
    """Read a model written by `save_mla`, or another dense one of this architecture, in the precision of its file.

    Raises:
        DataError: a file is missing or broken, or the model has something that this class does not compute.
    """
    folder = Path(folder)
    raw = read_json(folder / CONFIG)
    config = _read_config(raw, folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        raise DataError("file not found", file=folder / WEIGHTS)
    try:
        tensors = load_file(folder / WEIGHTS)
        model = MLAForCausalLM(config)
        embedding = tensors["model.embed_tokens.weight"]
        if config.tie_word_embeddings and not torch.equal(tensors.setdefault("lm_head.weight", embedding), embedding):
            raise DataError("the output matrix is not the embedding, though the two are tied", file=folder / WEIGHTS)
        model.to(embedding.dtype).load_state_dict(tensors)
    except (KeyError, RuntimeError, OSError, SafetensorError) as error:
        raise DataError(f"broken model: {type(error).__name__} {error}"[:400], file=folder / WEIGHTS) from None
    return model.eval()


def _read_config(raw: Any, file: Path) -> MLAConfig:
    if not isinstance(raw, dict):
        raise DataError("not a model configuration", file=file)
    for name in CHECKED:
        if raw.get(name) != FIXED[name]:
            raise DataError(f"must be {FIXED[name]!r}, not {raw.get(name)!r}", file=file, field=name)
    rope = raw.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default" or raw.get("rope_scaling"):
        raise DataError("stretched rotary positions are not supported", file=file, field="rope_parameters")
    names = {field.name for field in fields(MLAConfig)}
    sizes = {name: value for name, value in raw.items() if name in names}
    sizes["rope_theta"] = rope.get("rope_theta", raw.get("rope_theta"))
    if missing := sorted(names - sizes.keys() | {name for name in ("rope_theta",) if sizes[name] is None}):
        raise DataError("missing", file=file, field=missing[0])
    try:
        config = MLAConfig(**sizes)
    except ParamError as error:
        raise DataError(error.what, file=file, field=error.field) from None
    dense = raw.get("first_k_dense_replace")
    if not isinstance(dense, int) or dense < config.num_hidden_layers:
        raise DataError("layers with experts are not supported", file=file, field="first_k_dense_replace")
    return config
