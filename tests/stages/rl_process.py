"""One process of `test_rl.test_two_processes_update_as_one`: two rollout batches, then what it knows, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from stages.rl.settings import decide
from stages.rl.trainer import Trainer
from stages.rl.world import World
from tests.stages.test_rl import arm, instance, make, quiet, sampler


def main(folder: Path) -> None:
    world, policy = World.join(), make()
    how = arm(run="grpo_agpo", steps=2, prompts=3, updates_per_rollout=2)
    made = Trainer(decide(how), sampler(policy), [instance(s) for s in range(3)], folder, quiet, world=world)
    state = made.run()
    folder.mkdir(parents=True, exist_ok=True)
    weights = [float(p.detach().double().sum()) for p in policy.model.parameters()]
    found = {"memory": made.memory.state(), "weights": weights, "first": state.trace[0]}
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
