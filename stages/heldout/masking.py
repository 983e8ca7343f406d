"""Names hidden in a text, every offset kept: what a model reads of it cannot depend on who somebody is.

A word that holds a capital letter is taken for a name, unless the texts themselves say otherwise: `common_words` are
those that a set of texts writes in small letters at least as often as with a capital inside a sentence, and a word that
its own window writes in small letters at least as often as with a capital is common there. So "Hackers" at the head of
a sentence or in a headline stays, "Bush" does not, and a capitalised word that was never seen in small letters is
hidden. Months, titles and pronouns stay. Nothing but the texts is asked: no label, and no roster either, because the
closed one would tell who the candidates are.

The first letter of a name becomes `X`, its other letters become blanks. To a tokeniser that is the same word for every
name (a placeholder of as many letters would still tell names apart by their length), and the word begins where the name
began. Scripts without capitals hide nothing, and German hides its nouns: there, read L3 as another draw of L2.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import polars as pl

from pipeline import tables
from stages.extract.words import class_of

WORD = re.compile(r"[^\W_]+")
"""As the extractor's tokeniser cuts words."""

NAME = "X"


@dataclass(frozen=True, slots=True)
class Masked:
    """Documents without names, and how many of how many words were hidden, by window.

    Args:
        documents: the rows given, with other texts of the same lengths.
        words, hidden: window_id -> number of words.
    """

    documents: pl.DataFrame
    words: dict[str, int]
    hidden: dict[str, int]


def common_words(documents: pl.DataFrame, sentences: pl.DataFrame) -> frozenset[str]:
    """Casefolded words that these texts write in small letters at least as often as with a capital inside a sentence.

    Args:
        documents: columns doc_id, text.
        sentences: columns doc_id, start.
    """
    starts: dict[str, set[int]] = {}
    for doc_id, start in sentences.select("doc_id", "start").iter_rows():
        starts.setdefault(doc_id, set()).add(start)
    small: Counter[str] = Counter()
    capital: Counter[str] = Counter()
    for doc_id, text in documents.select("doc_id", "text").iter_rows():
        borders = iter(sorted(starts.get(doc_id, {0})))
        border = next(borders, None)
        for match in WORD.finditer(text):
            opens = False
            while border is not None and border <= match.start():
                opens, border = True, next(borders, None)
            if not is_capitalised(match.group()):
                small[match.group().casefold()] += 1
            elif not opens:
                capital[match.group().casefold()] += 1
    return frozenset(word for word, times in small.items() if times >= capital[word])


def mask(documents: pl.DataFrame, common: Collection[str]) -> Masked:
    """Hide the names of whole windows.

    Args:
        documents: rows of ingest/documents; of a window all or none.
        common: words that are no names wherever they stand.
    """
    texts: dict[str, list[str]] = {}
    for window_id, text in documents.select("window_id", "text").iter_rows():
        texts.setdefault(window_id, []).append(text)
    own = {window_id: _mostly_small(some) for window_id, some in texts.items()}
    words, hidden = dict.fromkeys(texts, 0), dict.fromkeys(texts, 0)
    masked = []
    for window_id, text in documents.select("window_id", "text").iter_rows():
        pieces, last = [], 0
        for match in WORD.finditer(text):
            words[window_id] += 1
            if is_name(match.group(), common, own[window_id]):
                hidden[window_id] += 1
                pieces += [text[last : match.start()], NAME, " " * (len(match.group()) - 1)]
                last = match.end()
        masked.append("".join([*pieces, text[last:]]))
    return Masked(documents.with_columns(text=pl.Series(masked, dtype=pl.String)), words, hidden)


def is_name(word: str, common: Collection[str], known: Collection[str] = ()) -> bool:
    """Whether a word is hidden.

    >>> [is_name(word, {"hackers"}) for word in ("Bush", "Hackers", "hackers", "Monday", "McKay", "US", "2019")]
    [True, False, False, False, True, True, False]
    """
    if not is_capitalised(word):
        return False
    # "US" is not the pronoun, "He" is.
    if class_of(word) and not (len(word) > 1 and word.isupper()):
        return False
    low = word.casefold()
    return low not in common and low not in known


def is_capitalised(word: str) -> bool:
    """Whether a word holds a capital letter: `Bush`, `iPhone`, `H5N1`."""
    return any(c.isupper() or c.istitle() for c in word)


def whole_word(text: str, end: int) -> int:
    """Where the word of the original text ends whose (possibly hidden) form ends at `end` in the masked one.

    >>> whole_word("Ann Bush left", 5)
    8
    """
    match = WORD.match(text, end - 1) if end else None
    return match.end() if match else end


def in_original(events: pl.DataFrame, texts: Mapping[str, str]) -> tuple[pl.DataFrame, dict[str, str]]:
    """Events found in masked texts as rows of heldout/events, and the ids that changed: found -> written.

    Args:
        events: rows of extract/events; a span that ends with a hidden name ends after its first letter.
        texts: doc_id -> original text.
    """
    names: dict[str, str] = {}
    rows: list[dict[str, object]] = []
    columns = ("window_id", "event_id", "doc_id", "start", "end", "type", "confidence", "order")
    for row in events.select(columns).iter_rows(named=True):
        text = texts[row["doc_id"]]
        end = whole_word(text, row["end"])
        name = f"{row['doc_id']}:{row['start']}-{end}/{row['type']}"
        if name != row["event_id"]:
            names[row["event_id"]] = name
        rows.append({**row, "event_id": name, "end": end, "surface": text[row["start"] : end]})
    return tables.table("heldout/events").frame(rows), names


def _mostly_small(texts: Iterable[str]) -> frozenset[str]:
    """Casefolded words with at least as many small forms as capitalised ones; a name in an address is none."""
    forms: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for text in texts:
        for word in WORD.findall(text):
            forms[is_capitalised(word)][word.casefold()] += 1
    return frozenset(word for word, times in forms[False].items() if times >= forms[True][word])
