"""What a policy is taught: instances with the best feasible list as the right answer, rendered anew for every epoch.

The answer is that of `pipeline.oracle` over the *extracted* trajectories: gold says who belongs where, the verifier
which evidence proves it. Among equal grades the reward model's order decides, so that nothing arbitrary is taught.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import certificates, tables
from pipeline.certificates import Entry, Limits
from pipeline.errors import DataError
from pipeline.oracle import Grades, best, graded
from pipeline.params import Params
from pipeline.prompts import Prompt, Prompter
from pipeline.rankings import Task
from pipeline.skeletons import MICRO, intents_from_table
from pipeline.windows import load_windows, stable_seed
from stages.reward.model import RewardModel


@dataclass(frozen=True, slots=True)
class Lesson:
    """An instance in one roster setting and its right answer.

    Args:
        task: the instance.
        entries: the best feasible list, in canonical ids.
        grades: gold grades of the candidates.
        ideal: the best DCG of a list, over all gold candidates.
    """

    task: Task
    entries: tuple[Entry, ...]
    grades: Grades
    ideal: float

    @property
    def key(self) -> str:
        window = self.task.window
        return f"{window.window_id}|{self.task.intent.intent_id}|{window.setting}"


def read_lessons(
    part: str, setting: str, params: Params, model: RewardModel, most: int | None = None, root: str | Path = "data"
) -> Iterator[Lesson]:
    """The kept instances of a split that can be answered at all, in window order.

    Args:
        part: train or tune: the split, and the part of the reference that grades it.
        setting: roster setting.
        params: the verifier's section and the seed are used.
        model: breaks ties.
        most: instances at most, about: whole windows are left out, drawn by hash.
        root: data directory.
    """
    intents = {intent.intent_id: intent for intent in intents_from_table(tables.read("trajectories/skeletons", root))}
    limits = Limits.of(params.verifier)
    accept, margin = (round(x * MICRO) for x in (params.verifier.accept, params.verifier.margin))
    kept: dict[str, dict[str, float]] = {}
    for batch in tables.Reader(f"reference/{part}/instances", root).batches():
        for window_id, intent_id, ideal in batch.filter("kept").select("window_id", "intent_id", "idcg").iter_rows():
            kept.setdefault(window_id, {})[intent_id] = ideal
    wanted = set(_drawn(kept, params.seed, most))
    windows = (w for w in load_windows(setting, [part], root) if w.window_id in wanted)
    for window, grades in graded(windows, setting, part, root):
        if not certificates.has_trigger(window):
            continue
        asked = [intents[i] for i in sorted(kept[window.window_id])]
        scores = model.scores_of(window, [intent.skeleton for intent in asked])
        for intent, row in zip(asked, scores, strict=True):
            task = Task(window, intent, limits, accept, margin)
            ties = dict(zip(task.candidates, row.tolist(), strict=True))
            own = grades.get(intent.intent_id, {})
            yield Lesson(task, best(task, own, ties).emitted, own, kept[window.window_id][intent.intent_id])


def _drawn(kept: dict[str, dict[str, float]], seed: int, most: int | None) -> list[str]:
    """Windows, in an order drawn by hash, until they hold `most` instances."""
    order = sorted(kept, key=lambda w: (stable_seed("lessons", seed, w), w))
    if most is None:
        return order
    out, held = [], 0
    for window_id in order:
        if held >= most:
            break
        out.append(window_id)
        held += len(kept[window_id])
    return out


@dataclass(frozen=True, slots=True)
class Example:
    """A lesson as tokens: `ids`, of which the first `prompt` are read only."""

    ids: tuple[int, ...]
    prompt: int

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Rendered:
    """An example with what was left out of it.

    Args:
        example: the tokens.
        entries: of the right answer that the prompt allows to write.
        lost: entries of the right answer whose evidence the prompt does not show.
        prompt: as printed.
    """

    example: Example
    entries: int
    lost: int
    prompt: Prompt


Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Teacher:
    """Turns lessons into examples.

    Args:
        prompter: renders windows.
        read: token ids of a prompt.
        write: token ids of an answer, without the end token.
        end: the end token.
        seed: of the names drawn for every epoch.
    """

    prompter: Prompter
    read: Encode
    write: Encode
    end: int
    seed: int

    def render(self, lesson: Lesson, epoch: int) -> Rendered:
        """One lesson under the names of an epoch.

        Raises:
            DataError: plan and roster alone are over the budget.
        """
        prompt = self.prompter.render(lesson.task.window, lesson.task.intent, self.seed, epoch)
        shown = prompt.window.handle_of
        entries = [e for e in lesson.entries if all(span in shown for span in e.spans)]
        answer = [*self.write(certificates.render(entries, prompt.window)), self.end]
        ids = [*self.read(prompt.text), *answer]
        example = Example(tuple(ids), len(ids) - len(answer))
        return Rendered(example, len(entries), len(lesson.entries) - len(entries), prompt)

    def epoch(self, lessons: Sequence[Lesson], epoch: int) -> tuple[list[Example], dict[str, int]]:
        """All lessons under the names of an epoch, and counts of what a budget left out."""
        examples = []
        counts = {"examples": 0, "over_budget": 0, "entries": 0, "entries_lost": 0, "steps_dropped": 0, "tokens": 0}
        for lesson in lessons:
            try:
                rendered = self.render(lesson, epoch)
            except DataError:
                counts["over_budget"] += 1
                continue
            examples.append(rendered.example)
            counts["examples"] += 1
            counts["entries"] += rendered.entries
            counts["entries_lost"] += rendered.lost
            counts["steps_dropped"] += rendered.prompt.dropped.steps
            counts["tokens"] += len(rendered.example)
        return examples, counts
