"""Reinforcement learning end to end on an untrained tiny-mla: rollouts, rewards, updates, resuming, the stage.

Sections are cited as N (rl-neighbours.md) and A (agpo.md).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from math import fsum
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import certificates, rewards
from pipeline.certificates import Limits
from pipeline.constrained import compile_grammar
from pipeline.errors import DataError, ParamError
from pipeline.mla import MLAConfig, MLAForCausalLM
from pipeline.params import Arm, Shaping, load_params
from pipeline.policies import Policy, load_policy, make_policy, save_policy
from pipeline.prompts import Prompter, load_template
from pipeline.rankings import Task
from pipeline.rewards import Outcome
from pipeline.skeletons import Intent
from stages.reward.model import RewardModel
from stages.rl import objective
from stages.rl.__main__ import Judge, main
from stages.rl.guards import REASONS, Watch
from stages.rl.reward import Judged, contrast, judge, late_flips, slot_gains, thrift
from stages.rl.rollout import Asked, Sampler, fields_of, replayed, slots_of
from stages.rl.scoring import Scorer, Table
from stages.rl.settings import Decided, decide
from stages.rl.tasks import Instance, read_instances
from stages.rl.trainer import State, Trainer
from stages.rl.world import World
from stages.sft.tokenizer import END, SPECIAL, train_tokenizer
from tests import tiny
from tests.builders import PLAN, story

ROOT = Path(__file__).parents[2]
SHORT = ROOT / "pipeline/prompt_short.txt"
INTENT = Intent("attack", 1, "Who attacked?", PLAN, "0" * 64)
MATRIX = load_params(ROOT / "params.yaml").rl
SHAPING = MATRIX.shaping
close = pytest.approx


def instance(seed: int = 7) -> Instance:
    window = replace(story(seed), k=2, window_id=f"w{seed}")
    return Instance(Task(window, INTENT, Limits(), 100_000, 50_000), {"Ada": 1.0, "Bob": 0.7, "Cay": 0.4, "Dot": 0.0})


def make(seed: int = 1) -> Policy:
    """An untrained tiny-mla with a tokenizer of the story's prompts."""
    prompter = Prompter(load_template(SHORT), len, 1 << 20, SPECIAL)
    texts = [prompter.render(instance(s).task.window, INTENT, s).text for s in range(4)]
    tokenizer = train_tokenizer(texts, 1024)
    config = MLAConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
    )  # fmt: skip
    return make_policy(MLAForCausalLM(config, seed=seed), tokenizer, end=END)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return make()


def copied(policy: Policy) -> Policy:
    """The same weights in a model of its own."""
    assert isinstance(policy.model, MLAForCausalLM)
    model = MLAForCausalLM(policy.model.config)
    model.load_state_dict(policy.model.state_dict())
    return replace(policy, model=model.eval())


def arm(**changes: Any) -> Arm:
    """A small run; `run` names one of the matrix."""
    run = changes.pop("run", "ecpo")
    small = {"steps": 2, "prompts": 2, "group_size": 4, "updates_per_rollout": 2, "rate": 0.01, "warm_up": 1,
             "checkpoint": 1, "judge_windows": 0, "patience": 0}  # fmt: skip
    raw = MATRIX.arm(run).model_dump()
    if raw["advantage"] == "single_stream":
        small["group_size"] = 1
    for key, value in {**small, **changes}.items():
        raw[key] = {**raw[key], **value} if isinstance(value, dict) else value
    return Arm.model_validate(raw)


def sampler(policy: Policy, *, constrained: bool = True) -> Sampler:
    prompter = Prompter(load_template(SHORT), lambda t: len(policy.encode(t)), 1024, policy.specials, fitting=True)
    return Sampler(policy, prompter, 5, constrained=constrained)


def quiet(_: str) -> None:
    pass


def trainer(policy: Policy, work: Path, **changes: Any) -> Trainer:
    own = arm(**changes)
    asks = sampler(policy, constrained=own.validity == "grammar")
    return Trainer(decide(own), asks, [instance(s) for s in range(3)], work, quiet)


def weights(policy: Policy) -> list[torch.Tensor]:
    return [p.detach().clone() for p in policy.model.parameters()]


def asked(policy: Policy, heat: float = 1.0, *, constrained: bool = True) -> tuple[Sampler, Asked]:
    own = sampler(policy, constrained=constrained)
    one = own.ask(instance(), 0, 0, heat)
    assert one is not None
    [answers] = own.answers([one], 4, [heat], "test")
    one.rollouts = [own.rollout(one, answer) for answer in answers]
    return own, one


