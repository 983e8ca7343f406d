"""What a policy is asked while it learns by reward: instances of a split, chosen and paid without any label.

An instance is kept when something in it can be earned: the window has a trigger to cite, and the verifier accepts some
legal bundle for some candidate. Nothing here reads the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline import tables
from pipeline.certificates import Limits
from pipeline.params import Params
from pipeline.rankings import Task
from pipeline.rewards import Utilities, utilities
from pipeline.skeletons import MICRO, intents_from_table
from pipeline.windows import Window, load_windows, stable_seed
from stages.reward.model import RewardModel


@dataclass(frozen=True)
class Instance:
    """A task and what its candidates are worth.

    Args:
        task: the instance.
        u: of every candidate of the roster, in [0, 1], by the reward model.
    """

    task: Task
    u: Utilities

    @cached_property
    def key(self) -> str:
        """Names it, in every epoch alike."""
        window = self.task.window
        return f"{window.window_id}|{self.task.intent.intent_id}|{window.setting}"

    @property
    def k(self) -> int:
        return self.task.window.k


def read_instances(
    split: str, setting: str, params: Params, model: RewardModel, most: int | None = None, root: str | Path = "data"
) -> Iterator[Instance]:
    """The instances of a split in window order.

    Args:
        split: train or tune.
        setting: roster setting.
        params: the verifier's section and the seed are used.
        most: instances at most, about: whole windows are left out, drawn by hash.
        root: data directory.
    """
    intents = intents_from_table(tables.read("trajectories/skeletons", root))
    limits = Limits.of(params.verifier)
    accept, margin = (round(x * MICRO) for x in (params.verifier.accept, params.verifier.margin))
    found: dict[str, list[Instance]] = {}
    for window in load_windows(setting, [split], root):
        own = [Task(window, intent, limits, accept, margin) for intent in intents]
        own = [task for task in own if task.answerable and task.certifiable]
        if own:
            found[window.window_id] = list(_worth(window, own, model))
    held = 0
    kept = set()
    for window_id in sorted(found, key=lambda w: (stable_seed("instances", params.seed, w), w)):
        if most is not None and held >= most:
            break
        held += len(found[window_id])
        kept.add(window_id)
    for window_id, instances in found.items():
        if window_id in kept:
            yield from instances


def _worth(window: Window, tasks: list[Task], model: RewardModel) -> Iterator[Instance]:
    for task, row in zip(tasks, model.scores_of(window, [t.skeleton for t in tasks]), strict=True):
        yield Instance(task, utilities(dict(zip(task.candidates, row.tolist(), strict=True))))
