"""What the importers share: sentences, clusters, the index of lines, JSON."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.ingest.clusters import cluster, name_key
from stages.ingest.lines import Index, Line, LineReader, boundaries, parse_object, read_lines
from stages.ingest.records import RecordError
from stages.ingest.sentences import split_sentences


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("text", "expected"), [
    ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
    ("Dr. Ng met J. Smith of Acme Inc. in the U.S. today. He left.", ["Dr. Ng met J. Smith of Acme Inc. in the U.S. "
     "today.", "He left."]),
    ("He works at Acme Inc. The firm is old.", ["He works at Acme Inc.", "The firm is old."]),
    ("It cost 3.5 million. 20 people came.", ["It cost 3.5 million.", "20 people came."]),
    ('"Stop!" she said. “Why?” He ran.', ['"Stop!" she said.', "“Why?”", "He ran."]),
    ("Title\n\nBody goes\non here.\n- one\n- two", ["Title", "Body goes\non here.", "- one", "- two"]),
    ("他来了。她走了！", ["他来了。", "她走了！"]),
    ("No end ... he said", ["No end ... he said"]),
    ("  \n\n ", []),
])  # fmt: skip
def test_split_sentences(text: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end in split_sentences(text)] == expected


@given(st.text(alphabet=st.sampled_from('aA.!? \n\t"”。1-•\r'), max_size=80) | st.text(max_size=80))
def test_sentences_tile_the_text(text: str) -> None:
    ranges = split_sentences(text)
    assert all(start < end for start, end in ranges)
    assert all(a[1] <= b[0] for a, b in pairwise(ranges))
    covered = {i for start, end in ranges for i in range(start, end)}
    assert {i for i, c in enumerate(text) if not c.isspace()} <= covered
    assert all(text[start:end] == text[start:end].strip() for start, end in ranges)


def test_name_key() -> None:
    assert name_key("The  FBI") == name_key("fbi") == "fbi"
    assert name_key("the") == "the"
    assert name_key("those") is None
    assert name_key("THEY") is None


def test_cluster_rules() -> None:
    surfaces = ["Ann", "the firm", "it", "It", "Firm", "Bo"]
    assert cluster(surfaces) == [0, 1, 2, 3, 1, 5]
    # The single filler of a role in two coreferent events; a second filler in one of them leaves that event out.
    assert cluster(surfaces, [("c", "e1", "r", 0), ("c", "e2", "r", 5)]) == [0, 1, 2, 3, 1, 0]
    assert cluster(surfaces, [("c", "e1", "r", 0), ("c", "e2", "r", 5), ("c", "e2", "r", 1)]) == [0, 1, 2, 3, 1, 5]
    assert cluster(surfaces, [("c", "e1", "r", 0), ("c", "e2", "q", 5)]) == [0, 1, 2, 3, 1, 5]
    assert cluster(surfaces, [("c", "e1", "r", 0), ("d", "e2", "r", 5)]) == [0, 1, 2, 3, 1, 5]


@pytest.mark.parametrize(
    ("surfaces", "groups"),
    [
        (["Mrs. Olten", "Olten", "OLTEN", "President Olten"], [0, 0, 0, 0]),
        (["Mr Olten", "Mrs Olten", "Dr. Olten", "Olten"], [0, 1, 2, 2]),  # two people, and nobody knows which is meant
        (["Ms Olten", "Miss Olten", "Olten"], [0, 0, 0]),
        (["Mr", "mr.", "Sir"], [0, 1, 2]),  # a form of address alone is a name like any other
        (["Mr. She", "she"], [0, 1]),
        (["the Rev. Dr. Karl Menk", "Karl Menk", "Menk"], [0, 0, 2]),
    ],
)
def test_a_form_of_address_is_no_part_of_a_name(surfaces: list[str], groups: list[int]) -> None:
    assert cluster(surfaces) == groups


@given(st.lists(st.sampled_from(["Ann", "ann", "The Ann", "they", "Bo", "a Bo", "he"]), max_size=8))
def test_clusters_begin_with_their_first_mention(surfaces: list[str]) -> None:
    groups = cluster(surfaces)
    assert all(groups[g] == g <= i for i, g in enumerate(groups))
    assert all(groups[i] == i for i, s in enumerate(surfaces) if s in ("they", "he"))


def test_boundaries() -> None:
    assert boundaries(1000, [0.7, 0.1, 0.2]) == [700, 800, 1000]
    assert boundaries(399, [0.8, 0.2]) == [319, 399]
    assert boundaries(1, [0.8, 0.1, 0.1]) == [1, 1, 1]
    assert boundaries(0, [1.0]) == [0]


def test_identical_keys_stay_in_one_split() -> None:
    with Index(Path("work")) as index:
        for i in range(10):
            index.add(Line(Path("f"), i + 1, i, 1), f"d{i}", f"g{i}", key="same" if 3 <= i <= 8 else str(i))
        index.divide((("train", 0.5), ("test", 0.5)))
        split = {group: part for group, part, _ in index.windows()}
    assert [split[f"g{i}"] for i in range(10)] == ["train"] * 3 + ["train"] * 6 + ["train"]
    assert not Path("work/index.sqlite").exists()


def test_lines_are_found_again_by_place() -> None:
    raw = [b'{"a": 1}\n', b"\n", '{"a": "é"}\r\n'.encode(), b'{"a": 3}']
    Path("x").write_bytes(b"".join(raw))
    found = [(line, text) for line, text in read_lines(Path("x")) if isinstance(text, bytes)]
    assert [line.number for line, _ in found] == [1, 3, 4]
    with LineReader() as reader:
        for line, text in reversed(found):
            assert reader.read(line) == text
    assert [parse_object(text, line)["a"] for line, text in found] == [1, "é", 3]


@given(st.binary(max_size=60))
def test_arbitrary_bytes_never_raise_anything_else(raw: bytes) -> None:
    try:
        value = parse_object(raw, Line(Path("f"), 1, 0, len(raw)))
    except RecordError as error:
        assert str(error).startswith("f:1: ")
    else:
        assert isinstance(value, dict)
