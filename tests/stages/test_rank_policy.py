"""Rankings by a policy: what is asked, which answer counts, and that nothing is repaired, lost or left to chance."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest

from pipeline import certificates, files, tables
from pipeline.certificates import Limits
from pipeline.engines import Answer, Request, Sampling
from pipeline.errors import CertificateError, ParamError
from pipeline.mla import MLAConfig, MLAForCausalLM
from pipeline.params import Params, PolicySystem
from pipeline.policies import make_policy, save_policy
from pipeline.prompts import Prompter, load_template
from pipeline.rankings import OVER_BUDGET, Draft
from pipeline.skeletons import Intent, intents_from_table
from pipeline.windows import Window, load_windows
from stages.rank_policy import __main__ as stage
from stages.rank_policy import forms
from stages.rank_policy.questions import Question, Voice
from stages.rank_policy.systems import FEEDBACK, SYSTEMS, talk
from stages.rank_policy.talks import Recorder, converse
from stages.reward.features import Judge
from stages.reward.model import RewardModel
from stages.sft.tokenizer import END, train_tokenizer
from tests import tiny
from tests.builders import PLAN, build_window, document, story

LIMITS = Limits()
MODEL = RewardModel(("filled_confidence", "log_steps"), np.array([1.0, 0.1]), Judge(LIMITS, 100_000, 50_000), {})
SHORT = Path(__file__).parents[2] / "pipeline/prompt_short.txt"
Write = Callable[[Request, int], str]


class Scripted:
    """An engine whose texts a function writes; a token is a character. It remembers what it was asked."""

    def __init__(self, write: Write, log_prob: Callable[[str, int], float] = lambda _text, _i: -0.5) -> None:
        self.write, self.log_prob, self.seconds = write, log_prob, 0.0
        self.asked: list[Request] = []

    def count(self, text: str) -> int:
        return len(text)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Answer]]:
        for request in requests:
            self.asked.append(request)
            yield [self._answer(self.write(request, n), request) for n in range(request.samples)]

    def _answer(self, text: str, request: Request) -> Answer:
        ids = tuple(map(ord, text))
        log_probs = tuple(self.log_prob(text, i) for i in range(len(text)))
        return Answer(text=text, tokens=ids, log_probs=log_probs, model_log_probs=None, finish="stop",
                      prompt_tokens=len(request.prompt), seconds=self.seconds)  # fmt: skip


def voice_of(engine: Scripted, positions: int | None = None) -> Voice:
    return Voice(engine, lambda ids: "".join(map(chr, ids)), ("<|end|>",), positions, "scripted")


def ask(engine: Scripted, window: Window | None = None, *, budget: int = 9_000, positions: int | None = None,
        samples: int = 3, retries: int = 2) -> Question:  # fmt: skip
    intent = Intent("attack", 1, "who attacked?", PLAN, "0" * 64)
    prompter = Prompter(load_template(SHORT), engine.count, budget, ("<|end|>",))
    return Question(
        window or story(), intent, LIMITS, 100_000, 50_000, MODEL, prompter, voice_of(engine, positions),
        Sampling(temperature=1.0, seed=11), samples, retries,
    )  # fmt: skip


def led(name: PolicySystem, question: Question) -> Draft:
    return converse([talk(SYSTEMS[name], question)], question.voice.engine, question.sampling)[0]


def line(question: Question, *candidates: str) -> str:
    """The right certificates of some candidates, in the ids of the prompt."""
    return certificates.render([question.certifiable[c] for c in candidates], question.prompt.window)


def writer(*lines: Sequence[str]) -> tuple[Scripted, Question]:
    """An engine that writes the certificates of these candidates, one line per sample, and a question for it."""
    engine = Scripted(lambda _request, n: line(question, *lines[n]))
    question = ask(engine, samples=len(lines))
    return engine, question


# ---- systems --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zero_shot", "sft", "sft_grammar"])
def test_one_answer_in_the_prompts_ids_becomes_a_canonical_list(name: PolicySystem) -> None:
    engine, question = writer(["Bob", "Ada"])
    assert question.prompt.window.by_local_id["C01"] != question.window.by_local_id["C01"], "names are drawn anew"
    draft = led(name, question)
    assert draft.emitted == (question.certifiable["Bob"], question.certifiable["Ada"])
    assert draft.order == ("Bob", "Ada", "Cay", "Dot"), "behind the emitted ones: the reward model's order"
    (row,) = draft.generations
    assert (row.text, row.status, row.chosen, row.seed) == (engine.write(engine.asked[0], 0), "parsed", True, 11)
    assert (row.tokens, row.prompt_tokens) == (len(row.text), len(question.prompt.text))
    assert row.log_prob == pytest.approx(-0.5 * len(row.text)) and row.model_log_prob is None
    assert (engine.asked[0].grammar is not None) == (name == "sft_grammar")


@pytest.mark.parametrize(
    ("text", "code"),
    [("", "truncated"), ("C01 s1=E99 .", "unknown_handle"), (" .", "syntax"), ("I rank Ada first.", "syntax")],
)
def test_what_does_not_parse_is_an_empty_list_with_its_code(text: str, code: str) -> None:
    draft = led("sft", ask(Scripted(lambda _request, _n: text)))
    assert draft.emitted == () and draft.order == ("Ada", "Cay", "Bob", "Dot")
    assert [(r.text, r.status, r.reject_code) for r in draft.generations] == [(text, "rejected", code)]


def test_a_repeated_candidate_rejects_the_list() -> None:
    draft = led("sft", writer(["Ada", "Ada"])[1])
    assert draft.emitted == () and draft.generations[0].reject_code == "repeated_candidate"


def test_json_is_parsed_strictly_and_means_the_same() -> None:
    engine = Scripted(lambda _request, _n: forms.to_json(line(question, "Ada", "Cay")))
    question = ask(engine)
    assert led("sft_json", question).emitted == (question.certifiable["Ada"], question.certifiable["Cay"])
    assert engine.asked[0].schema == forms.json_schema(question.prompt.window, PLAN, 2, LIMITS)
    assert forms.parse_json(question, forms.to_json(".")) == []


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[", "json"), ("[" * 100_000, "json"), ("{}", "field_type"), ("[1]", "field_type"), ("[{}]", "missing_key"),
        ('[{"candidate":1}]', "field_type"), ('[{"candidate":"C01","candidate":"C02"}]', "duplicate_key"),
        ('[{"candidate":"C01","s1":"E01"}]', "field_type"), ('[{"candidate":"C01","s1":[]}]', "empty_slot"),
        ('[{"candidate":"C01","s9":["E01"]}]', "unknown_slot"), ('[{"candidate":"C1 s1=E01 . |"}]', "syntax"),
        ('[{"candidate":"C01","s1":["E01,E02"]}]', "syntax"), ('[{"candidate":"C77"}]', "unknown_candidate"),
        ('[{"candidate":"C01","s2":["E01"],"s1":["E02"]}]', "slot_order"),
    ],
)  # fmt: skip
def test_broken_json_is_rejected_with_a_code(text: str, code: str) -> None:
    question = ask(Scripted(lambda _request, _n: text))
    with pytest.raises(CertificateError) as caught:
        forms.parse_json(question, text)
    assert caught.value.code == code


def test_retry_feeds_the_code_back_until_an_answer_is_accepted() -> None:
    def write(request: Request, _n: int) -> str:
        handle = next(h.handle_id for h in question.prompt.window.handles if h.kind == "mention")
        texts = {"0": "nonsense <|end|>", "1": f"C01 s1={handle} .", "2": line(question, "Ada")}
        return texts[request.key[-1]]

    engine = Scripted(write)
    question = ask(engine)
    draft = led("retry", question)
    assert draft.emitted == (question.certifiable["Ada"],)
    assert [(r.attempt, r.chosen, r.status, r.reject_code) for r in draft.generations] == [
        (0, False, "rejected", "syntax"), (1, False, "rejected", "no_trigger"), (2, True, "parsed", None),
    ]  # fmt: skip
    first, second, third = (request.prompt for request in engine.asked)
    assert first == question.prompt.text and second.startswith(first) and third.startswith(first)
    told = FEEDBACK.format(code="syntax", meaning=certificates.REJECT_CODES["syntax"])
    assert second.endswith(f"\n{told}\n{first.splitlines(keepends=True)[-1]}")
    assert "<|end|>" not in second and "nonsense" in second and "nonsense" not in third


def test_retry_stops_and_then_the_last_answer_counts() -> None:
    engine = Scripted(lambda _request, _n: "nonsense")
    draft = led("retry", ask(engine, retries=2))
    assert len(engine.asked) == 3 and draft.emitted == ()
    assert [r.chosen for r in draft.generations] == [False, False, True]
    crowded = Scripted(lambda _request, _n: "nonsense")
    room = max(request.max_new_tokens + len(request.prompt) for request in engine.asked[:1])
    assert led("retry", ask(crowded, retries=2, positions=room)).generations[0].chosen
    assert len(crowded.asked) == 1, "there is no room to ask again"


def test_best_of_systems_share_their_samples_and_differ_in_what_they_choose() -> None:
    """Bob's certificate for Ada is worth nothing; the reward model prefers Ada, CRew the surest ids."""

    def write(_request: Request, n: int) -> str:
        bad = f"{ids['Ada']} {line(question, 'Bob').split(' ', 1)[1][:-2]} | {line(question, 'Cay')}"
        return [line(question, "Cay", "Bob"), bad, line(question, "Bob")][n]

    def sure(text: str, _i: int) -> float:
        return -0.01 if text == line(question, "Bob") else -2.0

    engine = Scripted(write, sure)
    question = ask(engine, samples=3)
    ids = {c.candidate_id: c.local_id for c in question.prompt.window.candidates}
    drafts = {name: led(name, question) for name in ("best_of_rm", "best_of_reward", "crew")}
    assert {name: [r.chosen for r in d.generations].index(True) for name, d in drafts.items()} == {
        "best_of_rm": 1, "best_of_reward": 0, "crew": 2,
    }  # fmt: skip
    assert len({(r.key, r.grammar, r.prompt, r.samples) for r in engine.asked}) == 1
    rows = [[replace(r, chosen=False) for r in draft.generations] for draft in drafts.values()]
    assert rows[0] == rows[1] == rows[2] and [r.sample for r in rows[0]] == [0, 1, 2]


