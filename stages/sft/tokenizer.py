"""The tokenizer of tiny-mla: byte-level BPE trained on prompts, in which every local id and every slot is one token.

Byte level, so that no text is unknown; ids are cut off before merging, so `E05` is the same token in a sentence, in
the roster and in an answer, and citing is copying. It is a plain `tokenizers` file that transformers and vLLM read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|end|>"
PAD = "<|pad|>"
SPECIAL = (END, PAD)

_PIECES = Regex(
    r" (?=[CEDSs][0-9])|[CEDS][0-9]+|s[0-9]+| ?\p{L}+(?:[._]\p{L}+)+:?| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s"
)
"""What is merged within: names of candidates, handles, documents, sentences and slots, without the space before them;
event types as a whole; words; numbers; runs of other signs."""

_KNOWN = (("C", 2, 64), ("E", 2, 99), ("E", 3, 256), ("S", 1, 128), ("D", 1, 32), ("s", 1, 12))
"""Letter, digits and last number of the names that are one token each."""

_REPEATED = 64
"""How often each of these names is shown to the trainer, so that it is merged whatever else there is."""


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Fit on prompts and answers; equal texts give an equal tokenizer.

    Args:
        texts: to fit on.
        size: entries of the vocabulary, at most.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_PIECES, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(_with_names(texts), trainer)
    return tokenizer


def _with_names(texts: Iterable[str]) -> Iterator[str]:
    yield from texts
    for letter, digits, last in _KNOWN:
        names = " ".join(f"{letter}{number:0{digits}d}" for number in range(1, last + 1))
        for _ in range(_REPEATED):
            yield names