# ---- lists as tokens -------------------------------------------------------------------------------------------------

PIECES = ("C02", " s1=", "E01", ",", "E04", " s2=", "E03", " | ", "C01", " s1", "=E02", " .", "")


def test_every_token_has_a_slot_and_an_aligned_place() -> None:
    """N 1: a slot is a list position; going on belongs to the next entry, stopping to the slot left empty."""
    assert slots_of(PIECES, 5) == (0,) * 7 + (1,) * 4 + (2,) * 2
    assert slots_of(PIECES, 2) == (0,) * 7 + (1,) * 6, "a full list has no empty slot"
    assert slots_of((".", ""), 3) == (0, 0), "an empty list stops in the first"
    places = fields_of(PIECES, slots_of(PIECES, 5))
    assert places[:7] == [
        (0, "", 0),
        (0, "s1", 0),
        (0, "s1", 1),
        (0, "s1", 2),
        (0, "s1", 3),
        (0, "s2", 0),
        (0, "s2", 1),
    ]
    assert places[8:11] == [(1, "", 0), (1, "s1", 0), (1, "s1", 1)]
    assert len(set(places)) == len(places) - 1, "the end token alone shares a place"


def test_replaying_the_grammar_finds_what_was_a_choice(policy: Policy) -> None:
    own, one = asked(policy)
    assert one.grammar is not None
    for rollout in one.rollouts:
        assert rollout.complete and rollout.tokens[-1] == policy.eos
        assert certificates.parse(rollout.text, one.prompt.window, PLAN, 2, Limits()) is not None
        bits = replayed(one.grammar, rollout.tokens)
        assert bits.shape[0] == len(rollout.tokens)
        assert not rollout.free[-1], "behind the full stop only the end is legal"
        assert any(rollout.free) and not all(rollout.free)
    grammar = compile_grammar(own.grammar(one.instance, one.prompt), own.engine.vocabulary)
    with pytest.raises(DataError, match="token 1 of a rollout is not in its grammar"):
        replayed(grammar, [policy.eos])


@pytest.mark.parametrize("heat", [0.7, 1.0, 1.35])
@pytest.mark.parametrize("way", ["split", "block_mask", "off"])
@pytest.mark.parametrize("constrained", [True, False])
def test_what_was_sampled_is_scored(policy: Policy, heat: float, way: Any, constrained: bool) -> None:
    """A 8, D2: temperature, grammar and model are the sampler's, so trainer and engine agree on every token."""
    own, one = asked(policy, heat, constrained=constrained)
    table = Table.of(one.ids, one.rollouts, heat, own.width)
    with torch.no_grad():
        scores = Scorer(policy.plain, way).score(table)
    torch.testing.assert_close(scores.log_probs_GT, table.engine_GT, atol=2e-5, rtol=1e-4)
    assert (scores.entropy_GT >= -1e-6).all() and (scores.log_probs_GT[~table.free_GT] == 0).all()


def test_an_end_token_counts_also_where_it_pads(policy: Policy) -> None:
    """D17, T-eos: lengths say where a rollout ends; in free decoding its end token is a choice with a weight."""
    own, one = asked(policy, constrained=False)
    short = replace(one.rollouts[0], tokens=(5, policy.eos), engine=(-1.0, -2.0), slots=(0, 0), legal=None)
    table = Table.of(one.ids, [short, one.rollouts[1]], 1.0, own.width)
    assert table.free_GT[0].tolist()[:2] == [True, True] and not table.free_GT[0, 2:].any()
    weight = objective.weights("seq_mean", table.slot_GT, table.free_GT, 10)
    assert weight[0, 1] == weight[0, 0] > 0


# ---- rewards ---------------------------------------------------------------------------------------------------------


def outcome(name: str, *, valid: bool = True, recovered: bool = True, coverage: float = 1.0) -> Outcome:
    return Outcome(name, valid, recovered, coverage)


def listed(*entries: tuple[str, int, Outcome], rank: float = 0.5) -> Judged:
    """Entries that cite so many handles."""
    from pipeline.spans import Span

    made = tuple(
        certificates.Entry(name, (("s1", tuple(Span("d", 10 * i, 10 * i + 1) for i in range(handles))),))
        for name, handles, _ in entries
    )
    return Judged(made, None, tuple(o for _, _, o in entries), rank)


