"""The embedded base model: how it starts, what it is taught first, and that `make train-base` keeps one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline import certificates
from pipeline.certificates import Limits
from pipeline.errors import ParamError
from pipeline.mla import MLAForCausalLM
from pipeline.mla_storage import load_mla, save_mla
from pipeline.oracle import best
from pipeline.policies import load_base
from pipeline.prompts import Prompter, load_template
from pipeline.rankings import Task
from pipeline.skeletons import Intent
from stages.sft import base, synthetic
from stages.sft.base import Phase
from stages.sft.curriculum import narrowed, portion
from stages.sft.initial import initialise
from stages.sft.lessons import Lesson, Teacher
from stages.sft.tokenizer import END, SPECIAL, train_tokenizer
from tests import tiny
from tests.builders import PLAN, story

ROOT = Path(__file__).parents[2]
SHORT = ROOT / "pipeline/prompt_short.txt"
INTENT = Intent("attack", 1, "Who attacked?", PLAN, "0" * 64)
GRADES = {"Bob": 2, "Cay": 1, "Ada": 3}


def lesson(seed: int) -> Lesson:
    window = replace(story(seed), k=3, setting="closed")
    task = Task(window, INTENT, Limits(), 100_000, 50_000)
    return Lesson(task, best(task, GRADES).emitted, GRADES, 9.0)


def texts() -> list[str]:
    prompter = Prompter(load_template(SHORT), len, 1 << 20, SPECIAL)
    return [prompter.render(lesson(seed).task.window, INTENT, seed).text for seed in range(8)]


TOKENIZER = train_tokenizer(texts(), 2048)
SPELLED = {i: TOKENIZER.decode([i], skip_special_tokens=False) for i in range(TOKENIZER.get_vocab_size())}
END_ID = TOKENIZER.token_to_id(END)


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text).ids


def teacher() -> Teacher:
    prompter = Prompter(load_template(SHORT), lambda text: len(encode(text)), 1024, SPECIAL)
    return Teacher(prompter, encode, encode, END_ID, 5)


def started(seed: int = 1) -> MLAForCausalLM:
    model = MLAForCausalLM(base.shape(len(SPELLED)), seed=seed)
    initialise(model, SPELLED, seed)
    return model


# ---- how it starts ---------------------------------------------------------------------------------------------------


def copying(model: MLAForCausalLM, epoch: int) -> list[float]:
    """Probabilities of the right handles, given the right answer up to each of them."""
    example = teacher().render(lesson(7), epoch).example
    ids_1T = torch.tensor([example.ids])
    with torch.no_grad():
        found_T = model.log_probs(ids_1T, ids_1T)[0].exp()
    places = [t for t in range(example.prompt, len(example)) if SPELLED[example.ids[t]].startswith("E")]
    assert len(places) >= 6
    return [float(found_T[t]) for t in places]


def test_before_any_training_handles_are_copied_and_without_the_heads_they_are_not() -> None:
    model, drawn = started(), MLAForCausalLM(base.shape(len(SPELLED)), seed=1)
    for epoch in range(4):
        assert sum(copying(model, epoch)) / len(copying(model, epoch)) > 0.5
        assert max(copying(drawn, epoch)) < 0.1


def test_before_any_training_the_climax_leads_and_nobody_is_named_twice() -> None:
    """Ada fills the climax; where she has been named she is the last to be named again."""
    model = started()
    names = {c.candidate_id: c.local_id for c in lesson(7).task.window.candidates}
    assert set(names) == {"Ada", "Bob", "Cay", "Dot"}
    for epoch in range(4):
        rendered = teacher().render(lesson(7), epoch)
        printed = {c.candidate_id: encode(c.local_id)[0] for c in rendered.prompt.window.candidates}
        example = rendered.example
        with torch.no_grad():
            logits_TW = model(torch.tensor([example.ids]))[0]
        places = [t for t in range(example.prompt, len(example)) if example.ids[t] in printed.values()]
        first, second = (sorted(printed, key=lambda c: -float(logits_TW[t - 1][printed[c]])) for t in places[:2])
        assert "Ada" in first[:2] and second[-1] == "Ada", (first, second)


def test_the_start_follows_from_the_seed_and_is_an_ordinary_model(tmp_path: Path) -> None:
    first, again, other = started(), started(), started(2)
    for name, value in first.state_dict().items():
        assert value.isfinite().all() and torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    save_mla(first, tmp_path)
    ids_1T = torch.tensor([encode(texts()[0])])
    kept = load_mla(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(kept(ids_1T), first(ids_1T))


def test_in_half_the_precision_the_copies_stay() -> None:
    model = started().bfloat16().float()
    assert sum(copying(model, 0)) / len(copying(model, 0)) > 0.5


def test_other_sizes_are_refused() -> None:
    for sizes in ({"hidden_size": 128}, {"num_hidden_layers": 2}, {"tie_word_embeddings": True}):
        model = MLAForCausalLM(replace(base.shape(40), **sizes))
        with pytest.raises(ParamError, match=r"initialisation|layers"):
            initialise(model, {}, 1)


# ---- what it is taught first -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_narrowed_lesson_is_about_fewer_candidates_and_can_be_answered(most: int) -> None:
    for seed in range(12):
        whole = lesson(7)
        small = narrowed(whole, most, seed)
        window = small.task.window
        kept = [c.candidate_id for c in window.candidates]
        assert len(kept) == most and kept == [c for c in whole.task.candidates if c in kept]
        assert {step.candidate_id for step in window.steps} <= set(kept)
        assert list(small.entries) == [e for e in whole.entries if e.candidate_id in kept] and small.entries
        rendered = teacher().render(small, seed)
        written = certificates.render(small.entries, rendered.prompt.window)
        assert certificates.parse(written, rendered.prompt.window, PLAN, window.k, Limits()) == list(small.entries)
        assert rendered.lost == 0
        assert narrowed(whole, most, seed) == small
    assert len({tuple(narrowed(lesson(7), most, seed).task.candidates) for seed in range(12)}) > 1


def test_a_lesson_about_all_candidates_stays_as_it_is() -> None:
    whole = lesson(7)
    assert narrowed(whole, 0, 1) is whole and narrowed(whole, 4, 1) is whole


def test_a_portion_goes_on_where_the_last_one_ended_and_around() -> None:
    lessons = [lesson(seed) for seed in range(3)]
    taken = list(portion(lessons, 2, 5, 0, 1))
    assert [lessons.index(one) for one in taken] == [2, 0, 1, 2, 0]
    first, second = (list(portion(lessons, begin, 3, 2, 1)) for begin in (0, 3))
    assert [a.key for a in first] == [b.key for b in second] and first != second


# ---- the command -----------------------------------------------------------------------------------------------------


def test_a_base_is_trained_from_nothing_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of `make train-base` on a few generated windows."""
    for name in synthetic.FOLDERS:
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    options = base.parse(["own", "--windows", "24", "--instances", "6", "--phases", "2:4:2", "0:4:2"])
    base.main(options, tiny.params())
    kept = load_base("own")
    assert isinstance(kept.model, MLAForCausalLM) and kept.model.config.kv_lora_rank == 512
    assert len(kept.encode("E01")) == 1
    assert "steps," in Path("models/fitted/own/policy/README.md").read_text(encoding="utf-8")
    weights = Path("models/fitted/own/policy/model.safetensors").read_bytes()
    monkeypatch.setattr(synthetic.subprocess, "run", None)  # the corpus is finished: no stage runs again
    base.main(options, tiny.params())
    assert Path("models/fitted/own/policy/model.safetensors").read_bytes() == weights


def test_the_base_s_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert base.parse(["own", "--phases", "3:10:2", "0:20:4"]).phases == [Phase(3, 10, 2), Phase(0, 20, 4)]
    for wrong in ("3:10", "0:0:4", "a:1:1", "-1:4:4"):
        with pytest.raises(SystemExit):
            base.parse(["own", "--phases", wrong])
        assert "--phases" in capsys.readouterr().err
