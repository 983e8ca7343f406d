"""The supervised policy: what is taught, how it is laid out, that training resumes to the bit and learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline import certificates
from pipeline.certificates import Limits
from pipeline.errors import DataError, ParamError
from pipeline.mla import IGNORED, MLAConfig, MLAForCausalLM
from pipeline.oracle import best
from pipeline.policies import Policy, load_policy, make_policy, save_policy
from pipeline.prompts import Prompter, load_template
from pipeline.rankings import Task
from pipeline.skeletons import Intent
from stages.sft import synthetic
from stages.sft.__main__ import main, prepared
from stages.sft.judging import Judge, certified
from stages.sft.lessons import Example, Lesson, Teacher
from stages.sft.likelihood import log_probs
from stages.sft.packing import pack, plan_rows
from stages.sft.tokenizer import END, SPECIAL, train_tokenizer
from stages.sft.training import Course, Settings, Training, plan, rate_at
from tests import tiny
from tests.builders import PLAN, story

ROOT = Path(__file__).parents[2]
SHORT = ROOT / "pipeline/prompt_short.txt"
INTENT = Intent("attack", 1, "Who attacked?", PLAN, "0" * 64)
GRADES = {"Bob": 2, "Cay": 0, "Ada": 3}


def lesson(seed: int = 7, setting: str = "closed") -> Lesson:
    window = replace(story(seed), k=2, setting=setting)
    task = Task(window, INTENT, Limits(), 100_000, 50_000)
    return Lesson(task, best(task, GRADES).emitted, GRADES, 9.0)


def texts() -> list[str]:
    prompter = Prompter(load_template(SHORT), len, 1 << 20, SPECIAL)
    return [prompter.render(lesson(seed).task.window, INTENT, seed).text for seed in range(8)]


@pytest.fixture(scope="module")
def policy() -> Policy:
    """An untrained tiny-mla with a tokenizer of the story's prompts."""
    tokenizer = train_tokenizer(texts(), 2048)
    config = MLAConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=48, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16,
    )  # fmt: skip
    return make_policy(MLAForCausalLM(config, seed=1), tokenizer, end=END)


def copied(policy: Policy) -> MLAForCausalLM:
    """The same weights in a model of its own."""
    assert isinstance(policy.model, MLAForCausalLM)
    model = MLAForCausalLM(policy.model.config)
    model.load_state_dict(policy.model.state_dict())
    return model


def teacher(policy: Policy, budget: int = 1024) -> Teacher:
    prompter = Prompter(load_template(SHORT), lambda text: len(policy.encode(text)), budget, policy.specials)
    return Teacher(prompter, policy.encode, policy.encode, policy.eos, 5)


# ---- tokenizer -------------------------------------------------------------------------------------------------------


@given(st.text(max_size=80))
def test_every_text_survives_the_tokenizer(policy: Policy, text: str) -> None:
    if not any(special in text for special in SPECIAL):
        assert policy.decode(policy.encode(text)) == text


@pytest.mark.parametrize("name", ["C01", "C12", "E05", "E99", "E005", "E186", "S7", "D3", "s1", "s9"])
def test_a_name_is_one_token_wherever_it_stands(policy: Policy, name: str) -> None:
    ids = policy.encode(name)
    assert len(ids) == 1
    for text in (f"s2={name},E01 S4", f"{{{name} words}}", f"{name}: Ann", f"C03 s1=E02,{name} | C04 s1={name} ."):
        assert ids[0] in policy.encode(text), text


def test_equal_texts_give_an_equal_tokenizer() -> None:
    assert train_tokenizer(texts(), 1500).to_str() == train_tokenizer(texts(), 1500).to_str()


