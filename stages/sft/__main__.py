"""Stage `sft`: the supervised policy.

The base policy (`policy.base`; tiny-mla is kept under models/fitted/, see `base.py`) is taught the best feasible list
of every kept train instance (`pipeline.oracle` over the extracted trajectories), under names drawn anew for every
epoch; only the answer's tokens count in the loss. After every epoch tune windows are ranked, and the epoch with the
best CertNDCG is what is published.

Reads `models/{fitted,reward}`, the texts, `data/roster`, `data/trajectories`, `data/reference/{train,tune}`; writes
`models/sft` and `data/sft` (learning curves, as DVCLive writes them). Run it with `dvc repro sft`, or alone with

    python -m stages.sft
"""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from dvclive.live import Live

from pipeline.errors import ParamError
from pipeline.files import WORK, publish_directory, write_text
from pipeline.mla import MLAForCausalLM
from pipeline.params import Params
from pipeline.policies import Policy, load_base, save_policy
from pipeline.prompts import Prompter
from pipeline.stage import run
from stages.reward.model import RewardModel
from stages.sft.judging import Judge
from stages.sft.lessons import Lesson, Teacher, read_lessons
from stages.sft.training import Course, Settings, State, Training

MODEL = Path("models/sft")
CURVES = Path("data/sft")


def main(params: Params) -> None:
    """Teach the base policy and publish it."""
    settings = params.sft
    policy = prepared(load_base(params.policy.base), settings.lora, params.seed)
    reward = RewardModel.load("models/reward")
    lessons = [
        lesson
        for setting in settings.settings
        for lesson in read_lessons("train", setting, params, reward, settings.instances)
    ]
    held = list(read_lessons("tune", settings.settings[0], params, reward))
    windows = sorted({lesson.task.window.window_id for lesson in held})[: settings.tune_windows]
    held = [lesson for lesson in held if lesson.task.window.window_id in windows]
    prompter = Prompter.of(params, lambda text: len(policy.encode(text)), policy.specials)
    teacher = Teacher(prompter, policy.encode, lambda text: plain(policy, text), policy.eos, params.seed)
    judge = Judge(policy, prompter, held, params.seed) if held else None
    how = Settings(
        epochs=settings.epochs, batch=settings.batch, rate=settings.rate, checkpoint=settings.checkpoint,
        patience=settings.patience, precision=settings.precision, seed=params.seed,
    )  # fmt: skip
    shutil.rmtree(CURVES, ignore_errors=True)
    live: Any = Live(str(CURVES), save_dvc_exp=False, dvcyaml=None, report=None, monitor_system=False)

    def log(step: int, row: dict[str, float]) -> None:
        live.step = step
        for name, value in sorted(row.items()):
            live.log_metric(name, round(value, 6))
        live.make_summary()

    say(f"{len(lessons)} train instances, {len(held)} tune instances of {len(windows)} windows")
    if judge is not None:
        before = judge(policy.model)
        say("before: " + ", ".join(f"{name} {value:.4f}" for name, value in before.items()))
    state = Training(policy.plain, Course(lessons, teacher, judge), how, WORK / "sft", say, log).run()
    with publish_directory(MODEL) as folder:
        save_policy(policy, folder)
        write_text(folder / "README.md", card(params, policy, lessons, held, state))


def prepared(policy: Policy, rank: int, seed: int) -> Policy:
    """The policy ready to be trained: in float32, with adapters where asked for.

    Raises:
        ParamError: adapters for tiny-mla, which is small enough to be trained whole.
    """
    model: Any = policy.model.float()
    if rank:
        if isinstance(model, MLAForCausalLM):
            raise ParamError("tiny-mla takes no adapters", field="sft.lora", mend="set it to 0")
        import torch
        from peft import LoraConfig, get_peft_model

        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # peft 0.21 asks for it by the name that transformers 5.23 calls deprecated.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            torch.manual_seed(seed)
            model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
    return replace(policy, model=model)


def plain(policy: Policy, text: str) -> list[int]:
    """Ids of an answer: nothing is put before it."""
    ids: list[int] = policy.backend.encode(text, add_special_tokens=False).ids
    return ids


def say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def card(params: Params, policy: Policy, lessons: list[Lesson], held: list[Lesson], state: State) -> str:
    """The model card."""
    judged = [row for row in state.trace if "cert_ndcg" in row]
    rows = "\n".join(
        f"| {i} | {row['cert_ndcg']:.4f} | {row['of_cap']:.4f} | {row['entries']:.2f} |"
        for i, row in enumerate(judged, start=1)
    )
    settings = json.dumps({"policy": params.policy.model_dump(), "sft": params.sft.model_dump()}, sort_keys=True)
    best = "the last epoch" if state.best is None else f"epoch {state.best[1] + 1}"
    return f"""# Supervised policy

`{params.policy.base}`, taught to rank candidates and to cite evidence on the train split: {len(lessons):,} instances
({", ".join(params.sft.settings)} rosters), {state.step:,} steps, {state.tokens:,} tokens. Published: {best}.

Ranking {len(held)} tune instances greedily under the grammar, after each epoch:

| epoch | CertNDCG | share of the cap | entries per list |
|---|---|---|---|
{rows}

Settings: `{settings}`

It was taught lists that are best by gold grades among what the extractor found; what was not extracted it cannot cite.
What it writes must pass the verifier like any other list. It may believe what a document says of itself: see the
audit's attack-success rate.
"""


if __name__ == "__main__":
    run("sft", main)