def test_a_rejected_sample_is_never_chosen_over_a_parsed_one() -> None:
    question = ask(Scripted(lambda _request, n: ["C01", "nonsense", "."][n]), samples=3)
    for name in ("best_of_rm", "best_of_reward", "crew"):
        draft = led(name, question)
        assert [r.chosen for r in draft.generations] == [False, False, True]


def test_posthoc_asks_for_evidence_of_the_list_it_gave() -> None:
    def write(request: Request, _n: int) -> str:
        names = {c.candidate_id: c.local_id for c in question.prompt.window.candidates}
        return f"{names['Cay']} | {names['Ada']} ." if request.key.endswith("list") else line(question, "Cay", "Ada")

    engine = Scripted(write)
    question = ask(engine)
    draft = led("posthoc", question)
    assert [entry.candidate_id for entry in draft.emitted] == ["Cay", "Ada"] and all(e.slots for e in draft.emitted)
    assert [(r.attempt, r.chosen, r.status) for r in draft.generations] == [(0, False, "parsed"), (1, True, "parsed")]
    listing, evidence = (request.grammar or "" for request in engine.asked)
    assert "handle" not in listing and evidence.startswith(f'root ::= "{write(engine.asked[0], 0)[:3]}" slots " | "')
    nothing = Scripted(lambda _request, _n: ".")
    assert led("posthoc", ask(nothing)).emitted == () and len(nothing.asked) == 1


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_nothing_is_asked_where_nothing_fits_or_can_be_cited(name: PolicySystem) -> None:
    engine = Scripted(lambda _request, _n: "never")
    empty = build_window([document("d", "Ann and Bea and Cyd and Dan.")], ["Ann", "Bea", "Cyd", "Dan"], [])
    for question, code in (
        (ask(engine, empty), "no_trigger_handle"), (ask(engine, budget=100), OVER_BUDGET),
        (ask(engine, positions=150), OVER_BUDGET),
    ):  # fmt: skip
        draft = led(name, question)
        assert draft.emitted == () and sorted(draft.order) == sorted(question.candidates)
        assert [(r.text, r.status, r.reject_code) for r in draft.generations] == [("", "uncertified", code)]
    assert engine.asked == []


