"""The encoder extractor, on a tiny encoder with random weights: offsets, chunks, training, resumption, storage."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import tables
from pipeline.errors import DataError, SetupError
from stages.extract import __main__ as stage
from stages.extract.annotated import Annotated, add_triggers
from stages.extract.encoder import calibrate as calibration
from stages.extract.encoder import fit as encoder_fit
from stages.extract.encoder import train as training
from stages.extract.encoder.calibrate import calibrate, fit_temperature, reliability
from stages.extract.encoder.card import write_card
from stages.extract.encoder.chunks import bucket, cut_chunks, cut_pieces, cut_segments
from stages.extract.encoder.coreference import NEVER, Coreference, People, b_cubed, fit_coreference, join
from stages.extract.encoder.fit import Scores, fit_encoder
from stages.extract.encoder.geometry import GAPS, PLACES, RIVALS, list_near, list_neighbours
from stages.extract.encoder.heads import Spans, Tokens
from stages.extract.encoder.model import EncoderExtractor
from stages.extract.encoder.network import find_base, load_backbone, load_tokenizer
from stages.extract.encoder.step import link_targets, role_shares
from stages.extract.encoder.storage import load_encoder, save_encoder
from stages.extract.encoder.targets import Placed, learn_labels, read_goal
from stages.extract.encoder.train import plan, rate_at
from stages.extract.folds import CrossFitted
from stages.extract.linear import Floors
from stages.extract.models import load_extractor
from stages.extract.tokens import read_text
from stages.extract.triggers import read_triggers
from tests.stages.encoding import (
    DOCUMENTS,
    FLOORS,
    NAMES,
    SENTENCES,
    corpus,
    documents,
    encoder_params,
    fit,
    options,
)
from tests.stages.extracting import contents


@pytest.fixture(scope="module")
def model(base: Path, tmp_path_factory: pytest.TempPathFactory) -> EncoderExtractor:
    return fit(base, tmp_path_factory.mktemp("work"), epochs=20)


def weights(model: EncoderExtractor) -> dict[str, np.ndarray[Any, Any]]:
    modules = {"backbone": model.network.backbone, "heads": model.network.heads}
    return {f"{a}.{b}": v.numpy() for a, module in modules.items() for b, v in module.state_dict().items()}


# ---- text to chunks ------------------------------------------------------------------------------------------------

HOSTILE = (
    "", " ", "\u200b\u200b", "\x00\x01 a\x00b", "Cide\u0301 naïve ﬁne ǅ İstanbul ß", "日本語 と English",
    "مرحبا بالعالم \u202eabc\u202c", "👩‍👩‍👧 family 🇩🇪", "[CLS] [SEP] [MASK] [PAD]", "a" * 500, "=" * 300,
    "x\r\ny\tz\u2028w", "1,000.50€ C++ foo_bar e-mail@x.org", "\ufeffBOM", "É\u0323\u0301q",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_pieces_belong_to_their_tokens(base: Path, text: str) -> None:
    tokenizer, special = load_tokenizer(base)
    shard = read_text(documents(text, "Ann paid Bob.", text), SENTENCES.empty())
    pieces = cut_pieces(shard, tokenizer, special.unknown)
    counts = np.diff(pieces.first_T)
    assert len(pieces.first_T) == shard.size + 1
    assert counts.min(initial=1) >= 1
    assert counts.max(initial=1) <= 8
    assert len(pieces.id_P) == pieces.first_T[-1]
    # What a text spells out is never a special token.
    assert not {special.before, special.after, special.padding} & set(pieces.id_P.tolist())
    words = [shard.surface(shard.doc_T[t], shard.start_T[t], shard.end_T[t]) for t in range(shard.size)]
    assert words == [shard.words[w] for w in shard.word_T]
    middle = np.flatnonzero(shard.doc_T == 1)
    ids = [pieces.id_P[pieces.first_T[t] : pieces.first_T[t + 1]].tolist() for t in middle]
    assert ids == [[tokenizer.token_to_id(w)] for w in ("ann", "paid", "bob", ".")]


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=400), max_size=4),
       most=st.integers(20, 60), context=st.integers(0, 5))  # fmt: skip
def test_chunks_cover_every_token_once(texts: list[str], most: int, context: int) -> None:
    tokenizer, special = load_tokenizer(_BASE[0])
    shard = read_text(documents(*texts), SENTENCES.empty())
    pieces = cut_pieces(shard, tokenizer, special.unknown)
    segments = cut_segments(shard, pieces, most - 2 * context)
    chunks = cut_chunks(shard, pieces, segments, most, context)
    core = [t for c in chunks for t in range(c.begin, c.end)]
    assert core == list(range(shard.size))
    for c in chunks:
        assert c.first <= c.begin < c.end <= c.last
        assert c.pieces == pieces.first_T[c.last] - pieces.first_T[c.first] <= most
        assert len(set(shard.doc_T[c.first : c.last].tolist())) == 1
        assert c.begin in segments
        assert c.end in segments
    batches = bucket(chunks, 100, 2)
    assert sorted(itertools.chain(*batches)) == list(range(len(chunks)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * (max(chunks[c].pieces for c in batch) + 2) <= 100


_BASE: list[Path] = []


@pytest.fixture(autouse=True, scope="session")
def _remember(base: Path) -> None:
    _BASE.append(base)


def test_find_base_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="neither a folder nor an installed package"):
        find_base("no_such_package_of_ours")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SetupError, match=r"lacks model\.safetensors"):
        find_base(str(tmp_path))


def test_settings_leave_room_between_the_contexts() -> None:
    with pytest.raises(ValueError, match="context"):
        options(Path("any"), chunk=64, context=30)


# ---- geometry and targets ------------------------------------------------------------------------------------------


def test_near_pairs_against_a_plain_loop() -> None:
    draw = np.random.default_rng(3)
    sentence = np.sort(draw.integers(0, 30, 200))
    sentence[120:] += 16  # another text begins
    e = np.sort(draw.choice(200, 15, replace=False))
    m = np.sort(draw.choice(198, 25, replace=False))
    near = list_near(sentence, e, e, m, m + 1, 1)
    expected = [(i, j) for i in range(15) for j in range(25) if abs(sentence[e[i]] - sentence[m[j]]) <= 1]
    assert list(zip(near.event_Q.tolist(), near.mention_Q.tolist(), strict=True)) == expected
    for q, (i, j) in enumerate(expected):
        between = set(range(min(e[i], m[j]), max(e[i], m[j] + 1) + 1)) - {e[i], m[j], m[j] + 1}
        assert set(range(near.low_Q[q], near.high_Q[q])) == (between if not m[j] <= e[i] <= m[j] + 1 else set())
        side = near.place_Q[q] // GAPS
        assert side == (0 if m[j] > e[i] else 1 if m[j] + 1 < e[i] else 2)
    assert near.place_Q.max() < PLACES


def test_a_crowd_is_bounded() -> None:
    people = np.arange(10_000)
    near = list_near(np.zeros(10_000, np.int64), np.array([5000]), np.array([5000]), people, people, 2)
    assert len(near.event_Q) == 2 * RIVALS


def test_neighbours_stay_within_a_text() -> None:
    near = list_neighbours(np.array([0, 1, 2, 3, 4, 5, 30, 31]), np.arange(8), np.arange(8))
    pairs = list(zip(near.event_Q.tolist(), near.mention_Q.tolist(), strict=True))
    assert (0, 4) in pairs
    assert (0, 5) not in pairs
    assert (6, 7) in pairs
    assert not any(a <= 5 < b for a, b in pairs)


def test_goal_holds_the_annotation() -> None:
    data = corpus(4, 7)
    text = read_text(data.documents, data.sentences)
    gold = Placed.of(text, data.gold)
    labels = learn_labels(text, gold)
    assert labels.kinds == ("fight.attack", "money.pay")
    assert labels.roles == ("attacker", "payee", "payer", "target")
    assert labels.allowed == ((0, 3), (1, 2))
    assert (labels.sorts, labels.links, labels.reach) == ((), ("BEFORE",), 0)
    goal = read_goal(text, labels, gold)
    words = np.array(text.words)[text.word_T]
    assert set(words[goal.event_first].tolist()) == {"attacked", "paid"}
    assert len(goal.role_A) == data.gold["arguments"].height == 2 * len(goal.event_first)
    assert len(goal.link_L) == data.gold["relations"].height
    assert goal.events_T.all()
    share, right = role_shares(goal, goal.role_A[:, 0], goal.role_A[:, 1], 4)
    assert right == len(goal.role_A)
    assert (share.argmax(axis=1) == 1 + goal.role_A[:, 2]).all()
    none, right = role_shares(goal, goal.role_A[:, 0], np.full(len(goal.role_A), -1), 4)
    assert (right, none[:, 0].min()) == (0, 1.0)


def test_relations_hold_between_all_mentions_of_two_chains_and_beside_each_other() -> None:
    data = corpus(2, 7)
    events = data.gold["events"]
    window = events["window_id"][0]
    one, two, three = events.filter(pl.col("window_id") == window)["event_id"].to_list()[:3]
    chained = events.with_columns(
        chain_id=pl.when(pl.col("event_id") == two).then(pl.lit(one)).otherwise(pl.col("event_id"))
    )
    row = {"window_id": window, "head_event_id": one, "tail_event_id": three}
    relations = tables.table("ingest/gold/<split>/relations").frame(
        [{**row, "type": "BEFORE"}, {**row, "type": "CAUSE"}]
    )
    text = read_text(data.documents, data.sentences)
    gold = Placed.of(text, {**data.gold, "events": chained, "relations": relations})
    labels = learn_labels(text, gold)
    assert labels.links == ("BEFORE", "CAUSE")
    goal = read_goal(text, labels, gold)
    spans = {e: (s, t) for e, s, t in gold.events.select("event_id", "first", "last").iter_rows()}
    triggers = list(zip(goal.trigger_first.tolist(), goal.trigger_last.tolist(), strict=True))
    a, b, c = (triggers.index(spans[e]) for e in (one, two, three))
    heads, tails = np.array([a, b, c, a, b]), np.array([c, c, a, b, a])
    assert link_targets(goal, heads, tails, 2).tolist() == [
        [True, True, False, False], [True, True, False, False],  # both mentions of the chain, both relations
        [False, False, True, True], [False] * 4, [False] * 4,  # told the other way round; none within the chain
    ]  # fmt: skip


def test_only_annotated_sentences_are_negatives() -> None:
    data = corpus(4, 8)
    some = data.gold["labelled"].filter(pl.col("sentence") == 0)
    text = read_text(data.documents, data.sentences)
    gold = Placed.of(text, {**data.gold, "labelled": some, "events": data.gold["events"].clear(),
                            "mentions": data.gold["mentions"].clear()})  # fmt: skip
    goal = read_goal(text, learn_labels(text, Placed.of(text, data.gold)), gold)
    assert set(text.number_S[text.sentence_T[goal.events_T]].tolist()) == {0}
    assert not goal.mentions_T.any()


def test_span_head_is_a_distribution_that_stays_in_its_segment() -> None:
    torch.manual_seed(1)
    head = Spans(8, 4)
    head.eval()
    room = torch.tensor([3, 2, 1, 4, 3, 2, 1])
    p = head(Tokens.of(torch.randn(7, 8)), room).exp()
    assert torch.allclose(p.sum(dim=1), torch.ones(7))
    for n, left in enumerate(room.tolist()):
        assert (p[n, 1 : 1 + left] > 0).all()
        assert (p[n, 1 + left :] == 0).all()


# ---- training ------------------------------------------------------------------------------------------------------


def test_a_span_that_a_cut_divides_is_no_target(base: Path, tmp_path: Path) -> None:
    """A sentence longer than a chunk is cut, here within a trigger: training goes on without that one."""
    names = " ".join(["Ann"] * 40)
    text = f"{names} attacked Bob. Cid attacked Dan."
    data = corpus(1, 1)
    own = {"window_id": "w", "doc_id": "w:1"}
    first = text.index(" attacked")
    documents = DOCUMENTS.frame([{**own, "position": 0, "split": "train", "text": text, "sha256": "0" * 64}])
    ends = text.index(".") + 1
    rows = [
        {**own, "sentence": 0, "start": 0, "end": ends},
        {**own, "sentence": 1, "start": ends + 1, "end": len(text)},
    ]
    events = [
        {**own, "event_id": f"e{i}", "chain_id": f"e{i}", "start": start, "end": end, "surface": text[start:end],
         "type": "fight.attack", "realis": None}
        for i, (start, end) in enumerate([(first - 70, first), (text.rindex("attacked"), text.rindex("attacked") + 8)])
    ]  # fmt: skip
    gold = {name: frame.clear() for name, frame in data.gold.items()}
    gold["events"] = tables.table("ingest/gold/<split>/events").frame(events)
    labelled = [{**own, "sentence": 0}, {**own, "sentence": 1}]
    gold["labelled"] = tables.table("ingest/gold/<split>/labelled").frame(labelled)
    made = Annotated(documents, SENTENCES.frame(rows), gold)
    said: list[str] = []
    model, _ = fit_encoder(made, corpus(1, 2), FLOORS, options(base, epochs=1, chunk=34), 1, tmp_path, said.append)
    assert model.network.labels.kinds == ("fight.attack",)
    losses = [float(x) for line in said for x in re.findall(r"trigger ([\d.]+)", line)]
    assert losses and max(losses) < 100, "an impossible target would cost thousands"


def test_rate_rises_and_falls() -> None:
    rates = [rate_at(step, 50) for step in range(50)]
    assert max(rates) == rates[4] == 1.0
    assert rates == sorted(rates[:5]) + sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 0.05


def test_plan_is_a_permutation_of_its_epoch(base: Path) -> None:
    tokenizer, special = load_tokenizer(base)
    data = corpus(9, 3)
    text = read_text(data.documents, data.sentences)
    pieces = cut_pieces(text, tokenizer, special.unknown)
    chunks = cut_chunks(text, pieces, cut_segments(text, pieces, 40), 46, 3)
    first, again, second = (plan(chunks, 128, 2, 1, epoch) for epoch in (0, 0, 1))
    assert first == again != second
    assert sorted(itertools.chain(*first)) == list(range(len(chunks)))


def test_a_killed_training_ends_with_the_same_weights(base: Path, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    whole = weights(fit(base, tmp_path / "whole"))
    saved = training._save
    taken: list[int] = []

    def die(*args: Any) -> None:
        saved(*args)
        taken.append(args[2])
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_save", die)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit(base, tmp_path / "killed")
    assert taken == [2, 4]
    monkeypatch.setattr(training, "_save", saved)
    said: list[str] = []
    model, _ = fit_encoder(corpus(12, 1), corpus(6, 2), FLOORS, options(base), 5, tmp_path / "killed", said.append)
    assert any("going on from step 4" in line for line in said)
    resumed = weights(model)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert value.tobytes() == resumed[name].tobytes(), name


def test_a_checkpoint_of_another_training_is_left_alone(base: Path, tmp_path: Path) -> None:
    fit(base, tmp_path)
    said: list[str] = []
    fit_encoder(corpus(12, 1), corpus(6, 2), FLOORS, options(base), 6, tmp_path, said.append)
    assert not any("going on" in line for line in said)


def test_kept_output_of_the_frozen_layers_changes_nothing(base: Path, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    kept = weights(fit(base, tmp_path / "a"))
    monkeypatch.setattr(training, "KEPT_BYTES", 0)
    anew = weights(fit(base, tmp_path / "b"))
    for name, value in kept.items():
        np.testing.assert_allclose(value, anew[name], rtol=0.05, atol=0.02, err_msg=name)


def test_frozen_layers_stay_as_they_are(base: Path, model: EncoderExtractor) -> None:
    before = load_backbone(base, 1, "float32").state_dict()
    after = model.network.backbone.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved
    assert all(name.startswith("trained.") for name in moved)


# ---- what it finds -------------------------------------------------------------------------------------------------


def test_it_learns_and_its_tables_are_valid(model: EncoderExtractor, tmp_path: Path) -> None:
    data = corpus(6, 4)
    analysis = model.analyse(data.documents, data.sentences)
    events, relations = model.events(analysis)
    mentions = model.mentions(analysis)
    arguments = model.arguments(analysis, events, mentions)
    text_of = dict(data.documents.select("doc_id", "text").iter_rows())
    for name, frame in (("events", events), ("mentions", mentions), ("arguments", arguments), ("relations", relations)):
        tables.write(f"extract/{name}", frame, tmp_path)
        if "surface" in frame.columns:
            for row in frame.iter_rows(named=True):
                assert text_of[row["doc_id"]][row["start"] : row["end"]] == row["surface"]
    key = ["doc_id", "start", "end", "type"]
    sure = events.filter(pl.col("confidence") >= 0.5).select(key)
    right = sure.join(data.gold["events"].select(key), on=key, how="semi").height
    assert right >= 0.9 * max(sure.height, data.gold["events"].height)
    assert set(arguments["event_id"]) <= set(events["event_id"])
    assert set(arguments["mention_id"]) <= set(mentions["mention_id"])
    names = mentions.filter(pl.col("surface").is_in(NAMES))
    assert names.height >= 0.9 * data.gold["mentions"].height
    likely = arguments.sort("confidence", descending=True).unique(["event_id", "mention_id"], keep="first")
    likely = likely.filter(pl.col("confidence") >= 0.4)
    truth = data.gold["arguments"].join(data.gold["mentions"], on="mention_id").select("doc_id", "start", "role")
    found = likely.join(mentions, on="mention_id").select("doc_id", "start", "role")
    assert found.join(truth, on=["doc_id", "start", "role"], how="semi").height >= 0.8 * truth.height
    # Roles that a type never takes are never given.
    typed = arguments.join(events.select("event_id", "type"), on="event_id")
    assert set(typed.filter(pl.col("type") == "money.pay")["role"]) <= {"payer", "payee"}


def test_reading_twice_gives_the_same_bytes(model: EncoderExtractor) -> None:
    data = corpus(3, 5)
    one, two = (model.events(model.analyse(data.documents, data.sentences))[0] for _ in range(2))
    assert one.equals(two)


def test_given_mentions_get_roles_and_scores(model: EncoderExtractor) -> None:
    data = corpus(3, 6)
    analysis = model.analyse(data.documents, data.sentences)
    events, _ = model.events(analysis)
    given_mentions = data.gold["mentions"].reverse()
    scores = model.score_mentions(analysis, given_mentions)
    assert scores.shape == (given_mentions.height,)
    assert scores.mean() > 0.5
    odd = given_mentions.head(2).with_columns(doc_id=pl.Series(["nowhere", "w6-000.0"]), start=0, end=60)
    assert (model.score_mentions(analysis, odd) < 0.5).all()
    assert model.arguments(analysis, events, odd.head(1)).is_empty()
    found = model.arguments(analysis, events, given_mentions)
    assert set(found["mention_id"]) <= set(given_mentions["mention_id"])
    assert found.height
    assert model.arguments(analysis, events.clear(), given_mentions).is_empty()
    assert model.arguments(analysis, events, given_mentions.clear()).is_empty()


def test_floors_only_cut(model: EncoderExtractor) -> None:
    data = corpus(3, 9)
    analysis = model.analyse(data.documents, data.sentences)
    all_of_it, _ = model.with_floors(Floors(0.01, 0.01, 0.01)).events(analysis)
    some, _ = model.with_floors(Floors(0.6, 0.6, 0.6)).events(analysis)
    assert set(some["event_id"]) <= set(all_of_it["event_id"])
    assert some["confidence"].min() >= 0.6


@pytest.mark.parametrize("text", [*HOSTILE, "Ann paid Bob. " * 400])
def test_hostile_texts_do_no_harm(model: EncoderExtractor, text: str) -> None:
    frame = documents(text, "Ann paid Bob.", text)
    analysis = model.with_floors(Floors(0.0, 0.0, 0.0)).analyse(frame, SENTENCES.empty())
    events, _ = model.events(analysis)
    mentions = model.mentions(analysis)
    model.arguments(analysis, events, mentions)
    texts = dict(frame.select("doc_id", "text").iter_rows())
    for row in itertools.chain(events.iter_rows(named=True), mentions.iter_rows(named=True)):
        assert texts[row["doc_id"]][row["start"] : row["end"]] == row["surface"]
    assert "paid" in events.filter(pl.col("doc_id") == "d1")["surface"].to_list()


def test_nothing_to_read(model: EncoderExtractor) -> None:
    for frame in (DOCUMENTS.empty(), documents("", "")):
        analysis = model.analyse(frame, SENTENCES.empty())
        events, relations = model.events(analysis)
        assert events.is_empty()
        assert relations.is_empty()
        assert model.mentions(analysis).is_empty()


def test_blocks_divide_only_very_long_documents(model: EncoderExtractor, monkeypatch: pytest.MonkeyPatch) -> None:
    data = corpus(8, 11)
    whole = model.analyse(data.documents, data.sentences)
    monkeypatch.setattr("stages.extract.encoder.reading.BLOCK", 40)
    monkeypatch.setattr("stages.extract.encoder.reading.KEPT_TOKENS", 0)
    parts = model.analyse(data.documents, data.sentences)
    assert len(parts.shard.blocks) > len(whole.shard.blocks) == 1
    assert parts.shard.kept == {}
    bounds = [(b.low, b.high) for b in parts.shard.blocks]
    assert [low for low, _ in bounds] == [0, *(high for _, high in bounds[:-1])]
    events, _ = model.events(whole)
    again, _ = model.events(parts)
    assert events["event_id"].to_list() == again["event_id"].to_list()
    mentions = model.mentions(whole)
    one, two = model.arguments(whole, events, mentions), model.arguments(parts, events, mentions)
    assert one.join(two, on=["event_id", "mention_id", "role"], how="anti").height <= 0.05 * one.height


def test_without_arguments_it_finds_event_chains(base: Path, tmp_path: Path) -> None:
    data = corpus(6, 12)
    bare = {name: frame.clear() if name in ("mentions", "arguments", "entities", "relations") else frame
            for name, frame in data.gold.items()}  # fmt: skip
    own = Annotated(data.documents, data.sentences, bare)
    model, scores = fit_encoder(own, own, FLOORS, options(base), 1, tmp_path, lambda _: None)
    assert model.candidate_kind == "event_chain"
    assert set(scores.calibration_error) == {"event"}
    analysis = model.analyse(data.documents, data.sentences)
    assert model.mentions(analysis).is_empty()
    assert (model.score_mentions(analysis, data.gold["mentions"]) < 0.01).all()
    assert model.arguments(analysis, model.events(analysis)[0], data.gold["mentions"]).is_empty()


def test_extra_triggers_teach_the_trigger_head_alone(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "triggers.jsonl"
    record = {"doc_key": "x1", "split": "train", "tokens": ["He", "was", "\u201cshot\u201d", "dead", "."],
              "trigger": [2, 3], "event_type": "life.die", "type_roles": ["victim"]}  # fmt: skip
    file.write_text(json.dumps(record) + "\n")
    extra, sentences, gold = read_triggers(file)
    event = gold["events"].row(0, named=True)
    assert extra["text"][0][event["start"] : event["end"]] == event["surface"] == "\u201cshot\u201d dead"
    assert sentences.select("start", "end").row(0) == (0, len(extra["text"][0]))
    both = add_triggers(corpus(3, 1), str(file))
    text = read_text(both.documents, both.sentences)
    placed = Placed.of(text, both.gold)
    labels = learn_labels(text, placed)
    assert labels.kinds == ("fight.attack", "life.die", "money.pay")
    assert labels.allowed[1] == ()
    goal = read_goal(text, labels, placed)
    own = text.doc_T == text.doc_ids.index("extra:x1")
    assert goal.events_T[own].all()
    assert not goal.mentions_T[own].any()
    assert not goal.links_T[own].any()
    model, _ = fit_encoder(both, corpus(3, 2), FLOORS, options(base), 1, tmp_path, print)
    assert model.network.labels.kinds == labels.kinds


@pytest.mark.parametrize("change", [{"trigger": [2, 5]}, {"trigger": None}, {"tokens": None}, {"event_type": None}])
def test_a_broken_extra_sentence_names_its_line(tmp_path: Path, change: dict[str, Any]) -> None:
    file = tmp_path / "triggers.jsonl"
    record = {"doc_key": "x1", "tokens": ["He", "was", "shot", "."], "trigger": [2, 2], "event_type": "life.die"}
    file.write_text(json.dumps(record) + "\n" + json.dumps({**record, "doc_key": "x2", **change}) + "\n")
    with pytest.raises(DataError, match=r"triggers\.jsonl:2: not a sentence with a trigger"):
        read_triggers(file)
    file.write_text(2 * (json.dumps(record) + "\n"))
    with pytest.raises(DataError, match="stands twice"):
        read_triggers(file)
    with pytest.raises(DataError, match="file not found"):
        read_triggers(tmp_path / "none.jsonl")


# ---- the stage -----------------------------------------------------------------------------------------------------


def steps_taken(base: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Run the stage; how many training steps each of its models took."""
    taken: list[int] = []

    def counted(*arguments: Any) -> int:
        taken.append(training.train(*arguments))
        return taken[-1]

    with monkeypatch.context() as patch:
        patch.setattr(encoder_fit, "train", counted)
        stage.main(encoder_params(base))
    return taken


