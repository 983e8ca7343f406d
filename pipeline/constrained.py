"""Decoding held to a grammar, token by token, by llguidance.

    vocabulary = Vocabulary(tokenizer, end="<|im_end|>", width=49_152)
    compiled = compile_grammar(certificates.grammar(window, skeleton, k, limits), vocabulary)
    samples = shared_prefix.generate(decoder, [prompt], 8, sampling, Mask([compiled]))

A grammar of ours (`certificates.grammar`) is finite: no rule refers to itself. It is therefore given to llguidance as a
single terminal, so that its lexer is an automaton of exactly that language. (Cut into several terminals, as its own
converter from GBNF does it, the lexer takes the longest match and never goes back: after a whole entry it reads the
space before the full stop as the beginning of another slot, and the list cannot end.)

A sentence may be spelled with any of the vocabulary's tokens, not only as the tokenizer would cut it. The end token is
legal exactly where a sentence is complete. Other special tokens never are.

Axes: N rows, W vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from pipeline.errors import DataError, SetupError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from pipeline.shared_prefix import Sample

_RULE = re.compile(r"([A-Za-z][A-Za-z0-9-]*) ::= (.*)")
_PART = re.compile(r'\s*("[^"\\\n]*"|[A-Za-z][A-Za-z0-9-]*|[|()?])')
"""What `certificates.grammar` uses of GBNF: literals without escapes, names, groups, `|` and `?`."""

_JSON = '{}[]":,-.0123456789truefalsn'
"""What JSON itself needs besides the words of a schema."""


class Vocabulary:
    """A tokenizer made ready for masking, once.

    Args:
        tokenizer: of the `tokenizers` library; of transformers' fast ones it is the `backend_tokenizer`.
        end: text of the end token.
        width: how many logits the model has; more than the tokenizer's tokens where its matrix is padded.

    Raises:
        SetupError: the tokenizer is of a kind that llguidance cannot read, has no such end token, or more tokens than
            the model.
    """

    def __init__(self, tokenizer: Tokenizer, *, end: str, width: int) -> None:
        end_id = tokenizer.token_to_id(end)
        if end_id is None:
            raise SetupError(f"the tokenizer has no token {end!r} to end with")
        if tokenizer.get_vocab_size() > width:
            raise SetupError(f"the tokenizer has {tokenizer.get_vocab_size()} tokens, the model {width}")
        self.end, self.width = end_id, width
        try:
            self.tokens = LLTokenizer(tokenizer.to_str(), n_vocab=width, eos_token=end_id)
        except (ValueError, RuntimeError) as error:
            raise SetupError(f"llguidance cannot read the tokenizer: {_first_line(error)}") from None
        spelled = (self.tokens.decode_bytes([i]) for i in range(width) if not self.tokens.is_special_token(i))
        self.bytes = frozenset(text[0] for text in spelled if len(text) == 1)
        """Bytes with a token of their own: whatever consists of them can be spelled from any place on."""

    def check(self, characters: str) -> None:
        """Every character can be spelled.

        Raises:
            SetupError: one cannot; names it.
        """
        for character in sorted(set(characters)):
            if not self.bytes.issuperset(character.encode()):
                raise SetupError(
                    f"the tokenizer has no token for the character {character!r}, which the grammar needs",
                    mend="take a tokenizer with all single bytes",
                )


@dataclass(frozen=True, slots=True)
class Compiled:
    """A grammar in its first state; it is copied for every sample and never advanced itself."""

    start: LLMatcher
    vocabulary: Vocabulary


def compile_grammar(grammar: str, vocabulary: Vocabulary) -> Compiled:
    """Compile a grammar as `certificates.grammar` writes it.

    Raises:
        SetupError: it uses more of GBNF than that or refers to itself, or a character cannot be spelled.
    """
    vocabulary.check(_characters(grammar))
    return _compile(to_lark(grammar), vocabulary)


def compile_schema(schema: dict[str, Any], vocabulary: Vocabulary) -> Compiled:
    """Compile a JSON schema; sentences are compact JSON, without white space.

    Raises:
        SetupError: llguidance cannot enforce it in full, or a character cannot be spelled.
    """
    vocabulary.check(_JSON + "".join(_words(schema)))
    options = {"whitespace_flexible": False, "lenient": False}
    return _compile(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options), vocabulary)  # type: ignore[arg-type]


def check_spelling(grammar: str, vocabulary: Vocabulary) -> None:
    """What `compile_grammar` checks first and cheaply: every character of the grammar's literals can be spelled."""
    vocabulary.check(_characters(grammar))


