"""The published model: the whole one in the folder itself, those of the folds in folds/0 and folds/1.

A stacked model is a config.json with its maps, and its two extractors in linear/ and encoder/. folds/read_by.json maps
the sha256 of every document that was fitted on to the fold whose model was not fitted on it. A model without that
folder has no folds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.files import read_json, write_json
from stages.extract.folds import CrossFitted, Extractor
from stages.extract.linear import Floors, LinearExtractor
from stages.extract.softmax import Calibration
from stages.extract.storage import CONFIG, FORMAT, load_linear, save_linear

FOLDS, READ_BY = "folds", "read_by.json"
LINEAR, ENCODER = "linear", "encoder"
STACKED = "stacked 1"
MAPS = ("event_map", "mention_map", "role_map")


def save_extractor(folder: Path, model: Extractor) -> None:
    """Write a model of any kind; equal models give equal bytes."""
    if not isinstance(model, CrossFitted):
        _save(model, folder)
        return
    _save(model.whole, folder)
    for number, fold in enumerate(model.folds):
        (folder / FOLDS / str(number)).mkdir(parents=True)
        _save(fold, folder / FOLDS / str(number))
    write_json(folder / FOLDS / READ_BY, dict(sorted(model.read_by.items())))


def load_extractor(folder: str | Path) -> Extractor:
    """Read what `save_extractor` wrote, of whatever kind.

    Raises:
        DataError: a file is missing, broken or of another format.
    """
    folder = Path(folder)
    whole = _load(folder)
    if not (folder / FOLDS).is_dir():
        return whole
    numbers = sorted(path.name for path in (folder / FOLDS).iterdir() if path.is_dir())
    folds = tuple(_load(folder / FOLDS / number) for number in numbers)
    read_by = read_json(folder / FOLDS / READ_BY)
    known = {str(number): number for number in range(len(folds))}
    if (
        numbers != list(known)
        or not isinstance(read_by, dict)
        or not all(type(fold) is int and 0 <= fold < len(folds) for fold in read_by.values())
    ):
        raise DataError("not a map of documents to the folds at hand", file=folder / FOLDS / READ_BY)
    return CrossFitted(whole, folds, read_by)


def model_files(folder: Path) -> Iterator[Path]:
    """The files that decide what the model says, in order."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".safetensors", ".json"):
            yield path


def _save(model: Extractor, folder: Path) -> None:
    if isinstance(model, LinearExtractor):
        save_linear(model, folder)
        return
    from stages.extract.encoder.model import EncoderExtractor
    from stages.extract.encoder.storage import save_encoder
    from stages.extract.stacked import StackedExtractor

    if isinstance(model, StackedExtractor):
        for name, member in ((LINEAR, model.linear), (ENCODER, model.encoder)):
            (folder / name).mkdir()
            _save(member, folder / name)
        write_json(folder / CONFIG, {
            "format": STACKED, "floors": {name: getattr(model.floors, name) for name in Floors.__slots__},
            **{name: {"weights": list(getattr(model, name).weights), "bias": getattr(model, name).bias}
               for name in MAPS},
        })  # fmt: skip
        return
    if not isinstance(model, EncoderExtractor):
        raise TypeError(f"no way to store a {type(model).__name__}")
    save_encoder(model, folder)


def _load(folder: Path) -> Extractor:
    config = read_json(folder / CONFIG)
    form = config.get("format") if isinstance(config, dict) else None
    if form == FORMAT:
        return load_linear(folder)
    # Imported here because torch takes seconds, and the linear model does without.
    from stages.extract.encoder.storage import FORMAT as TRANSFORMER
    from stages.extract.encoder.storage import load_encoder

    if form == TRANSFORMER:
        return load_encoder(folder)
    if form == STACKED:
        return _load_stacked(folder, config)
    known = f"a linear extractor of format {FORMAT}, one of {TRANSFORMER!r} or one of {STACKED!r}"
    raise DataError(f"neither {known}", file=folder / CONFIG)


def _load_stacked(folder: Path, config: dict[str, Any]) -> Extractor:
    from stages.extract.encoder.storage import load_encoder
    from stages.extract.stacked import StackedExtractor

    one, other = load_linear(folder / LINEAR), load_encoder(folder / ENCODER)
    try:
        event, mention, role = (Calibration(tuple(config[name]["weights"]), config[name]["bias"]) for name in MAPS)
        if any(len(found.weights) != 2 for found in (event, mention, role)):
            raise ValueError("a map has two weights")
        plain = StackedExtractor.of(one, other, Floors(**config["floors"]))
        return replace(plain, event_map=event, mention_map=mention, role_map=role)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"broken model: {type(error).__name__} {error}", file=folder / CONFIG) from None
