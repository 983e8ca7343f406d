"""The stacked extractor: two readers weighed, on a tiny encoder with random weights."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline import tables
from pipeline.errors import DataError
from stages.extract import __main__ as stage
from stages.extract.annotated import Annotated
from stages.extract.encoder.fit import fit_encoder
from stages.extract.fit import Corpus, fit_extractor
from stages.extract.folds import CrossFitted
from stages.extract.limits import reached
from stages.extract.linear import Floors
from stages.extract.models import load_extractor, save_extractor
from stages.extract.scores import Decision, score_extraction
from stages.extract.softmax import Calibration
from stages.extract.stacked import ABSENT, StackedExtractor, within
from stages.extract.stacking import fit_stack
from tests.stages.encoding import DOCUMENTS, FLOORS, SENTENCES, corpus, documents, encoder_params, options
from tests.stages.extracting import contents


@pytest.fixture(scope="module")
def model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> StackedExtractor:
    data, held_out = corpus(12, 1), corpus(8, 2)
    one = fit_extractor(Corpus.read(data), Corpus.read(held_out), FLOORS, lambda _: None)
    work = tmp_path_factory.mktemp("work")
    other, _ = fit_encoder(data, held_out, FLOORS, options(base, epochs=6), 5, work, lambda _: None)
    return fit_stack(one, other, held_out, FLOORS)[0]


def read(model: Any, data: Annotated) -> dict[str, pl.DataFrame]:
    """The four tables of a shard."""
    analysis = model.analyse(data.documents, data.sentences)
    events, relations = model.events(analysis)
    mentions = model.mentions(analysis)
    arguments = model.arguments(analysis, events, mentions)
    return {"events": events, "relations": relations, "mentions": mentions, "arguments": arguments}


def test_it_reads_at_least_as_well_as_either(model: StackedExtractor) -> None:
    data = corpus(12, 4)
    f1 = {}
    for name, reader in (("stacked", model), ("linear", model.linear), ("encoder", model.encoder)):
        found = read(reader.with_floors(FLOORS), data)
        f1[name] = score_extraction(data.gold, found, data.sentences, Decision(0.5, 0.3))["argument_exact"].f1 or 0.0
    assert f1["stacked"] >= max(f1.values()) - 0.02
    assert f1["stacked"] > 0.8


def test_tables_are_valid_and_say_what_stands_there(model: StackedExtractor, tmp_path: Path) -> None:
    data = corpus(6, 4)
    found = read(model, data)
    text_of = dict(data.documents.select("doc_id", "text").iter_rows())
    for name, frame in found.items():
        tables.write(f"extract/{name}", frame, tmp_path)
    for name in ("events", "mentions"):
        rows = found[name].select("doc_id", "start", "end", "surface").rows()
        assert rows and all(text_of[doc_id][start:end] == surface for doc_id, start, end, surface in rows)
    assert found["arguments"].height
    assert set(found["arguments"]["event_id"]) <= set(found["events"]["event_id"])
    assert set(found["arguments"]["mention_id"]) <= set(found["mentions"]["mention_id"])
    again = read(model, data)
    assert all(frame.equals(again[name]) for name, frame in found.items())


def test_it_holds_what_either_holds(model: StackedExtractor) -> None:
    data = corpus(6, 5)
    analysis = model.analyse(data.documents, data.sentences)
    triggers = model.triggers(analysis)
    spans = set(zip(triggers.first.tolist(), triggers.last.tolist(), strict=True))
    for own in analysis:
        assert set(zip(own.first.tolist(), own.last.tolist(), strict=True)) <= spans
    assert len(spans) == len(triggers.first)
    # A span of one alone has ABSENT from the other, spread over types as the one has them.
    mine, its = ({*zip(own.first.tolist(), own.last.tolist(), strict=True)} for own in analysis)
    for i, span in enumerate(zip(triggers.first.tolist(), triggers.last.tolist(), strict=True)):
        for known, own, other in ((mine, triggers.linear_GK[i], triggers.encoder_GK[i]),
                                  (its, triggers.encoder_GK[i], triggers.linear_GK[i])):  # fmt: skip
            if span not in known:
                np.testing.assert_allclose(own, ABSENT * other / other.sum())
    assert mine != its, "nothing to see: both hold the same spans"


def test_a_map_of_one_alone_is_that_one(model: StackedExtractor) -> None:
    data = corpus(6, 6)
    alone = replace(
        model, event_map=Calibration((0.0, 1.0), 0.0), mention_map=Calibration((0.0, 1.0), 0.0),
        role_map=Calibration((0.0, 1.0), 0.0),
    )  # fmt: skip
    found, expected = read(alone, data), read(model.encoder, data)
    columns = ["doc_id", "start", "end", "type", "confidence"]
    for name in ("events", "mentions"):
        one, other = (frame[name].select(columns).sort(columns) for frame in (found, expected))
        assert one.drop("confidence").equals(other.drop("confidence"))
        np.testing.assert_allclose(one["confidence"], other["confidence"], atol=2e-6)
    key = ["event_id", "mention_id", "role"]
    both = expected["arguments"].join(found["arguments"], on=key, how="full", coalesce=True)
    assert both["confidence"].null_count() == both["confidence_right"].null_count() == 0
    np.testing.assert_allclose(both["confidence_right"], both["confidence"], atol=3e-6)


def test_given_mentions_get_roles_and_scores(model: StackedExtractor) -> None:
    data = corpus(3, 7)
    analysis = model.analyse(data.documents, data.sentences)
    events, _ = model.events(analysis)
    people = data.gold["mentions"].reverse()
    scores = model.score_mentions(analysis, people)
    assert scores.shape == (people.height,) and scores.mean() > 0.5
    odd = people.head(1).with_columns(doc_id=pl.lit("nowhere"))
    assert model.score_mentions(analysis, odd)[0] < 0.5
    assert model.arguments(analysis, events, odd).is_empty()
    found = model.arguments(analysis, events, people)
    assert found.height and set(found["mention_id"]) <= set(people["mention_id"])
    assert model.arguments(analysis, events.clear(), people).is_empty()
    assert model.arguments(analysis, events, people.clear()).is_empty()


def test_floors_only_cut(model: StackedExtractor) -> None:
    data = corpus(3, 9)
    low, high = (model.with_floors(Floors(x, 0.02, x)) for x in (1e-4, 0.6))
    many, few = read(low, data), read(high, data)
    for name, key in (("events", ["event_id"]), ("arguments", ["event_id", "mention_id", "role"])):
        assert few[name].height
        assert few[name].join(many[name], on=key, how="anti").is_empty()
    assert few["arguments"].height < many["arguments"].height
    assert (few["events"]["confidence"] >= 0.6).all()
    joined = many["arguments"].join(many["events"].select("event_id", event="confidence"), on="event_id")
    assert (joined["confidence"] <= joined["event"]).all(), "a role is no surer than its event"


@pytest.mark.parametrize("text", ["", "\x00\u202eabc\u202c", "日本語 👩‍👩‍👧", "a" * 500, "Ann paid Bob. " * 300])
def test_hostile_texts_do_no_harm(model: StackedExtractor, text: str) -> None:
    frame = documents(text, "Ann paid Bob.", text)
    analysis = model.with_floors(Floors(0.0, 0.0, 0.0)).analyse(frame, SENTENCES.empty())
    events, _ = model.events(analysis)
    mentions = model.mentions(analysis)
    model.arguments(analysis, events, mentions)
    texts = dict(frame.select("doc_id", "text").iter_rows())
    for row in itertools.chain(events.iter_rows(named=True), mentions.iter_rows(named=True)):
        assert texts[row["doc_id"]][row["start"] : row["end"]] == row["surface"]
    assert "paid" in events.filter(pl.col("doc_id") == "d1")["surface"].to_list()
    assert reached(analysis) == reached(analysis.encoder)
    assert set(reached(analysis)) == {"sentences", "words"}


def test_nothing_to_read(model: StackedExtractor) -> None:
    for frame in (DOCUMENTS.empty(), documents("", "")):
        analysis = model.analyse(frame, SENTENCES.empty())
        events, relations = model.events(analysis)
        assert events.is_empty() and relations.is_empty()
        assert model.mentions(analysis).is_empty()


def test_spans_that_the_encoder_cuts_are_left_out(model: StackedExtractor) -> None:
    frame = documents("Ann attacked " + "Bob and " * 400 + "Cid.", "Ann paid Bob.")
    analysis = model.with_floors(Floors(0.0, 0.0, 0.0)).analyse(frame, SENTENCES.empty())
    cuts = analysis.encoder.shard.segments
    assert len(cuts) > 4, "nothing is cut"
    first = np.array([0, cuts[1] - 1, cuts[1]])
    assert within(analysis, first, first + 1).tolist() == [True, False, True]
    people = pl.DataFrame({"window_id": ["w0"], "mention_id": ["m"], "doc_id": ["d0"], "start": [0], "end": [3000]})
    model.arguments(analysis, model.events(analysis)[0], people)


def test_little_to_weigh_leaves_both_equal(model: StackedExtractor) -> None:
    nothing = corpus(1, 3)
    bare = Annotated(nothing.documents, nothing.sentences, {n: f.clear() for n, f in nothing.gold.items()})
    plain, errors = fit_stack(model.linear, model.encoder, bare, FLOORS)
    assert errors == {} and plain.event_map == Calibration((0.5, 0.5), 0.0)
    few, _ = fit_stack(model.linear, model.encoder, corpus(1, 3), FLOORS)
    assert few.event_map == Calibration((0.5, 0.5), 0.0)


def test_members_of_different_corpora_are_refused(model: StackedExtractor) -> None:
    other = replace(model.linear.trigger_type, labels=("a", "b"))
    with pytest.raises(ValueError, match="different event types"):
        StackedExtractor.of(replace(model.linear, trigger_type=other), model.encoder, FLOORS)


def test_storage_round_trip(model: StackedExtractor, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_extractor(tmp_path / name, model)
    again = load_extractor(tmp_path / "a")
    assert isinstance(again, StackedExtractor)
    data = corpus(3, 8)
    assert all(frame.equals(read(again, data)[name]) for name, frame in read(model, data).items())
    one, other = (list(contents(str(tmp_path / name)).values()) for name in ("a", "b"))
    assert len(one) == 6 and one == other


@pytest.mark.parametrize(
    "change",
    [
        {"event_map": None},
        {"floors": {"trigger": 1}},
        {"role_map": {"weights": [1.0], "bias": 0.0}},
        {"format": "stacked 9"},
    ],
)
def test_broken_models_are_refused(model: StackedExtractor, tmp_path: Path, change: dict[str, Any]) -> None:
    save_extractor(tmp_path, model)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(DataError, match=r"config\.json"):
        load_extractor(tmp_path)


def test_the_stage_fits_both_and_says_how_they_weigh(base: Path, ingested: Path) -> None:
    stage.main(encoder_params(base, "stacked"))
    model = load_extractor(stage.MODEL)
    assert isinstance(model, CrossFitted) and len(model.folds) == 2
    assert all(isinstance(part, StackedExtractor) for part in (model.whole, *model.folds))
    card = (stage.MODEL / "README.md").read_text()
    assert card.startswith("# Stacked extractor") and "| event | " in card and "Floors: events 0.0001" in card
    texts = dict(tables.read("ingest/documents").select("doc_id", "text").iter_rows())
    rows = tables.read("extract/events").select("doc_id", "start", "end", "surface").rows()
    assert rows and all(texts[doc_id][start:end] == surface for doc_id, start, end, surface in rows)


def test_a_kept_model_is_adopted_with_other_floors(base: Path, ingested: Path) -> None:
    stage.main(encoder_params(base, "stacked", cross_fit=False))
    kept = stage.FITTED / "mine/extract"
    kept.parent.mkdir(parents=True)
    stage.MODEL.rename(kept)
    stage.main(encoder_params(base, "stacked", from_="mine", lattice=0.25))
    model = load_extractor(stage.MODEL)
    assert isinstance(model, StackedExtractor) and model.floors.role == 0.25
    card = (stage.MODEL / "README.md").read_text()
    assert "Floors: events 0.0001, mentions 0.0001, roles 0.25." in card and "## Adopted" in card


def test_without_arguments_it_finds_event_chains(base: Path, tmp_path: Path) -> None:
    data = corpus(8, 12)
    bare = {name: frame.clear() if name in ("mentions", "arguments", "entities", "relations") else frame
            for name, frame in data.gold.items()}  # fmt: skip
    own = Annotated(data.documents, data.sentences, bare)
    one = fit_extractor(Corpus.read(own), Corpus.read(own), FLOORS, lambda _: None)
    other, _ = fit_encoder(own, own, FLOORS, options(base), 1, tmp_path, lambda _: None)
    model, errors = fit_stack(one, other, own, FLOORS)
    assert model.candidate_kind == "event_chain" and set(errors) == {"event"}
    found = read(model, own)
    assert found["events"].height and found["mentions"].is_empty() and found["arguments"].is_empty()