# ---- lessons ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", range(4))
def test_what_is_taught_parses_to_the_oracle_s_list(policy: Policy, epoch: int) -> None:
    own = lesson()
    rendered = teacher(policy).render(own, epoch)
    answer = policy.decode(list(rendered.example.ids[rendered.example.prompt : -1]))
    assert rendered.example.ids[-1] == policy.eos
    entries = certificates.parse(answer, rendered.prompt.window, PLAN, own.task.window.k, Limits())
    assert tuple(entries) == own.entries and own.entries[0].candidate_id == "Ada"
    assert certified(own, tuple(entries)) == pytest.approx((7 + 3 / 1.584962500721156) / 9)


def test_names_differ_between_epochs_and_the_answer_s_length_does_not(policy: Policy) -> None:
    examples = [teacher(policy).render(lesson(), epoch).example for epoch in range(6)]
    assert len({example.ids for example in examples}) > 1
    assert len({len(example) - example.prompt for example in examples}) == 1


def test_a_small_budget_teaches_what_is_left_and_counts_what_is_lost(policy: Policy) -> None:
    whole = teacher(policy).render(lesson(), 0)
    least = next(b for b in range(16, 2000) if _renders(teacher(policy, b)))
    small = teacher(policy, least).render(lesson(), 0)
    assert (whole.entries, whole.lost) == (2, 0) and (small.entries, small.lost) == (0, 2)
    assert policy.decode(list(small.example.ids[small.example.prompt :])) == "." + END
    examples, counts = teacher(policy, least - 1).epoch([lesson()], 0)
    assert examples == [] and counts["over_budget"] == 1


def _renders(some: Teacher) -> bool:
    try:
        some.render(lesson(), 0)
    except DataError:
        return False
    return True


# ---- rows ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(2, 40), min_size=1, max_size=30), st.integers(10, 60))
def test_rows_hold_every_example_once_and_are_not_overfull(lengths: list[int], most: int) -> None:
    rows = plan_rows(lengths, most)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    for row in rows:
        assert sum(lengths[i] for i in row) <= most or len(row) == 1


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return LlamaForCausalLM(config).eval()


def mla() -> nn.Module:
    return MLAForCausalLM(MLAConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
    ), seed=3).eval()  # fmt: skip