ADA, BOB = ("Ada", 2, outcome("Ada")), ("Bob", 2, outcome("Bob", recovered=False))


def total(kind: Any, judged: Judged, group: Sequence[Judged] = (), shaping: Shaping = SHAPING) -> float:
    return fsum(slot_gains(kind, [judged, *group], instance(), shaping)[0])


def test_slots_gains_add_up_to_the_rewards_of_the_task_definition() -> None:
    for judged in (
        listed(ADA, BOB),
        listed(BOB, ADA),
        listed(ADA),
        listed(),
        listed(ADA, ("Ada", 2, outcome("Ada", valid=False))),
    ):
        own, u = instance(), instance().u
        names = [o.candidate_id for o in judged.outcomes]
        assert total("gated", judged) == close(rewards.gated(judged.outcomes, u, own.k))
        assert total("rank", judged) == close(rewards.r_rank(names, u, own.k))
        wanted = rewards.additive(judged.outcomes, u, own.k, certificate=SHAPING.certificate, cycle=SHAPING.cycle)
        assert total("additive", judged) == close(wanted)


@pytest.mark.parametrize("text", ["The answer is C01 s1=E01 .", "", ".", "C01 s1=E01", "```C01 s1=E01 .```", "42."])
def test_prose_around_an_answer_earns_nothing(policy: Policy, text: str) -> None:
    """D5: no letter or id is fished out of a text; rewards come from the parser and the verifier alone."""
    _, one = asked(policy)
    judged = judge(one.instance, one.prompt.window, text)
    assert judged.outcomes == () and (judged.code is None) is (text == ".") and judged.invalid is (text != ".")
    for kind in ("gated", "additive", "rank", "graded", "economy", "contrast"):
        assert total(kind, judged) == 0


def test_partial_credit_stays_below_a_certified_entry() -> None:
    """N 6, graded: max over uncertified < min over certified at equal rank and gain; nothing for an invalid one."""
    full = total("graded", listed(ADA))
    near = [total("graded", listed(("Ada", 2, outcome("Ada", recovered=False, coverage=c)))) for c in (0.0, 0.5, 1.0)]
    assert near == sorted(near) and near[0] == 0 and near[-1] == close(SHAPING.graded * full) and near[-1] < full
    assert total("graded", listed(("Ada", 2, outcome("Ada", valid=False, recovered=False)))) == 0


def test_superfluous_handles_cost() -> None:
    """N 6, economy: n = 2 with m = 1, 2, 3, 4, 8; a wrong slot stays 0; padding never gains."""
    assert [thrift(m, 2) for m in (1, 2, 3, 4, 8)] == close([0.8660, 1, 0.9511, 0.8660, 0.5878], abs=5e-5)
    lean, padded = listed(ADA), listed(("Ada", 4, outcome("Ada")))
    assert total("economy", lean, [padded]) == close(total("gated", lean))
    assert total("economy", padded, [lean]) < total("economy", lean, [padded])
    assert total("economy", padded) == close(total("gated", padded)), "the least is relative to the group"
    assert total("economy", listed(BOB), [lean]) == 0


def test_a_bonus_only_where_certificates_go_with_better_lists() -> None:
    """N 6, contrast: all or none certified -> 0; inside the band 0; the sign flips with the contrast."""
    good, bad = listed(ADA, rank=0.9), listed(BOB, rank=0.4)
    assert contrast([good, good]) == 0 == contrast([bad, bad]) and contrast([good, replace(bad, rank=0.89)]) == 0
    assert contrast([good, bad]) == 1 and contrast([replace(good, rank=0.1), bad]) == -1
    assert total("contrast", good, [bad]) == close(total("gated", good) + SHAPING.contrast / 2)
    assert total("contrast", bad, [good]) == 0


