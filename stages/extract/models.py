"""The published model: the whole one in the folder itself, those of the folds in folds/0 and folds/1.

folds/read_by.json maps the sha256 of every document that was fitted on to the fold whose model was not fitted on it.
A model without that folder has no folds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import DataError
from pipeline.files import read_json, write_json
from stages.extract.folds import CrossFitted, Extractor
from stages.extract.linear import LinearExtractor
from stages.extract.storage import CONFIG, FORMAT, load_linear, save_linear

FOLDS, READ_BY = "folds", "read_by.json"


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

    if not isinstance(model, EncoderExtractor):
        raise TypeError(f"no way to store a {type(model).__name__}")
    save_encoder(model, folder)


def _load(folder: Path) -> Extractor:
    config = read_json(folder / CONFIG)
    if isinstance(config, dict) and config.get("format") == FORMAT:
        return load_linear(folder)
    # Imported here because torch takes seconds, and the linear model does without.
    from stages.extract.encoder.storage import FORMAT as ENCODER
    from stages.extract.encoder.storage import load_encoder

    if isinstance(config, dict) and config.get("format") == ENCODER:
        return load_encoder(folder)
    raise DataError(f"neither a linear extractor of format {FORMAT} nor one of {ENCODER!r}", file=folder / CONFIG)