@pytest.mark.parametrize("make", [llama, mla])
def test_packed_rows_have_the_log_probabilities_of_examples_alone(make: Any) -> None:
    model, random = make(), torch.Generator().manual_seed(0)
    examples = [
        Example(tuple(torch.randint(1, 50, (n,), generator=random).tolist()), n // 2) for n in (5, 17, 9, 3, 12)
    ]
    packed = pack(examples, plan_rows([len(e) for e in examples], 24))
    with torch.no_grad():
        together = log_probs(model, packed.ids_BT, packed.labels_BT, packed.segments_BT)
        alone = []
        for example in examples:
            one = pack([example], [[0]])
            alone.append(log_probs(model, one.ids_BT, one.labels_BT, one.segments_BT)[0])
    found = sorted(
        (tuple(packed.ids_BT[b][packed.segments_BT[b] == s].tolist()), b, int(s))
        for b in range(len(packed.ids_BT)) for s in packed.segments_BT[b].unique() if s
    )  # fmt: skip
    for (ids, b, s), example in zip(found, sorted(examples, key=lambda e: e.ids), strict=True):
        assert ids == example.ids
        own = packed.segments_BT[b] == s
        torch.testing.assert_close(together[b][own], alone[examples.index(example)], atol=2e-5, rtol=1e-4)
        assert packed.answer_BT[b][own].sum() == len(example) - example.prompt
    assert not together[packed.segments_BT == 0].any() and (packed.labels_BT[packed.segments_BT == 0] == IGNORED).all()


@pytest.mark.parametrize("make", [llama, mla])
def test_log_probabilities_are_those_of_the_plain_forward(make: Any) -> None:
    model = make()
    ids = torch.randint(1, 50, (1, 11), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = model(ids)
        logits = out if isinstance(out, torch.Tensor) else out.logits
        wanted = logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        found = log_probs(model, ids, ids, torch.ones_like(ids))[0]
    torch.testing.assert_close(found[1:], wanted, atol=2e-5, rtol=1e-4)


# ---- training --------------------------------------------------------------------------------------------------------


HOW = Settings(epochs=3, batch=2, rate=3e-3, row=512, tokens=1024, prompt_weight=0.1, checkpoint=1, seed=3)


def course(policy: Policy, judge: Any = None) -> Course:
    return Course([lesson(seed) for seed in range(5)], teacher(policy), judge)


def quiet(_: str) -> None:
    pass


def test_a_killed_training_goes_on_to_the_same_bits(policy: Policy, tmp_path: Path) -> None:
    judgements = iter([0.1, 0.3, 0.2] * 2 + [0.3, 0.2])

    def judge(_: nn.Module) -> dict[str, float]:
        return {"cert_ndcg": next(judgements)}

    whole, parts = copied(policy), copied(policy)
    logged: list[tuple[int, dict[str, float]]] = []
    run = Training(whole, course(policy, judge), HOW, tmp_path / "a", quiet, lambda s, r: logged.append((s, r)))
    full = run.run()
    assert full.step == 9 and full.best == (0.3, 1) and len(full.trace) == 12
    Training(parts, course(policy, judge), HOW, tmp_path / "b", quiet).run(stop=4)
    fresh = copied(policy)  # what a new process starts from
    again: list[tuple[int, dict[str, float]]] = []
    state = Training(fresh, course(policy, judge), HOW, tmp_path / "b", quiet, lambda s, r: again.append((s, r))).run()
    assert state.trace == full.trace and again == logged
    for one, other in zip(whole.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_another_training_is_not_gone_on_from(policy: Policy, tmp_path: Path) -> None:
    Training(copied(policy), course(policy), HOW, tmp_path, quiet).run(stop=2)
    said: list[str] = []
    state = Training(copied(policy), course(policy), replace(HOW, rate=1e-3), tmp_path, said.append).run(stop=1)
    assert state.step == 1 and not any("going on" in line for line in said)


def test_the_loss_does_not_depend_on_how_a_batch_is_laid_out(policy: Policy, tmp_path: Path) -> None:
    traces = []
    for i, how in enumerate((HOW, replace(HOW, row=0), replace(HOW, row=64, tokens=1))):
        state = Training(copied(policy), course(policy), replace(how, epochs=1), tmp_path / str(i), quiet).run()
        traces.append([row["loss"] for row in state.trace])
    assert traces[1] == pytest.approx(traces[0], abs=2e-4) and traces[2] == pytest.approx(traces[0], abs=2e-4)


def test_patience_ends_a_training_and_the_best_weights_are_left(policy: Policy, tmp_path: Path) -> None:
    kept: list[list[torch.Tensor]] = []
    scores = iter([0.5, 0.4, 0.9])

    def judge(model: nn.Module) -> dict[str, float]:
        kept.append([p.detach().clone() for p in model.parameters()])
        return {"cert_ndcg": next(scores)}

    model = copied(policy)
    state = Training(model, course(policy, judge), replace(HOW, patience=1), tmp_path, quiet).run()
    assert state.best == (0.5, 0) and len(kept) == 2
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), kept[0], strict=True))