def test_late_flips_are_counted(policy: Policy) -> None:
    """N 2.1, causality."""
    _, one = asked(policy)
    window = one.prompt.window
    text = certificates.render([one.instance.task.certifiable["Ada"]], window)
    judged = judge(one.instance, window, text)
    assert judged.whole and late_flips(one.instance.task, judged) == (0, 1)


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", sorted(MATRIX.matrix))
def test_every_run_of_the_matrix_is_decided(run: str) -> None:
    found = decide(MATRIX.arm(run))
    assert isinstance(found, Decided) and found.clip in objective.CLIPS[found.unit]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"credit_unit": "slot", "clip": "dcpo"}, "does not fit"), ({"clip": "gspo"}, "does not fit"),
        ({"advantage": "single_stream"}, "one rollout per prompt"), ({"group_size": 1}, "one rollout per prompt"),
        ({"run": "ppo", "advantage": "group"}, "advantages of its own"),
        ({"temperature": "agpo", "agpo": {"probe_source": "train"}}, "its own temperature"),
        ({"minibatches_per_rollout": 3}, "more than the 2 prompts"),
        ({"run": "spo", "resample": 1}, "only groups"), ({"run": "spo", "credit_unit": "slot"}, "no credit by slot"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], message: str) -> None:
    """N 1."""
    with pytest.raises(ParamError, match=message):
        decide(arm(**changes))


def test_shorthands_and_presets() -> None:
    """N 1, A 1."""
    ecpo, grpo, both = decide(arm()), decide(arm(run="grpo")), decide(arm(controller="agpo"))
    assert (ecpo.unit, ecpo.advantage, ecpo.loss_agg, ecpo.reward, ecpo.beta) == (
        "slot",
        "smooth",
        "slot_mean",
        "gated",
        0.02,
    )
    assert (grpo.unit, grpo.advantage, grpo.loss_agg, grpo.reward, grpo.beta) == (
        "token",
        "group",
        "seq_mean",
        "rank",
        0,
    )
    assert (both.clip, both.temperature, both.probe, both.agpo.eps_base) == ("agpo", "agpo", 8, 0.07)
    assert ecpo.probe == 0 and grpo.eps == (0.2, 0.2) and ecpo.eps == (0.06, 0.08)
    assert decide(arm(agpo={"preset": "published"})).agpo.sequential


# ---- training --------------------------------------------------------------------------------------------------------


def ran(policy: Policy, work: Path, **changes: Any) -> tuple[State, list[torch.Tensor], Trainer]:
    own = copied(policy)
    made = trainer(own, work, **changes)
    return made.run(), weights(own), made


@pytest.mark.parametrize("run", sorted(MATRIX.matrix))
def test_every_run_trains(policy: Policy, tmp_path: Path, run: str) -> None:
    """Finite figures, weights that move, ratios of exactly 1 before the first update (D14), and probe tokens apart."""
    state, after, made = ran(policy, tmp_path, run=run, resample=1 if run == "dapo" else 0)
    assert state.step == 2 and len(state.trace) == 2
    for row in state.trace:
        assert all(abs(value) < 1e6 for value in row.values()), row
        assert row["clip/first_absdev"] < 1e-6 and row["mismatch/absdlogp_mean"] < 1e-4
        assert row["group/rejected_frac"] == 0 and row["tokens/total"] == row["tokens/probe"] + row["tokens/train"]
        assert (row["tokens/probe"] > 0) is ("agpo" in run)
        assert row["group/flat_frac"] == 0 or run != "spo", "a single rollout is no flat group"
    moved = any(not torch.equal(a, b) for a, b in zip(after, weights(policy), strict=True))
    assert moved is any(row["grad_norm"] > 0 for row in state.trace)
    names = {name for name, p in made.sampler.policy.plain.named_parameters() if p.requires_grad}
    critic = {name for name in made.learner.trained if name.startswith("critic.")}
    assert set(made.learner.trained) == names | critic and bool(critic) is (run == "ppo"), "D18: no head but ppo's"


SETUPS: list[dict[str, Any]] = [
    {"run": "ecpo_agpo"}, {"run": "grpo_agpo", "agpo": {"probe_source": "previous", "shuffle": True}},
    {"run": "ppo", "value_trunk": "separate"}, {"run": "spo"},
    {"guard": ["gtpo", "llds"], "validity": "lagrange", "minibatches_per_rollout": 2},
]  # fmt: skip


