"""Prompt templates: a text file with declared placeholders, checked once when it is read."""

from __future__ import annotations

from pathlib import Path
from string import Template

from pipeline.errors import ParamError

TEMPLATE = Path(__file__).with_name("prompt.txt")

BLOCKS = ("plan", "texts", "candidates")
"""Placeholders that stand for lines: each exactly once, alone on its line, the last two between two lines with $tag."""

WORDS = ("question", "k", "handles")
"""Placeholders within a line: each exactly once."""

TAG = "tag"
"""The placeholder of the delimiter."""


def load_template(file: str | Path = TEMPLATE) -> Template:
    """Read and check a template: `$name` is a placeholder, `$$` a dollar sign.

    Raises:
        ParamError: unreadable, or a placeholder that is unknown, missing, repeated or out of place.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ParamError(f"not a readable text file: {type(error).__name__}", file=file) from None
    template = Template(text)
    if not template.is_valid():
        raise ParamError("a $ that begins no placeholder", file=file, mend="write $$ for a dollar sign")
    known = (*WORDS, *BLOCKS, TAG)
    names = [match["named"] or match["braced"] for match in template.pattern.finditer(text) if not match["escaped"]]
    for name in names:
        if name not in known:
            raise ParamError(f"unknown placeholder ${name}", file=file, mend=f"known: {', '.join(known)}")
    for name in (*WORDS, *BLOCKS):
        if names.count(name) != 1:
            raise ParamError(f"${name} stands there {names.count(name)} times, not once", file=file)
    lines = text.splitlines()
    for name in BLOCKS:
        if f"${name}" not in lines:
            raise ParamError(f"${name} must stand alone on its line", file=file)
    inside = [lines.index(f"${name}") for name in ("texts", "candidates")]
    tagged = [i for i, line in enumerate(lines) if f"${TAG}" in line or f"${{{TAG}}}" in line]
    before, after = [i for i in tagged if i < min(inside)], [i for i in tagged if i > max(inside)]
    if not before or not after or len(before) + len(after) < len(tagged):
        raise ParamError(f"$texts and $candidates must stand between two lines with ${TAG}", file=file)
    return template