def test_params_and_systems_name_the_same() -> None:
    assert get_args(PolicySystem) == tuple(SYSTEMS)


# ---- keeping answers ------------------------------------------------------------------------------------------------


def test_kept_answers_are_used_only_for_what_was_asked(tmp_path: Path) -> None:
    engine = Scripted(lambda request, n: f"{request.prompt} {n}")
    requests = [Request(key=k, prompt=k, samples=2) for k in "ab"]
    how = Sampling(temperature=1.0, seed=3)
    first = list(Recorder(engine, tmp_path / "0.json").generate(requests, how))
    again = Recorder(engine, tmp_path / "0.json")
    assert list(again.generate(requests, how)) == first and len(engine.asked) == 2 and again.generated == 0
    for changed, sampling in (
        ([requests[0], replace(requests[1], prompt="c")], how), (requests[:1], how), (requests, replace(how, seed=4)),
    ):  # fmt: skip
        recorder = Recorder(engine, tmp_path / "0.json")
        assert len(list(recorder.generate(changed, sampling))) == len(changed) and recorder.generated == 1


# ---- the stage ------------------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.write(tmp_path / "data")
    with files.publish_directory(tmp_path / "models/reward") as folder:
        MODEL.save(folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def params(**how: Any) -> Params:
    raw = tiny.params().model_dump(by_alias=True)
    raw["rank"] |= {"splits": ["train", "test"]}
    raw["policy"] |= {"template": str(SHORT), "budget": 2_000, "steps": "all"}
    raw["rank_policy"] |= {"samples": 2, "probes": {**raw["rank_policy"]["probes"], "instances": 0}, **how}
    return Params.model_validate(raw)


def output(system: str, setting: str = "closed") -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(Path(f"data/rank/{system}/{setting}").iterdir())}