def _characters(grammar: str) -> str:
    return "".join(re.findall(r'"([^"]*)"', grammar))


def _words(schema: object) -> list[str]:
    """Names and constants of a schema, wherever they stand in it (and its keywords)."""
    if isinstance(schema, dict):
        parts = [part for value in schema.values() if not isinstance(value, str) for part in _words(value)]
        return [*schema, *_words(schema.get("const")), *parts]
    if isinstance(schema, list):
        return [part for value in schema for part in _words(value)]
    return [schema] if isinstance(schema, str) else []


def _compile(grammar: str, vocabulary: Vocabulary) -> Compiled:
    start = LLMatcher(vocabulary.tokens, grammar, log_level=0)
    if start.is_error():
        raise SetupError(f"llguidance cannot enforce the grammar: {_first_line(start.get_error())}")
    return Compiled(start, vocabulary)


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or ["unknown error"])[0][:200]


def to_lark(grammar: str) -> str:
    """The grammar in llguidance's form of Lark, every rule a terminal; the names are numbered.

    Raises:
        SetupError: a line or a part of one is not of the form that `certificates.grammar` writes.
    """
    rules: dict[str, list[str]] = {}
    for number, line in enumerate(grammar.splitlines(), start=1):
        match = _RULE.fullmatch(line)
        if match is None or match[1] in rules:
            raise SetupError(f"line {number} of the grammar is not a rule of its own: {line[:60]!r}")
        rules[match[1]] = _parts(match[2], number)
    names = {name: f"T{i}" for i, name in enumerate(rules)}
    if "root" not in names:
        raise SetupError("the grammar has no rule 'root'")
    out = [f"start: {names['root']}"]
    for name, parts in rules.items():
        if unknown := [part for part in parts if part[0].isalpha() and part not in names]:
            raise SetupError(f"the grammar has no rule {unknown[0]!r}")
        # A question mark must stand right behind what it is about.
        out.append(f"{names[name]}: {' '.join(names.get(part, part) for part in parts).replace(' ?', '?')}")
    return "\n".join(out) + "\n"


def _parts(body: str, number: int) -> list[str]:
    parts, at = [], 0
    while at < len(body):
        match = _PART.match(body, at)
        if match is None:
            raise SetupError(f"line {number} of the grammar has something unknown: {body[at : at + 40]!r}")
        parts.append(match[1])
        at = match.end()
    return parts


class Mask:
    """The mask of one call of `shared_prefix.generate`: a grammar, or None, for every prompt of the call.

    Keeps a state per sample, moved on by the sample's new tokens alone, and drops it when the sample has ended.
    """

    def __init__(self, grammars: Sequence[Compiled | None]) -> None:
        self.grammars = grammars
        self.states: dict[tuple[int, int], tuple[LLMatcher, int]] = {}

    def __call__(self, logits_NW: Tensor, samples: Sequence[Sample]) -> Tensor:
        """The logits [N, W] with every illegal token at -inf, in place.

        Raises:
            DataError: a sample has a token that was not legal, or its grammar became too complex to follow.
        """
        states: dict[tuple[int, int], tuple[LLMatcher, int]] = {}
        rows, legal = [], []
        for n, sample in enumerate(samples):
            grammar = self.grammars[sample.prompt]
            if grammar is None:
                continue
            key = sample.prompt, sample.number
            known = self.states.get(key) if sample.tokens else None  # nothing yet: a new sample, perhaps of a new call
            matcher, seen = known or (grammar.start.deep_copy(), 0)
            bits = matcher.compute_bitmask() if matcher.consume_tokens(sample.tokens[seen:]) else b""
            if matcher.is_error():
                raise DataError(
                    f"prompt {sample.prompt}, sample {sample.number}: not in the grammar at token "
                    f"{len(sample.tokens)}: {_first_line(matcher.get_error())}"
                )
            states[key] = matcher, len(sample.tokens)
            rows.append(n)
            legal.append(bits)
        self.states = states
        if rows:
            bits_NX = np.frombuffer(b"".join(legal), dtype=np.uint8).reshape(len(rows), -1)
            illegal_NW = ~np.unpackbits(bits_NX, axis=1, bitorder="little", count=logits_NW.shape[1]).view(bool)
            hidden_NW = torch.from_numpy(illegal_NW).to(logits_NW.device)
            if len(rows) == len(samples):
                return logits_NW.masked_fill_(hidden_NW, -torch.inf)
            at_N = torch.tensor(rows, device=logits_NW.device)
            logits_NW[at_N] = logits_NW[at_N].masked_fill(hidden_NW, -torch.inf)
        return logits_NW