def test_no_instance_is_an_error(policy: Policy, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no instance to train on"):
        Training(copied(policy), Course([], teacher(policy)), HOW, tmp_path, quiet)
    with pytest.raises(DataError, match="no instance fits the prompt's budget"):
        Training(copied(policy), Course([lesson()], teacher(policy, 64)), HOW, tmp_path, quiet).run()


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_sees_every_example_once(n: int, batch: int, epoch: int) -> None:
    examples = [Example(tuple(range(1 + i % 7)), 0) for i in range(n)]
    batches = plan(examples, batch, 1, epoch)
    assert sorted(i for b in batches for i in b) == list(range(n)) and max(map(len, batches)) <= batch
    assert batches == plan(examples, batch, 1, epoch)


def test_the_rate_rises_falls_and_never_ends() -> None:
    rates = [rate_at(i / 200) for i in range(200)]
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[0] > 0 and max(rates) == pytest.approx(1, abs=0.01) and rates[-1] == pytest.approx(0.1, abs=0.01)


def test_a_tiny_model_learns_a_lesson_and_is_judged_by_what_it_writes(policy: Policy, tmp_path: Path) -> None:
    model = copied(policy)
    always = replace(teacher(policy), seed=7)
    judge = Judge(replace(policy, model=model), always.prompter, [lesson()], seed=7)
    before = judge(model)
    how = Settings(epochs=1, batch=1, rate=4e-3, checkpoint=1000, seed=1)
    Training(model, Course([lesson()] * 150, always), how, tmp_path, quiet).run()
    after = judge(model)
    assert after["of_cap"] == pytest.approx(1) and before["of_cap"] < 1, (before, after)
    assert after["entries"] == 2 and after["cut"] == 0


# ---- the stage -------------------------------------------------------------------------------------------------------


def test_training_in_half_the_precision_stays_close_and_keeps_whole_weights(policy: Policy, tmp_path: Path) -> None:
    found = []
    for precision in ("float32", "bfloat16"):
        model = copied(policy)
        how = replace(HOW, epochs=1, precision=precision)
        state = Training(model, Course([lesson()] * 6, teacher(policy)), how, tmp_path / precision, quiet).run()
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        found.append([row["loss"] for row in state.trace if "loss" in row])
    assert found[0] != found[1] and found[0] == pytest.approx(found[1], rel=0.02)


def test_adapters_are_for_larger_models(policy: Policy) -> None:
    with pytest.raises(ParamError, match="takes no adapters"):
        prepared(policy, 4, 1)
    tokenizer = policy.tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    large = replace(policy, model=LlamaForCausalLM(config))
    one, two = (prepared(replace(large, model=LlamaForCausalLM(config)), 4, 1) for _ in range(2))
    trained = {name: p for name, p in one.plain.named_parameters() if p.requires_grad}
    assert trained and all("lora" in name for name in trained)
    other = dict(two.plain.named_parameters())
    assert all(torch.equal(p, other[name]) for name, p in trained.items())


def test_the_generated_corpus_has_parameters_of_its_own() -> None:
    params = tiny.params()
    own = synthetic.settings(params, 12)
    assert own.ingest.sample.windows == 12 and own.ingest.source == "sample" and own.seed != params.seed
    assert own.roster.settings == ["closed"] and own.extract.model == "linear" and own.verifier == params.verifier


def test_the_stage_teaches_the_base_and_publishes_it(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write(Path("data"))
    save_policy(policy, "own")
    from stages.reward.__main__ import main as reward

    params = tiny.params()
    params = params.model_copy(update={
        "policy": params.policy.model_copy(update={"base": "own", "template": str(SHORT)}),
        "sft": params.sft.model_copy(update={"settings": ["closed"], "epochs": 2, "patience": 0}),
    })  # fmt: skip
    reward(params)
    main(params)
    found = load_policy("models/sft")
    assert any(not torch.equal(a, b) for a, b in zip(found.model.parameters(), policy.model.parameters(), strict=True))
    assert "| epoch | CertNDCG |" in Path("models/sft/README.md").read_text(encoding="utf-8")
    assert (Path("data/sft/plots/metrics/loss.tsv")).read_text(encoding="utf-8").count("\n") >= 3
    first = {p: p.read_bytes() for p in Path("data/sft").rglob("*") if p.is_file()}
    weights = Path("models/sft/model.safetensors").read_bytes()
    main(params)  # goes on from a finished checkpoint: nothing is trained, everything is written again
    assert {p: p.read_bytes() for p in Path("data/sft").rglob("*") if p.is_file()} == first
    assert Path("models/sft/model.safetensors").read_bytes() == weights
