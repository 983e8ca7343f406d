"""The datasets' own scores: equal to what the official scripts printed, and right from our tables to their files.

tests/golden/official_*.json hold synthetic gold and predictions, what the official script printed on them, and which
script that was. With CERTRANK_RAMS_SCORER set to the scorer.py of RAMS (constraints.py and scoring_utils.py beside it)
that script is run and compared as well, on these files and on random ones.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline import tables
from pipeline.errors import DataError
from pipeline.files import write_json
from stages.extract.official import Counts, casie, maven_ere, rams
from stages.extract.scores import Decision
from stages.extract.tokens import read_text
from stages.ingest.rams import Snippet, read_snippet
from tests.stages.extracting import frames_of
from tests.stages.ingesting import FIXTURES, ROOT, ingest

GOLDEN = ROOT / "tests/golden"
CORPORA = ROOT / "../shared/data"
SCORER = os.environ.get("CERTRANK_RAMS_SCORER")
Record = dict[str, Any]


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"official_{name}.json").read_text(encoding="utf-8"))


def percent(value: float | None) -> float:
    """As the official scripts print it: undefined is 0."""
    return 100 * (value or 0.0)


def lines(name: str, rows: list[Record] | list[str]) -> Path:
    path = Path(name)
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def extract_gold(confidence: float = 1.0) -> None:
    """Tables of a perfect extractor: what is annotated in any split, with one confidence."""
    for name in ("mentions", "events", "arguments", "relations"):
        declared = tables.table(f"extract/{name}")
        frame = pl.concat([tables.read(f"ingest/gold/{split}/{name}") for split in tables.SPLITS])
        frame = frame.with_columns(confidence=pl.lit(confidence), order=pl.lit(0, dtype=pl.Int64))
        tables.write(f"extract/{name}", frame.select(declared.schema.names()).sort(declared.sort))


def found(*names: str) -> dict[str, pl.DataFrame]:
    return {name: tables.read(f"extract/{name}") for name in names}


# ---- RAMS: equality --------------------------------------------------------------------------------------------------


def rams_score(gold: list[Record], predictions: list[Record], ontology: list[str] | None) -> rams.Scores:
    counts = None if ontology is None else rams.read_multiplicities(lines("ontology.txt", ontology))
    return rams.score([read_snippet(r, {}) for r in gold], rams.read_predictions(predictions), counts)


def as_printed(scores: rams.Scores, swapped: bool) -> list[str]:
    """What scorer.py prints with --distance --metrics; before 1.0c it took precision for recall."""

    def figures(counts: Counts) -> tuple[float, float, float]:
        p, r, f1 = map(percent, (counts.precision, counts.recall, counts.f1))
        return (r, p, f1) if swapped else (p, r, f1)

    out = []
    for distance, counts in scores.by_distance.items():
        p, r, f1 = figures(counts)
        out.append(
            f" {distance} & {counts.found} & {p:.1f} & {r:.1f} & {f1:.1f} \\\\ "
            f"[p r f1 {counts.gold} gold/{counts.found} pred. ]"
        )
    p, r, f1 = figures(scores.overall)
    return [*out, f"Precision: {p:.4f} Recall: {r:.4f} F1: {f1:.4f}"]


@pytest.mark.parametrize("constrained", [False, True])
def test_rams_equals_what_the_official_scorer_printed(constrained: bool) -> None:
    data = golden("rams")
    scores = rams_score(data["gold"], data["predictions"], data["ontology"] if constrained else None)
    assert as_printed(scores, data["swapped"]) == data["printed_cd" if constrained else "printed"]
    assert scores.overall.right > 10 and scores.overall.found != scores.overall.gold
    inside = sum((c for c in scores.by_distance.values()), Counts())
    assert inside.gold < scores.overall.gold, "the golden file holds links further than two sentences apart"


def run_official(gold: list[Record], predictions: list[Record], ontology: list[str], *flags: str) -> list[str]:
    assert SCORER is not None
    files = [lines("g", gold), lines("p", predictions), lines("o", ontology)]
    command = [sys.executable, SCORER, "-g", str(files[0]), "-p", str(files[1]), "-t", str(files[2]), *flags]
    run = subprocess.run([*command, "--distance", "--metrics"], capture_output=True, text=True, check=True)
    return [line.rstrip() for line in run.stdout.splitlines() if not line.startswith("not found")]


@pytest.mark.skipif(SCORER is None, reason="CERTRANK_RAMS_SCORER names no scorer.py of RAMS")
def test_rams_equals_the_official_scorer_itself() -> None:
    data = golden("rams")
    one_of_two = {"doc_key": "two_fillers", "predictions": [[[9, 9], [10, 10, "attacker", 1.0]]]}
    probe = run_official(data["gold"][:1], [one_of_two], data["ontology"])
    swapped = {"100.0000": False, "33.3333": True}[probe[-1].split()[1]]
    rounds = [(data["gold"], data["predictions"])] + [random_rams(seed) for seed in range(25)]
    for gold, predictions in rounds:
        for ontology, flags in ((None, ()), (data["ontology"], ("-cd",))):
            printed = run_official(gold, predictions, data["ontology"], *flags)
            assert as_printed(rams_score(gold, predictions, ontology), swapped) == printed


def random_rams(seed: int) -> tuple[list[Record], list[Record]]:
    """Snippets and predictions that are right, nearly right and wrong."""
    rng = random.Random(seed)
    roles = ["attacker", "target", "place", "victim", "walker"]
    kinds = ["conflict.attack.n/a", "life.die.n/a", "movement.walk.n/a"]
    gold, predictions = [], []
    for i in range(rng.randint(1, 9)):
        sizes = [rng.randint(1, 6) for _ in range(rng.randint(1, 5))]

        def span(sizes: list[int] = sizes) -> list[int]:
            s = rng.randrange(len(sizes))
            a = rng.randrange(sizes[s])
            return [sum(sizes[:s]) + a, sum(sizes[:s]) + rng.randrange(a, min(sizes[s], a + 2))]

        trigger, links = span(), [(span(), rng.choice(roles)) for _ in range(rng.randint(0, 5))]
        gold.append({
            "doc_key": f"r{i}", "sentences": [["w"] * size for size in sizes],
            "evt_triggers": [[*trigger, [[rng.choice(kinds), 1.0]]]],
            "gold_evt_links": [[trigger, argument, f"evt001arg01{role}"] for argument, role in links],
        })  # fmt: skip
        guesses = [link for link in links if rng.random() < 0.7] + [(span(), rng.choice(roles)) for _ in range(2)]
        rows = [[*argument, role, rng.choice([0.5, round(rng.random(), 2)])] for argument, role in guesses]
        shown = trigger if rng.random() < 0.9 else span()
        if rng.random() < 0.9:
            predictions.append({"doc_key": f"r{i}", "predictions": [[shown, *rows]] if rng.random() < 0.9 else []})
    return gold, predictions


def test_rams_refuses_what_the_official_scorer_cannot_read() -> None:
    gold = read_snippet(golden("rams")["gold"][0], {})
    for argument in ((3, 4), (19, 20), (-1, 0), (2, 1)):
        with pytest.raises(DataError, match="do not lie in one sentence"):
            rams.score([gold], {gold.doc_key: [rams.Link((9, 9), argument, "target", 1.0)]})
    for record in ({"doc_key": "a"}, {"doc_key": "a", "predictions": [[[1, 1]], [[1, 1]]]},
                   {"doc_key": "a", "predictions": [[[1, 1], [2, 2, "r"]]]}):  # fmt: skip
        with pytest.raises(DataError, match="not a prediction"):
            rams.read_predictions([record])
    with pytest.raises(DataError, match=r"ontology\.txt"):
        rams.read_multiplicities(lines("ontology.txt", ["a.b.c victim one"]))


# ---- RAMS: from our tables -------------------------------------------------------------------------------------------

HALF = Decision(0.5, 0.5)


def fixture_snippets() -> list[rams.Placed]:
    articles, refused = rams.read_release(FIXTURES / "rams")
    assert refused == 0
    return [placed for snippets in articles.values() for placed in rams.place(snippets)]


def test_snippets_are_found_in_their_stitched_documents() -> None:
    ingest("rams", FIXTURES / "rams")
    texts = dict(tables.read("ingest/documents").select("doc_id", "text").iter_rows())
    events = pl.concat([tables.read(f"ingest/gold/{split}/events") for split in tables.SPLITS])
    triggers = set(events.select("doc_id", "start", "end", "type").iter_rows())
    placed = fixture_snippets()
    for snippet in placed:
        rams.check(snippet, texts[snippet.doc_id])
        a, b = snippet.trigger
        place = (snippet.doc_id, snippet.starts[a], snippet.ends[b], snippet.snippet.event_type)
        assert place in triggers
        assert snippet.tokens(*place[1:3]) == snippet.trigger
    with pytest.raises(DataError, match="does not stand in document"):
        rams.check(placed[0], texts[placed[0].doc_id].upper())
    by_key = {p.snippet.doc_key: p for p in placed}
    assert by_key["k2"].doc_id == "k1" and by_key["k2"].starts[0] > 0, "the second snippet of a stitched document"


def test_a_perfect_extraction_scores_one_and_the_files_say_the_same() -> None:
    ingest("rams", FIXTURES / "rams")
    extract_gold()
    report = rams.split_scores(FIXTURES / "rams", HALF, ("train", "tune", "test"))
    assert report["not_ingested"] == 0
    for split, figures in report["splits"].items():
        for way in ("decided", "given", "decided_constrained", "given_constrained"):
            assert figures[way]["f1"] == 1.0, (split, way)
        assert figures["triggers"] == figures["triggers_decided"] == figures["triggers_given"] > 0
    placed = fixture_snippets()
    predicted = rams.predict(placed, found(*rams.FOUND), HALF)
    rams.write_predictions("p.jsonl", predicted.links, {p.snippet.doc_key: p.trigger for p in placed})
    records = [json.loads(line) for line in Path("p.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [r["doc_key"] for r in records] == sorted(p.snippet.doc_key for p in placed)
    assert records[0] == {"doc_key": "k1", "predictions": [
        [[1, 1], [0, 0, "briber", 1.0], [2, 3, "official", 1.0], [5, 5, "place", 1.0]]
    ]}  # fmt: skip
    assert rams.read_predictions(records) == predicted.links
    scores = rams.score([p.snippet for p in placed], rams.read_predictions(records))
    assert scores.overall == Counts(*[len([a for p in placed for a in p.snippet.arguments])] * 3)


SNIPPET = Snippet(
    "k", (("U.S.", "men", "shot"), ("Ann", "Lee", "there", ".")), (0, 2, 2), "life.die.n/a", (((1, 0, 1), "victim"),)
)
"""Text: "U.S. men shot", a line feed, "Ann Lee there ."; Ann Lee is 14-21."""


def tiny(
    events: list[tuple[int, int, str, float]], arguments: list[tuple[int, int, int, str, float]]
) -> dict[str, pl.DataFrame]:
    """extract tables of document k: events (start, end, type, confidence), arguments (event, start, end, role, ...)."""
    spans = sorted({a[1:3] for a in arguments})
    return {
        "events": pl.DataFrame(
            [{"event_id": f"e{i}", "doc_id": "k", "start": a, "end": b, "type": t, "confidence": p}
             for i, (a, b, t, p) in enumerate(events)]
        ),
        "mentions": pl.DataFrame(
            [{"mention_id": f"m{a}-{b}", "doc_id": "k", "start": a, "end": b} for a, b in spans]
        ),
        "arguments": pl.DataFrame(
            [{"event_id": f"e{e}", "mention_id": f"m{a}-{b}", "role": role, "confidence": p}
             for e, a, b, role, p in arguments]
        ),
    }  # fmt: skip


LINKS = {
    "the most confident hypothesis at the trigger answers": (
        [(9, 13, "life.die.n/a", 0.6), (9, 13, "conflict.attack.n/a", 0.8)],
        [(0, 14, 21, "victim", 0.9), (1, 14, 21, "target", 0.7)], [(3, 4, "target", 0.7)], [(3, 4, "victim", 0.9)],
    ),
    "below the threshold nobody answers, but a given trigger is believed": (
        [(9, 13, "life.die.n/a", 0.01)], [(0, 14, 21, "victim", 0.9)], None, [(3, 4, "victim", 0.9)],
    ),
    "nothing at the trigger, nothing predicted": (
        [(0, 4, "life.die.n/a", 0.9)], [(0, 14, 21, "victim", 0.9)], None, None,
    ),
    "another span is another trigger": (
        [(5, 13, "life.die.n/a", 0.9)], [(0, 14, 21, "victim", 0.9)], None, None,
    ),
    "a trigger of another type answers where the gold type was not found": (
        [(9, 13, "contact.meet.n/a", 0.1), (9, 13, "life.cure.n/a", 0.2)], [(1, 14, 21, "victim", 0.9)], None,
        [(3, 4, "victim", 0.9)],
    ),
    "a cut token counts whole, and one link is left of two mentions of the same tokens": (
        [(10, 12, "life.die.n/a", 0.9)], [(0, 0, 1, "killer", 0.6), (0, 2, 4, "killer", 0.7), (0, 2, 3, "place", 0.5)],
        [(0, 0, "killer", 0.7), (0, 0, "place", 0.5)], [(0, 0, "killer", 0.7), (0, 0, "place", 0.5)],
    ),
    "a span that runs on keeps its part in the first sentence": (
        [(9, 13, "life.die.n/a", 0.9)], [(0, 5, 17, "victim", 0.9)], [(1, 2, "victim", 0.9)], [(1, 2, "victim", 0.9)],
    ),
    "improbable arguments and such outside of the snippet are left out": (
        [(9, 13, "life.die.n/a", 0.9)],
        [(0, 14, 21, "victim", 0.4), (0, 30, 33, "place", 0.9), (0, 29, 31, "place", 0.9)], [], [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LINKS)
def test_which_hypothesis_answers_for_a_gold_trigger(name: str) -> None:
    events, arguments, decided, given = LINKS[name]
    (placed,) = rams.place([SNIPPET])
    assert placed.ends[-1] == 29
    for way, wanted in (("decided", decided), ("given", given)):
        predicted = rams.predict([placed], tiny(events, arguments), HALF, way)
        links = [rams.Link((2, 2), (a, b), role, p) for a, b, role, p in wanted or ()]
        assert predicted.links == {"k": links}, way
        assert predicted.triggers == {"k": wanted is not None}, way
        assert predicted.outside == (2 if wanted == [] else 0), way


def test_a_snippet_without_predictions_is_a_line_with_an_empty_list() -> None:
    rams.write_predictions("p.jsonl", {"k": []}, {"k": (2, 2)})
    assert Path("p.jsonl").read_text() == '{"doc_key": "k", "predictions": []}\n'


@pytest.mark.corpora
@pytest.mark.skipif(not CORPORA.is_dir(), reason="needs the corpora in shared/data")
def test_a_perfect_extraction_of_rams_lacks_only_links_that_are_annotated_twice() -> None:
    ingest("rams", CORPORA / "rams")
    extract_gold()
    report = rams.split_scores(CORPORA / "rams", HALF, ("train", "tune", "test"))
    figures = report["splits"]
    assert report["not_ingested"] == 0
    assert [figures[s]["triggers"] for s in ("train", "tune", "test")] == [740, 184, 871]
    assert figures["test"]["given"]["gold"] == 2023
    assert figures["train"]["given"]["gold"] + figures["tune"]["given"]["gold"] == 2188
    split_of = dict(tables.read("ingest/documents").select("window_id", "split").iter_rows())
    articles, _ = rams.read_release(CORPORA / "rams")
    for split in figures:
        own = [s for url, snippets in articles.items() if split_of[url] == split for s in snippets]
        distinct = sum(len(set(s.arguments)) for s in own)
        assert figures[split]["triggers_given"] == figures[split]["triggers"]
        assert figures[split]["given"]["precision"] == 1.0
        # One span may be participant 1 and participant 2: without the number that is one link, which the scorer wants
        # twice. Our tables, and any set of predictions, hold it once.
        assert figures[split]["given"]["found"] == distinct >= 0.99 * figures[split]["given"]["gold"]
        # Some triggers are annotated twice, with two types, and end to end only one hypothesis answers.
        assert 0.9 < figures[split]["decided"]["f1"] < 1.0


# ---- MAVEN-ERE -------------------------------------------------------------------------------------------------------


def test_maven_ere_equals_what_the_official_script_computed() -> None:
    data = golden("maven_ere")
    documents = [maven_ere.read_document(record) for record in data["gold"]]
    scores = maven_ere.score(documents, maven_ere.read_predictions(data["predictions"]))
    ours = {
        f"{task}_{name}": percent(getattr(counts, name))
        for task, counts in scores.items()
        for name in ("precision", "recall", "f1")
    }
    assert ours == pytest.approx(data["scores"], abs=1e-9)
    assert all(counts.right for counts in scores.values())


def test_maven_ere_refuses_what_the_official_script_cannot_read() -> None:
    for relations in ({"LATER": []}, {"BEFORE": [["a", "a"]]}, {"BEFORE": [["a"]]}):
        with pytest.raises(DataError):
            maven_ere.read_predictions([{"id": "d", "temporal_relations": relations}])
    record = golden("maven_ere")["gold"][0]
    with pytest.raises(DataError, match="unknown event 'E99'"):
        maven_ere.read_document({**record, "subevent_relations": [["E1", "E99"]]})
    with pytest.raises(DataError, match="unknown event 'T1'"):
        maven_ere.read_document({**record, "causal_relations": {"CAUSE": [["E1", "T1"]]}})


def test_a_perfect_extraction_of_maven_ere_misses_only_what_tables_lack() -> None:
    ingest("maven_ere", FIXTURES / "maven_ere")
    extract_gold()
    splits = ("train", "tune")
    own = maven_ere.split_scores(splits=splits)
    released = maven_ere.split_scores(FIXTURES / "maven_ere", splits)
    assert (own["gold"], released["gold"]) == ("tables", "release")
    for split in splits:
        assert [own["splits"][split][task]["f1"] for task in maven_ere.TASKS] == [1.0] * 3
        for task in ("causal", "subevent"):
            assert own["splits"][split][task] == released["splits"][split][task]
        temporal = released["splits"][split]["temporal"]
        assert temporal["found"] == own["splits"][split]["temporal"]["found"]
        assert temporal["recall"] < 1.0, "times and OVERLAP are not in our tables"
    events = pl.concat([tables.read(f"ingest/gold/{split}/events") for split in tables.SPLITS])
    lacking = maven_ere.predict(events, found("events", "relations"), dict.fromkeys(maven_ere.TASKS, 1.1))
    assert lacking == {}


def test_another_release_than_the_ingested_one_is_an_error() -> None:
    ingest("maven_ere", FIXTURES / "maven_ere")
    extract_gold()
    Path("other").mkdir()
    for name in ("train.jsonl", "valid.jsonl"):
        records = [json.loads(line) for line in (FIXTURES / "maven_ere" / name).read_text().splitlines()]
        for record in records:
            record["events"][0]["mention"].append({"id": "one more"})
        lines(f"other/{name}", records)
    with pytest.raises(DataError, match="is not the one that was ingested"):
        maven_ere.split_scores("other", ("test",))
    with pytest.raises(DataError, match="no file of the release"):
        rams.split_scores("other", HALF)


def test_maven_ere_files_name_the_mentions_of_the_release() -> None:
    ingest("maven_ere", FIXTURES / "maven_ere")
    extract_gold()
    record = json.loads((FIXTURES / "maven_ere/train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    document = maven_ere.read_document(record)
    events = pl.concat([tables.read(f"ingest/gold/{split}/events") for split in tables.SPLITS])
    events = events.filter(doc_id=document.doc_id)
    names = {f"{document.doc_id}#e{i}": mention for i, mention in enumerate(document.mentions)}
    assert names.keys() == set(events["event_id"])
    frames = {name: frame.filter(window_id=document.doc_id) for name, frame in found("events", "relations").items()}
    predicted = maven_ere.predict(events, frames, dict.fromkeys(maven_ere.TASKS, 0.5), names)
    maven_ere.write_predictions("p.jsonl", [document.doc_id, "unread"], predicted)
    written = [json.loads(line) for line in Path("p.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [r["id"] for r in written] == [document.doc_id, "unread"]
    assert written[1]["causal_relations"] == {"PRECONDITION": [], "CAUSE": []}
    assert maven_ere.read_predictions(written)[document.doc_id] == predicted[document.doc_id]
    counts = maven_ere.score([document], maven_ere.read_predictions(written))
    assert counts["causal"].f1 == counts["subevent"].f1 == 1.0
    alone = maven_ere.predict(events, frames, dict.fromkeys(maven_ere.TASKS, 0.5), names, chains=False)
    assert maven_ere.score([document], alone)["causal"].found < counts["causal"].found, "storm and tempest corefer"


def related(*relations: tuple[str, str, str, float]) -> tuple[pl.DataFrame, dict[str, pl.DataFrame]]:
    """Gold mentions g0, g1, g2 at 0, 10, 20; found events of the same letters at 0, 10, 20 and x at 30."""
    starts = {"a": 0, "b": 10, "c": 20, "x": 30}
    events = [
        {"window_id": "w", "event_id": e, "chain_id": e, "doc_id": "d", "start": s, "end": s + 3}
        for e, s in starts.items()
    ]
    rows = [dict(zip(("head_event_id", "tail_event_id", "type", "confidence"), r, strict=True)) for r in relations]
    gold = pl.DataFrame([{**e, "event_id": f"g{i}", "chain_id": f"g{i}"} for i, e in enumerate(events[:3])])
    return gold, {"events": pl.DataFrame(events), "relations": pl.DataFrame([{"window_id": "w", **r} for r in rows])}


def test_a_pair_has_one_label_per_task_and_unknown_events_none() -> None:
    gold, frames = related(
        ("a", "b", "CAUSE", 0.6), ("a", "b", "PRECONDITION", 0.7), ("a", "b", "BEFORE", 0.5),
        ("b", "c", "CAUSE", 0.4), ("a", "x", "CAUSE", 0.9), ("b", "a", "PRECONDITION", 0.6), ("b", "a", "CAUSE", 0.6),
    )  # fmt: skip
    threshold = {"temporal": 0.5, "causal": 0.5, "subevent": 0.5}
    assert maven_ere.predict(gold, frames, threshold) == {"w": {
        "temporal": {("g0", "g1"): "BEFORE"}, "causal": {("g0", "g1"): "PRECONDITION", ("g1", "g0"): "CAUSE"},
        "subevent": {},
    }}  # fmt: skip


def test_thresholds_of_relations_are_the_best_ones() -> None:
    gold, frames = related(("a", "b", "CAUSE", 0.62), ("b", "c", "CAUSE", 0.31), ("a", "c", "BEFORE", 0.9))
    labels: maven_ere.Labels = {"temporal": {}, "causal": {("g0", "g1"): "CAUSE"}, "subevent": {}}
    document = maven_ere.Document("w", ("g0", "g1", "g2"), frozenset(), labels)
    assert maven_ere.decide([document], gold, frames)["causal"] == 0.35


# ---- CASIE -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(casie.LABELS))
def test_casie_equals_what_the_official_script_printed(kind: casie.Kind) -> None:
    data = golden("casie")
    counts = casie.score([tuple(row) for row in data[kind]], kind)
    printed: Mapping[str, list[str]] = {row[0]: row[1:] for row in data["printed"][kind]}
    assert printed.keys() == {*counts, "micro avg"}
    for label, figures in printed.items():
        c = sum(counts.values(), Counts()) if label == "micro avg" else counts[label]
        ours = [c.right, c.gold, c.found, percent(c.precision), percent(c.recall), percent(c.f1)]
        assert ours == pytest.approx([float(f) for f in figures], abs=0.005 + 1e-9), label
    assert 0 < float(printed["micro avg"][5]) < 100


def test_casie_matches_words_wherever_they_stand() -> None:
    rows = [("d", "hit", 0, "B-Ransom", "O"), ("d", "a", 4, "O", "O"), ("d", "hit", 6, "O", "B-Ransom")]
    assert casie.score(rows, "nugget")["Ransom"] == Counts(1.0, 1, 1)
    with pytest.raises(DataError, match="follows no"):
        casie.score([("d", "hit", 0, "O", "I-Ransom")], "nugget")


def test_a_perfect_extraction_of_casie_scores_one() -> None:
    ingest("casie", FIXTURES / "casie")
    extract_gold()
    splits = tables.SPLITS
    report = casie.split_scores(HALF, splits)
    figures = [report[split][kind] for split in splits for kind in casie.LABELS]
    assert {f["f1"] for f in figures} == {1.0, None}
    assert sum(f["gold"] for f in figures) > 5
    assert casie.split_scores(Decision(1.1, 1.1), splits)["train"]["nugget"]["found"] == 0


def test_tags_keep_the_most_confident_of_overlapping_spans_and_whole_tokens() -> None:
    documents, sentences = frames_of({"d": ("w", ["Vex Group hit Alder-Bank hard."])})
    text = read_text(documents, sentences)
    spans = pl.DataFrame(
        [("d", 0, 9, "Attacker", 0.5), ("d", 4, 9, "Victim", 0.9), ("d", 15, 24, "Victim", 0.7),
         ("d", 15, 24, "Victim", 0.6), ("d", 14, 19, "Attacker", 0.7), ("z", 0, 3, "Victim", 0.7)],
        schema=["doc_id", "start", "end", "label", "confidence"], orient="row",
    )  # fmt: skip
    tags, left_out = casie.tag(text, spans)
    assert text.words == ["Vex", "Group", "hit", "Alder", "-", "Bank", "hard", "."]
    assert tags == ["O", "B-Victim", "O", "B-Victim", "I-Victim", "I-Victim", "O", "O"]
    assert left_out == 2
    rows = casie.to_rows(text, tags, ["O"] * text.size, ["d"])
    assert rows[-1] == ("d", casie.END, 30, "O", "O")
    casie.write_rows("c.tsv", rows)
    assert Path("c.tsv").read_text().splitlines()[1] == "d\tGroup\t4\tB-Victim\tO"
    with pytest.raises(DataError, match="no place for the document id"):
        casie.write_rows("c.tsv", [("a\tb", "w", 0, "O", "O")])


def test_found_nuggets_arguments_and_roles_are_the_believed_ones() -> None:
    ingest("casie", FIXTURES / "casie")
    extract_gold()
    frames = found(*casie.TABLES)
    first = frames["events"]["event_id"][0]
    doubted = pl.when(event_id=first).then(0.1).otherwise(pl.col("confidence")).alias("confidence")
    believed = casie.found_spans({**frames, "events": frames["events"].with_columns(doubted)}, HALF)
    everything = casie.found_spans(frames, HALF)
    assert everything["nugget"].height - believed["nugget"].height == 1
    own = frames["arguments"].filter(event_id=first).height
    assert own > 0 and believed["role"].height < everything["role"].height
    assert everything["nugget"]["label"].str.contains(re.escape(".")).sum() == 0


# ---- what all of them share ------------------------------------------------------------------------------------------


def test_undefined_figures_are_null_and_counts_add_up() -> None:
    assert Counts(0, 0, 5).as_dict() == {"precision": None, "recall": 0.0, "f1": None, "found": 0, "gold": 5}
    assert Counts(0, 5, 0).as_dict()["f1"] is None
    assert Counts(0, 5, 5).f1 == 0.0
    assert Counts(1, 2, 3) + Counts(0.5, 1, 1) == Counts(1.5, 3, 4)
    write_json("c.json", rams.Scores(Counts(1, 1, 3)).as_dict())
    assert json.loads(Path("c.json").read_text())["by_distance"]["-2"]["gold"] == 0
