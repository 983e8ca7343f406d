"""The release format of MAVEN-ERE from the importer to certified rankings of event chains; and the partial recovery.

The documents are invented; keys, nesting and units are those of the release (version 1.0, as its README states them).
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from benchmarks.maven_ere_partial import convert, records, splits
from pipeline import tables
from pipeline.certificates import Limits
from pipeline.lists import load_corpus, read_lists
from pipeline.params import Params
from pipeline.verify import Trajectories, verify
from stages.extract.__main__ import main as extract
from stages.ingest.__main__ import main as ingest
from stages.rank.__main__ import main as rank
from stages.rank_oracle.__main__ import main as rank_oracle
from stages.reference.__main__ import main as reference
from stages.reward.__main__ import main as reward
from stages.roster.__main__ import main as roster
from stages.trajectories.__main__ import main as trajectories
from tests.stages.ingesting import ROOT, check_invariants, params_for, texts, write_corpus

Record = dict[str, Any]
INTENT = "led_to_deaths"
PARTIAL = ROOT.parent / "shared/data/maven_ere"
PLACES = ("Nord", "Salm", "Orla", "Teck", "Bren", "Varn", "Lohe", "Kars")
TEMPORAL = ("BEFORE", "CONTAINS", "OVERLAP", "SIMULTANEOUS", "ENDS-ON", "BEGINS-ON")
CHAINS: dict[str, tuple[str, tuple[tuple[int, str], ...]]] = {
    "storm": ("Catastrophe", ((0, "storm"), (3, "tempest"))), "hit": ("Attack", ((0, "hit"),)),
    "collapse": ("Destroying", ((1, "collapsed"),)), "death": ("Death", ((2, "died"),)),
    "flight": ("Escaping", ((2, "fled"),)), "memory": ("Remembering_information", ((3, "remembered"),)),
}  # fmt: skip
"""Chain -> type, and the sentence and word of each mention."""


def release(number: int) -> Record:
    """One document: a storm, what it destroyed, who died of that."""
    place, year = PLACES[number % len(PLACES)], str(1700 + number)
    sentences = [
        f"The storm hit {place} in {year} .", f"After that , {2 + number % 7} old houses collapsed in {place} .",
        f"Later , {3 + number % 5} people died there , and others fled .", "The tempest was remembered for years .",
    ]  # fmt: skip
    tokens = [sentence.split() for sentence in sentences]
    prefix = f"{number:032x}"

    def key(chain: str) -> str:
        return f"EVENT_{prefix[4:]}{list(CHAINS).index(chain):04d}"

    def where(sentence: int, word: str) -> Record:
        at = tokens[sentence].index(word)
        return {"sent_id": sentence, "offset": [at, at + 1]}

    def pairs(*named: tuple[str, str]) -> list[list[str]]:
        return [[key(head), key(tail)] for head, tail in named]

    time = f"TIME_{prefix}"
    order = pairs(("storm", "collapse"), ("storm", "death"), ("collapse", "death"), ("collapse", "flight"))
    return {
        "id": prefix, "title": f"Storm of {year}", "tokens": tokens,
        "sentences": [" ".join(sentence).replace(" .", ".").replace(" ,", ",") for sentence in tokens],
        "events": [
            {"id": key(name), "type": kind, "type_id": 1 + list(CHAINS).index(name), "mention": [
                {"id": f"{prefix[8:]}{name:>8}", "trigger_word": word, **where(sentence, word)}
                for sentence, word in reversed(mentions)
            ]}
            for name, (kind, mentions) in CHAINS.items()
        ],
        "TIMEX": [{"id": time, "mention": year, "type": "DATE", **where(0, year)}],
        "negative_triggers": [{"id": f"{prefix[8:]}negative", "trigger_word": "old", **where(1, "old")}],
        "temporal_relations": {
            **{name: [] for name in TEMPORAL}, "BEFORE": [*order, [time, key("death")]],
            "CONTAINS": [[time, key("hit")]], "SIMULTANEOUS": pairs(("death", "flight")),
        },
        "causal_relations": {
            "CAUSE": pairs(("collapse", "death")), "PRECONDITION": pairs(("storm", "collapse"), ("death", "memory")),
        },
        "subevent_relations": pairs(("storm", "hit")),
    }  # fmt: skip


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """A workspace in which every stage up to the rankings has run."""
    root = tmp_path_factory.mktemp("maven_ere")
    shutil.copytree(ROOT / "intents/maven_ere", root / "intents/maven_ere")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write_corpus(*map(release, range(24)), file="release/train.jsonl")
        write_corpus(*map(release, range(24, 32)), file="release/valid.jsonl")
        params = params_for("maven_ere", "release")
        changes = {"roster": {"candidate_kind": "event_chain"}, "reward": {"bootstrap": 2}}
        params = params.model_copy(
            update={name: getattr(params, name).model_copy(update=update) for name, update in changes.items()}
        )
        for stage in (ingest, extract, roster, trajectories, reference, reward):
            stage(params)
        for setting in tables.SETTINGS:
            rank("rm_attach", setting, params)
            rank_oracle(setting, params)
    return root, params


@pytest.fixture
def workspace(ranked: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch) -> Params:
    """The parameters; the workspace is the working directory, to be read only."""
    root, params = ranked
    monkeypatch.chdir(root)
    return params


def names(setting: str) -> dict[str, str]:
    """candidate_id -> name."""
    return dict(tables.read(f"roster/{setting}/candidates").select("candidate_id", "name").iter_rows())


def test_event_chains_are_the_candidates(workspace: Params) -> None:
    check_invariants()
    windows = tables.read("roster/windows")
    assert windows["kept"].all()
    assert windows["n_closed"].unique().to_list() == [len(CHAINS)]
    assert Counter(windows["split"].to_list()) == {"train": 22, "tune": 2, "test": 8}
    closed = tables.read("roster/closed/candidates")
    storms = closed.filter(pl.col("name") == "tempest")  # the longest of its surfaces
    assert storms.height == windows.height and storms["mentions"].unique().to_list() == [2]


def test_grades_follow_causal_relations(workspace: Params) -> None:
    grades = tables.read("reference/audit/grades").filter(pl.col("intent_id") == INTENT)
    name = {f"{prefix}#c{i}": chain for prefix in texts() for i, chain in enumerate(CHAINS)}
    found = {(name[entity], grade) for entity, grade in grades.select("entity_id", "grade").iter_rows()}
    # What collapsed caused the deaths, and is of a type that the plan begins with; the others only begin it.
    assert found == {
        ("collapse", 3), ("storm", 1), ("hit", 1), ("death", 0), ("flight", 0), ("memory", 0),
    }  # fmt: skip


def test_extraction_finds_the_triggers_of_new_documents(workspace: Params) -> None:
    keys = ["doc_id", "start", "end", "type"]
    gold, found = tables.read("ingest/gold/test/events"), tables.read("extract/events")
    hit = gold.join(found.select(keys).unique(), on=keys, how="semi").height
    assert hit / gold.height > 0.8
    assert tables.read("extract/mentions").is_empty() and tables.read("extract/arguments").is_empty()


def test_rankings_of_event_chains_are_certified(workspace: Params) -> None:
    documents, limits = load_corpus("data/ingest"), Limits.of(workspace.verifier)
    certified = 0
    for setting in tables.SETTINGS:
        for system in ("rm_attach", "oracle"):
            rankings = tables.read(f"rank/{system}/{setting}/rankings").filter(pl.col("intent_id") == INTENT)
            assert rankings["window_id"].n_unique() == 8
            assert rankings.group_by("window_id").len()["len"].unique().to_list() == [len(CHAINS) // 2]
            known = Trajectories(setting, workspace.verifier)
            report = verify(read_lists(f"data/rank/{system}/{setting}"), documents, limits, known)
            assert report.passed and report.recovered
            certified += report.certified
    assert certified > 0
    first = tables.read("rank/oracle/closed/rankings").filter((pl.col("intent_id") == INTENT) & (pl.col("rank") == 1))
    assert {names("closed")[candidate] for candidate in first["candidate_id"]} == {"collapsed"}


# ---- the partial recovery (benchmarks/maven_ere_partial.py) ---------------------------------------------------------


def partial(**changes: Any) -> Record:
    return {
        "doc_id": "mere_1", "topic": None, "split": "train",
        "sentences": ["The storm hit.", "Nobody saw it.", "Houses fell, and fell.", "People fled and died."],
        "sent_char": [[0, 14], [15, 29], [30, 52], [53, 74]],
        "causal_sentence_pairs": [[0, 3, 2], [0, 2, 1]],
        "gold_events": [
            [{"trigger": "storm", "type": "Catastrophe", "span": [4, 9]}], None,
            [{"trigger": "fell", "type": "Destroying", "span": None}],
            [{"trigger": "fled", "type": "Escaping", "span": [7, 11]}],
        ],
        **changes,
    }  # fmt: skip


def test_partial_documents_become_records_of_the_jsonl_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    counts: Counter[str] = Counter()
    record = convert(partial(), "train", counts)
    # A sentence is labelled where every trigger has a position; a relation needs two of these with one trigger each.
    assert record["labelled"] == [0, 3]
    assert [(e["start"], e["end"], e["type"]) for e in record["events"]] == [
        (4, 9, "Catastrophe"), (60, 64, "Escaping"),
    ]  # fmt: skip
    assert record["relations"] == [{"head": "e0", "tail": "e1", "type": "CAUSE"}]
    assert counts["triggers without a position, left out"] == 1
    two = partial()
    two["gold_events"][3].append({"trigger": "died", "type": "Death", "span": [16, 20]})
    ambiguous = convert(two, "train", counts)
    assert len(ambiguous["events"]) == 3 and ambiguous["relations"] == []

    write_corpus(record, {**ambiguous, "doc_id": "mere_2", "split": "test"})
    ingest(params_for("jsonl", "corpus"))
    check_invariants()
    assert tables.read("ingest/roster")["kind"].unique().to_list() == ["event_chain"]
    assert tables.read("ingest/gold/train/labelled").height == 2


def test_partial_documents_with_wrong_offsets_are_refused() -> None:
    with pytest.raises(ValueError, match="mere_1: sentence 1 is not at 15-28"):
        convert(partial(sent_char=[[0, 14], [15, 28], [30, 52], [53, 74]]), "train", Counter())
    with pytest.raises(ValueError, match="mere_1: 'storm' is not at 3-8"):
        events = [[{"trigger": "storm", "type": "Catastrophe", "span": [3, 8]}], None, [], []]
        convert(partial(gold_events=events), "train", Counter())


@pytest.mark.corpora
@pytest.mark.skipif(not PARTIAL.is_dir(), reason="the partial recovery is not here")
def test_the_partial_recovery_converts() -> None:
    counts: Counter[str] = Counter()
    split_of = {record["doc_id"]: record["split"] for record in records(PARTIAL, counts)}
    assert Counter(split_of.values()) == {"train": 2279, "tune": 253, "test": 612}
    assert counts["labelled sentences"] == 9236 + 2290
    assert counts["events"] == 17269 - 84 + 4093 - 25
    assert 0 < counts["relations"] < counts["causal sentence pairs"] == 20666 + 5300


def test_splits_of_the_partial_recovery() -> None:
    documents = [{"doc_id": f"d{i}", "split": "train" if i < 20 else "valid"} for i in range(25)]
    found = splits(documents)
    assert Counter(found.values()) == {"train": 18, "tune": 2, "test": 5}
    assert found == splits(documents[::-1])