@pytest.mark.parametrize("changes", SETUPS, ids=lambda c: c.get("run", "guarded"))
def test_a_killed_run_goes_on_to_the_same_bits(policy: Policy, tmp_path: Path, changes: dict[str, Any]) -> None:
    """A 11, D10, N 3.1: weights, loss trace, controllers and trackers equal those of the uninterrupted run."""
    more = {**changes, "steps": 4}
    state, after, whole = ran(policy, tmp_path / "a", **more)
    half = copied(policy)
    trainer(half, tmp_path / "b", **more).run(stop=2)
    fresh = copied(policy)
    logged: list[dict[str, float]] = []
    parts = trainer(fresh, tmp_path / "b", **more)
    parts.log = lambda step, row: logged.append({"step": step, **row})
    assert parts.run().trace == state.trace == logged
    assert all(torch.equal(a, b) for a, b in zip(after, weights(fresh), strict=True))
    assert parts.memory.state() == whole.memory.state()


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(policy: Policy, tmp_path: Path) -> None:
    ran(policy, tmp_path)
    said: list[str] = []
    own = trainer(copied(policy), tmp_path, rate=0.02)
    own.say = said.append
    own.run(stop=1)
    assert own.state.step == 1 and not any("going on" in line for line in said)


def test_controllers_switched_off_are_plain_grpo_to_the_bit(policy: Policy, tmp_path: Path) -> None:
    """P7, T-reduce: samples, losses, gradients and weights; no probe is drawn."""
    gains = dict.fromkeys(("alpha", "gamma", "delta", "zeta", "lambda_temp"), 0.0)
    off = {"probe_source": "previous", "h_min": 1.0, "h_max": 1.0, **gains}
    plain, a, _ = ran(policy, tmp_path / "a", run="grpo")
    steered, b, made = ran(policy, tmp_path / "b", run="grpo_agpo", agpo=off)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)) and made.memory.budget.probe == 0
    for one, two in zip(plain.trace, steered.trace, strict=True):
        assert {name: two[name] for name in one} == one


def test_sharing_prefixes_changes_no_run(policy: Policy, tmp_path: Path) -> None:
    """N 8, through whole updates."""
    found = [ran(policy, tmp_path / way, prefix_sharing=way)[1] for way in ("split", "block_mask", "off")]
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_a_budget_of_tokens_ends_a_run(policy: Policy, tmp_path: Path) -> None:
    """D16, P12: at the first boundary past it, the overshoot told, probes counted."""
    said: list[str] = []
    own = trainer(copied(policy), tmp_path, run="ecpo_agpo", steps=50, tokens=300)
    own.say = said.append
    state = own.run()
    budget = own.memory.budget
    assert state.over and budget.spent >= 300 and state.step < 50
    assert (
        budget.spent - (state.trace[-1]["tokens/total"] - (state.trace[-2]["tokens/total"] if state.step > 1 else 0))
        < 300
    )
    assert any(f"{budget.overshoot} past the budget" in line for line in said)


def test_judging_moves_nothing(policy: Policy, tmp_path: Path) -> None:
    """P12: neither a generator nor an average; the best weights are kept."""
    plain, _, one = ran(policy, tmp_path / "a", run="ecpo_agpo", steps=3)
    own = copied(policy)
    made = trainer(own, tmp_path / "b", run="ecpo_agpo", steps=3, judge_every=1)
    judging = Judge(own, made.sampler.prompter, [instance(9)], 5)
    seen: list[list[torch.Tensor]] = []
    scores = iter([0.1, 0.9, 0.3])

    def judge_() -> dict[str, float]:
        found = judging()
        assert set(found) == {"gated", "rank", "entries", "certified"} and 0 <= found["gated"] <= found["rank"] <= 1
        seen.append(weights(own))
        return {"gated": next(scores)}

    made.judge = judge_
    state = made.run()
    assert [{k: v for k, v in row.items() if not k.startswith("tune/")} for row in state.trace] == plain.trace
    assert made.memory.state() == one.memory.state() and state.best == (0.9, 2)
    assert all(torch.equal(a, b) for a, b in zip(weights(own), seen[1], strict=True))


def test_updates_may_be_cut_up_into_minibatches(policy: Policy, tmp_path: Path) -> None:
    state, _, made = ran(policy, tmp_path, minibatches_per_rollout=2, updates_per_rollout=3)
    assert state.updates == 2 * 3 * 2 == made.learner.steps


@pytest.mark.parametrize("run", ["ecpo_rank", "grpo", "ppo", "reinforce"])
def test_updates_make_good_lists_likelier(policy: Policy, tmp_path: Path, run: str) -> None:
    """The direction of an update: what was better than expected gains likelihood, by the ratio's own count too."""
    state, _, _ = ran(policy, tmp_path, run=run, prompts=1, group_size=8, rate=0.002, mismatch="off")
    assert all(row["logp/pos_change"] > 0 for row in state.trace if row["group/flat_frac"] < 1)
    assert any(row["group/flat_frac"] < 1 for row in state.trace)


