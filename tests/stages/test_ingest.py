"""The stage as a whole: the jsonl format, broken records, quarantine, splits, images, streaming."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline import tables
from pipeline.errors import CertrankError, DataError, ParamError
from pipeline.spans import sha256_text
from stages.ingest import jsonl, lines
from tests.stages.ingesting import ROOT, check_invariants, gold, ingest, texts, write_corpus

TEXT = "\N{SLIGHTLY SMILING FACE} Ann paid Bob. Bob met Cy."
EVENT = {"id": "e1", "start": 6, "end": 10, "type": "pay", "surface": "paid"}
ANN = {"id": "ann", "type": "person", "mentions": [{"start": 2, "end": 5, "surface": "Ann"}]}
BOB = {"id": "bob", "mentions": [{"start": 11, "end": 14, "id": "b1"}, {"start": 16, "end": 19, "id": "b2"}]}
FULL: dict[str, Any] = {
    "doc_id": "d1", "text": TEXT, "entities": [ANN, BOB],
    "events": [EVENT, {"id": "e2", "start": 20, "end": 23, "type": "meet", "surface": "met"}],
    "arguments": [{"event": "e1", "entity": "bob", "role": "payee"},
    {"event": "e1", "mention": "ann.0", "role": "payer"}, {"event": "e2", "entity": "bob", "role": "visitor"}],
    "relations": [{"head": "e1", "tail": "e2", "type": "BEFORE"}],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def outputs() -> list[str]:
    """Everything in data/ but scratch."""
    return sorted(p.as_posix() for p in Path("data").rglob("*") if p.is_file() and ".work" not in p.parts)


# ---- the format -----------------------------------------------------------------------------------------------------


def test_full_document_becomes_every_table() -> None:
    summary = ingest("jsonl", write_corpus({**FULL, "split": "train", "title": "T", "date": "2024-01-02", "url": ""}))
    check_invariants()
    assert tables.read("ingest/documents").row(0, named=True) == {
        "window_id": "d1", "doc_id": "d1", "position": 0, "split": "train", "text": TEXT, "sha256": sha256_text(TEXT),
        "title": "T", "date": "2024-01-02", "url": None,
    }  # fmt: skip
    assert tables.read("ingest/sentences").select("start", "end").rows() == [(0, 15), (16, 27)]
    events = gold("events", "train")
    assert events.select("surface", "type", "event_id", "chain_id").rows() == [
        ("paid", "pay", "d1#e1", "d1#0.0"), ("met", "meet", "d1#e2", "d1#0.1")
    ]  # fmt: skip
    # An argument that names an entity goes to its mention nearest to the trigger.
    assert gold("arguments", "train").select("event_id", "mention_id", "role").rows() == [
        ("d1#e1", "d1#ann.0", "payer"), ("d1#e1", "d1#b1", "payee"), ("d1#e2", "d1#b2", "visitor")
    ]  # fmt: skip
    assert gold("entities", "train").select("entity_id", "name", "type").rows() == [
        ("d1#ann", "Ann", "person"), ("d1#bob", "Bob", None)
    ]  # fmt: skip
    assert gold("relations", "train").rows() == [("d1", "d1#e1", "d1#e2", "BEFORE")]
    assert gold("labelled", "train")["sentence"].to_list() == [0, 1]
    assert tables.read("ingest/roster")["kind"].unique().to_list() == ["entity"]
    assert summary["rows"]["mentions"] == {"train": 3, "tune": 0, "cal": 0, "test": 0}
    assert summary["dropped"] == {}
    assert Path("data/ingest/quarantine.jsonl").read_bytes() == b""


def test_text_alone_is_enough_and_goes_to_test() -> None:
    summary = ingest("jsonl", write_corpus({"text": "One. Two."}, "", {"text": "Three."}))
    check_invariants()
    assert tables.read("ingest/documents").select("doc_id", "split").rows() == [
        ("docs-000001", "test"), ("docs-000003", "test")
    ]  # fmt: skip
    assert all(gold(name).is_empty() for name in tables.GOLD)
    assert tables.read("ingest/roster").is_empty()
    assert summary["rows"]["sentences"]["test"] == 3


def test_group_joins_scattered_documents_entities_and_chains() -> None:
    one = {**FULL, "doc_id": "b", "group": "g", "events": [{**EVENT, "chain": "c"}], "arguments": [], "relations": []}
    two = {"doc_id": "a", "group": "g", "text": "Bob was paid.", "entities": [
        {"id": "bob", "type": "person", "mentions": [{"start": 0, "end": 3}]}], "events": [
        {"id": "e1", "start": 8, "end": 12, "type": "pay", "chain": "c"}]}  # fmt: skip
    ingest("jsonl", write_corpus(one, {"doc_id": "f", "text": "Apart."}, two))
    check_invariants()
    documents = tables.read("ingest/documents")
    assert documents.select("window_id", "doc_id", "position").rows() == [("f", "f", 0), ("g", "b", 0), ("g", "a", 1)]
    assert set(gold("events")["chain_id"]) == {"g#c"}
    assert gold("entities").select("entity_id", "type").rows() == [("g#ann", "person"), ("g#bob", "person")]
    assert tables.read("ingest/roster").filter(entity_id="g#bob")["doc_id"].to_list() == ["a", "b", "b"]


def test_events_without_entities_make_event_chains_the_candidates() -> None:
    ingest("jsonl", write_corpus({"doc_id": "d", "text": TEXT, "events": [{**EVENT, "chain": "c"}]}))
    roster = tables.read("ingest/roster").select("entity_id", "surface", "kind").rows()
    assert roster == [("d#c", "paid", "event_chain")]


def test_stated_sentences_and_labels_are_kept() -> None:
    document = {"text": TEXT, "sentences": [[0, 15], [16, 27]], "labelled": [1], "events": []}
    ingest("jsonl", write_corpus(document, {"text": "No events key, so nothing is labelled."}))
    assert gold("labelled").rows() == [("docs-000001", "docs-000001", 1)]


def test_byte_order_mark_and_crlf_are_accepted() -> None:
    Path("c").mkdir()
    Path("c/x.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "One."}\r\n\r\n{"text": "a\\r\\nb"}\r\n')
    ingest("jsonl", "c")
    assert texts() == {"x-000001": "One.", "x-000003": "a\r\nb"}


def test_text_is_never_normalised() -> None:
    text = "Cafe\N{COMBINING ACUTE ACCENT} \N{ZERO WIDTH SPACE}x \N{LATIN SMALL LIGATURE FI}.\r\nNext\0 one."
    ingest("jsonl", write_corpus({"doc_id": "d:1-2\0", "text": text}))
    assert texts() == {"d:1-2\0": text}


# ---- splits ---------------------------------------------------------------------------------------------------------


def splits() -> dict[str, str]:
    return dict(tables.read("ingest/documents").select("window_id", "split").iter_rows())


def test_default_splits_are_by_hash_of_the_group() -> None:
    ingest("jsonl", write_corpus(*({**FULL, "doc_id": f"d{i}"} for i in range(20))))
    order = sorted((f"d{i}" for i in range(20)), key=sha256_text)
    expected = ["train"] * 16 + ["tune"] * 2 + ["test"] * 2
    assert splits() == dict(zip(order, expected, strict=True))


def test_a_stated_split_holds_for_its_group() -> None:
    ingest("jsonl", write_corpus({"group": "g", "text": "A."}, {"group": "g", "text": "B.", "split": "cal"}))
    assert splits() == {"g": "cal"}


def test_splits_file() -> None:
    folder = write_corpus({"doc_id": "a", "text": "A."}, {"doc_id": "b", "text": "B.", "split": "tune"})
    Path("s.json").write_text('{"train": ["a"], "tune": ["b"]}')
    ingest("jsonl", folder, splits="s.json")
    assert splits() == {"a": "train", "b": "tune"}


@pytest.mark.parametrize(("content", "message"), [
    ('{"train": ["a"]}', "is in no split"),
    ('{"train": ["a", "b", "c"]}', "1 documents of this file are not in the corpus"),
    ('{"train": ["a", "b"], "test": ["b"]}', "'b' is in two splits"),
    ('{"dev": ["a", "b"]}', "unknown split 'dev'"),
    ('{"train": "a"}', r"expected \{split: \[doc ids\]\}"),
    ("{", "not valid JSON"),
])  # fmt: skip
def test_wrong_splits_file(content: str, message: str) -> None:
    folder = write_corpus({"doc_id": "a", "text": "A."}, {"doc_id": "b", "text": "B."})
    Path("s.json").write_text(content)
    with pytest.raises(DataError, match=message):
        ingest("jsonl", folder, splits="s.json")


def test_splits_file_is_for_jsonl_only() -> None:
    with pytest.raises(ParamError, match=r"ingest\.splits"):
        ingest("sample", ROOT / "stages/ingest/sample", splits="s.json")


# ---- broken records -------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"doc_id": "good", "text": "Fine."}


def doc(**changes: Any) -> dict[str, Any]:
    return {**FULL, **changes}


def event(**changes: Any) -> dict[str, Any]:
    return doc(events=[{**EVENT, **changes}], arguments=[], relations=[])


BROKEN: list[tuple[Any, str, str]] = [
    ('{"text": "x"', "json", "not valid JSON: Expecting ',' delimiter at column 13"),
    ('{"text": "x', "json", "not valid JSON: Unterminated string starting at column 10"),
    ("[1]", "json", "expected one JSON object per line"),
    ('{"text": "a", "text": "b"}', "json", "the key 'text' occurs twice"),
    ('{"text": "a", "date": NaN}', "json", "NaN is not JSON"),
    ("[" * 100_000, "json", "nested too deeply"),
    ('{"text": ' + "9" * 5000 + "}", "json", "not valid JSON: Exceeds the limit"),
    (r'{"text": "a \ud800 b"}', "encoding", "line: lone surrogate"),
    ({"doc_id": "x"}, "field", "text: missing key"),
    ({"text": 3}, "field", "text: expected a string, got 3"),
    ({"text": " \n "}, "text", "text: the document has no text"),
    ({"text": "x", "txet": "y"}, "field", "txet: unknown key; known are"),
    ({"text": "x", "date": "yesterday"}, "field", "date: not an ISO date"),
    ({"text": "x", "split": "dev"}, "split", "split: unknown split 'dev'"),
    ({"text": "x", "doc_id": "good"}, "duplicate", "doc_id: the id 'good' was used before, in docs.jsonl:1"),
    ({"text": "x", "entities": {}}, "field", "entities: expected a list"),
    ({"text": "x", "events": ["e"]}, "field", "events[0]: expected an object"),
    (event(end=99), "offset", "events[0]: 6-99 does not lie in the text of 27 characters"),
    (event(start=-1), "offset", "events[0]: -1-10 does not lie"),
    (event(start=10), "offset", "events[0]: 10-10 does not lie"),
    (event(start=True), "offset", "events[0].start: offset must be a whole number, not True"),
    (event(start=6.0), "offset", "events[0].start: offset must be a whole number, not 6.0"),
    (event(end="10"), "offset", "events[0].end: offset must be a whole number, not '10'"),
    (event(surface="pays"), "surface", "events[0].surface: text[6:10] is 'paid', not 'pays'"),
    (event(realis="Maybe"), "type", "events[e1]: realis 'Maybe' is not one of"),
    (event(type=""), "type", "events[0].type: unknown event type ''"),
    (event(id="a#b"), "field", "events[0].id: an id is not empty and holds no #"),
    (event(colour="red"), "field", "events[0].colour: unknown key"),
    (doc(events=[EVENT, EVENT], arguments=[]), "duplicate", "events: id occurs twice: 'e1'"),
    (doc(events=[EVENT, {**EVENT, "id": "e2"}]), "duplicate", "events: two events have the span '6-10 and type pay'"),
    (doc(entities=[ANN, ANN]), "duplicate", "entities[1].id: entity 'ann' occurs twice"),
    (doc(entities=[ANN, {**ANN, "id": "eve"}], arguments=[]), "duplicate", "mentions: two mentions have the span"),
    (doc(arguments=[{"event": "e9", "entity": "ann", "role": "r"}]), "reference", "arguments[0].event: unknown event"),
    (doc(arguments=[{"event": "e1", "mention": "m", "role": "r"}]), "reference", "arguments: unknown mention 'm'"),
    (doc(arguments=[{"event": "e1", "entity": "eve", "role": "r"}]), "reference", "entity 'eve' has no mention"),
    (doc(arguments=[{"event": "e1", "role": "r"}]), "field", "arguments[0]: needs either a mention or an entity"),
    (doc(arguments=[{"event": "e1", "entity": "ann", "role": "r"}] * 2), "duplicate", "arguments: repeated"),
    (doc(relations=[{"head": "e1", "tail": "e9", "type": "CAUSE"}]), "reference", "relations: unknown event 'e9'"),
    (doc(relations=[{"head": "e1", "tail": "e1", "type": "CAUSE"}]), "reference", "'e1' is related to itself"),
    (doc(relations=[{"head": "e1", "tail": "e2", "type": "AFTER"}]), "type", "relation 'AFTER' is not one of"),
    (doc(sentences=[[0, 15], [14, 27]]), "sentence", "sentences[1]: sentence 14-27 begins before the last one ends"),
    (doc(sentences=[[16, 27]]), "sentence", "span 2-5 begins outside every sentence"),
    (doc(sentences=[]), "sentence", "sentences: a document needs at least one sentence"),
    (doc(sentences=[[0, 99]]), "offset", "sentences[0]: 0-99 does not lie"),
    (doc(labelled=[2]), "reference", "labelled: expected different sentence numbers from 0 to 1"),
    ({"text": "x", "images": [{"path": "../x.png"}]}, "image", "images[0].path: '../x.png' is not a path inside"),
    ({"text": "x", "images": [{"path": "/etc/hosts"}]}, "image", "'/etc/hosts' is not a path inside"),
    ({"text": "x", "images": [{"path": "none.png"}]}, "image", "'none.png' not found"),
    ({"text": "x", "images": [{"path": "docs.jsonl"}]}, "image", "'docs.jsonl' is not an image"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "reason", "message"), BROKEN, ids=[message[:40] for _, _, message in BROKEN])
def test_broken_record(record: Any, reason: str, message: str) -> None:
    folder = write_corpus(GOOD, record)
    with pytest.raises(DataError) as caught:
        ingest("jsonl", folder)
    line = str(caught.value)
    assert line.startswith(f"{folder}/docs.jsonl:2: "), line
    assert message in line
    assert "\n" not in line
    assert len(line) < 400
    assert outputs() == []

    summary = ingest("jsonl", folder, on_error="quarantine")
    assert summary["dropped"] == {reason: 1}
    assert list(texts()) == ["good"]
    (entry,) = map(json.loads, Path("data/ingest/quarantine.jsonl").read_text().splitlines())
    assert (entry["file"], entry["line"], entry["reason"]) == ("docs.jsonl", 2, reason)
    written = record if isinstance(record, str) else json.dumps(record, ensure_ascii=False)
    assert entry["record"] == written[: len(entry["record"])]
    check_invariants()


def test_invalid_utf8_names_the_line() -> None:
    folder = write_corpus(GOOD)
    (folder / "docs.jsonl").write_bytes(b'{"text": "Fine."}\n{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"docs\.jsonl:2: byte 13 of the line is not UTF-8; save the file as UTF-8"):
        ingest("jsonl", folder)
    ingest("jsonl", folder, on_error="quarantine")
    assert json.loads(Path("data/ingest/quarantine.jsonl").read_text())["record"] == '{"text": "caf\\xe9"}'


def test_huge_line_is_refused_unparsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 2**20)
    folder = write_corpus(GOOD, {"text": "x" * 3 * 2**20}, {"text": "After."})
    with pytest.raises(DataError, match=r"docs\.jsonl:2: the line has more than 1 MiB"):
        ingest("jsonl", folder)
    summary = ingest("jsonl", folder, on_error="quarantine")
    assert summary["dropped"] == {"size": 1}
    assert sorted(texts()) == ["docs-000003", "good"]


def test_group_with_two_splits_is_set_aside_as_a_whole() -> None:
    folder = write_corpus(
        GOOD, {"group": "g", "text": "A.", "split": "train"}, {"group": "g", "text": "B."},
        {"group": "g", "text": "C.", "split": "test"},
    )  # fmt: skip
    with pytest.raises(DataError, match=r"docs\.jsonl:4: split: group 'g' is in split train and in test"):
        ingest("jsonl", folder)
    assert ingest("jsonl", folder, on_error="quarantine")["dropped"] == {"split": 1}
    assert list(texts()) == ["good"]
    assert json.loads(Path("data/ingest/quarantine.jsonl").read_text())["record"].count("\n") == 2


def test_types_file_makes_other_types_and_roles_errors() -> None:
    folder = write_corpus(FULL)
    (folder / "types.json").write_text('{"events": {"pay": ["payer", "payee"], "meet": ["visitor"]}}')
    ingest("jsonl", folder)
    (folder / "types.json").write_text('{"events": {"pay": ["payer", "payee"]}}')
    with pytest.raises(DataError, match=r"docs\.jsonl:1: events\[1\]\.type: unknown event type 'meet'"):
        ingest("jsonl", folder)
    (folder / "types.json").write_text('{"events": {"pay": ["payer"], "meet": ["visitor"]}}')
    with pytest.raises(DataError, match=r"arguments\[0\]\.role: unknown role 'payee' of pay"):
        ingest("jsonl", folder)
    (folder / "types.json").write_text('["pay"]')
    with pytest.raises(DataError, match=r"types\.json: expected"):
        ingest("jsonl", folder)


@pytest.mark.parametrize("source", ["jsonl", "casie", "rams", "maven_ere", "sample"])
def test_missing_corpus(source: str) -> None:
    with pytest.raises(CertrankError, match=r"nowhere.*not found|not found.*nowhere"):
        ingest(source, "nowhere")
    assert outputs() == []


def test_empty_corpora() -> None:
    folder = write_corpus("", " ")
    with pytest.raises(DataError, match=r"corpus: ingest\.path: the corpus holds no usable document"):
        ingest("jsonl", folder)
    with pytest.raises(DataError, match="holds no usable document"):
        ingest("jsonl", write_corpus("{}"), on_error="quarantine")
    Path("bare").mkdir()
    with pytest.raises(DataError, match=r"bare: ingest\.path: no \*\.jsonl file in this folder"):
        ingest("jsonl", "bare")
    assert outputs() == []


def test_a_failure_leaves_an_earlier_result_untouched() -> None:
    ingest("jsonl", write_corpus(GOOD))
    before = {name: Path(name).read_bytes() for name in outputs()}
    with pytest.raises(DataError):
        ingest("jsonl", write_corpus({"text": "Other."}, "{"))
    assert {name: Path(name).read_bytes() for name in outputs()} == before


# ---- images ---------------------------------------------------------------------------------------------------------


def test_images_are_hashed_and_measured_from_their_header() -> None:
    folder = write_corpus({"doc_id": "d", "text": "See.", "images": [{"path": "i/a.png"}, {"path": "i/b.jpg"}]})
    (folder / "i").mkdir()
    Image.new("RGB", (7, 5)).save(folder / "i/a.png")
    Image.new("L", (300, 400)).save(folder / "i/b.jpg")
    # Broken pixels behind a sound header: ingest decodes none.
    Path(folder / "i/b.jpg").write_bytes(Path(folder / "i/b.jpg").read_bytes()[:-500])
    ingest("jsonl", folder)
    rows = tables.read("ingest/images").select("img", "path", "width", "height", "media_type", "source").rows()
    assert rows == [(0, "i/a.png", 7, 5, "image/png", "file"), (1, "i/b.jpg", 300, 400, "image/jpeg", "file")]


def test_a_link_out_of_the_corpus_is_refused() -> None:
    folder = write_corpus({"text": "See.", "images": [{"path": "a.png"}]})
    Image.new("RGB", (2, 2)).save("outside.png")
    (folder / "a.png").symlink_to(Path("outside.png").resolve())
    with pytest.raises(DataError, match=r"images\[0\]\.path: 'a\.png' leads outside the corpus"):
        ingest("jsonl", folder)


# ---- the stage ------------------------------------------------------------------------------------------------------


def test_same_input_same_bytes_in_small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_corpus(*({**FULL, "doc_id": f"d{i}", "group": f"g{i % 5}"} for i in range(12)))
    ingest("jsonl", folder)
    first = {name: Path(name).read_bytes() for name in outputs()}
    ingest("jsonl", folder)
    assert {name: Path(name).read_bytes() for name in outputs()} == first
    monkeypatch.setattr(tables, "SHARD_WINDOWS", 2)
    whole = {name: tables.read(name) for name in ("ingest/documents", "ingest/roster")}
    ingest("jsonl", folder)
    assert all(tables.read(name).equals(frame) for name, frame in whole.items())
    check_invariants()


def test_all_gold_tables_always_exist() -> None:
    ingest("jsonl", write_corpus(GOOD))
    for split in tables.SPLITS:
        for name in tables.GOLD:
            assert tables.read(f"ingest/gold/{split}/{name}").is_empty()
    assert outputs().count("data/ingest/quarantine.jsonl") == 1


def test_command_says_one_line_and_exits_with_one() -> None:
    folder = write_corpus(GOOD, event(end=99))
    text = (ROOT / "params.yaml").read_text().replace("source: sample ", "source: jsonl ")
    Path("params.yaml").write_text(text.replace("path: stages/ingest/sample ", f"path: {folder} "))
    done = subprocess.run(
        [sys.executable, "-m", "stages.ingest"], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "ingest: error: corpus/docs.jsonl:2: events[0]: 6-99 does not lie in the text of 27 characters"
    ]
    assert outputs() == []
    assert json.loads(Path("data/.work/failures/ingest.json").read_text())["class"] == "data"


@pytest.mark.parametrize("folder", ["annotated", "unannotated"])
def test_examples_are_imported(folder: str) -> None:
    summary = ingest("jsonl", ROOT / "examples" / folder)
    check_invariants()
    events = summary["rows"]["events"]
    assert (events["train"] > 0 and events["test"] > 0) if folder == "annotated" else sum(events.values()) == 0
    assert summary["rows"]["windows"]["test"] > 0


def test_documented_keys_are_the_keys() -> None:
    page = (ROOT / "docs/corpus.md").read_text()
    cells = " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert {key for key in jsonl.DOCUMENT if f"`{key}`" in cells} == jsonl.DOCUMENT
