"""Attached images: where they are, what their bytes hash to, and what their header says; no pixel is decoded."""

from __future__ import annotations

import warnings
from pathlib import Path, PurePosixPath

from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from pipeline.files import sha256_file
from stages.ingest.records import Image, RecordError


def read_image(root: Path, path: str, name: str) -> Image:
    """One image of the corpus.

    Args:
        root: the corpus' folder.
        path: relative to it, with forward slashes.
        name: field, for errors.

    Raises:
        RecordError: absolute, outside the folder (also through a link), missing, or not an image.
    """
    pure = PurePosixPath(path)
    file = root / path
    if not path or "\0" in path or pure.is_absolute() or ".." in pure.parts:
        raise RecordError("image", f"{path!r:.80} is not a path inside the corpus", field=name)
    if not file.resolve().is_relative_to(root.resolve()):
        raise RecordError("image", f"{path!r:.80} leads outside the corpus", field=name)
    if not file.is_file():
        raise RecordError("image", f"{path!r:.80} not found", field=name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)
            with Pillow.open(file) as image:
                (width, height), media_type = image.size, image.get_format_mimetype()
    except (UnidentifiedImageError, Pillow.DecompressionBombError, OSError, ValueError, SyntaxError):
        raise RecordError("image", f"{path!r:.80} is not an image that can be read", field=name) from None
    return Image(pure.as_posix(), sha256_file(file), width, height, media_type)
