"""Stage `extract`: exact spans in hostile text, the model on disk, the stage on a tiny corpus."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import tables
from pipeline.errors import DataError, ParamError
from pipeline.files import check_complete
from stages.extract import __main__ as stage
from stages.extract.annotated import drawn, fold_of, windows_of
from stages.extract.folds import CrossFitted, Extractor
from stages.extract.linear import Floors, LinearExtractor
from stages.extract.models import load_extractor, save_extractor
from stages.extract.storage import CONFIG, WEIGHTS
from stages.extract.tokens import read_text
from tests.stages.extracting import clear, contents, frames_of, params, rewrite

# ---- Unicode --------------------------------------------------------------------------------------------------------

ODD = ["e\u0301", "\N{SLIGHTLY SMILING FACE}", "\N{MAN}\u200d\N{WOMAN}\u200d\N{GIRL}", "\u05e9\u05dc\u05d5\u05dd",
       "\u202e", "\r\n", "\u200b",
       "\u00a0", "\ufeff", "\u2028", "\U0001d400", "\u0130", "\t", "\x00", "_", "\u00df"]  # fmt: skip


@pytest.fixture(scope="module")
def model(extracted: Path) -> CrossFitted:
    found = load_extractor(extracted / stage.MODEL)
    assert isinstance(found, CrossFitted)
    return found


@given(st.lists(st.lists(st.one_of(st.sampled_from(ODD), st.text(max_size=8)), max_size=5), max_size=4))
def test_tokens_are_exact_and_ordered(documents: list[list[str]]):
    text = read_text(*frames_of({f"d{i}": ("w", pieces) for i, pieces in enumerate(documents)}))
    spans = list(zip(text.doc_T.tolist(), text.start_T.tolist(), text.end_T.tolist(), strict=True))
    for (doc, start, end), word in zip(spans, text.word_T.tolist(), strict=True):
        assert text.texts[doc][start:end] == text.words[word] != ""
    assert spans == sorted(spans) and all(a[2] <= b[1] for a, b in itertools.pairwise(spans) if a[0] == b[0])
    first, last = text.locate([text.doc_ids[d] for d, _, _ in spans], text.start_T, text.end_T)
    assert first.tolist() == last.tolist() == list(range(text.size))
    assert text.first_Q[-1] == text.size


@pytest.fixture(scope="module")
def told(extracted: Path) -> list[list[str]]:
    """The sentences of a few documents of the test split."""
    documents = tables.read("ingest/documents", extracted / "data").filter(split="test").head(3)
    sentences = tables.read("ingest/sentences", extracted / "data")
    return [
        [text[a:b] for a, b in sentences.filter(doc_id=doc_id).select("start", "end").iter_rows()]
        for doc_id, text in documents.select("doc_id", "text").iter_rows()
    ]


@settings(max_examples=25)
@given(data=st.data())
def test_found_spans_are_exact_in_hostile_text(model: Extractor, told: list[list[str]], data: st.DataObject):
    places = data.draw(st.lists(st.tuples(st.floats(0, 1), st.sampled_from(ODD)), min_size=5, max_size=40))
    documents = {}
    for i, sentences in enumerate(told):
        pieces = []
        for sentence in sentences:
            words = sentence.split(" ")
            for share, odd in places:
                at = int(share * (len(words) - 1))
                words[at] = f"{odd}{words[at]}" if share < 0.5 else f"{words[at]}{odd}"
            pieces.append(" ".join(words) + "\r\n")
        documents[f"d\u00e9:{i}-1"] = (f"w{i}", pieces)
    frames = frames_of(documents)
    texts = dict(frames[0].select("doc_id", "text").iter_rows())
    found = stage.read_shard(model, *frames)
    for name in ("events", "mentions"):
        for doc_id, start, end, surface in found[name].select("doc_id", "start", "end", "surface").iter_rows():
            assert texts[doc_id][start:end] == surface != ""
        assert not found[name].select(tables.table(f"extract/{name}").key).is_duplicated().any()
    assert found["mentions"].height > 0


@pytest.mark.parametrize(
    "text", ["", " ", "\u200b", "\r\n\r\n", "\N{SLIGHTLY SMILING FACE}" * 400, "a" * 5000, "\u0301"]
)
def test_texts_without_words_are_read(model: Extractor, text: str):
    found = stage.read_shard(model, *frames_of({"d": ("w", [text])}))
    for name, frame in found.items():
        assert frame.schema == tables.table(f"extract/{name}").schema
        if "surface" in frame.columns:
            assert all(text[a:b] == s for a, b, s in frame.select("start", "end", "surface").iter_rows())


# ---- the model on disk ----------------------------------------------------------------------------------------------


def test_a_stored_model_is_the_same_model(model: Extractor, extracted: Path, tmp_path: Path):
    save_extractor(tmp_path, model)
    kept = extracted / stage.MODEL
    assert {f: (tmp_path / f).read_bytes() for f in (WEIGHTS, CONFIG)} == {
        f: (kept / f).read_bytes() for f in (WEIGHTS, CONFIG)
    }
    window = tables.read("ingest/documents", extracted / "data")["window_id"][0]
    frames = [tables.read(name, extracted / "data", (window, window)) for name in stage.INPUTS]
    first, second = (stage.read_shard(m, *frames) for m in (model, load_extractor(tmp_path)))
    assert all(first[name].equals(second[name]) for name in stage.OUTPUTS)
    assert first["events"].height > 0


@pytest.mark.parametrize("file", [WEIGHTS, CONFIG])
@pytest.mark.parametrize("harm", ["missing", "cut", "garbage", "empty"])
def test_a_broken_model_is_one_clear_error(extracted: Path, tmp_path: Path, file: str, harm: str):
    folder = tmp_path / "extract"
    shutil.copytree(extracted / stage.MODEL, folder)
    whole = (folder / file).read_bytes()
    (folder / file).unlink()
    if harm != "missing":
        (folder / file).write_bytes({"cut": whole[: len(whole) // 2], "garbage": b"\xff" * 64, "empty": b""}[harm])
    with pytest.raises(DataError) as caught:
        load_extractor(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [('"format": 1', '"format": 2'), ('"reach"', '"breach"'), ('"trigger":', '"trigge":')]
)
def test_a_model_of_another_format_is_refused(extracted: Path, tmp_path: Path, change: tuple[str, str]):
    folder = tmp_path / "extract"
    shutil.copytree(extracted / stage.MODEL, folder)
    config = (folder / CONFIG).read_text(encoding="utf-8")
    assert change[0] in config
    (folder / CONFIG).write_text(config.replace(*change), encoding="utf-8")
    with pytest.raises(DataError):
        load_extractor(folder)


# ---- the stage ------------------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(extracted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny corpus with everything extracted, as working directory."""
    shutil.copytree(extracted, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_stage_writes_four_consistent_tables(workspace: Path):
    texts = dict(tables.read("ingest/documents").select("doc_id", "text").iter_rows())
    found = {name: tables.read(f"extract/{name}") for name in stage.OUTPUTS}
    for name, frame in found.items():
        assert frame.height > 0, name
        assert frame["confidence"].is_between(0, 1).all()
        assert not frame.select(tables.table(f"extract/{name}").key).is_duplicated().any()
    for name in ("events", "mentions"):
        for doc_id, start, end, surface in found[name].select("doc_id", "start", "end", "surface").iter_rows():
            assert texts[doc_id][start:end] == surface
    events, mentions = set(found["events"]["event_id"]), set(found["mentions"]["mention_id"])
    assert set(found["arguments"]["event_id"]) <= events and set(found["arguments"]["mention_id"]) <= mentions
    relations = found["relations"]
    assert set(relations["head_event_id"]) | set(relations["tail_event_id"]) <= events
    assert set(found["mentions"]["entity_id"]) <= mentions and set(found["events"]["chain_id"]) <= events
    assert found["events"]["confidence"].min() >= params().extract.trigger_floor  # type: ignore[operator]
    for (_,), rows in found["events"].group_by("window_id"):
        assert set(rows["order"]) == set(range(rows["order"].n_unique()))
    assert set(contents("data/.work/extract")) == set()
    check_complete(stage.MODEL)


def test_other_gold_changes_nothing_and_nothing_else_does(workspace: Path):
    """Label isolation: without gold of cal and test, and without the closed roster, every byte stays the same."""
    before = contents("models", "data/extract")
    assert len([name for name in before if name.endswith(".parquet")]) == 4
    for split in ("cal", "test"):
        shutil.rmtree(f"data/ingest/gold/{split}")
    tables.path("ingest/roster").unlink()
    stage.main(params())
    assert contents("models", "data/extract") == before


def test_train_gold_does_change_the_model(workspace: Path):
    """The test above would pass for a stage that reads nothing."""
    before = contents("models", "data/extract")
    rewrite("ingest/gold/train/arguments", pl.lit("agent").alias("role"))
    stage.main(params())
    after = contents("models", "data/extract")
    assert before.keys() == after.keys() and before[f"{stage.MODEL}/{WEIGHTS}"] != after[f"{stage.MODEL}/{WEIGHTS}"]
    assert set(tables.read("extract/arguments")["role"]) == {"agent"}


def test_a_killed_run_goes_on_where_it_stopped(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    model, shards = load_extractor(stage.MODEL), tables.shards("ingest/documents", size=4)
    assert len(shards) == 4
    stage.apply(model, shards)
    before = contents("data/extract")
    read, seen = stage.read_shard, []

    def read_some(model: Extractor, documents: pl.DataFrame, sentences: pl.DataFrame) -> Any:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(documents["window_id"][0])
        return read(model, documents, sentences)

    shutil.rmtree("data/extract")
    with monkeypatch.context() as patch:
        patch.setattr(stage, "read_shard", read_some)
        with pytest.raises(KeyboardInterrupt):
            stage.apply(model, shards)
    assert contents("data/extract") == {}
    assert seen == [first for first, _ in shards[:2]]

    def read_rest(model: Extractor, documents: pl.DataFrame, sentences: pl.DataFrame) -> Any:
        seen.append(documents["window_id"][0])
        return read(model, documents, sentences)

    monkeypatch.setattr(stage, "read_shard", read_rest)
    stage.apply(model, shards)
    assert seen == [first for first, _ in shards]
    assert contents("data/extract") == before
    assert contents("data/.work/extract") == {}


def test_shards_of_another_model_are_not_used(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    old = Path("data/.work/extract/0123456789abcdef/000000/_COMPLETE")
    old.parent.mkdir(parents=True)
    old.write_text("{}", encoding="utf-8")
    before, first = contents("data/extract"), stage.input_hash()
    stage.apply(load_extractor(stage.MODEL), tables.shards("ingest/documents"))
    assert contents("data/extract") == before and not old.exists()
    config = stage.MODEL / CONFIG
    config.write_text(config.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert stage.input_hash() != first


def test_the_size_of_a_shard_changes_no_row(workspace: Path):
    before = {name: tables.read(f"extract/{name}") for name in stage.OUTPUTS}
    stage.apply(load_extractor(stage.MODEL), tables.shards("ingest/documents", size=3))
    assert all(tables.read(f"extract/{name}").equals(frame) for name, frame in before.items())


def test_without_a_train_event_there_is_one_clear_error(workspace: Path):
    clear(*(f"ingest/gold/{split}/{name}" for split in ("train", "tune") for name in tables.GOLD))
    before = contents("models", "data/extract")
    with pytest.raises(DataError, match=r"extract\.from") as caught:
        stage.main(params())
    assert "\n" not in str(caught.value)
    assert contents("models", "data/extract") == before


def test_without_tune_events_a_tenth_of_train_is_held_out(workspace: Path):
    clear(*(f"ingest/gold/tune/{name}" for name in tables.GOLD))
    windows = windows_of("train")
    held_out = {w for w in windows if stage.stable_seed("held out", params().seed, w) % 10 == 0}
    stage.main(params())
    card = (stage.MODEL / "README.md").read_text(encoding="utf-8")
    assert f"| windows | {len(windows - held_out)} | {len(held_out)} |" in card


def test_drawn_windows_do_not_depend_on_each_other():
    windows = {f"w{i}" for i in range(40)}
    few = drawn(windows, 10, 7)
    assert len(few) == 10 and few <= windows
    assert drawn(windows - {min(windows - few)}, 10, 7) == few
    assert drawn(windows, 100, 7) == windows
    assert drawn(windows, 10, 8) != few


def test_triggers_alone_make_an_extractor_of_events(workspace: Path):
    """Only event annotation, as in corpora without arguments: events, no mention, no role."""
    lacking = ("entities", "mentions", "arguments")
    clear(*(f"ingest/gold/{split}/{name}" for split in ("train", "tune") for name in lacking))
    stage.main(params())
    fitted = load_extractor(stage.MODEL)
    assert isinstance(fitted, CrossFitted) and isinstance(fitted.whole, LinearExtractor)
    assert fitted.candidate_kind == "event_chain" and fitted.whole.mention is None and fitted.whole.role is None
    assert tables.read("extract/events").height > 0
    assert tables.read("extract/mentions").is_empty() and tables.read("extract/arguments").is_empty()


# ---- cross-fitting --------------------------------------------------------------------------------------------------


def test_no_window_is_read_by_a_model_that_was_fitted_on_it(workspace: Path, model: CrossFitted):
    """Other gold in one half of train changes what is read in the other half, and nothing in that half itself."""
    train = {fold: {w for w in windows_of("train") if fold_of(w) == fold} for fold in (0, 1)}
    assert all(train.values())
    assert set(model.read_by.values()) == {0, 1}

    def found(windows: set[str]) -> dict[str, pl.DataFrame]:
        own = pl.Series(sorted(windows)).implode()
        return {name: tables.read(f"extract/{name}").filter(pl.col("window_id").is_in(own)) for name in stage.OUTPUTS}

    before = {fold: found(windows) for fold, windows in train.items()}
    changed = pl.Series(sorted(train[0])).implode()
    for name in ("events", "arguments", "mentions", "labelled"):
        gold = tables.read(f"ingest/gold/train/{name}")
        # Half 0 now teaches that nothing ever happens.
        gold = gold if name == "labelled" else gold.filter(~pl.col("window_id").is_in(changed))
        tables.write(f"ingest/gold/train/{name}", gold)
    documents = {name: tables.read(name) for name in stage.INPUTS}
    stage.main(params())
    after = {fold: found(windows) for fold, windows in train.items()}
    # A half without events leaves nothing to cross-fit with: then one model reads everything.
    assert isinstance(load_extractor(stage.MODEL), LinearExtractor)
    assert not after[1]["events"].equals(before[1]["events"])
    assert all(frame.equals(tables.read(name)) for name, frame in documents.items())


def test_gold_of_a_half_does_not_reach_its_own_reader(workspace: Path):
    windows = sorted(w for w in windows_of("train") if fold_of(w) == 0)
    own = pl.Series(windows).implode()
    before = {name: tables.read(f"extract/{name}") for name in stage.OUTPUTS}
    events = tables.read("ingest/gold/train/events")
    inside = pl.col("window_id").is_in(own)
    # The same types, on other events: which types there are is the ontology, not a label.
    turned = events.filter(inside).with_columns(pl.col("type").reverse())
    tables.write(
        "ingest/gold/train/events",
        pl.concat([events.filter(~inside), turned]).sort(tables.table("ingest/gold/train/events").sort),
    )
    assert not tables.read("ingest/gold/train/events").equals(events)
    stage.main(params())
    after = {name: tables.read(f"extract/{name}") for name in stage.OUTPUTS}
    # The spans that are found in half 0 come from half 1; types of half 0 reach them nowhere.
    kept = {name: (before[name].filter(inside), after[name].filter(inside)) for name in ("mentions", "events")}
    assert kept["mentions"][0].equals(kept["mentions"][1])
    assert kept["events"][0].equals(kept["events"][1])
    assert not before["events"].filter(~inside).equals(after["events"].filter(~inside))


def test_folds_with_a_broken_map_are_refused(extracted: Path, tmp_path: Path):
    folder = tmp_path / "extract"
    shutil.copytree(extracted / stage.MODEL, folder)
    for text in ('{"a": 2}', '{"a": true}', "[]"):
        (folder / "folds/read_by.json").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match="read_by"):
            load_extractor(folder)
    shutil.rmtree(folder / "folds/0")
    (folder / "folds/read_by.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="read_by"):
        load_extractor(folder)


# ---- a model that was fitted before ---------------------------------------------------------------------------------


def test_an_unknown_model_is_a_param_error(workspace: Path):
    with pytest.raises(ParamError, match=r"extract\.from"):
        stage.main(params(extract={"from_": "nobody"}))


def test_an_adopted_model_fits_nothing(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    before = contents("models", "data/extract")
    shutil.copytree(stage.MODEL, stage.FITTED / "kept/extract")
    shutil.rmtree(stage.MODEL)
    shutil.rmtree("data/extract")
    shutil.rmtree("data/ingest/gold")
    monkeypatch.setattr(stage, "cross_fit", None)
    stage.main(params(extract={"from_": "kept"}))
    after = contents(str(stage.MODEL), "data/extract")
    differing = {name for name in before if before[name] != after[name]}
    assert set(after) == set(before) and differing == {f"{stage.MODEL}/README.md", f"{stage.MODEL}/_COMPLETE"}
    assert "Taken from models/fitted/kept" in (stage.MODEL / "README.md").read_text(encoding="utf-8")


def test_an_adopted_model_takes_the_floors_of_the_parameters(workspace: Path):
    shutil.copytree(stage.MODEL, stage.FITTED / "kept/extract")
    before = tables.read("extract/events")
    stage.main(params(extract={"from_": "kept", "trigger_floor": 0.6}))
    after = tables.read("extract/events")
    assert 0 < after.height < before.height and after["confidence"].min() >= 0.6  # type: ignore[operator]
    assert load_extractor(stage.MODEL).floors == Floors(0.6, params().extract.mention_floor, params().extract.lattice)
    assert "Floors: events 0.6," in (stage.MODEL / "README.md").read_text(encoding="utf-8")


def test_an_adopted_model_must_be_whole(workspace: Path):
    kept = stage.FITTED / "kept/extract"
    shutil.copytree(stage.MODEL, kept)
    weights = bytearray((kept / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (kept / WEIGHTS).write_bytes(weights)
    before = contents(str(stage.MODEL))
    with pytest.raises(DataError, match="changed"):
        stage.main(params(extract={"from_": "kept"}))
    assert contents(str(stage.MODEL)) == before
