"""`certrank extract`: plain text read by models that were fitted on a tiny generated corpus, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import extract_text, files, fitted, plain_text, tables
from pipeline.errors import CertrankError, DataError, ParamError
from pipeline.extract_text import known_types, too_few
from pipeline.params import Params, load_params
from pipeline.plain_text import MAX_SENTENCE, cut, find_inputs, write_corpus
from pipeline.skeletons import load_intents
from pipeline.spans import Span, parse_citation, sha256_text
from stages.extract.__main__ import main as extract
from stages.extract.encoder.model import EncoderExtractor
from stages.extract.folds import CrossFitted
from stages.extract.models import load_extractor, save_extractor
from stages.ingest.__main__ import main as ingest
from stages.reference.__main__ import main as reference
from stages.reward.__main__ import main as reward
from stages.roster.__main__ import main as roster
from stages.trajectories.__main__ import main as trajectories
from tests.conftest import Run
from tests.stages.conftest import base  # noqa: F401 - a fixture
from tests.stages.encoding import corpus as annotated
from tests.stages.encoding import fit as fit_tiny
from tests.stages.extracting import params

ROOT = Path(__file__).resolve().parents[1]
INTENTS = ("--intents", "intents/sample")
ENDLESS = "Ann bribed Bob and then " * 120
FIGHTS = """\
id: fights
version: 1
title: Who attacked whom, and who paid?
slots:
  - {id: s1, types: [money.pay], roles: [payer], weight: 0.4}
  - {id: s2, types: [fight.attack], roles: [attacker], weight: 0.6, required: true, climax: true}
"""
ODD = "\N{SLIGHTLY SMILING FACE} Cafe\N{COMBINING ACUTE ACCENT} \u4e2d\u56fd \u0130 \U0001f469\u200d\U0001f467.\r\n\r\n"
ANNOTATION = {"split": "train", "events": [{"id": "e", "start": 0, "end": 3, "type": "x"}]}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """params.yaml, intents, a kept model, and the texts of two affairs that it was not fitted on."""
    root = tmp_path_factory.mktemp("texts")
    shutil.copy(ROOT / "params.yaml", root)
    shutil.copytree(ROOT / "intents/sample", root / "intents/sample")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        small = params(reward={"bootstrap": 2})
        for stage in (ingest, extract, roster, trajectories, reference, reward):
            stage(small)
        fitted.keep("tiny")
        documents = tables.read("ingest/documents").filter(pl.col("split") == "test")
    shutil.rmtree(root / "data")
    for kind in fitted.MODELS:
        shutil.rmtree(root / "models" / kind)
    windows = documents["window_id"].unique().sort().to_list()[:2]
    for name, window in zip(("first", "second"), windows, strict=True):
        texts = documents.filter(pl.col("window_id") == window).sort("position")["text"].to_list()
        text = "\r\n\r\n".join(["\N{SLIGHTLY SMILING FACE} Cafe\N{COMBINING ACUTE ACCENT}.", *texts])
        (root / f"{name}.txt").write_bytes(text.encode("utf-8-sig" if name == "first" else "utf-8"))
    return root


@pytest.fixture(scope="module")
def deep(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A cross-fitted encoder as `certrank models keep` keeps it: two layers, eight names, two verbs."""
    root = tmp_path_factory.mktemp("deep")
    half = fit_tiny(base, root / "work", epochs=1)
    known = {sha256_text(text): 0 for text in annotated(12, 1).documents["text"]}
    with files.publish_directory(root / "extract") as folder:
        save_extractor(folder, CrossFitted(fit_tiny(base, root / "work", epochs=20), (half, half), known))
        files.write_text(folder / "README.md", "A tiny encoder.\n")
    return root / "extract"


