"""Hostile texts and outsized windows: exact spans, bounded work, the same results as the plain definitions."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import attachment, tables
from pipeline.assignment import assign
from pipeline.certificates import Entry
from pipeline.skeletons import Intent
from pipeline.spans import Span
from pipeline.verifier import Verifier, claimed_support, verify_claims
from pipeline.windows import Step, Window
from stages.extract import __main__ as extract
from stages.extract import limits, linear, pairs, portions
from stages.extract.annotated import INPUTS
from stages.extract.clusters import cluster
from stages.extract.encoder.coreference import join
from stages.extract.folds import Extractor
from stages.extract.models import load_extractor
from stages.extract.scores import Score, overlapping
from stages.ingest.clusters import name_keys
from stages.roster.candidates import merge
from stages.roster.overlap import Overlaps
from stages.roster.takes_part import own_events
from stages.trajectories import negatives
from tests.builders import PLAN, act, build_window, document, random_window
from tests.stages.encoding import fit as fit_tiny
from tests.stages.extracting import frames_of
from tests.test_verifier import PLAIN, bundle

BUSY = 5.0
"""Processor seconds that a bounded computation may take; the unbounded ones took at least four times as long."""


@pytest.fixture(scope="module")
def extractors(extracted: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Extractor]:
    """The linear model of the tiny corpus, and a hardly trained tiny encoder."""
    return {
        "linear": load_extractor(extracted / extract.MODEL),
        "encoder": fit_tiny(base, tmp_path_factory.mktemp("work"), epochs=4),
    }


def busy(run: Callable[[], object]) -> float:
    """Processor seconds of a call."""
    started = time.process_time()
    run()
    return time.process_time() - started


# ---- texts ----------------------------------------------------------------------------------------------------------

TALE = "Ann attacked Bob. Cid paid Dan after that. Copper Wolf blackmailed the Municipal Transport Authority (MTA). "
LONG = 100_000
TEXTS = {
    "long": (TALE * LONG)[:LONG],
    "without sentence ends": (TALE.replace(".", " and") * LONG)[:40_000],
    "one token": "a" * LONG,
    "one capital token among words": "Ann attacked " + "B" * LONG + " in May.",
    "no space": "a-b_c=" * (LONG // 6),
    "nothing": "",
    "blank": " \n\t\u3000\u00a0 ",
    "zero width": "\u200b\ufeff\u2060",
    "Chinese": "黑客攻击了银行并要求赎金。" * 300 + "公司报警" * 500,
    "Arabic and Hebrew": "هاجم القراصنة المصرف. האקרים תקפו את הבנק. \u202eabc\u202c " * 200,
    "Thai": "แฮกเกอร์โจมตีธนาคารเมื่อวานนี้และเรียกค่าไถ่ " * 200,
    "Devanagari": "हैकर्स ने बैंक पर हमला किया और फिरौती माँगी। " * 200,
    "control characters": "".join(c + chr(i % 32) for i, c in enumerate(TALE * 20)),
    "astral": "Ann attacked Bob \U0001f469\u200d\U0001f469 \U000e0001 and Cid. " * 100,
}


@pytest.mark.parametrize("kind", ["linear", "encoder"])
@pytest.mark.parametrize("name", TEXTS)
def test_spans_are_exact_in_any_text(extractors: dict[str, Extractor], kind: str, name: str) -> None:
    text = TEXTS[name]
    *begun, last = text.split(". ")
    found = extract.read_shard(extractors[kind], *frames_of({"d": ("w", [*(s + ". " for s in begun), last])}))
    for table, frame in found.items():
        declared = tables.table(f"extract/{table}")
        assert frame.schema == declared.schema
        assert not frame.select(declared.key).is_duplicated().any()
        if "surface" in frame.columns:
            for start, end, surface in frame.select("start", "end", "surface").iter_rows():
                assert text[start:end] == surface != ""
    if name == "long":
        assert found["events"].height > 100


def test_a_lone_surrogate_has_no_place_in_a_table() -> None:
    with pytest.raises(UnicodeEncodeError):
        frames_of({"d": ("w", ["Ann \ud800 Bob"])})


def test_what_a_limit_cuts_is_counted(extractors: dict[str, Extractor]) -> None:
    crowd = "Ann attacked Bob and " * 100
    frames = frames_of({"d": ("w", [crowd, "It rained. ", crowd])})
    met = {kind: limits.reached(model.analyse(*frames)) for kind, model in extractors.items()}
    assert met["linear"] == {limits.SENTENCES: 2}
    assert met["encoder"] == {limits.SENTENCES: 2, limits.WORDS: 0}
    frames = frames_of({"d": ("w", ["Ann attacked abcdefghijklmnopqrstuvwxyz twice, and abcdefgh once."])})
    assert limits.reached(extractors["encoder"].analyse(*frames))[limits.WORDS] == 1


def test_limits_are_said_even_of_shards_that_were_read_before(
    extracted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(extracted / "models")
    frames = frames_of({f"d{i}": (f"w{i}", ["Ann attacked Bob and " * 100]) for i in range(3)})
    for name, frame in zip(INPUTS, frames, strict=True):
        tables.write(name, frame)
    model, shards = load_extractor(extract.MODEL), [(f"w{i}", f"w{i}") for i in range(3)]
    read = extract.read_shard
    calls: list[str] = []

    def read_two(model: Extractor, documents: pl.DataFrame, sentences: pl.DataFrame) -> dict[str, pl.DataFrame]:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(documents["doc_id"][0])
        return read(model, documents, sentences)

    with monkeypatch.context() as patch:
        patch.setattr(extract, "read_shard", read_two)
        with pytest.raises(KeyboardInterrupt):
            extract.apply(model, shards)
    assert "limit:" not in capsys.readouterr().err
    extract.apply(model, shards)
    assert f"limit: 3 {limits.SAID[limits.SENTENCES]}" in capsys.readouterr().err


# ---- how much is read at once ---------------------------------------------------------------------------------------


def written(lengths: Sequence[int], per_window: int = 1) -> list[tuple[str, str]]:
    """Write documents of these lengths; the runs in which they are read."""
    texts = {f"d{i:03d}": (f"w{i // per_window:03d}", ["x" * n]) for i, n in enumerate(lengths)}
    tables.write("ingest/documents", frames_of(texts)[0])
    return portions.portions()


def test_long_windows_are_read_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(portions, "CHARACTERS", 100)
    assert written([40, 40, 40, 300, 10, 90, 1]) == [
        ("w000", "w001"), ("w002", "w002"), ("w003", "w003"), ("w004", "w005"), ("w006", "w006"),
    ]  # fmt: skip
    assert written([40, 40, 40, 40, 10, 10], per_window=2) == [("w000", "w000"), ("w001", "w002")]
    assert written([]) == []


def test_usual_windows_are_read_by_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tables, "SHARD_WINDOWS", 4)
    assert written([50] * 18, per_window=2) == tables.shards("ingest/documents")


def test_pairs_are_scored_a_few_at_a_time(extracted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_extractor(extracted / extract.MODEL)
    frames = [tables.read(name, extracted / "data") for name in INPUTS]
    whole = extract.read_shard(model, *frames)
    sizes: list[int] = []
    rows = pairs.pair_rows

    def counted(*arguments: object) -> object:
        out = rows(*arguments)  # type: ignore[arg-type]
        sizes.append(len(out))
        return out

    monkeypatch.setattr(linear, "pair_rows", counted)
    monkeypatch.setattr(linear, "PAIRS", 50)
    parts = extract.read_shard(model, *frames)
    assert all(parts[name].equals(whole[name]) for name in extract.OUTPUTS)
    assert max(sizes) == 50
    assert whole["arguments"].height > 50


# ---- rosters --------------------------------------------------------------------------------------------------------

spans = st.builds(lambda d, a, n: Span(f"d{d}", a, a + n), st.integers(0, 1), st.integers(0, 30), st.integers(1, 9))


@given(st.lists(spans, max_size=15), spans)
def test_overlaps_are_those_of_a_plain_loop(given_spans: list[Span], span: Span) -> None:
    items = list(enumerate(given_spans))
    found = Overlaps((other, i) for i, other in items).of(span)
    assert found == [(other, i) for i, other in items if span.overlaps(other)]


def many(n: int, shift: int) -> list[Span]:
    return [Span("d", 10 * i + shift, 10 * i + shift + 6) for i in range(n)]


def test_large_rosters_are_not_compared_pair_by_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    for name in ("overlaps", "iou"):
        plain = getattr(Span, name)

        def counted(self: Span, other: Span, plain: Callable[..., object] = plain, name: str = name) -> object:
            calls[name] += 1
            return plain(self, other)

        monkeypatch.setattr(Span, name, counted)
    n = 500
    merged = merge([(s,) for s in many(n, 0)], [(s,) for s in many(n, 2)], 0.5)
    assert merged == [[s] for s in many(n, 0)]
    assert calls["overlaps"] <= 4 * n
    calls.clear()
    events = tables.table("extract/events").frame(
        {"window_id": "w", "event_id": f"e{i}", "chain_id": f"e{i}", "doc_id": "d", "start": s.start, "end": s.end,
         "surface": "x", "type": "t", "order": i, "confidence": 1.0}
        for i, s in enumerate(many(n, 1))
    )  # fmt: skip
    assert own_events("w", events, many(n, 0), 0.5).height == n
    assert calls["iou"] <= 4 * n


NAMES = st.lists(
    st.lists(st.sampled_from(["Ann", "Bo", "Cy", "AB", "Olten", "Mrs"]), min_size=1, max_size=4).map(" ".join),
    max_size=9,
)  # fmt: skip


def plain_clusters(surfaces: list[str]) -> list[int]:
    """The rule, with rivals compared pair by pair; surfaces are proper names without determiners."""
    keys = [key for key in name_keys(surfaces) if key is not None]
    words = {}
    for key, surface in zip(keys, surfaces, strict=True):
        parts = surface.split()
        while len(parts) > 1 and parts[0] == "Mrs":
            parts = parts[1:]
        words[key] = parts

    def short_for(key: str, name: str) -> bool:
        mine, theirs = ([w.casefold() for w in words[k]] for k in (key, name))
        if len(theirs) <= len(mine):
            return False
        initials = "".join(w[0] for w in words[name])
        return mine in (theirs[: len(mine)], theirs[-len(mine) :]) or (
            len(mine) == 1 and len(words[key][0]) > 1 and words[key][0] == initials
        )

    longer = {}
    for key in words:
        names = {name for name in words if short_for(key, name)}
        maximal = {n for n in names if not any(n != other and f" {n} " in f" {other} " for other in names)}
        if len(maximal) == 1:
            longer[key] = maximal.pop()
    first: dict[str, int] = {}
    out = []
    for i, key in enumerate(keys):
        seen = {key}
        while key in longer and longer[key] not in seen:
            key = longer[key]
            seen.add(key)
        out.append(first.setdefault(key, i))
    return out


@settings(max_examples=300)
@given(NAMES)
def test_names_are_joined_as_by_comparing_all(surfaces: list[str]) -> None:
    assert cluster(surfaces) == plain_clusters(surfaces)


def test_a_thousand_namesakes_are_no_work() -> None:
    names = [f"{a.capitalize()}{b}x Olten" for a, b in product("abcdefghijklmnopqrst", range(500))]
    assert busy(lambda: cluster([*names, "Olten"])) < BUSY
    assert cluster([*names[:50], "Olten"]) == list(range(51))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=40), st.data())
def test_merged_clusters_lead_to_the_first(draws: list[int], data: st.DataObject) -> None:
    own = [min(d, i) for i, d in enumerate(draws)]
    own = [own[o] if own[o] == o else i for i, o in enumerate(own)]
    firsts = sorted(set(own))
    merges = [
        (later, data.draw(st.sampled_from(firsts[:i])), 0.9)
        for i, later in enumerate(firsts) if i and data.draw(st.booleans())
    ]  # fmt: skip
    parent = {later: earlier for later, earlier, _ in merges}

    def top(i: int) -> int:
        return top(parent[i]) if i in parent else i

    assert join(own, merges) == [top(i) for i in own]


def test_a_chain_of_pronouns_is_no_work() -> None:
    n = 20_000
    chain = [(i, i - 1, 0.9) for i in range(1, n)]
    assert busy(lambda: join(list(range(n)), chain)) < BUSY
    assert set(join(list(range(n)), chain)) == {0}


# ---- the verifier's cost --------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(0, 5_000), st.data())
def test_support_is_that_of_every_candidate_by_itself(seed: int, data: st.DataObject) -> None:
    """Whoever else stands in the roster; bystanders without a cited atom are never looked at and have none."""
    window = random_window(seed, candidates=5)
    handles = [h.span for h in window.handles]
    cited = data.draw(st.sets(st.sampled_from(handles), min_size=1, max_size=8))
    ids = [c.candidate_id for c in window.candidates]
    crowd = [f"bystander{i}" for i in range(200)]
    alone = {
        c: value
        for c in ids
        for value in Verifier([c], window.trajectories[c], PLAIN).support(cited).values()
    }  # fmt: skip
    everybody = Verifier([*crowd, *ids], window.steps, PLAIN)
    assert everybody.support(cited) == dict(sorted(alone.items()))
    assert everybody.verify([cited]) == Verifier(ids, window.steps, PLAIN).verify([cited])


class Counted(list[Step]):
    """Steps that count how often they are walked through."""

    walks = 0

    def __iter__(self):  # type: ignore[no-untyped-def]
        self.walks += 1
        return super().__iter__()


@settings(max_examples=30)
@given(st.integers(0, 5_000), st.sampled_from(["L0", "L1"]))
def test_claims_are_judged_as_by_asking_every_candidate(seed: int, level: Literal["L0", "L1"]) -> None:
    window = random_window(seed, candidates=5)
    ids = [c.candidate_id for c in window.candidates]
    claims = [Entry(c, (("s1", tuple(bundle(window, c, "t0", "t1"))),)) for c in ids]
    steps = Counted(window.steps)
    verdicts = verify_claims(claims, ids, steps, PLAIN, level)
    for claim, verdict in zip(claims, verdicts, strict=True):
        asked = ids if level == "L1" else [claim.candidate_id]
        supports = {c: claimed_support(claim, c, window.steps, PLAIN) for c in asked}
        best = max(sorted(supports), key=lambda c: supports[c])
        assert verdict.sigma == supports[best]
        assert verdict.candidate_id in (best, None)
    assert steps.walks <= 1


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=12))
def test_pairs_of_steps_are_those_of_the_whole_product(rows: list[tuple[int, int]]) -> None:
    order = [2, 0, 3, 1]
    fillers = [
        (j, act("a", "t", "r", Span("d", 10 * event, 10 * event + 5), Span("d", 90 + i, 91 + i)))
        for j in order for i, (slot, event) in enumerate(rows) if slot == j
    ]  # fmt: skip
    plain = [
        {a[0]: a[1], b[0]: b[1]}
        for a, b in product(fillers, fillers) if a[0] < b[0] and a[1].trigger != b[1].trigger
    ]  # fmt: skip
    assert list(attachment._pairs(fillers)) == plain


def test_ten_thousand_steps_in_one_slot_make_no_pairs() -> None:
    fillers = [(0, act("a", "t", "r", Span("d", 9 * i, 9 * i + 4), Span("d", 9 * i + 5, 9 * i + 8)))
               for i in range(10_000)]  # fmt: skip
    assert busy(lambda: list(attachment._pairs(fillers))) < BUSY


@settings(max_examples=60)
@given(st.lists(st.dictionaries(st.integers(0, 6), st.integers(-1, 4), max_size=7), min_size=1, max_size=3))
def test_first_choices_are_enough_for_the_best_assignment(rows: list[dict[int, int]]) -> None:
    columns = sorted({c for row in rows for c in row})

    def value(chosen: tuple[int | None, ...]) -> int:
        return sum(row[c] for row, c in zip(rows, chosen, strict=True) if c is not None)

    legal = [
        chosen for chosen in product([*columns, None], repeat=len(rows))
        if all(c is None or row.get(c, 0) > 0 for row, c in zip(rows, chosen, strict=True))
        and len([c for c in chosen if c is not None]) == len({c for c in chosen if c is not None})
    ]  # fmt: skip
    best = max(legal, key=lambda chosen: (value(chosen), [-(len(columns) if c is None else columns.index(c))
                                                          for c in chosen]))  # fmt: skip
    assert tuple(assign(rows)) == best


def test_contested_bundles_do_not_pay_for_the_whole_roster() -> None:
    rows = [{c: 500 + (7 * c + i) % 3 for c in range(10_000)} for i in range(40)]
    assert busy(lambda: assign(rows)) < BUSY


# ---- hard negatives -------------------------------------------------------------------------------------------------


def equals(n: int) -> Window:
    """n candidates who each attacked somebody alone."""
    names = [f"Name{i:05d} X" for i in range(n)]
    doc = document("d", "\n".join(f"{name} attacked it." for name in names))
    steps, at = [], 0
    for i, name in enumerate(names):
        place = doc.text.index(name, at)
        trigger = doc.text.index("attacked", place)
        at = trigger
        steps.append(act(name, "attack", "attacker", Span("d", trigger, trigger + 8),
                         Span("d", place, place + len(name)), order=i))  # fmt: skip
    return build_window([doc], names, steps)


def test_only_the_best_bases_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    window, intent = equals(300), Intent("any", 1, "", PLAN, "0" * 64)
    tried: Counter[str] = Counter()

    def counted(make: Callable[..., object]) -> Callable[..., object]:
        def run(fit: negatives.Fit, scene: negatives.Scene) -> object:
            tried[make.__name__] += 1
            return make(fit, scene)

        return run

    monkeypatch.setattr(negatives, "MAKERS", tuple(map(counted, negatives.MAKERS)))
    cut: Counter[str] = Counter()
    rows = negatives.window_negatives(window, intent, cut)
    assert max(tried.values()) == negatives.MAX_BASES == 100
    assert cut == {"bases": 200, "instances": 1}
    assert {row["kind"] for row in rows} >= {"drop_climax", "shifted_spans"}
    few: Counter[str] = Counter()
    negatives.window_negatives(equals(100), intent, few)
    assert not few


def test_negatives_of_a_large_window_are_bounded_work() -> None:
    window = equals(1_500)
    assert busy(lambda: negatives.window_negatives(window, Intent("any", 1, "", PLAN, "0" * 64))) < BUSY


# ---- scores ---------------------------------------------------------------------------------------------------------

rows_of = st.lists(
    st.tuples(st.sampled_from("de"), st.integers(0, 20), st.integers(1, 6), st.sampled_from("tu")), unique=True,
    max_size=12,
)  # fmt: skip


@given(rows_of, rows_of)
def test_overlaps_are_counted_as_by_all_pairs(
    gold: list[tuple[str, int, int, str]], found: list[tuple[str, int, int, str]]
) -> None:
    schema = {"doc_id": pl.String, "start": pl.Int64, "end": pl.Int64, "type": pl.String}

    def frame(rows: list[tuple[str, int, int, str]]) -> pl.DataFrame:
        return pl.DataFrame([(d, a, a + n, t) for d, a, n, t in rows], schema=schema, orient="row")

    def touch(a: tuple[str, int, int, str], b: tuple[str, int, int, str]) -> bool:
        return a[0] == b[0] and a[3] == b[3] and a[1] < b[1] + b[2] and b[1] < a[1] + a[2]

    right_found = sum(any(touch(f, g) for g in gold) for f in found)
    right_gold = sum(any(touch(f, g) for f in found) for g in gold)
    assert overlapping(frame(gold), frame(found)) == Score(len(found), right_found, len(gold), right_gold)


def test_scoring_a_large_document_is_bounded_work() -> None:
    n = 20_000
    start = np.arange(n) * 5
    frame = pl.DataFrame({"doc_id": ["d"] * n, "start": start, "end": start + 4, "type": ["t"] * n})
    assert busy(lambda: overlapping(frame, frame)) < BUSY
    assert overlapping(frame, frame) == Score(n, n, n, n)
