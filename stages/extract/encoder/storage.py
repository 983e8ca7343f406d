"""The fitted encoder extractor on disk: model.safetensors, tokenizer.json, config.json (everything else), a model card.

The folder is complete by itself: the pretrained encoder is not needed to use it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.errors import DataError
from pipeline.files import read_json, sha256_file, write_json, write_text
from pipeline.params import Encoder
from stages.extract.encoder.coreference import Coreference
from stages.extract.encoder.heads import Heads
from stages.extract.encoder.model import EncoderExtractor, Temperatures
from stages.extract.encoder.network import build_backbone, load_tokenizer
from stages.extract.encoder.reading import Network
from stages.extract.encoder.targets import Labels
from stages.extract.linear import Floors
from stages.extract.softmax import Calibration

FORMAT = "encoder 2"
WEIGHTS, CONFIG, TOKENIZER, CARD = "model.safetensors", "config.json", "tokenizer.json", "README.md"
CALIBRATIONS = ("event_calibration", "mention_calibration", "role_calibration", "far_calibration")


def save_encoder(model: EncoderExtractor, folder: str | Path) -> None:
    """Write weights, tokenizer and settings; equal models give equal bytes."""
    folder = Path(folder)
    network, labels = model.network, model.network.labels
    write_text(folder / TOKENIZER, network.tokenizer.to_str())
    modules = nn.ModuleDict({"backbone": network.backbone, "heads": network.heads})
    save_file({name: value.contiguous() for name, value in modules.state_dict().items()}, folder / WEIGHTS)
    os.chmod(folder / WEIGHTS, 0o644)  # noqa: PTH101 - safetensors writes for the owner alone
    write_json(folder / CONFIG, {
        "format": FORMAT, "encoder": network.backbone.config, "settings": network.settings.model_dump(),
        "labels": {name: getattr(labels, name) for name in Labels.__slots__},
        "mentions": network.heads.mentions is not None, "tokenizer": sha256_file(folder / TOKENIZER),
        "temperatures": {name: getattr(model.temperatures, name) for name in Temperatures.__slots__},
        "floors": {name: getattr(model.floors, name) for name in Floors.__slots__},
        "coreference": {"weights": model.coreference.weights, "threshold": model.coreference.threshold},
        **{name: {"weights": list(getattr(model, name).weights), "bias": getattr(model, name).bias}
           for name in CALIBRATIONS},
    })  # fmt: skip


def load_encoder(folder: str | Path) -> EncoderExtractor:
    """Read a model written by `save_encoder`.

    Raises:
        DataError: a file is missing, broken or of another format.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise DataError(f"not an encoder extractor of the format {FORMAT!r}", file=folder / CONFIG)
    for name in (WEIGHTS, TOKENIZER):
        if not (folder / name).is_file():
            raise DataError("file not found", file=folder / name)
    if sha256_file(folder / TOKENIZER) != config.get("tokenizer"):
        raise DataError("the tokenizer is not the one the model was fitted with", file=folder / TOKENIZER)
    try:
        return _build(folder, config)
    except (KeyError, TypeError, ValueError, RuntimeError, ValidationError, SafetensorError) as error:
        raise DataError(f"broken model: {type(error).__name__} {error}"[:400], file=folder) from None


def _build(folder: Path, config: dict[str, Any]) -> EncoderExtractor:
    settings = Encoder(**config["settings"])
    tokenizer, special = load_tokenizer(folder)
    given = {name: config["labels"][name] for name in Labels.__slots__}
    for name in ("kinds", "sorts", "roles", "links"):
        given[name] = tuple(given[name])
    given["allowed"] = tuple(tuple(roles) for roles in given["allowed"])
    labels = Labels(**given)
    backbone = build_backbone(config["encoder"], settings.frozen, settings.precision)
    heads = Heads(backbone.size, labels, config["mentions"])
    modules = nn.ModuleDict({"backbone": backbone, "heads": heads})
    modules.load_state_dict(load_file(folder / WEIGHTS))
    modules.eval()
    found = config["coreference"]
    calibrations = {n: Calibration(tuple(config[n]["weights"]), config[n]["bias"]) for n in CALIBRATIONS}
    return EncoderExtractor(
        Network(backbone, heads, tokenizer, special, settings, labels), Temperatures(**config["temperatures"]),
        coreference=Coreference(tuple(found["weights"]), found["threshold"]), floors=Floors(**config["floors"]),
        **calibrations,
    )  # fmt: skip