@pytest.fixture(autouse=True)
def _workspace(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CERTRANK_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


def quotes(value: Any) -> Iterator[tuple[Span, str]]:
    """Every {"span": ..., "text": ...} in an answer."""
    if isinstance(value, dict) and "span" in value:
        yield parse_citation(value["span"]), value["text"]
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from quotes(inner)


def write_lines(file: str, *records: dict[str, Any]) -> None:
    Path(file).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


# ---- what comes out -------------------------------------------------------------------------------------------------


def test_plain_text_becomes_a_certified_ranking(run: Run) -> None:
    code, out, err = run("extract", "first.txt", "second.txt", *INTENTS, "--out", "new/result", "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert (answer["model"], answer["reward"]) == ("tiny", "tiny")
    (window,) = answer["windows"]
    assert window["documents"] == {"first": "first.txt", "second": "second.txt"}
    assert window["kept"] and window["candidates"] == len(window["trajectories"]) >= 4
    assert len(window["rankings"]) == len(list(Path("intents/sample").glob("*.yaml")))

    # Offsets refer to the decoded file: no byte order mark, CR LF two characters, an emoji one.
    texts = {name: Path(f"{name}.txt").read_bytes().decode("utf-8-sig") for name in ("first", "second")}
    cited = list(quotes(window))
    assert {span.doc_id for span, _ in cited} == {"first", "second"}
    assert all(texts[span.doc_id][span.start : span.end] == text for span, text in cited)
    stored = tables.read("ingest/documents", "new/result/data")
    assert dict(stored.select("doc_id", "text").iter_rows()) == texts
    assert "\r\n" in texts["first"] and not texts["first"].startswith("\ufeff")

    statuses = [entry["status"] for ranking in window["rankings"] for entry in ranking["entries"]]
    assert "certified" in statuses
    assert any(trajectory["certificates"] for trajectory in window["trajectories"])

    # The other commands work on what is kept, in the folder and from outside.
    code, out, _ = run("verify", "new/result/data/rank", "--data", "new/result/data", "--json")
    (report,) = json.loads(out)["reports"]
    assert code == 0 and report["certified"] == statuses.count("certified") and report["recovered"] > 0
    shown = run("inspect", window["window_id"], "--setting", "predicted", "--data", "new/result/data", "--json")
    assert json.loads(shown[1])[0]["entries"] == window["rankings"][0]["entries"]
    count = run("sql", "select count(*) n from rank.rankings", "--data", "new/result/data", "--json")
    assert json.loads(count[1]) == [{"n": len(statuses)}]
    assert not list(Path("new").glob(".*")) and not Path("new/result/models").exists()

    # Nothing was written into the repository's own data, and the same again gives the same.
    assert not Path("data").exists()
    again = json.loads(run("extract", "first.txt", "second.txt", *INTENTS, "--json")[1])
    assert again == {**answer, "out": None}


def test_an_encoder_reads_plain_text(run: Run, deep: Path) -> None:
    shutil.copytree(deep, "models/fitted/deep/extract")
    Path("fights.yaml").write_text(FIGHTS, encoding="utf-8")
    tale = ODD + ODD.join(annotated(3, 77).documents["text"])
    Path("tale.txt").write_bytes(tale.encode("utf-8-sig"))
    reads = ("extract", "tale.txt", "--intents", "fights.yaml", "--model", "deep", "--reward")
    code, out, err = run(*reads, "tiny", "--out", "result", "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert (answer["model"], answer["reward"]) == ("deep", "tiny")
    (window,) = answer["windows"]
    cited = list(quotes(window))
    assert all(span.doc_id == "tale" and tale[span.start : span.end] == text for span, text in cited)
    assert {"attacked", "paid"} < {text for _, text in cited}
    for name in ("events", "mentions"):
        rows = tables.read(f"extract/{name}", "result/data").select("start", "end", "surface").rows()
        assert len(rows) >= 10 and all(tale[start:end] == surface for start, end, surface in rows)
    # What the encoder has learnt it finds wherever the odd characters have moved it.
    events = tables.read("extract/events", "result/data").filter(pl.col("confidence") >= 0.5)
    verbs = [at for verb in ("attacked", "paid") for at in range(len(tale)) if tale.startswith(verb, at)]
    assert len(set(events["start"]) & set(verbs)) >= 0.9 * len(verbs) > 0
    # It is ranked.
    (ranking,) = window["rankings"]
    assert window["kept"] and len(ranking["entries"]) == min(window["candidates"], load_params().roster.max_k)
    assert "certified" in [entry["status"] for entry in ranking["entries"]]

    code, out, err = run(*reads, "none", "--json")
    assert (code, err) == (0, "")
    bare = json.loads(out)
    assert bare["reward"] is None
    assert [t["name"] for t in bare["windows"][0]["trajectories"]] == [t["name"] for t in window["trajectories"]]


@pytest.mark.parametrize(("seed", "kind"), [(77, EncoderExtractor), (1, CrossFitted)])
def test_models_of_the_folds_are_taken_only_for_texts_that_were_fitted_on(
    deep: Path, tmp_path: Path, seed: int, kind: type[Any]
) -> None:
    shutil.copytree(deep, "models/fitted/deep/extract")
    rows = annotated(2, seed).documents
    rows = rows.with_columns(sha256=pl.col("text").map_elements(sha256_text, pl.String))
    workspace = tmp_path / "workspace"
    tables.write("ingest/documents", rows, workspace / "data")
    extract_text.link_extractor("deep", workspace)
    taken = files.check_complete(workspace / "models/fitted/deep/extract")
    model, kept = load_extractor(taken), load_extractor("models/fitted/deep/extract")
    assert isinstance(model, kind) and isinstance(kept, CrossFitted)
    # Whichever it is, it says what the kept model says.
    frames = rows, tables.table("ingest/sentences").empty()
    assert model.events(model.analyse(*frames))[0].equals(kept.events(kept.analyse(*frames))[0])


def test_a_broken_map_of_the_folds_is_refused(run: Run, deep: Path) -> None:
    with files.publish_directory("models/fitted/torn/extract") as folder:
        shutil.copytree(deep, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(files.COMPLETE))
        (folder / extract_text.READ_BY).write_text("[]", encoding="utf-8")
    Path("fights.yaml").write_text(FIGHTS, encoding="utf-8")
    code, out, err = run("extract", "first.txt", "--intents", "fights.yaml", "--model", "torn", "--reward", "none")
    assert (code, out) == (1, "")
    assert "read_by.json: not a map of documents to the folds at hand" in err


def test_windows_by_file_and_by_group(run: Run) -> None:
    folder = Path("texts")
    folder.mkdir()
    for name in ("first", "second"):
        shutil.move(f"{name}.txt", folder)
    text = (folder / "second.txt").read_bytes().decode()
    write_lines("texts/third.jsonl", {"text": text, "group": "g", **ANNOTATION}, {"text": text, "doc_id": "d"})
    code, out, err = run("extract", "texts", *INTENTS, "--window-per-file", "--top", "1", "--json")
    assert code == 0
    assert err.splitlines() == ["certrank: note: texts/third.jsonl: its annotation and splits are not read"]
    windows = {window["window_id"]: window for window in json.loads(out)["windows"]}
    assert {name: list(window["documents"]) for name, window in windows.items()} == {
        "first": ["first"], "g": ["third-000001"], "second": ["second"], "third": ["d"],
    }  # fmt: skip
    assert {len(r["entries"]) for window in windows.values() for r in window["rankings"]} == {1}
    # The same text is read in the same way whatever file it comes from, and whatever is annotated in it.
    by_text = [[t["name"] for t in windows[name]["trajectories"]] for name in ("second", "g", "third")]
    assert by_text[0] == by_text[1] == by_text[2]


def test_the_terminal_shows_evidence(run: Run) -> None:
    code, out, err = run("extract", "first.txt", "--intents", "intents/sample/bribery.yaml", "--top", "2")
    assert (code, err) == (0, "")
    assert out.startswith("first  1 document, ")
    assert "certified under" in out and " first:" in out  # a trajectory with its spans
    assert "rm_attach: " in out and "(bribery)" in out and "K = 2" in out  # what inspect prints


def test_too_few_candidates_are_counted_and_their_trajectories_shown(run: Run) -> None:
    """Also: a sentence that never ends is cut, so that pairs of events and mentions stay few."""
    Path("ann.txt").write_text(ENDLESS, encoding="utf-8")
    code, out, err = run("extract", "ann.txt", *INTENTS, "--out", "result")
    assert code == 1
    found = tables.read("roster/windows", "result/data")["n"].to_list()[0]
    assert 0 < found < 4
    assert err == (
        f"certrank: error: roster.min_candidates: {found} candidate{'s' if found > 1 else ''} found, and a ranking "
        "needs 4; give more text about the affair, or lower it in params.yaml\n"
    )
    assert f"not ranked: {found} candidates, and a ranking needs 4" in out
    assert "[bribed]" in out and " ann:" in out
    sentences = tables.read("ingest/sentences", "result/data")
    assert max((sentences["end"] - sentences["start"]).to_list()) <= MAX_SENTENCE
    assert sentences.height >= len(ENDLESS) // MAX_SENTENCE

    # Without a reward model nothing is to be ranked, so nothing is lacking.
    code, out, err = run("extract", "ann.txt", *INTENTS, "--reward", "none", "--out", "result", "--replace")
    assert (code, err) == (0, "")
    assert "[bribed]" in out and "no reward model: nothing is ranked" in out
    assert not Path("result/data/rank").exists()


def test_a_record_that_a_stage_refuses_is_named_by_its_own_file(run: Run) -> None:
    Path("b.jsonl").write_text('\n\n{"text": "Ann met Bob.", "date": "yesterday"}\n', encoding="utf-8")
    code, out, err = run("extract", "b.jsonl", *INTENTS, "--out", "result")
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("certrank: error: b.jsonl:3: date: ")
    assert not Path("result").exists() and not list(Path().glob(".result*"))


# ---- what is refused before anything runs ---------------------------------------------------------------------------


@pytest.mark.parametrize(("content", "message"), [
    (None, "text.txt: no such file or folder"),
    (b"caf\xe9 au lait", "text.txt: byte 3 is not UTF-8; save the file as UTF-8"),
    (b"", "text.txt: there is no text in this file"),
    (b"\xef\xbb\xbf \r\n\t", "text.txt: there is no text in this file"),
    ("Ann".encode("utf-16"), "text.txt: byte 0 is not UTF-8; save the file as UTF-8"),
])  # fmt: skip
def test_text_files_that_are_refused(run: Run, content: bytes | None, message: str) -> None:
    if content is not None:
        Path("text.txt").write_bytes(content)
    assert run("extract", "text.txt", *INTENTS, "--out", "result") == (1, "", f"certrank: error: {message}\n")
    assert not Path("result").exists()


@pytest.mark.parametrize(("content", "message"), [
    ("", "c.jsonl: there is no document in this file"),
    ('{"text": "a"}\n{"text": "b", "txet": 1}', "c.jsonl:2: txet: unknown key"),
    ('\n{"text": ', "c.jsonl:2: not valid JSON"),
    ('{"text": "a", "doc_id": 3}', "c.jsonl:1: doc_id: expected a string"),
    ('{"text": "a", "doc_id": "first"}', "c.jsonl: 'first' is also a document of first.txt"),
])  # fmt: skip
def test_corpora_that_are_refused(content: str, message: str) -> None:
    Path("c.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        write_corpus([Path("first.txt"), Path("c.jsonl")], Path("corpus"), None)
    assert str(caught.value).startswith(message)


def test_a_large_file_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_text, "MAX_BYTES", 2**20)
    Path("big.txt").write_bytes(b"a" * (2**20 + 1))
    with pytest.raises(DataError, match=r"big\.txt: 1 MiB; one text may have 1; divide it"):
        plain_text.read_text(Path("big.txt"))


def test_inputs() -> None:
    Path("d/inner").mkdir(parents=True)
    for name in ("b.txt", "a.jsonl", "c.md", "inner/e.txt"):
        Path("d", name).write_text("x", encoding="utf-8")
    assert find_inputs([Path("d/c.md"), Path("d")]) == [Path("d/c.md"), Path("d/a.jsonl"), Path("d/b.txt")]
    with pytest.raises(DataError, match=r"b\.txt: this file is given twice"):
        find_inputs([Path("d"), Path("d/b.txt")])
    with pytest.raises(DataError, match=r"no \*\.txt or \*\.jsonl file in this folder"):
        find_inputs([Path("intents")])


def test_files_of_one_name_keep_apart() -> None:
    for folder in ("x", "y"):
        Path(folder).mkdir()
        Path(folder, "t.txt").write_text("Ann.", encoding="utf-8")
    corpus = write_corpus([Path("x/t.txt"), Path("y/t.txt"), Path("first.txt")], Path("corpus"), "all")
    assert corpus.file_of == {"x/t.txt": "x/t.txt", "y/t.txt": "y/t.txt", "first": "first.txt"}
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(Path("corpus").iterdir())]
    assert {(record["group"], record["split"]) for record in records} == {("all", "test")}


@pytest.mark.parametrize(("intents", "message"), [
    ("nosuch", "nosuch: --intents: no such file or folder"),
    ("intents", "intents: no intents here"),
    ("broken.yaml", "broken.yaml: version: Field required"),
    ("folder", "folder/broken.yaml: version: Field required"),
    ("other.yaml", "other.yaml: --intents: no event type of these intents is known to the model tiny; it finds "),
])  # fmt: skip
def test_intents_that_are_refused(run: Run, intents: str, message: str) -> None:
    Path("folder").mkdir()
    for file in ("broken.yaml", "folder/broken.yaml"):
        Path(file).write_text("id: x\n", encoding="utf-8")
    Path("other.yaml").write_text(
        "id: o\nversion: 1\ntitle: Who?\n"
        "slots: [{id: s1, types: [Xy.*, corruption.bribes], roles: ['*'], weight: 1.0, climax: true}]\n",
        encoding="utf-8",
    )
    code, out, err = run("extract", "first.txt", "--intents", intents)
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert err.startswith(f"certrank: error: {message}")


def test_an_intent_that_the_model_cannot_serve_among_others_is_noted() -> None:
    known, other = (load_intents(folder)[0] for folder in ("intents/sample", ROOT / "intents/maven_ere"))
    types = known_types("tiny")
    assert extract_text.check_intents([known], types, "tiny", Path("i")) == []
    (note,) = extract_text.check_intents([known, other], types, "tiny", Path("i"))
    assert note == f"intent {other.intent_id} names no event type that the model tiny finds"


def test_event_types_of_both_kinds_of_extractor() -> None:
    assert "corruption.bribe" in known_types("tiny")
    folder = Path("models/fitted/deep/extract")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"labels": {"kinds": ["a", "b"]}}', encoding="utf-8")
    assert known_types("deep") == ["a", "b"]
    (folder / "config.json").write_text('{"labels": ["a"]}', encoding="utf-8")
    with pytest.raises(DataError, match="the model names no event types"):
        known_types("deep")


# ---- which models ---------------------------------------------------------------------------------------------------


def test_the_only_kept_model_is_the_default() -> None:
    assert extract_text.choose_models(None, None) == ("tiny", "tiny")
    assert extract_text.choose_models("tiny", "none") == ("tiny", None)
    shutil.copytree("models/fitted/tiny/extract", "models/fitted/bare/extract")
    with pytest.raises(ParamError, match="several are kept: bare, tiny; name one"):
        extract_text.choose_models(None, None)
    assert extract_text.choose_models("bare", None) == ("bare", None)
    assert extract_text.choose_models("bare", "tiny") == ("bare", "tiny")
    with pytest.raises(ParamError, match="--reward: no reward model is kept as 'bare'; kept are tiny"):
        extract_text.choose_models("bare", "bare")
    with pytest.raises(ParamError, match="--model: no extractor is kept as 'nosuch'; kept are bare, tiny"):
        extract_text.choose_models("nosuch", None)
    config = Path("models/fitted/bare/extract/config.json")
    config.write_text(config.read_text(encoding="utf-8") + " ", encoding="utf-8")
    with pytest.raises(DataError, match="this file was changed after it was published"):
        extract_text.choose_models("bare", None)


def test_without_a_kept_model_the_way_to_one_is_told(run: Run) -> None:
    shutil.rmtree("models")
    code, _, err = run("extract", "first.txt", *INTENTS)
    assert code == 1
    assert err == (
        "certrank: error: models/fitted: --model: no model is kept; `dvc repro` fits them, then `certrank models keep "
        "NAME` keeps them\n"
    )


# ---- the rest -------------------------------------------------------------------------------------------------------


def test_a_folder_of_other_things_is_never_replaced() -> None:
    place = Path("place")
    assert extract_text.free_place(place, replace=False) == place.resolve()
    place.mkdir()
    assert extract_text.free_place(place, replace=False) == place.resolve()
    (place / "mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(ParamError, match="not empty, and not a result of this command"):
        extract_text.free_place(place, replace=True)
    for name in ("extract.json", "_COMPLETE"):
        (place / name).write_text("{}", encoding="utf-8")
    with pytest.raises(ParamError, match="a result stands here already; add --replace"):
        extract_text.free_place(place, replace=False)
    assert extract_text.free_place(place, replace=True) == place.resolve()
    with pytest.raises(ParamError, match="a file, not a folder"):
        extract_text.free_place(Path("params.yaml"), replace=True)


def test_derived_parameters_change_nothing_else() -> None:
    before: Params = load_params()
    after = extract_text.derive(before, "m", None, 3)
    raw, own = before.model_dump(by_alias=True), after.model_dump(by_alias=True)
    changed = {f"{section}.{key}" for section in raw if isinstance(raw[section], dict) for key in raw[section]
               if raw[section][key] != own[section][key]}  # fmt: skip
    assert changed == {
        "ingest.source", "ingest.path", "extract.from", "roster.settings", "roster.max_k", "trajectories.negatives",
        "reward.setting", "rank.systems",
    }  # fmt: skip
    assert after.verifier == before.verifier
    assert extract_text.derive(before, "m", "r", None).roster.max_k == before.roster.max_k


def test_too_few_in_every_window() -> None:
    error: CertrankError = too_few([1, 3, 0], 4)
    assert "3 candidates found in the largest of 3 windows, and a ranking needs 4" in str(error)


@given(text=st.text(alphabet="ab \n\u3000", max_size=60), most=st.integers(1, 9), start=st.integers(0, 20))
def test_a_cut_sentence_keeps_every_word(text: str, most: int, start: int) -> None:
    pieces = list(cut(text, min(start, len(text)), len(text), most))
    ends = [min(start, len(text))]
    for a, b in pieces:
        assert ends[-1] <= a < b and b - a <= most
        assert not text[ends[-1] : a].strip()
        ends.append(b)
    assert not text[ends[-1] :].strip()
    # A word is cut only where it alone is too long.
    for _, b in pieces[:-1]:
        if not text[b - 1].isspace() and not text[b].isspace():
            assert not any(c.isspace() for c in text[b - most : b])
