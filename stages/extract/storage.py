"""The fitted linear extractor on disk: model.safetensors (weights), config.json (everything else), a model card."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pipeline.errors import DataError
from pipeline.files import read_json, write_json
from stages.extract.crf import Tagger
from stages.extract.hashing import Floats, Layer
from stages.extract.linear import Floors, LinearExtractor
from stages.extract.softmax import Calibration, Classifier

FORMAT = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
TAGGERS, CLASSIFIERS = ("trigger", "mention"), ("trigger_type", "mention_type", "role")
CALIBRATIONS = ("event_calibration", "mention_calibration", "role_calibration")


def save_linear(model: LinearExtractor, folder: str | Path) -> None:
    """Write weights and settings; equal models give equal bytes."""
    folder = Path(folder)
    arrays: dict[str, np.ndarray[Any, Any]] = {"allowed": model.allowed}
    config: dict[str, Any] = {"format": FORMAT, "reach": model.reach}
    parts: dict[str, Tagger | Classifier | None] = {
        "trigger": model.trigger, "mention": model.mention, "trigger_type": model.trigger_type,
        "mention_type": model.mention_type, "role": model.role,
    }  # fmt: skip
    for name, part in parts.items():
        config[name] = None
        if part is not None:
            # The last row of weights is the zero row of unknown buckets, which Layer.of adds.
            arrays[f"{name}.buckets"] = part.layer.buckets_N
            arrays[f"{name}.weights"] = part.layer.weights_NK[:-1]
            arrays[f"{name}.bias"] = part.layer.bias_K
            if isinstance(part, Tagger):
                arrays[f"{name}.transition"] = part.transition
                config[name] = {"longest": part.longest}
            else:
                config[name] = {"labels": list(part.labels)}
    calibrations = (model.event_calibration, model.mention_calibration, model.role_calibration)
    for name, calibration in zip(CALIBRATIONS, calibrations, strict=True):
        config[name] = {"weights": list(calibration.weights), "bias": calibration.bias}
    config["floors"] = {"trigger": model.floors.trigger, "mention": model.floors.mention, "role": model.floors.role}
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / WEIGHTS)
    os.chmod(folder / WEIGHTS, 0o644)  # noqa: PTH101 - safetensors writes for the owner alone
    write_json(folder / CONFIG, config)


def load_linear(folder: str | Path) -> LinearExtractor:
    """Read a model written by `save_linear`.

    Raises:
        DataError: a file is missing, broken or of another format.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise DataError(f"not a linear extractor of format {FORMAT}", file=folder / CONFIG)
    try:
        arrays = load_file(folder / WEIGHTS)
        taggers = {name: _tagger(name, config, arrays) for name in TAGGERS}
        classifiers = {name: _classifier(name, config, arrays) for name in CLASSIFIERS}
        event, mention, role = (Calibration(tuple(config[n]["weights"]), config[n]["bias"]) for n in CALIBRATIONS)
        trigger, trigger_type = taggers["trigger"], classifiers["trigger_type"]
        if trigger is None or trigger_type is None:
            raise DataError("the model has no trigger part", file=folder / CONFIG)
        return LinearExtractor(
            trigger, trigger_type, taggers["mention"], classifiers["mention_type"], classifiers["role"],
            arrays["allowed"], config["reach"], event, mention, role, Floors(**config["floors"]),
        )  # fmt: skip
    except FileNotFoundError:
        raise DataError("file not found", file=folder / WEIGHTS) from None
    except (SafetensorError, KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"broken model: {type(error).__name__} {error}", file=folder) from None


def _layer(name: str, arrays: dict[str, Floats]) -> Layer:
    return Layer.of(arrays[f"{name}.buckets"].astype(np.int64), arrays[f"{name}.weights"], arrays[f"{name}.bias"])


def _tagger(name: str, config: dict[str, Any], arrays: dict[str, Floats]) -> Tagger | None:
    if config[name] is None:
        return None
    return Tagger(_layer(name, arrays), arrays[f"{name}.transition"], config[name]["longest"])


def _classifier(name: str, config: dict[str, Any], arrays: dict[str, Floats]) -> Classifier | None:
    if config[name] is None:
        return None
    return Classifier(tuple(config[name]["labels"]), _layer(name, arrays))
