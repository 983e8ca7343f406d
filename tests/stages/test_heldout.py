"""Stage `heldout`: names that teach nothing, a draw of its own, what it may read, kept models, kills."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import fitted, quality, tables
from pipeline.errors import DataError
from pipeline.files import COMPLETE, check_complete, publish_directory, read_json, write_json
from pipeline.params import Params
from stages.extract.annotated import drawn, windows_of
from stages.extract.linear import Floors
from stages.extract.storage import CONFIG, WEIGHTS
from stages.extract.tokens import read_text
from stages.heldout import __main__ as stage
from stages.heldout.masking import WORD, common_words, in_original, is_name, mask, whole_word
from stages.heldout.model import READING, load_model, save_model
from stages.heldout.reading import Reader
from stages.roster.__main__ import main as roster
from tests.stages.extracting import clear, contents, frames_of, rewrite
from tests.stages.extracting import params as tiny_params
from tests.stages.ingesting import ROOT

SETTINGS = ("closed", "predicted", "hybrid")


def params(**changes: dict[str, Any]) -> Params:
    return tiny_params(**{"rank": {"splits": ["tune", "test"]}, **changes})


# ---- masking ---------------------------------------------------------------------------------------------------------

TEXTS = st.lists(
    st.one_of(
        st.sampled_from(
            ["Ann", "bush", "Bush", "e\u0301", "\u0130zmir", "\u01c5", "\U0001d400", "\N{SLIGHTLY SMILING FACE}", "_",
             " ", "\r\n", "\u2028", "US", "H5N1", "McKay's", "\u05e9\u05dc\u05d5\u05dd"]
        ),
        st.text(max_size=6),
    ),
    max_size=12,
).map("".join)  # fmt: skip


def documents(*texts: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    return frames_of({f"d{i}": ("w", [text]) for i, text in enumerate(texts)})


def masked(*texts: str, common: frozenset[str] = frozenset()) -> list[str]:
    out: list[str] = mask(documents(*texts)[0], common).documents["text"].to_list()
    return out


@given(st.lists(TEXTS, max_size=3))
def test_hidden_names_move_nothing(texts: list[str]) -> None:
    frame, sentences = documents(*texts)
    done = mask(frame, common_words(frame, sentences))
    before, after = read_text(frame, sentences), read_text(done.documents, sentences)
    assert [len(text) for text in after.texts] == [len(text) for text in before.texts]
    assert after.start_T.tolist() == before.start_T.tolist(), "the same tokens, each where it was"
    words = [before.words[i] for i in before.word_T.tolist()]
    shown = [after.words[i] for i in after.word_T.tolist()]
    hidden = [(a, b) for a, b in zip(words, shown, strict=True) if a != b]
    assert all(b == "X" and any(c.isupper() or c.istitle() for c in a) for a, b in hidden)
    assert sum(done.words.values()) == sum(len(WORD.findall(text)) for text in texts)
    ends = [whole_word(before.texts[d], e) for d, e in zip(after.doc_T.tolist(), after.end_T.tolist(), strict=True)]
    assert ends == before.end_T.tolist(), "and every end is found again"


def test_whoever_it_is_the_tokens_are_the_same() -> None:
    told = "Yesterday {0} robbed {1}. {1} wept; {0}'s car was seen. {0} fled."
    frames = [
        documents(told.format(*names), "it rained yesterday") for names in (("Bo Li", "Ann"), ("Al Oz", "Zebulon"))
    ]
    words = []
    for frame, sentences in frames:
        text = read_text(mask(frame, common_words(frame, sentences)).documents, sentences)
        words.append([text.words[i] for i in text.word_T.tolist()])
    assert words[0] == words[1]
    assert words[0][:5] == ["Yesterday", "X", "X", "robbed", "X"]


def test_capitals_of_ordinary_words_hide_nothing() -> None:
    frame, sentences = documents("Hackers steal data. the hackers ran. Bush said a bush burnt. Mr Bush and Bush met.")
    common = common_words(frame, sentences)
    assert "hackers" in common and "bush" not in common, "capitalised inside sentences more often than not"
    assert masked("Hackers Steal Data From Bush", common=common) == ["Hackers Steal Data From X   "]
    assert masked("On Monday He told Mr Obama") == ["On Monday He told Mr X    "], "closed classes stay"
    assert masked("Left Wing", "he left") == ["Left X   ", "he left"], "the window knows one of the words"
    assert masked("Zeta hit. Zeta paid", "see zeta.org") == ["X    hit. X    paid", "see zeta.org"], (
        "an address does not"
    )
    assert [is_name(word, frozenset({"us"})) for word in ("US", "us", "iPhone", "42")] == [False, False, True, False]
    assert is_name("US", frozenset()) and not is_name("I", frozenset())


def test_a_trigger_that_is_a_name_gets_its_end_and_id_back() -> None:
    text = "After Brexit and the Cold War"
    found = tables.table("extract/events").frame(
        {"window_id": "w", "event_id": f"d:{a}-{b}/T", "chain_id": "c", "doc_id": "d", "start": a, "end": b,
         "surface": "?", "type": "T", "confidence": 0.5, "order": i}
        for i, (a, b) in enumerate(((6, 7), (13, 16), (21, 27)))
    )  # fmt: skip
    shown, names = in_original(found, {"d": text})
    assert shown["surface"].to_list() == ["Brexit", "and", "Cold War"]
    assert shown["event_id"].to_list() == ["d:6-12/T", "d:13-16/T", "d:21-29/T"]
    assert names == {"d:6-7/T": "d:6-12/T", "d:21-27/T": "d:21-29/T"}


# ---- the stage -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(extracted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which ingest, extract, roster and heldout have run; never written to."""
    root = tmp_path_factory.mktemp("heldout")
    shutil.copytree(extracted, root, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        roster(params())
        stage.main(params())
    return root


@pytest.fixture
def workspace(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outputs() -> dict[str, bytes]:
    return contents("models/heldout", "data/heldout")


def test_what_it_writes_is_consistent_and_of_the_ranked_audited_windows(workspace: Path) -> None:
    results = quality.check("heldout", params(), stages=ROOT / "stages")
    assert [result.line() for result in results if not result.passed] == []
    ranked = tables.read("roster/windows").filter(pl.col("kept") & pl.col("split").is_in(["tune", "test"]))
    windows = tables.read("heldout/windows")
    assert windows["window_id"].to_list() == ranked["window_id"].to_list() != []
    assert (windows["hidden"] > 0).all()
    believed = load_model(stage.MODEL).believed.argument
    for setting in SETTINGS:
        arguments = tables.read(f"heldout/{setting}/arguments")
        assert arguments.height > 0 and (arguments["confidence"] >= believed).all()
    assert set(contents("data/.work/heldout")) == set()
    check_complete(stage.MODEL)


def test_it_knows_neither_the_other_extractor_nor_gold_of_what_it_reads(workspace: Path) -> None:
    before = outputs()
    assert f"models/heldout/{WEIGHTS}" in before and "data/heldout/events.parquet" in before
    for folder in ("data/extract", "models/extract", "data/ingest/gold/test", "data/ingest/gold/cal"):
        shutil.rmtree(folder)
    for setting in SETTINGS:
        tables.path(f"roster/{setting}/arguments").unlink()
    shutil.rmtree("data/heldout")
    stage.main(params())
    assert outputs() == before


def test_train_gold_does_change_what_it_says(workspace: Path) -> None:
    """The test above would pass for a stage that reads nothing."""
    rewrite("ingest/gold/train/arguments", pl.lit("agent").alias("role"))
    stage.main(params())
    assert set(tables.read("heldout/closed/arguments")["role"]) == {"agent"}


def test_other_people_with_names_of_the_same_length_change_nothing(workspace: Path) -> None:
    """At prediction, too: in the texts it reads every capitalised word that it hides is exchanged for another."""
    before = {name: tables.read(name) for name in stage.outputs(SETTINGS)}
    frame = tables.read("ingest/documents")
    read = pl.col("split").is_in(["tune", "test"])
    hidden = mask(frame, load_model(stage.MODEL).common).documents["text"].to_list()
    without = dict(zip(frame["text"].to_list(), hidden, strict=True))

    def renamed(text: str) -> str:
        def other(match: re.Match[str]) -> str:
            word = match.group()
            kept = without[text][match.start() : match.end()] == word
            return word if kept else "Q" + "z" * (len(word) - 1)

        return WORD.sub(other, text)

    frame = frame.with_columns(
        pl.when(read)
        .then(pl.col("text").map_elements(renamed, return_dtype=pl.String))
        .otherwise(pl.col("text"))
        .alias("text")
    )
    assert frame.filter(read)["text"].str.contains("Qzz").all()
    tables.write("ingest/documents", frame)
    model = load_model(stage.MODEL)
    reader = Reader(model, "entity", params().roster.merge_iou)
    stage.publish(stage.read_shards(reader, params()), SETTINGS)
    for name, rows in before.items():
        assert tables.read(name).drop("surface", strict=False).equals(rows.drop("surface", strict=False)), name


def test_its_draw_is_its_own() -> None:
    windows = {f"w{i}" for i in range(40)}
    few = drawn(windows, 10, 7, "heldout")
    assert len(few) == 10 and drawn(windows, 40, 7, "heldout") == windows
    assert drawn(windows - {min(windows - few)}, 10, 7, "heldout") == few, "no window depends on another"
    assert few not in (drawn(windows, 10, 8, "heldout"), drawn(windows, 10, 7)), "not what extract would draw"


def test_a_share_of_train_is_fitted_on(workspace: Path) -> None:
    train, _ = stage.read_splits(params(heldout={"share": 0.5}))
    assert train.documents["window_id"].n_unique() == -(-len(windows_of("train")) // 2)


def test_without_an_annotated_event_there_is_one_clear_error(workspace: Path) -> None:
    clear(*(f"ingest/gold/{split}/{name}" for split in ("train", "tune") for name in tables.GOLD))
    with pytest.raises(DataError, match=r"extract\.from") as caught:
        stage.main(params())
    assert "\n" not in str(caught.value)


def test_without_tune_events_a_tenth_of_the_draw_is_set_aside(workspace: Path) -> None:
    clear(*(f"ingest/gold/tune/{name}" for name in tables.GOLD))
    train, tune = stage.read_splits(params(heldout={"share": 1.0}))
    fitted_on, aside = set(train.documents["window_id"]), set(tune.documents["window_id"])
    assert not fitted_on & aside and fitted_on | aside == windows_of("train")
    stage.main(params())
    assert tables.read("heldout/events").height > 0


def test_a_killed_run_goes_on_where_it_stopped(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = params(rank={"splits": ["train", "tune", "test"]})
    reader = Reader(load_model(stage.MODEL), "entity", given.roster.merge_iou)
    stage.publish(stage.read_shards(reader, given), SETTINGS)
    whole = {name: tables.read(name) for name in stage.outputs(SETTINGS)}
    shutil.rmtree("data/.work/heldout")
    shards = tables.shards("roster/windows", size=3)
    monkeypatch.setattr(tables, "shards", lambda name: shards)
    read = Reader.read
    seen: list[str] = []

    def read_some(self: Reader, *frames: Any) -> Any:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(frames[0]["window_id"][0])
        return read(self, *frames)

    with monkeypatch.context() as patch:
        patch.setattr(Reader, "read", read_some)
        with pytest.raises(KeyboardInterrupt):
            stage.read_shards(reader, given)
    assert len(list(Path("data/.work/heldout").glob(f"*/*/{COMPLETE}"))) == 2
    again: list[str] = []

    def read_rest(self: Reader, *frames: Any) -> Any:
        again.append(frames[0]["window_id"][0])
        return read(self, *frames)

    monkeypatch.setattr(Reader, "read", read_rest)
    stage.publish(stage.read_shards(reader, given), SETTINGS)
    assert len(again) == len(shards) - 2 and not set(again) & set(seen)
    assert all(tables.read(name).equals(frame) for name, frame in whole.items()), "shards of another size, same rows"


def test_shards_of_another_model_are_not_used(workspace: Path) -> None:
    first = stage.work_folder(params())
    assert stage.work_folder(params(roster={"merge_iou": 0.9})) != first
    config = stage.MODEL / CONFIG
    config.write_text(config.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert stage.work_folder(params()) != first


def test_event_chains_take_part_in_their_own_events(workspace: Path) -> None:
    chains = params(roster={"candidate_kind": "event_chain"})
    roster(chains)
    stage.main(chains)
    arguments = tables.read("heldout/predicted/arguments")
    assert arguments.height > 0 and set(arguments["role"]) == {"self"}
    assert [r.line() for r in quality.check("heldout", chains, stages=ROOT / "stages") if not r.passed] == []


def test_triggers_alone_make_it_an_extractor_of_events(workspace: Path) -> None:
    lacking = ("entities", "mentions", "arguments")
    clear(*(f"ingest/gold/{split}/{name}" for split in ("train", "tune") for name in lacking), "ingest/roster")
    stage.main(params())
    model = load_model(stage.MODEL)
    assert stage.candidate_kind(params(), model) == "event_chain"
    assert tables.read("heldout/events").height > 0


# ---- kept models -----------------------------------------------------------------------------------------------------


def publish_reward() -> None:
    with publish_directory("models/reward") as folder:
        write_json(folder / "config.json", {})


def test_a_kept_model_is_used_with_the_floors_of_params(workspace: Path) -> None:
    publish_reward()
    before = outputs()
    assert [path.name for path in fitted.keep("news")] == ["extract", "reward", "heldout"]
    shutil.rmtree("data/ingest/gold")
    stage.main(params(extract={"from_": "news"}))
    assert outputs() == before
    stage.main(params(extract={"from_": "news", "lattice": 0.6}))
    assert load_model(stage.MODEL).extractor.floors.role == 0.6
    assert tables.read("heldout/closed/arguments").height < len(tables.read("roster/closed/arguments"))


def test_without_a_kept_model_it_says_so_and_writes_empty_tables(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.main(params(extract={"from_": "elsewhere"}))
    assert "no held-out extractor is kept under 'elsewhere': the audit will report no L3" in capsys.readouterr().err
    assert all(tables.read(name).is_empty() for name in stage.outputs(SETTINGS))
    assert "No held-out extractor" in (check_complete(stage.MODEL) / "README.md").read_text(encoding="utf-8")
    assert [r.line() for r in quality.check("heldout", params(), stages=ROOT / "stages") if not r.passed] == []


def test_a_replaced_model_keeps_no_held_out_one_of_before(workspace: Path) -> None:
    publish_reward()
    fitted.keep("news")
    stage.main(params(extract={"from_": "elsewhere"}))
    fitted.keep("news", replace=True)
    assert sorted(path.name for path in Path("models/fitted/news").iterdir()) == ["extract", "reward"]


def test_a_stored_model_is_the_same_model(finished: Path, tmp_path: Path) -> None:
    kept = finished / stage.MODEL
    model = load_model(kept)
    save_model(model, tmp_path)
    for file in (WEIGHTS, CONFIG, READING):
        assert (tmp_path / file).read_bytes() == (kept / file).read_bytes()
    assert model.extractor.floors == Floors(*(getattr(params().extract, f) for f in
                                              ("trigger_floor", "mention_floor", "lattice")))  # fmt: skip


@pytest.mark.parametrize("harm", [{}, [], {"believed": {"event": "x", "argument": 0.1}, "common_words": []},
                                  {"believed": {"event": 0.1, "argument": 0.1}, "common_words": [1]}])  # fmt: skip
def test_a_broken_model_is_one_clear_error(finished: Path, tmp_path: Path, harm: object) -> None:
    folder = tmp_path / "heldout"
    shutil.copytree(finished / stage.MODEL, folder)
    assert read_json(folder / READING)["common_words"]
    write_json(folder / READING, harm)
    with pytest.raises(DataError, match=r"broken model.*dvc repro heldout") as caught:
        load_model(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