def test_the_stage_fits_halves_and_reads_with_them(base: Path, ingested: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def killed(*arguments: Any, **options: Any) -> Any:
        steps.append("calibrate")
        if len(steps) == 3:
            raise KeyboardInterrupt
        return calibrate(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(encoder_fit, "calibrate", killed)
        with pytest.raises(KeyboardInterrupt):
            stage.main(encoder_params(base))
    assert not stage.MODEL.exists() and not Path("data/extract").exists()
    # All three models were trained to the end: that is not done again.
    assert steps_taken(base, monkeypatch) == [0, 0, 0]
    assert not Path("data/.work/extract_fit").exists()
    model = load_extractor(stage.MODEL)
    assert isinstance(model, CrossFitted) and model.candidate_kind == "entity"
    assert all(isinstance(part, EncoderExtractor) for part in (model.whole, *model.folds))
    assert set(model.read_by.values()) == {0, 1}
    texts = dict(tables.read("ingest/documents").select("doc_id", "text").iter_rows())
    for name in ("events", "mentions"):
        rows = tables.read(f"extract/{name}").select("doc_id", "start", "end", "surface").rows()
        assert rows and all(texts[doc_id][start:end] == surface for doc_id, start, end, surface in rows)
    before = contents(str(stage.MODEL), "data/extract")
    shutil.rmtree(stage.MODEL)
    shutil.rmtree("data/extract")
    stage.main(encoder_params(base))
    assert contents(str(stage.MODEL), "data/extract") == before


def test_a_kill_while_reading_trains_nothing_again(base: Path, ingested: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "read_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            stage.main(encoder_params(base))
    assert steps_taken(base, monkeypatch) == [0, 0, 0] and not Path("data/.work/extract_fit").exists()


def test_the_stage_without_cross_fitting_fits_one_model(base: Path, ingested: Path) -> None:
    stage.main(encoder_params(base, cross_fit=False))
    assert isinstance(load_extractor(stage.MODEL), EncoderExtractor)


# ---- who is who ----------------------------------------------------------------------------------------------------


def people(surfaces: list[str], vectors: list[list[float]]) -> People:
    n = len(surfaces)
    return People(surfaces, ["person"] * n, ["d"] * n, np.arange(n), np.array(vectors, dtype=np.float64))


def test_the_scorer_joins_what_is_alike() -> None:
    one, other = [1.0, 0.0], [0.0, 1.0]
    windows = [
        (
            f"w{i}",
            people(["Acme Corp", "Bob Lee", "the firm", "the man"], [one, other, one, other]),
            ["a", "b", "a", "b"],
        )
        for i in range(20)
    ]
    scorer, scores = fit_coreference(windows)
    assert scores["used"] == 1.0 > scores["rule"]
    assert scorer.link(windows[0][1]) == [0, 1, 0, 1]
    assert Coreference().link(windows[0][1]) == [0, 1, 2, 3]
    # Where the rule is right, nothing is joined.
    apart = [(w, p, ["a", "b", "c", "d"]) for w, p, _ in windows]
    scorer, scores = fit_coreference(apart)
    assert scorer.threshold == NEVER
    assert scores["used"] == scores["rule"] == 1.0


def test_joins_are_transitive() -> None:
    assert join([0, 1, 2, 1, 4], [(2, 1, 0.9), (1, 0, 0.8)]) == [0, 0, 0, 0, 4]


def test_b_cubed_by_hand() -> None:
    precision, recall, n = b_cubed([0, 0, 0, 3], ["a", "a", "b", "b"])
    assert (precision, recall, n) == (pytest.approx(2 / 3 + 2 / 3 + 1 / 3 + 1), pytest.approx(1 + 1 + 0.5 + 0.5), 4)


# ---- calibration and storage ---------------------------------------------------------------------------------------


def test_temperature_is_recovered() -> None:
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(4000, 5)) * 2
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    target = np.array([draw.choice(5, p=row) for row in p])
    assert fit_temperature(scores * 3, target) == pytest.approx(3, rel=0.1)
    assert fit_temperature(scores[:5], target[:5]) == 1.0


def test_far_roles_are_calibrated_by_themselves(model: EncoderExtractor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal raw probabilities, of which nearly all are right in the event's sentence and few elsewhere."""
    draw = np.random.default_rng(0)
    same = np.arange(2000) % 2 == 0
    p = draw.uniform(0.2, 0.8, 2000)
    correct = draw.random(2000) < np.where(same, 0.9, 0.1)
    evidence = calibration.Evidence((p,), correct, np.arange(2000) % 4 // 2, same)
    monkeypatch.setattr(calibration, "role_evidence", lambda *_: evidence)
    data = corpus(4, 5)
    analysis = model.analyse(data.documents, data.sentences)
    goal = read_goal(analysis.text, model.network.labels, Placed.of(analysis.text, data.gold))
    found, _ = calibrate(model, analysis, goal)
    half = np.array([0.5])
    assert found.role_calibration.apply(half)[0] == pytest.approx(0.9, abs=0.03)
    assert found.far_calibration.apply(half)[0] == pytest.approx(0.1, abs=0.03)
    few = replace(evidence, same=np.arange(2000) >= 20)  # too few far ones: one calibration for all
    monkeypatch.setattr(calibration, "role_evidence", lambda *_: few)
    found, _ = calibrate(model, analysis, goal)
    assert found.far_calibration.apply(half)[0] == pytest.approx(0.5, abs=0.05)


def test_reliability_bins() -> None:
    bins = reliability(np.array([0.05, 0.05, 0.95, 1.0]), np.array([False, True, True, True]))
    assert [(b.confidence, b.share, b.weight) for b in bins] == [(0.05, 0.5, 0.5), (0.975, 1.0, 0.5)]


def test_storage_round_trip(model: EncoderExtractor, tmp_path: Path) -> None:
    data = corpus(4, 13)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    save_encoder(model, tmp_path / "a")
    read = load_encoder(tmp_path / "a")
    save_encoder(read, tmp_path / "b")
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    one, two = (m.analyse(data.documents, data.sentences) for m in (model, read))
    events, relations = model.events(one)
    assert events.equals(read.events(two)[0])
    assert relations.equals(read.events(two)[1])
    mentions = model.mentions(one)
    assert mentions.equals(read.mentions(two))
    assert model.arguments(one, events, mentions).equals(read.arguments(two, events, mentions))


def test_card_says_what_was_measured(model: EncoderExtractor, tmp_path: Path) -> None:
    scores = Scores({"event": 0.0123}, {"rule": 0.5, "used": 0.625})
    write_card(tmp_path / "README.md", model, corpus(12, 1), corpus(6, 2), scores)
    text = (tmp_path / "README.md").read_text()
    assert "| windows | 12 | 6 |" in text
    assert "| event | 0.0123 |" in text
    assert "0.6250" in text
    assert str(tmp_path.parent) not in text


def test_broken_models_are_refused(model: EncoderExtractor, tmp_path: Path) -> None:
    save_encoder(model, tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace("encoder 2", "encoder 0"))
    with pytest.raises(DataError, match="not an encoder extractor"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text(config.replace('"hidden_size": 32', '"hidden_size": 64'))
    with pytest.raises(DataError, match="broken model"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text(config)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="broken model"):
        load_encoder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="tokenizer is not the one"):
        load_encoder(tmp_path)
