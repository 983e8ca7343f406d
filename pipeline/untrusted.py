"""Untrusted text made safe to stand in a prompt: it stays on its line, shows every character and opens no mark."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from pipeline.errors import ParamError

MARKERS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<pad>", "<unk>", "<mask>", "<bos>", "<eos>",
    "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]", "[BOS]", "[EOS]", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>",
    "<start_of_turn>", "<end_of_turn>", "<think>", "</think>", "<tool_call>", "</tool_call>",
)  # fmt: skip
"""Special tokens and chat markup of common models: neutralised whatever the tokenizer. So is every `<|...|>`."""

_UNSHOWN = re.compile(
    r"[\\{}\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Besides what is not printable: our own signs, and characters that count as printable but show nothing."""

_ESCAPE = re.compile(r"\\(?:\\|u[0-9a-f]{4}|U[0-9a-f]{8})")

_TWINS = str.maketrans(
    "‹〈⟨❬❮˂ᐸ《›〉⟩❭❯˃ᐳ》│┃∣❘ǀ⎮¦ı【〔⟦❲】〕⟧❳⁄∕╱⧸аеорсухіѕјһԁοαερτικν",
    "<<<<<<<<>>>>>>>>|||||||i[[[[]]]]////aeopcyxisjhdoaeptikv",
)
"""What looks like the signs and letters of special tokens and is not unified with them by Unicode."""


class _Folds(dict[int, str]):
    """Code point -> what a normalising tokenizer, or a reader, takes it for; filled on demand.

    Case, width, accents and styles are dropped; whatever separates or shows nothing, `_` and `-` become a space.
    """

    def __missing__(self, code: int) -> str:
        char = chr(code)
        folded = "".join(c for c in unicodedata.normalize("NFKD", char) if not unicodedata.combining(c))
        folded = folded.casefold().translate(_TWINS)
        blank = char in "_-\u2581" or not char.isprintable() or not folded or _UNSHOWN.fullmatch(char) is not None
        self[code] = " " if blank and char not in "\\{}" else folded
        return self[code]


_FOLDS = _Folds()


class Untrusted:
    """Makes untrusted text safe to print in a line of a prompt, deterministically and so that it can be read back.

    White space becomes a space. As `\\uXXXX` (or `\\UXXXXXXXX`) are written: characters that do not show (control,
    bidirectional, zero-width, unassigned, surrogates ...), braces, and the first character of whatever equals or
    resembles a special token; a backslash is doubled.

    Args:
        specials: the special tokens of the tokenizer that will read the prompt.

    Raises:
        ParamError: a special token without any visible character.
    """

    def __init__(self, specials: Iterable[str] = ()) -> None:
        self.specials = tuple(sorted(set(specials)))
        shapes = {token: token.translate(_FOLDS).replace(" ", "") for token in (*MARKERS, *self.specials)}
        if blank := [token for token, shape in shapes.items() if not shape]:
            raise ParamError(f"the special token {blank[0]!r} cannot be told from white space", field="specials")
        bodies = [" *".join(map(re.escape, shape)) for shape in sorted(set(shapes.values()))]
        self._shapes = re.compile("|".join([*bodies, r"< *\|[^<>|]{0,60}\| *>"]))

    def __call__(self, text: str) -> str:
        return "".join(self.units(text))

    def units(self, text: str) -> Sequence[str]:
        """What is printed for each character; the text itself where nothing has to be changed."""
        starts = self._starts(text)
        if not starts and text.isprintable() and _UNSHOWN.search(text) is None:
            return text
        return [escape(c) if i in starts else _shown(c) for i, c in enumerate(text)]

    def _starts(self, text: str) -> set[int]:
        """Where something that resembles a special token begins."""
        folded = text.translate(_FOLDS)
        match = self._shapes.search(folded)
        if match is None:
            return set()
        # A character may fold to several (an ellipsis to three dots), so positions are looked up.
        source = [i for i, c in enumerate(text) for _ in _FOLDS[ord(c)]]
        starts = set()
        while match is not None:
            starts.add(source[match.start()])
            match = self._shapes.search(folded, match.start() + 1)
        return starts


def escape(char: str) -> str:
    """A character by its number."""
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def restore(text: str) -> str:
    """The inverse of `Untrusted`, but for white space other than spaces."""
    return _ESCAPE.sub(lambda m: "\\" if m[0] == "\\\\" else chr(int(m[0][2:], 16)), text)


def _shown(char: str) -> str:
    if char == "\\":
        return "\\\\"
    if char.isspace():
        return " "
    return char if char.isprintable() and _UNSHOWN.fullmatch(char) is None else escape(char)