def empty_list(_request: Request, _n: int) -> str:
    return "."


class KilledError(Exception):
    """What a fake engine dies of."""


def test_a_killed_run_goes_on_and_writes_the_same(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "SHARD", 1)

    def write(request: Request, n: int) -> str:
        if fatal and request.key.startswith("w2"):
            raise KilledError
        return "." if n else f"nonsense of {request.key}"

    fatal, engine = False, Scripted(write)
    stage.main("crew", "closed", params(), voice_of(engine))
    whole = output("crew")
    for work in files.WORK.glob("rank_policy-*"):
        for kept in work.iterdir():
            kept.unlink()
    fatal, engine = True, Scripted(write)
    before = sorted(Path("data/rank").rglob("*.parquet"))
    with pytest.raises(KilledError):
        stage.main("best_of_rm", "closed", params(), voice_of(engine))
    assert sorted(Path("data/rank").rglob("*.parquet")) == before, "nothing half-written is visible"
    fatal, engine = False, Scripted(write)
    stage.main("crew", "closed", params(), voice_of(engine))
    assert [request.key.split("|")[0] for request in engine.asked] == ["w2"], "the first shard was kept"
    assert output("crew") == whole
    stage.main("best_of_reward", "closed", params(), voice_of(engine))
    assert len(engine.asked) == 1, "the three that choose among samples share them"
    stage.main("best_of_reward", "closed", params(temperature=0.5), voice_of(engine))
    assert len(engine.asked) == 3, "other sampling, other samples"
    assert len(list(files.WORK.glob("rank_policy-samples-closed-*"))) == 1, "what was kept for other inputs is gone"


