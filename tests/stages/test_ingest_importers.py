"""The importers of published corpora on small files of their formats, and what they do with any value anywhere."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import tables
from pipeline.errors import DataError
from pipeline.spans import sha256_text
from stages.ingest import casie, jsonl, maven_ere, rams
from stages.ingest.problems import Problems
from stages.ingest.records import RecordError, Window, check_document, check_window
from tests.stages.ingesting import FIXTURES, ROOT, check_invariants, gold, ingest, texts


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def change(corpus: str, file: str, line: int, edit: Any) -> Path:
    """A copy of a fixture in which `edit` has changed one record (lines from 1)."""
    folder = Path("changed")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(FIXTURES / corpus, folder)
    records = [json.loads(text) for text in (folder / file).read_text().splitlines()]
    edit(records[line - 1])
    (folder / file).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


# ---- casie ----------------------------------------------------------------------------------------------------------


def test_casie() -> None:
    summary = ingest("casie", FIXTURES / "casie")
    check_invariants()
    assert set(texts()) == {"casie_1", "casie_2"}
    assert tables.read("ingest/documents")["date"].to_list() == ["2020-02-03"] * 2
    assert tables.read("ingest/documents")["url"].to_list() == [None, None]
    events = gold("events").sort("event_id").select("surface", "type", "realis", "chain_id").rows()
    assert events == [
        ("hit", "Attack.Databreach", "Actual", "casie_1#c0"), ("stole", "Attack.Databreach", "Generic", "casie_1#c0"),
        ("phished", "Attack.Phishing", "Actual", "casie_2#c0"), ("paid", "Attack.Ransom", "Actual", "casie_2#c1"),
    ]  # fmt: skip
    # A date is no participant; an argument whose offsets are marked unresolved is left out.
    assert summary["left_out"] == {"filler type Time": 1, "unresolved": 1}
    clusters: dict[str, list[str]] = {}
    for entity, surface in tables.read("ingest/roster").select("entity_id", "surface").iter_rows():
        clusters.setdefault(entity, []).append(surface)
    # The only attacker and the only victim of two coreferent events are one each; two victims of one event are not.
    assert sorted(clusters.values()) == [
        ["Alder Bank", "the bank"], ["Bob"], ["Carol"], ["Mallory"], ["Vex Group", "The hackers"], ["records"]
    ]  # fmt: skip
    types = dict(gold("entities").select("name", "type").iter_rows())
    assert types["The hackers"] == "Organization"
    assert gold("labelled").height == tables.read("ingest/sentences").height == 5


@pytest.mark.parametrize(("edit", "message"), [
    (lambda r: r.update(offset_shift=0), r"casie\.jsonl:1: hopper\[0\]\.events\[0\]\.nugget: text\[11:14\] is"),
    (lambda r: r["hopper"][0]["events"][0].update(subtype="Theft"), "unknown event type 'Attack.Theft'"),
    (lambda r: r["hopper"][0]["events"][1]["nugget"].update(endOffset=999), "does not lie in the text"),
    (lambda r: r["hopper"][0]["events"][1].pop("realis"), r"hopper\[0\]\.events\[1\]\.realis: missing key"),
    (lambda r: r.update(doc_id="casie_2"), r"casie\.jsonl:2: doc_id: the id 'casie_2' was used before"),
])  # fmt: skip
def test_casie_broken(edit: Any, message: str) -> None:
    folder = change("casie", "casie.jsonl", 1, edit)
    with pytest.raises(DataError, match=message):
        ingest("casie", folder)
    assert ingest("casie", folder, on_error="quarantine")["rows"]["documents"] != {}
    assert len(texts()) == 1


# ---- rams -----------------------------------------------------------------------------------------------------------


def test_rams_stitches_overlapping_snippets() -> None:
    ingest("rams", FIXTURES / "rams")
    check_invariants()
    documents = tables.read("ingest/documents").filter(window_id="http://a")
    assert documents.select("doc_id", "url").rows() == [("k1", "http://a"), ("k3", "http://a")]
    assert documents["text"].to_list() == [
        "Ada bribed the mayor in Oslo .\nNobody knew for a long while .\nThe police arrested Ada .\n"
        "Bo fled to Rome with her .",
        "Far away Ada met Cy .",
    ]
    events = gold("events").filter(window_id="http://a").select("doc_id", "surface", "type").rows()
    assert events == [
        ("k1", "bribed", "corrupt.bribe.n/a"), ("k1", "arrested", "justice.arrest.n/a"),
        ("k3", "met", "contact.meet.n/a"),
    ]  # fmt: skip
    surface = dict(gold("mentions").select("mention_id", "surface").iter_rows())
    roles = [
        (surface[mention], role)
        for mention, role in gold("arguments").filter(window_id="http://a").select("mention_id", "role").iter_rows()
    ]
    # One span with two roles is one mention; inclusive ends; prefixes stripped.
    assert sorted(roles) == [
        ("Ada", "briber"), ("Ada", "detainee"), ("Ada", "participant"), ("Ada", "suspect"), ("Cy", "participant"),
        ("Oslo", "place"), ("The police", "jailer"), ("the mayor", "official"),
    ]  # fmt: skip
    ada = gold("mentions").filter(window_id="http://a", surface="Ada")
    assert ada.height == 3
    assert ada["entity_id"].n_unique() == 1
    assert gold("labelled").filter(window_id="http://a").select("doc_id", "sentence").rows() == [
        ("k1", 0), ("k1", 2), ("k3", 0)
    ]  # fmt: skip


def test_rams_splits_by_url() -> None:
    ingest("rams", FIXTURES / "rams")
    split = dict(tables.read("ingest/documents").select("window_id", "split").iter_rows())
    urls = sorted((url for url in split if url != "http://t"), key=sha256_text)
    assert [split[url] for url in urls] == ["train"] * 4 + ["tune"]
    assert split["http://t"] == "test"


def test_rams_with_its_train_file_takes_dev_as_tune() -> None:
    folder = change("rams", "dev.jsonlines", 1, lambda r: None)
    train = (folder / "test.jsonlines").read_text().replace("http://t", "http://new").replace('"t1"', '"n1"')
    (folder / "train.jsonlines").write_text(train)
    summary = ingest("rams", folder)
    assert summary["rows"]["windows"] == {"train": 1, "tune": 5, "cal": 0, "test": 1}


@pytest.mark.parametrize(("edit", "message"), [
    (lambda r: r["evt_triggers"][0].__setitem__(1, 99), r"dev\.jsonlines:2: evt_triggers\[0\]: tokens 1-99 do not lie"),
    (lambda r: r["evt_triggers"][0].__setitem__(0, True), "offset must be a whole number, not True"),
    (lambda r: r["evt_triggers"].clear(), "evt_triggers: expected one trigger, got 0"),
    (lambda r: r["evt_triggers"][0][2][0].__setitem__(0, "a.b.c"), "unknown event type 'a.b.c'"),
    (lambda r: r["gold_evt_links"][0].__setitem__(2, "briber"), r"gold_evt_links\[0\]: unknown role 'briber'"),
    (lambda r: r["gold_evt_links"][0].__setitem__(2, "evt1arg2cook"), "unknown role 'evt1arg2cook' of corrupt"),
    (lambda r: r["sentences"].append([]), r"sentences\[3\]: expected a list of tokens"),
    (lambda r: r.update(source_url="http://t"), r"test\.jsonlines:1: split: group 'http://t' is in split"),
    (lambda r: r.update(doc_key="k3"), "doc_key: the id 'k3' was used before"),
])  # fmt: skip
def test_rams_broken(edit: Any, message: str) -> None:
    folder = change("rams", "dev.jsonlines", 2, edit)
    if "split" in message:
        (folder / "train.jsonlines").write_text("")  # then the split of every file is stated
    with pytest.raises(DataError, match=message):
        ingest("rams", folder)


def snippet(key: str, *sentences: str) -> rams.Snippet:
    return rams.Snippet(key, tuple(tuple(s.split()) for s in sentences), (0, 0, 0), "t", ())


LONG = [f"this is the long sentence number {i} ." for i in range(6)]


def test_stitch_prefers_the_longest_overlap() -> None:
    pieces = rams.stitch([snippet("b", *LONG[2:5]), snippet("a", *LONG[0:4]), snippet("c", *LONG[4:6])])
    assert [" ".join(s) for s in pieces[0].sentences] == LONG
    assert {s.doc_key: place for s, place in pieces[0].snippets} == {"a": 0, "b": 2, "c": 4}


def test_stitch_holds_a_snippet_inside_another_and_ignores_boilerplate() -> None:
    inside = rams.stitch([snippet("a", LONG[1], LONG[2]), snippet("b", *LONG[:4])])
    assert len(inside) == 1
    assert {s.doc_key: place for s, place in inside[0].snippets} == {"a": 1, "b": 0}
    assert len(rams.stitch([snippet("a", LONG[0], "Read more ."), snippet("b", "Read more .", LONG[1])])) == 2


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=1, max_size=6))
def test_stitched_snippets_keep_their_sentences(ranges: list[tuple[int, int]]) -> None:
    article = [f"this is sentence number {i} of it" for i in range(10)]
    snippets = [snippet(f"k{n}", *article[start : start + size]) for n, (start, size) in enumerate(ranges)]
    pieces = rams.stitch(snippets)
    placed = [(s, piece.sentences[place : place + len(s.sentences)]) for piece in pieces for s, place in piece.snippets]
    assert sorted(s.doc_key for s, _ in placed) == sorted(s.doc_key for s in snippets)
    assert all(s.sentences == there for s, there in placed)
    assert all(len(set(piece.sentences)) == len(piece.sentences) for piece in pieces)


# ---- maven_ere ------------------------------------------------------------------------------------------------------


def test_maven_ere() -> None:
    summary = ingest("maven_ere", FIXTURES / "maven_ere")
    check_invariants()
    assert summary["rows"]["windows"] == {"train": 4, "tune": 1, "cal": 0, "test": 1}
    first = "0" * 32
    assert (
        texts()[first]
        == "The storm hit Nord in 1703 .\nHouses collapsed , and people fled .\nThe tempest was remembered ."
    )
    roster = tables.read("ingest/roster").filter(window_id=first)
    assert roster.select("entity_id", "surface", "kind").rows() == [
        (f"{first}#c0", "storm", "event_chain"), (f"{first}#c0", "tempest", "event_chain"),
        (f"{first}#c1", "collapsed", "event_chain"), (f"{first}#c2", "fled", "event_chain"),
    ]  # fmt: skip
    surface = dict(gold("events").select("event_id", "surface").iter_rows())
    relations = gold("relations").filter(window_id=first).select("head_event_id", "tail_event_id", "type").rows()
    # Between the first mentions of the two chains in the text: "storm", though "tempest" is listed first.
    assert sorted((surface[head], surface[tail], kind) for head, tail, kind in relations) == [
        ("collapsed", "fled", "BEFORE"), ("collapsed", "fled", "PRECONDITION"), ("storm", "collapsed", "BEFORE"),
        ("storm", "collapsed", "CAUSE"), ("storm", "collapsed", "SUBEVENT"),
    ]  # fmt: skip
    assert summary["left_out"] == {"relation OVERLAP": 5, "relation with a time expression": 5}
    assert gold("mentions").is_empty()
    assert gold("labelled").height == 5 * 3 + 1


@pytest.mark.parametrize(("edit", "message"), [
    (lambda r: r["events"][0]["mention"][0].update(offset=[1, 9]), r"jsonl:3: events\[0\]\.mention\[0\]\.offset"),
    (lambda r: r["events"][0]["mention"][0].update(sent_id=7), "there is no sentence 7"),
    (lambda r: r["events"][0]["mention"][0].update(trigger_word="storms"), "the tokens are 'tempest', not 'storms'"),
    (lambda r: r["events"][1].update(id="EVENT_a"), "event 'EVENT_a' occurs twice"),
    (lambda r: r["events"][1].update(mention=[]), "an event without a mention"),
    (lambda r: r["subevent_relations"].append(["EVENT_a", "EVENT_x"]), "SUBEVENT: unknown event 'EVENT_x'"),
    (lambda r: r["events"][1]["mention"].append(r["events"][0]["mention"][0]), "two events have the span"),
    (lambda r: r.update(tokens=[["a", 1]]), "tokens: expected a list of lists of tokens"),
])  # fmt: skip
def test_maven_ere_broken(edit: Any, message: str) -> None:
    folder = change("maven_ere", "train.jsonl", 3, edit)
    with pytest.raises(DataError, match=message):
        ingest("maven_ere", folder)
    ingest("maven_ere", folder, on_error="quarantine")
    assert len(texts()) == 5


# ---- any value anywhere ---------------------------------------------------------------------------------------------

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 200) | st.floats(-5, 5) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def fixture(path: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((FIXTURES / path).read_text().splitlines()[0])
    return value


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Places of every value in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, v in inner for place in [(*prefix, key), *paths(v, (*prefix, key))]]


def check(window: Window) -> None:
    for document in window.documents:
        check_document(document)
    check_window(window)


def read_casie(record: dict[str, Any]) -> None:
    check(casie.read_document(record, Problems(Path("q"), "fail")))


def read_rams(record: dict[str, Any]) -> None:
    check(rams.build_window("u", "train", [rams.read_snippet(record, {})]))


def read_maven(record: dict[str, Any]) -> None:
    check(maven_ere.read_document(record, Problems(Path("q"), "fail")))


def read_jsonl(record: dict[str, Any]) -> None:
    draft = jsonl.read_draft(record, "d", jsonl.Corpus(Path(), None, {}))
    check(jsonl.build_window("g", "train", "entity", [draft]))


RECORDS = [
    (read_casie, fixture("casie/casie.jsonl")), (read_rams, fixture("rams/dev.jsonlines")),
    (read_maven, fixture("maven_ere/train.jsonl")),
    (read_jsonl, json.loads((ROOT / "examples/annotated/reports.jsonl").read_text().splitlines()[0])),
]  # fmt: skip


@pytest.mark.parametrize(("read", "record"), RECORDS, ids=["casie", "rams", "maven_ere", "jsonl"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_value_anywhere_is_accepted_or_refused_cleanly(
    read: Any, record: dict[str, Any], data: st.DataObject
) -> None:
    record = copy.deepcopy(record)
    *inner, last = data.draw(st.sampled_from(paths(record)))
    target = record
    for key in inner:
        target = target[key]
    if isinstance(target, dict) and data.draw(st.booleans()):
        del target[last]
    else:
        target[last] = data.draw(ANYTHING)
    try:
        read(record)
    except RecordError as error:
        assert "\n" not in str(error)
