"""Parts of the linear extractor, against brute force and by property: from the field to the scores."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import tables
from stages.extract import chains, ordering
from stages.extract.clusters import cluster
from stages.extract.crf import BEGIN, INSIDE, OUT, Packing, choose, fit_tagger, infer, list_spans, span_probabilities
from stages.extract.optimise import minimise
from stages.extract.pairs import FAR, Spans, list_pairs
from stages.extract.scores import Decision, Score, decide, score_extraction
from stages.extract.softmax import Calibration, fit_calibration
from stages.extract.tokens import Text, read_text
from tests.stages.extracting import frames_of

# ---- the field ------------------------------------------------------------------------------------------------------

LENGTHS = st.lists(st.integers(1, 5), min_size=1, max_size=4)


def legal(length: int) -> list[tuple[int, ...]]:
    """Tag sequences in which an inside tag follows begin or inside."""
    sequences = itertools.product((OUT, BEGIN, INSIDE), repeat=length)
    return [s for s in sequences if s[0] != INSIDE and (OUT, INSIDE) not in itertools.pairwise(s)]


def enumerate_tags(emission: Any, transition: Any) -> dict[tuple[int, ...], float]:
    """Tag sequence -> log of its potential."""
    return {
        tags: math.fsum(emission[i, tag] for i, tag in enumerate(tags))
        + math.fsum(transition[a, b] for a, b in itertools.pairwise(tags))
        for tags in legal(len(emission))
    }


def log_sum(values: Any) -> float:
    return float(np.logaddexp.reduce(list(values)))


@settings(max_examples=40)
@given(LENGTHS, st.integers(0, 10_000), st.sampled_from([0.1, 1.0, 8.0]))
def test_the_field_agrees_with_enumeration(lengths: list[int], seed: int, spread: float):
    draw = np.random.default_rng(seed)
    first_Q = np.cumsum([0, *lengths])
    emission, transition = draw.normal(0, spread, (int(first_Q[-1]), 3)), draw.normal(0, spread, (3, 3))
    posterior = infer(emission, transition, Packing.of(first_Q))
    partitions = []
    spans = list_spans(posterior, first_Q, 0.0, max(lengths))
    listed = {(int(a), int(b)): p for a, b, p in zip(*spans, strict=True)}
    for begin, end in itertools.pairwise(first_Q.tolist()):
        scores = enumerate_tags(emission[begin:end], transition)
        partitions.append(log_sum(scores.values()))
        marginal = np.zeros((end - begin, 3))
        for tags, score in scores.items():
            marginal[np.arange(end - begin), tags] += math.exp(score - partitions[-1])
        np.testing.assert_allclose((posterior.forward * posterior.backward)[begin:end], marginal, atol=1e-9)
        for a, b in itertools.combinations_with_replacement(range(end - begin), 2):
            shape = (BEGIN, *[INSIDE] * (b - a))
            exactly = [s for t, s in scores.items() if t[a : b + 1] == shape and t[b + 1 : b + 2] != (INSIDE,)]
            truth = math.exp(log_sum(exactly) - partitions[-1]) if exactly else 0.0
            (p,) = span_probabilities(posterior, np.array([begin + a]), np.array([begin + b]))
            assert p == pytest.approx(truth, abs=1e-9)
            assert listed[begin + a, begin + b] == p
    assert posterior.log_z == pytest.approx(math.fsum(partitions), abs=1e-8)
    assert len(listed) == sum(n * (n + 1) // 2 for n in lengths)


@given(LENGTHS, st.integers(0, 10_000), st.sampled_from([0.05, 0.3]))
def test_listed_spans_are_those_above_the_floor(lengths: list[int], seed: int, floor: float):
    draw = np.random.default_rng(seed)
    first_Q = np.cumsum([0, *lengths])
    posterior = infer(draw.normal(0, 2, (int(first_Q[-1]), 3)), draw.normal(0, 1, (3, 3)), Packing.of(first_Q))
    every = list_spans(posterior, first_Q, 0.0, 3)
    some = list_spans(posterior, first_Q, floor, 3)
    above = every[2] >= floor
    assert [column.tolist() for column in some] == [column[above].tolist() for column in every]
    use = choose(*some)
    cells = [t for i in use.tolist() for t in range(int(some[0][i]), int(some[1][i]) + 1)]
    assert cells == sorted(set(cells))
    if len(some[2]):
        assert int(np.argmax(some[2])) in use.tolist()


def test_an_empty_shard_has_no_spans():
    none = np.zeros(1, dtype=np.int64)
    posterior = infer(np.zeros((0, 3)), np.zeros((3, 3)), Packing.of(none))
    assert [len(column) for column in list_spans(posterior, none, 0.1, 4)] == [0, 0, 0]


def test_a_fitted_field_expects_what_it_was_shown():
    """Where the likelihood is at its maximum, expected and observed counts of unpenalised weights agree."""
    draw = np.random.default_rng(5)
    first_Q = np.cumsum([0, *draw.integers(1, 9, 60)])
    size = int(first_Q[-1])
    tags = np.zeros(size, dtype=np.int64)
    for begin, end in itertools.pairwise(first_Q.tolist()):
        sequences = legal(end - begin) if end - begin < 6 else [(0, 1, 2, 2, 0, 1, *[0] * (end - begin - 6))]
        tags[begin:end] = sequences[int(draw.integers(len(sequences)))]
    rows = np.stack([draw.integers(0, 4, size), 10 + tags * (draw.random(size) < 0.6)], axis=1).astype(np.int32)
    tagger = fit_tagger(rows, tags, first_Q, 0.5, 200, 4)
    posterior = tagger.posterior(rows, first_Q)
    expected = (posterior.forward * posterior.backward).sum(axis=0)
    np.testing.assert_allclose(expected, np.bincount(tags, minlength=3), rtol=0.02)
    again = fit_tagger(rows, tags, first_Q, 0.5, 200, 4)
    assert again.layer.weights_NK.tobytes() == tagger.layer.weights_NK.tobytes()


# ---- fitting --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(0, 1000), st.sampled_from([0.01, 1.0]))
def test_minimise_finds_the_minimum_of_a_quadratic(size: int, seed: int, least: float):
    draw = np.random.default_rng(seed)
    root = draw.normal(size=(size, size))
    curved, goal = root @ root.T + least * np.eye(size), draw.normal(size=size)

    def loss(theta: Any) -> tuple[float, Any]:
        away = theta - goal
        return 0.5 * float(away @ curved @ away), curved @ away

    start = np.zeros(size)
    found = minimise(loss, start, 500, tolerance=0.0)
    assert loss(found)[0] <= 1e-8 * max(1.0, loss(start)[0])
    assert not start.any()
    few = minimise(loss, start, 1)
    assert loss(few)[0] <= loss(start)[0]


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 2), st.sampled_from([-1.0, 0.0, 2.0]))
def test_calibrated_confidence_rises_with_every_part(seed: int, parts: int, sign: float):
    """Even where the held-out text says the opposite (sign < 0), no weight is negative."""
    draw = np.random.default_rng(seed)
    values = tuple(draw.random(300) for _ in range(parts))
    correct = draw.random(300) < 1 / (1 + np.exp(-sign * 4 * (values[0] - 0.5)))
    calibration = fit_calibration(values, correct)
    assert all(w >= 0 for w in calibration.weights)
    grid = np.linspace(0, 1, 51)
    for i in range(parts):
        shown = [np.full(51, 0.4)] * parts
        shown[i] = grid
        p = calibration.apply(*shown)
        assert (np.diff(p) >= 0).all()
        assert ((p >= 0) & (p <= 1)).all()


def test_too_little_held_out_text_leaves_confidence_as_it_is():
    p = np.linspace(0.01, 0.99, 30)
    calibration = fit_calibration((p,), np.arange(30) < 15)
    assert calibration == Calibration((1.0,), 0.0)
    np.testing.assert_allclose(calibration.apply(p), p, atol=1e-6)


# ---- order ----------------------------------------------------------------------------------------------------------

EDGES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=14)


@given(EDGES, st.randoms(use_true_random=False))
def test_every_order_is_a_permutation_and_repeats(pairs: list[tuple[int, int]], draw: Any):
    ranks = ordering.topological(7, pairs)
    assert sorted(ranks) == list(range(7))
    shuffled = [*pairs, *pairs]
    draw.shuffle(shuffled)
    assert ordering.topological(7, shuffled) == ranks
    forward = [(a, b) for a, b in pairs if a < b]
    assert ordering.topological(7, forward) == list(range(7))
    backward = [(b, a) for a, b in forward]
    told = ordering.topological(7, backward)
    assert all(told[b] < told[a] for a, b in forward)


def test_a_cycle_is_cut_at_the_event_told_first():
    assert ordering.topological(3, [(0, 1), (1, 2), (2, 0)]) == [0, 1, 2]
    assert ordering.topological(4, [(2, 1), (1, 2), (2, 3), (3, 0)]) == [0, 1, 2, 3]
    assert ordering.topological(2, [(0, 0), (1, 0)]) == [1, 0]
    assert ordering.topological(0, []) == []


def text_of(*sentences: str, window_id: str = "w1") -> Text:
    return read_text(*frames_of({f"{window_id}:d": (window_id, list(sentences))}))


def order_of(triggers: list[str], *sentences: str) -> list[str]:
    """Triggers, given in text order, in the order in which they happened."""
    text = text_of(*sentences)
    at = [text.texts[0].index(trigger) for trigger in triggers]
    ends = [a + len(t) for a, t in zip(at, triggers, strict=True)]
    first, last = text.locate([text.doc_ids[0]] * len(at), np.array(at), np.array(ends))
    ranks = ordering.rank(text, first, ordering.before_edges(text, first, last)).tolist()
    return [trigger for _, trigger in sorted(zip(ranks, triggers, strict=True))]


@pytest.mark.parametrize(
    ("sentences", "triggers", "turned"),
    [
        (("Ann paid Bob and sued Cay.",), ["paid", "sued"], False),
        (("Ann paid Bob before she sued Cay.",), ["paid", "sued"], False),
        (("Ann paid Bob after she sued Cay.",), ["paid", "sued"], True),
        (("Ann paid Bob; after that she sued Cay.",), ["paid", "sued"], False),
        (("Ann paid Bob; before that she sued Cay.",), ["paid", "sued"], True),
        (("Before Ann paid Bob, she sued Cay.",), ["paid", "sued"], True),
        (("Ann paid Bob. ", "Earlier she sued Cay."), ["paid", "sued"], True),
        (("Ann paid Bob. ", "Later she sued Cay."), ["paid", "sued"], False),
    ],
)
def test_connectives_order_events(sentences: tuple[str, ...], triggers: list[str], turned: bool):
    assert order_of(triggers, *sentences) == (triggers[::-1] if turned else triggers)


def test_relations_join_all_hypotheses_of_two_spans():
    events = pl.DataFrame({"window_id": ["w"] * 3, "event_id": ["a/x", "a/y", "b/x"]})
    found = ordering.relations(events, np.array([0, 0, 1]), [(1, 0, 0.9)])
    assert found.select("head_event_id", "tail_event_id").rows() == [("b/x", "a/x"), ("b/x", "a/y")]


# ---- pairs ----------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=6), st.integers(0, 2), st.integers(0, 10_000),
    st.integers(0, 12), st.integers(0, 12),
)  # fmt: skip
def test_pairs_against_a_plain_loop(lengths: list[int], reach: int, seed: int, events: int, mentions: int):
    """Sentences of up to 400 words, every second one in a document of its own."""
    draw = np.random.default_rng(seed)
    documents = {f"d{i // 2}": ("w", []) for i in range(len(lengths))}
    for i, length in enumerate(lengths):
        documents[f"d{i // 2}"][1].append("a " * length)
    text = read_text(*frames_of(documents))
    first = [np.sort(draw.integers(0, text.size, n)) for n in (events, mentions)]
    zero = [np.zeros(len(f), np.uint64) for f in first]
    spans = [Spans(f, f, z, z, z.astype(np.int64)) for f, z in zip(first, zero, strict=True)]
    found = list(zip(*(axis.tolist() for axis in list_pairs(text, *spans, reach)), strict=True))
    assert found == [
        (e, m)
        for e, a in enumerate(first[0].tolist()) for m, b in enumerate(first[1].tolist())
        if text.doc_T[a] == text.doc_T[b] and abs(a - b) <= FAR
        and abs(text.sentence_T[a] - text.sentence_T[b]) <= reach
    ]  # fmt: skip


# ---- clusters and chains --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("surfaces", "clusters"),
    [
        (["Ann Smith", "Smith", "Ann"], [0, 0, 0]),
        (["the Bank", "The bank's", "bank"], [0, 0, 0]),
        (["International Monetary Fund", "the IMF", "imf"], [0, 0, 0]),
        (["Acme Motor Works", "Acme", "Acme Motor"], [0, 0, 0]),
        (["he", "he", "She", "they", "it"], [0, 1, 2, 3, 4]),
        (["Ann Smith", "Bob Smith", "Smith", "Ann"], [0, 1, 2, 0]),
        (["Ann Smith", "Joann Smith", "Smith"], [0, 1, 2]),
        (["Inter Media Firm", "Iron Mill Furnace", "IMF"], [0, 1, 2]),
        (["the red car", "car"], [0, 1]),
        (["Mrs Smith", "Smith", "Ann Smith"], [0, 0, 0]),
        (["Mr Smith", "Mrs Smith", "Smith"], [0, 1, 2]),
        ([], []),
    ],
)
def test_clusters_by_string_match(surfaces: list[str], clusters: list[int]):
    assert cluster(surfaces) == clusters


NAMES = st.sampled_from(["Ann Smith", "Smith", "Ann", "Bob Smith", "she", "it", "IMF", "Iron Mill Furnace", "the mill",
                         "Mill", "\N{SLIGHTLY SMILING FACE}", "'s", "\u200b", "E\u0301va",
                         "Ann Smith Jones"])  # fmt: skip


@given(st.lists(st.one_of(NAMES, st.text(min_size=1, max_size=6)), max_size=10))
def test_clusters_are_first_members_and_pronouns_stay_alone(surfaces: list[str]):
    found = cluster(surfaces)
    assert all(found[j] == j <= i for i, j in enumerate(found))
    for i, surface in enumerate(surfaces):
        if surface in ("she", "it"):
            assert found.count(i) == 1


def test_chains_need_type_and_head_word():
    events = pl.DataFrame({
        "window_id": ["w", "w", "w", "v"], "event_id": ["1", "2", "3", "4"], "type": ["a", "a", "b", "a"],
        "surface": ["was stolen", "steals", "stole", "stole"],
    })  # fmt: skip
    assert chains.link(events).to_list() == ["1", "1", "3", "4"]


# ---- scores ---------------------------------------------------------------------------------------------------------


def scored_example() -> tuple[dict[str, pl.DataFrame], dict[str, pl.DataFrame], pl.DataFrame]:
    """`aaaa bbbb cccc dddd` in two labelled sentences (0-10, 10-20) and one that is not (20-30)."""
    own = {"window_id": "w", "doc_id": "d"}
    _, sentences = frames_of({"d": ("w", ["x" * 10] * 3)})

    def event(key: str, start: int, end: int, kind: str, **more: Any) -> dict[str, Any]:
        return {**own, "event_id": key, "chain_id": key, "start": start, "end": end, "surface": "x", "type": kind,
                **more}  # fmt: skip

    def mention(key: str, start: int, end: int, **more: Any) -> dict[str, Any]:
        return {**own, "mention_id": key, "entity_id": key, "start": start, "end": end, "surface": "x", "type": None,
                **more}  # fmt: skip

    def argument(key: str, filler: str, role: str, **more: Any) -> dict[str, Any]:
        return {"window_id": "w", "event_id": key, "mention_id": filler, "role": role, **more}

    gold = {
        "events": [event("g1", 0, 4, "A", realis=None), event("g2", 5, 8, "B", realis=None),
                   event("g3", 10, 14, "A", realis=None)],
        "mentions": [mention("m1", 4, 5), mention("m2", 15, 19)],
        "arguments": [argument("g1", "m1", "agent"), argument("g3", "m2", "agent")],
        "labelled": [{**own, "sentence": 0}, {**own, "sentence": 1}],
    }  # fmt: skip
    found = {
        "events": [
            event("e1", 0, 4, "A", confidence=0.9, order=0), event("e1b", 0, 4, "B", confidence=0.6, order=0),
            event("e2", 5, 9, "B", confidence=0.8, order=1), event("e3", 10, 14, "B", confidence=0.7, order=2),
            event("e4", 15, 19, "A", confidence=0.1, order=3), event("e5", 22, 25, "A", confidence=0.9, order=4),
        ],
        "mentions": [mention("n1", 4, 5, confidence=0.9), mention("n2", 16, 19, confidence=0.9),
                     mention("n3", 26, 29, confidence=0.9)],
        "arguments": [
            argument("e1", "n1", "agent", confidence=0.8), argument("e3", "n2", "agent", confidence=0.8),
            argument("e4", "n2", "agent", confidence=0.6), argument("e5", "n3", "agent", confidence=0.9),
            argument("e1", "n2", "agent", confidence=0.1),
        ],
    }  # fmt: skip
    return (
        {name: tables.table(f"ingest/gold/test/{name}").frame(rows) for name, rows in gold.items()},
        {name: tables.table(f"extract/{name}").frame(rows) for name, rows in found.items()},
        sentences,
    )


def test_scores_of_a_worked_example():
    """Decided events: e1 right, e2 overlaps g2, e3 has the wrong type; e1b yields to e1, e4 is unsure, e5 aside."""
    scores = score_extraction(*scored_example(), Decision(0.5, 0.5))
    assert scores["trigger_exact"] == Score(3, 1, 3, 1)
    assert scores["trigger_overlap"] == Score(3, 2, 3, 2)
    assert scores["trigger_span"] == Score(3, 2, 3, 2)
    assert scores["mention_exact"] == Score(2, 1, 2, 1)
    assert scores["mention_overlap"] == Score(2, 2, 2, 2)
    # e3's argument is one of a B, e4's (an A) overlaps the gold one; e5 lies where nothing was annotated.
    assert scores["argument_exact"] == Score(3, 1, 2, 1)
    assert scores["argument_overlap"] == Score(3, 2, 2, 2)
    argument = scores["argument_exact"]
    assert (argument.precision, argument.recall) == (pytest.approx(1 / 3), 0.5)
    assert argument.f1 == pytest.approx(0.4)
    assert argument.as_dict() == {"precision": 0.3333, "recall": 0.5, "f1": 0.4, "found": 3, "gold": 2}


def test_scores_at_the_edges():
    assert (Score(0, 0, 3, 0).precision, Score(0, 0, 3, 0).f1, Score(0, 0, 3, 0).recall) == (None, None, 0.0)
    assert Score(2, 0, 0, 0).f1 is None
    assert Score(2, 0, 2, 0).f1 == 0.0
    gold, found, sentences = scored_example()
    assert decide(gold, found, sentences).event <= 0.9
    copied = {name: gold[name].with_columns(confidence=pl.lit(1.0)) for name in found}
    perfect = score_extraction(gold, copied, sentences, Decision(0.5, 0.5))
    assert {score.f1 for score in perfect.values()} == {1.0}
