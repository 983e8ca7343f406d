"""What a word looks like: the attributes of distinct words from which features are hashed.

Everything here is surface form, closed word lists and suffix rules of English; nothing is learned. Each attribute of a
distinct word becomes a 64-bit hash, so that features of tokens, spans and pairs are sums of array look-ups.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

CLASSES = {
    "article": "the a an",
    "demonstrative": "this that these those",
    "possessive": "my your his her its our their whose",
    "pronoun": "i me you he him she it we us they them who whom someone anyone everyone nobody himself herself itself "
               "themselves one",
    "be": "be is are was were been being am",
    "have": "have has had having",
    "do": "do does did",
    "modal": "will would can could may might must shall should",
    "not": "not never no n't without",
    "to": "to",
    "by": "by",
    "of": "of",
    "in": "in at on inside within near",
    "from": "from via through",
    "for": "for",
    "with": "with using",
    "against": "against",
    "into": "into onto toward towards",
    "about": "about over around across between among under during despite",
    "and": "and or but nor & plus",
    "because": "because since so therefore thus hence due",
    "before": "before until till",
    "after": "after following once",
    "then": "then later subsequently afterwards afterward next eventually finally",
    "earlier": "earlier previously formerly already",
    "when": "when while as whenever",
    "which": "which what where why how",
    "if": "if whether unless",
    "say": "say says said saying told tell tells reported report reports claimed claims according added announced",
    "quantity": "all any some many several few both each every most more other another such various",
    "number": "one two three four five six seven eight nine ten dozen dozens hundred hundreds thousand thousands "
              "million millions billion billions",
    "time": "monday tuesday wednesday thursday friday saturday sunday january february march april june july august "
            "september october november december today yesterday tomorrow week weeks month months year years day days "
            "hour hours morning evening night",
    "title": "mr mrs ms dr president minister senator general secretary judge chief director officer spokesman "
             "spokeswoman",
    "company": "inc corp ltd llc co company group bank university ministry department agency",
}  # fmt: skip
"""Closed classes by word; of two classes the first listed counts."""

IRREGULAR = (
    "be am is are was were been being|have has had|do does did done|go goes went gone|say said|tell told|"
    "steal stole stolen|take took taken|give gave given|get got gotten|make made|send sent|pay paid|sell sold|"
    "buy bought|bring brought|think thought|catch caught|fight fought|seek sought|teach taught|find found|"
    "hold held|lead led|leave left|lose lost|meet met|build built|spend spent|lend lent|bend bent|feel felt|"
    "keep kept|sleep slept|strike struck|shoot shot|win won|begin began begun|run ran|come came|become became|"
    "break broke broken|speak spoke spoken|choose chose chosen|freeze froze frozen|wake woke woken|"
    "write wrote written|drive drove driven|ride rode ridden|rise rose risen|fall fell fallen|see saw seen|"
    "know knew known|grow grew grown|throw threw thrown|draw drew drawn|fly flew flown|show showed shown|"
    "hide hid hidden|bite bit bitten|eat ate eaten|beat beaten|sing sang sung|sink sank sunk|drink drank drunk|"
    "swear swore sworn|wear wore worn|tear tore torn|bear bore borne born|hit|cut|put|set|let|shut|hurt|spread|"
    "flee fled|feed fed|breed bred|bleed bled|speed sped|sit sat|stand stood|understand understood|hear heard|"
    "die dies died dying|lie lay lain|tie ties tied tying|dig dug|hang hung hanged|swing swung|stick stuck|"
    "forget forgot forgotten|forgive forgave forgiven|bind bound|grind ground|light lit|mean meant|deal dealt|"
    "man men|woman women|child children|person people persons|foot feet|wife wives|life lives|thief thieves"
)
_LEMMA = {form: group.split()[0] for group in IRREGULAR.split("|") for form in group.split()}
_CLASS = {word: name for name, words in reversed(CLASSES.items()) for word in words.split()}
_SUFFIXES = (
    ("ies", "y"), ("ied", "y"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x"), ("zes", "z"),
    ("ing", ""), ("ed", ""), ("s", ""),
)  # fmt: skip


class Attribute(IntEnum):
    """Columns of `word_hashes`."""

    WORD = 0
    LEMMA = 1
    SUFFIX2 = 2
    SUFFIX3 = 3
    PREFIX = 4
    SHAPE = 5
    CLASS = 6
    FORM = 7


def lemma_of(word: str) -> str:
    """A casefolded word without its inflection, by rule: crude, but the same for every form it does know.

    >>> [lemma_of(w) for w in ("Stolen", "attacked", "stopping", "breaches", "released", "this")]
    ['steal', 'attack', 'stop', 'breach', 'releas', 'this']
    """
    word = word.casefold()
    if word in _LEMMA:
        return _LEMMA[word]
    if len(word) < 4 or word in _CLASS or not word.isalpha():
        return word
    for suffix, instead in _SUFFIXES:
        if word.endswith(suffix) and not (suffix == "s" and word[-2] in "sui"):
            stem = word[: len(word) - len(suffix)] + instead
            if len(stem) < 3 or not any(c in "aeiouy" for c in stem):
                break
            if suffix in ("ing", "ed") and len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "lsz":
                stem = stem[:-1]
            word = stem
            break
    return word[:-1] if len(word) > 4 and word[-1] == "e" else word


def shape_of(word: str) -> str:
    """Runs of capitals, small letters, digits and other signs, e.g. `McDonald` -> `AaAa`, `2019` -> `0000`.

    >>> shape_of("McDonald"), shape_of("IBM"), shape_of("2019")
    ('AaAa', 'AA', '0000')
    """
    if word.isdigit():
        return "0" * min(len(word), 5)
    out = ""
    for c in word[:12]:
        kind = "A" if c.isupper() else "a" if c.isalpha() else "0" if c.isdigit() else c
        if not out.endswith(kind) or (kind == "A" and len(out) < 2):
            out += kind
    return out


def class_of(word: str) -> str:
    """Closed class of a casefolded word, `` when it has none."""
    return _CLASS.get(word.casefold(), "")


def form_of(word: str) -> str:
    """A guess at the part of speech: the closed class, else capitalisation and a telling suffix."""
    low = word.casefold()
    if low in _CLASS:
        return _CLASS[low]
    if not word[0].isalnum():
        return word
    if word[0].isdigit():
        return "digits"
    suffix = next((s for s in _TELLING if low.endswith(s) and len(low) > len(s) + 2), "")
    return ("Cap" if word[0].isupper() else "low") + suffix


_TELLING = (
    "ing", "ed", "ly", "tion", "sion", "ment", "ness", "ity", "ers", "ors", "er", "or", "ist", "ists", "ware", "ous",
    "ful", "able", "ible", "ive", "al", "ic", "ies", "es", "s",
)  # fmt: skip


def is_capitalised(word: str) -> bool:
    return word[0].isupper()


def code(kind: str, value: str) -> int:
    """A stable hash of one named value (two crc32 sums, never `hash()`)."""
    data = f"{kind}={value}".encode("utf-8", "surrogatepass")
    return zlib.crc32(data) << 32 | zlib.crc32(data[::-1])


def word_hashes(words: Sequence[str]) -> Hashes:
    """Hashes of every attribute of every word: [len(words) + 1, len(Attribute)].

    The last row stands for "no word here" (beyond the edge of a sentence).
    """
    table = np.empty((len(words) + 1, len(Attribute)), dtype=np.uint64)
    for i, word in enumerate(words):
        low = word.casefold()
        table[i] = (
            code("w", low), code("l", lemma_of(word)), code("s2", low[-2:]), code("s3", low[-3:]),
            code("p", low[:4]), code("sh", shape_of(word)), code("c", _CLASS.get(low, "")), code("f", form_of(word)),
        )  # fmt: skip
    table[-1] = [code("edge", str(a)) for a in range(len(Attribute))]
    return table