@pytest.mark.parametrize("rule", sorted(REASONS))
def test_a_collapsed_run_stops_with_a_reason(rule: str) -> None:
    usual = {"entropy/all": 1.0, "grad_norm": 1.0, "group/invalid_frac": 0.1, "group/flat_frac": 0.2,
             "logp/pos_change": 0.01}  # fmt: skip
    broken = {
        "entropy": {"entropy/all": 0.1}, "invalid": {"group/invalid_frac": 0.95}, "signal": {"group/flat_frac": 1.0},
        "displacement": {"logp/pos_change": -0.1, "grad_norm": 4.0},
    }[rule]  # fmt: skip
    watch = Watch(3)
    for _ in range(12):
        watch.see(usual)
    for _ in range(2):
        watch.see({**usual, **broken})
    watch.see(usual)
    with pytest.raises(DataError, match="stopped after 3 rollout batches in a row"):
        for _ in range(3):
            watch.see({**usual, **broken})
    never = Watch(0)
    for _ in range(30):
        never.see({**usual, **broken})


def test_no_instance_is_an_error(policy: Policy, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no train instance"):
        Trainer(decide(arm()), sampler(policy), [], tmp_path, quiet)


# ---- several processes -----------------------------------------------------------------------------------------------


def test_two_processes_update_as_one(policy: Policy, tmp_path: Path) -> None:
    """P13, D9: the same global batch over gloo; controllers to the bit, weights up to the order of sums."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    base = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    runs = [
        subprocess.Popen([sys.executable, "-m", "tests.stages.rl_process", str(tmp_path / f"{size}-{rank}")], cwd=ROOT,
                         env={**base, "WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for size, rank in ((2, 0), (2, 1), (1, 0))
    ]  # fmt: skip
    assert [run.wait() for run in runs] == [0, 0, 0]
    one, two, other = (json.loads((tmp_path / name / "found.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert two["memory"] == other["memory"] and two["weights"] == other["weights"]
    assert (
        two["first"]["agpo/u_ema"] == one["first"]["agpo/u_ema"]
        and two["first"]["reward/mean"] == one["first"]["reward/mean"]
    )
    assert two["first"]["agpo/eps"] == close(one["first"]["agpo/eps"], rel=1e-6)
    assert two["weights"] == close(one["weights"], abs=2e-4)


# ---- the stage -------------------------------------------------------------------------------------------------------


def test_the_stage_teaches_the_supervised_policy_and_publishes_it(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write(Path("data"))
    save_policy(policy, "models/sft")
    from stages.reward.__main__ import main as reward

    params = tiny.params()
    changes = {"settings": ["closed"], "steps": 2, "prompts": 1, "group_size": 6, "judge_windows": 1, "judge_every": 1,
               "updates_per_rollout": 2, "checkpoint": 1, "rate": 0.01, "reward": "rank"}  # fmt: skip
    params = params.model_copy(update={
        "policy": params.policy.model_copy(update={"template": str(SHORT)}),
        "rl": params.rl.model_copy(update=changes),
    })  # fmt: skip
    reward(params)
    found = list(read_instances("train", "closed", params, RewardModel.load("models/reward")))
    assert found and all(i.task.window.split == "train" and max(i.u.values()) == 1 for i in found)
    main("ecpo_agpo", World(), params)
    kept = load_policy("models/rl/ecpo_agpo")
    assert any(not torch.equal(a, b) for a, b in zip(kept.model.parameters(), policy.model.parameters(), strict=True))
    card = Path("models/rl/ecpo_agpo/README.md").read_text(encoding="utf-8")
    assert "Published: the last weights" in card and '"clip": "agpo"' in card
    assert Path("data/rl/ecpo_agpo/plots/metrics/agpo/tau.tsv").is_file()
    first = {p: p.read_bytes() for p in Path("data/rl").rglob("*") if p.is_file()}
    bits = Path("models/rl/ecpo_agpo/model.safetensors").read_bytes()
    main("ecpo_agpo", World(), params)  # goes on from a finished checkpoint: everything is written again, alike
    assert {p: p.read_bytes() for p in Path("data/rl").rglob("*") if p.is_file()} == first
    assert Path("models/rl/ecpo_agpo/model.safetensors").read_bytes() == bits
    with pytest.raises(ParamError, match="no run 'best'"):
        main("best", World(), params)
