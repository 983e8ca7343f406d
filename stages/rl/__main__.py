"""Stage `rl`: a policy taught by reward, one run of the matrix `rl.matrix`.

Starts from `models/sft` and learns on the windows of the train split, whose candidates the reward model values and
whose evidence the verifier checks; no label is read. After every `rl.judge_every` rollout batches windows of the tune
split are ranked greedily, and the weights with the best gated reward there are published.

Reads the texts, `data/roster`, `data/trajectories`, `models/{reward,sft}`; writes `models/rl/<run>` and
`data/rl/<run>` (learning curves and controller traces, as DVCLive writes them). Run it with `dvc repro rl@ecpo`, or

    python -m stages.rl ecpo
    accelerate launch --num_processes 2 -m stages.rl ecpo
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import fsum
from pathlib import Path
from typing import Any

from dvclive.live import Live
from torch import nn

from pipeline.errors import ParamError
from pipeline.files import WORK, publish_directory, write_text
from pipeline.params import Arm, Params, Shaping
from pipeline.policies import Policy, load_policy, save_policy
from pipeline.prompts import Prompter
from pipeline.stage import run
from stages.reward.model import RewardModel
from stages.rl.reward import slot_gains
from stages.rl.rollout import Sampler
from stages.rl.settings import Decided, decide
from stages.rl.tasks import Instance, read_instances
from stages.rl.trainer import State, Trainer
from stages.rl.world import World

START = Path("models/sft")
MODELS = Path("models/rl")
CURVES = Path("data/rl")
UNSHAPED = Shaping(certificate=0.0, cycle=0.0, graded=0.0, economy=0.0, contrast=0.0)


def main(name: str, world: World, params: Params) -> None:
    """Train one run and publish it."""
    if name not in params.rl.matrix:
        raise ParamError(f"no run {name!r}", field="rl.matrix", mend=f"one of {', '.join(sorted(params.rl.matrix))}")
    decided = decide(params.rl.arm(name))
    arm = decided.arm
    policy = trainable(load_policy(START))
    reward = RewardModel.load("models/reward")
    instances = [i for s in arm.settings for i in read_instances("train", s, params, reward, arm.instances)]
    prompter = Prompter.of(params, lambda text: len(policy.encode(text)), policy.specials)
    sampler = Sampler(policy, prompter, params.seed, constrained=arm.validity == "grammar")
    held = tuned(arm, params, reward)
    judge = Judge(policy, prompter, held, params.seed) if held else None
    live = curves(CURVES / name) if world.rank == 0 else None

    def log(step: int, row: dict[str, float]) -> None:
        if live is not None:
            live.step = step
            for metric, value in sorted(row.items()):
                live.log_metric(metric, round(value, 6))
            live.make_summary()

    def tell(line: str) -> None:
        if world.rank == 0:
            say(line)

    tell(
        f"{name}: {len(instances)} train instances, {len(held)} tune instances, "
        + ", ".join(f"{k} {v}" for k, v in decided.summary().items())
    )
    trainer = Trainer(decided, sampler, instances, WORK / "rl" / name, tell, log, judge, world)
    state = trainer.run()
    if world.rank == 0:
        with publish_directory(MODELS / name) as folder:
            save_policy(policy, folder)
            write_text(folder / "README.md", card(name, decided, instances, state, trainer))
    world.wait()


def trainable(policy: Policy) -> Policy:
    """The policy in float32; of one with adapters these alone are trained."""
    model: nn.Module = policy.model.float()
    adapters = [p for n, p in model.named_parameters() if "lora_" in n]
    for parameter in adapters:
        parameter.requires_grad_(True)
    return replace(policy, model=model)


def tuned(arm: Arm, params: Params, reward: RewardModel) -> list[Instance]:
    """Instances of the first tune windows in the first roster setting; none where none are asked for."""
    found = list(read_instances("tune", arm.settings[0], params, reward))
    windows = sorted({i.task.window.window_id for i in found})[: arm.judge_windows]
    return [i for i in found if i.task.window.window_id in windows]


class Judge:
    """How good a policy is without any label: mean gated reward of greedy lists under the grammar."""

    def __init__(self, policy: Policy, prompter: Prompter, instances: Sequence[Instance], seed: int) -> None:
        self.sampler = Sampler(policy, prompter, seed, constrained=True)
        self.instances = instances

    def __call__(self) -> dict[str, float]:
        """Gated reward, ranking utility, entries and certified entries per list."""
        sampler, rows = self.sampler, []
        asked = [one for i, x in enumerate(self.instances) if (one := sampler.ask(x, i, 0, 0.0)) is not None]
        for one, [answer] in zip(asked, sampler.answers(asked, 1, [0.0] * len(asked), "judge"), strict=True):
            judged = sampler.judged(one, answer)
            [gains] = slot_gains("gated", [judged], one.instance, UNSHAPED)
            rows.append((fsum(gains), judged.rank, len(judged.entries), judged.certified))
        names = ("gated", "rank", "entries", "certified")
        return {name: fsum(row[i] for row in rows) / len(self.instances) for i, name in enumerate(names)}


def curves(folder: Path) -> Any:
    """A fresh log of learning curves."""
    shutil.rmtree(folder, ignore_errors=True)
    live: Any = Live(str(folder), save_dvc_exp=False, dvcyaml=None, report=None, monitor_system=False)
    return live


def say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def card(name: str, decided: Decided, instances: Sequence[Instance], state: State, trainer: Trainer) -> str:
    """The model card."""
    judged = [row for row in state.trace if "tune/gated" in row]
    rows = "\n".join(
        f"| {int(row['step'])} | {row['tune/gated']:.4f} | {row['tune/rank']:.4f} | {row['tune/certified']:.2f} |"
        for row in judged
    )
    best = "the last weights" if state.best is None else f"rollout batch {state.best[1]}"
    budget = trainer.memory.budget
    controllers = json.dumps(trainer.memory.agpo.state(), sort_keys=True)
    return f"""# Policy `{name}`

The supervised policy, taught by reward on {len(instances):,} train instances: {state.step:,} rollout batches,
{state.updates:,} updates, {budget.spent:,} generated tokens ({budget.probe:,} of them by probes). Published: {best}.

Ranking tune windows greedily under the grammar:

| rollout batch | gated reward | ranking utility | certified entries per list |
|---|---|---|---|
{rows}

Switches: `{json.dumps(decided.summary(), sort_keys=True)}`

Settings: `{json.dumps(decided.arm.model_dump(), sort_keys=True)}`

Controllers at the end: `{controllers}`

It was paid by the verifier and the reward model, which it may have learned to please: compare CertNDCG with the gold
gate and with the held-out verifier in the audit. It may believe what a document says of itself.
"""


if __name__ == "__main__":
    WORLD = World.join()
    NAME = sys.argv[1] if len(sys.argv) == 2 else ""
    run(f"rl@{NAME}" + (f".{WORLD.rank}" if WORLD.rank else ""), partial(main, NAME, WORLD))