def test_the_stage_records_the_sampling_budget_and_keeps_time_apart(workspace: Path) -> None:
    engine = Scripted(empty_list)
    engine.seconds = 0.25
    stage.main("best_of_rm", "hybrid", params(), voice_of(engine))
    timings = tables.read("rank/best_of_rm/hybrid/timings")
    assert timings.rows() == [("w1", "attack", 0.5), ("w2", "attack", 0.5)], "two samples each"
    rows = tables.read("rank/best_of_rm/hybrid/generations")
    assert rows.group_by("window_id", maintain_order=True).agg(pl.col("sample"), pl.col("chosen")).rows() == [
        ("w1", [0, 1], [True, False]), ("w2", [0, 1], [True, False]),
    ]  # fmt: skip
    assert rows.select("tokens", "temperature", "seed", "finish").unique().rows() == [(1, 1.0, params().seed, "stop")]
    told = json.loads(Path("data/.work/timing/best_of_rm-hybrid.json").read_text())
    assert (told["lists"], told["texts"], told["tokens"], told["over_budget"]) == (2, 4, 4, 0)
    assert told["prompt_tokens"] == rows["prompt_tokens"].sum() and told["seconds"] >= 0
    ranked = tables.read("rank/best_of_rm/hybrid/rankings")
    assert ranked.height == 4 and not ranked["emitted"].any()


def test_a_window_over_the_budget_is_counted_and_not_a_crash(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Scripted(empty_list)
    stage.main("sft", "closed", params(), voice_of(engine, positions=200))
    assert engine.asked == [] and "2 lists over the budget" in capsys.readouterr().err
    assert set(tables.read("rank/sft/closed/generations")["reject_code"]) == {OVER_BUDGET}


def test_the_stage_names_what_it_does_not_know(workspace: Path) -> None:
    with pytest.raises(ParamError, match="unknown system 'stf'; one of zero_shot, sft,"):
        stage.main("stf", "closed", params())
    with pytest.raises(ParamError, match="unknown roster setting 'open'; one of closed"):
        stage.main("sft", "open", params())


# ---- a real policy --------------------------------------------------------------------------------------------------


def test_a_real_policy_under_a_grammar_cites_what_it_was_shown(workspace: Path) -> None:
    """tiny-mla with random weights: whatever it draws parses, cites known handles and passes the table's checks."""
    how = params()
    intent = intents_from_table(tables.read("trajectories/skeletons"))[0]
    plain = Prompter.of(how, len, ())
    texts = [plain.render(w, intent, how.seed).text for w in load_windows("closed", ["train", "test"])]
    tokenizer = train_tokenizer(texts, 1_500)
    sizes: dict[str, Any] = {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
    }  # fmt: skip
    model = MLAForCausalLM(
        MLAConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=2_048, initializer_range=0.3, **sizes),
        seed=1,
    )
    with files.publish_directory("models/sft") as folder:
        save_policy(make_policy(model, tokenizer, end=END), folder)
    systems: list[PolicySystem] = ["sft_grammar", "sft_json", "best_of_reward", "posthoc"]
    emitted = 0
    for name in systems:
        stage.main(name, "closed", how)
        rows = tables.read(f"rank/{name}/closed/generations")
        assert set(rows["status"]) <= {"parsed", "rejected"} and rows["model_log_prob"].null_count() == 0
        assert set(rows.filter(status="rejected")["reject_code"]) <= {"repeated_candidate", "truncated", "json"}
        cited = tables.read(f"rank/{name}/closed/certificates")
        handles = tables.read("trajectories/closed/handles").select("window_id", "handle_id", "doc_id", "start", "end")
        assert cited.join(handles, on=handles.columns, how="anti").is_empty()
        emitted += cited.height
    assert emitted > 0
    before = output("best_of_reward")
    for work in files.WORK.glob("rank_policy-samples-*"):
        for kept in work.iterdir():
            kept.unlink()
    stage.main("best_of_reward", "closed", how)
    after = output("best_of_reward")
    assert before.pop("timings.parquet") and after.pop("timings.parquet")
    assert after == before, "two runs, the same bytes but for the time they took"
