"""Supervised training of a causal language model: AdamW over packed rows, resumed to the bit after a kill.

Everything that is random follows from (seed, epoch): the names in the prompts and the order of the examples. So a
checkpoint is weights, optimiser and the number of steps done, published as one directory, and "train 2N steps" equals
"train N, kill -9, go on" in every weight (on one kind of machine). The learning rate follows the share of examples
seen. After every epoch the model may be judged; the best weights are kept, and training stops when they stay best.

Not for models that do not fit in memory three times over (weights, and two moments of AdamW).

Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.errors import DataError
from pipeline.files import check_complete, publish_directory, read_json, write_json
from pipeline.windows import stable_seed
from stages.extract.encoder.train import reproducible
from stages.sft.lessons import Example, Lesson, Teacher
from stages.sft.likelihood import log_probs
from stages.sft.packing import pack, plan_rows

WARM_UP = 0.05
"""Share of the examples over which the learning rate rises."""
DECAY, CLIP, BETAS = 0.01, 1.0, (0.9, 0.95)
FLOOR = 0.1
"""Share of the peak learning rate that is left at the end."""
POOL = 8
"""Steps whose examples are sorted by length together."""

Say = Callable[[str], None]
Log = Callable[[int, dict[str, float]], None]
Judge = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How it is trained.

    Args:
        epochs: passes over the lessons, under fresh names each time.
        batch: examples per step.
        rate: peak learning rate.
        row: tokens of a packed row; 0 is the longest example of the batch, which is fastest for batches of similar
            lengths, because attention is computed over the whole row.
        tokens: that go through the model at once, about; more are accumulated.
        prompt_weight: what predicting a token of the prompt counts, against 1 for a token of the answer.
        precision: of the matrix products, float32 or bfloat16; weights and sums stay as they are.
        checkpoint: steps between checkpoints.
        patience: epochs without a better judgement after which training stops; 0 never stops.
        seed: of names and order.
    """

    epochs: int
    batch: int
    rate: float
    row: int = 0
    tokens: int = 4096
    prompt_weight: float = 0.0
    precision: str = "float32"
    checkpoint: int = 100
    patience: int = 0
    seed: int = 0


@dataclass(slots=True)
class State:
    """Where a training stands.

    Attributes:
        epoch: being worked on, from 0.
        done: steps of it that are done.
        step: steps in all.
        tokens: read so far, prompts included.
        best: best judgement so far, of which epoch, None before the first.
        trace: one row per logged step or judgement.
    """

    epoch: int = 0
    done: int = 0
    step: int = 0
    tokens: int = 0
    best: tuple[float, int] | None = None
    trace: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """What is trained on: lessons, and the teacher that renders them; `weights` per lesson, 1 where None."""

    lessons: Sequence[Lesson]
    teacher: Teacher
    judge: Judge | None = None


class Training:
    """One training of a model in place.

    Args:
        model: as it starts; parameters that require no gradient stay as they are.
        course: what is taught.
        settings: how.
        work: scratch directory; a checkpoint of this very training there is gone on from.
        say: told about progress.
        log: told every step's figures, those before a resume included, in order.
    """

    def __init__(
        self, model: nn.Module, course: Course, settings: Settings, work: Path, say: Say, log: Log | None = None
    ) -> None:  # fmt: skip
        if not course.lessons:
            raise DataError("no instance to train on", mend="annotate a train split, or take a trained policy")
        self.model, self.course, self.settings = model, course, settings
        self.folder, self.say, self.log = work / "checkpoint", say, log or (lambda step, row: None)
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        decayed = [p for p in self.trained.values() if p.ndim > 1]
        plain = [p for p in self.trained.values() if p.ndim <= 1]
        self.optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}], lr=0.0, betas=BETAS,
            fused=True,
        )  # fmt: skip
        self.key = self._key()
        self.state = State()
        self.best: dict[str, Tensor] = {}

    def run(self, stop: int | None = None) -> State:
        """Train to the end (or to step `stop`, as if killed right after it: for tests); the best weights are left in
        the model where there is a judge."""
        with reproducible(self.settings.seed):
            self._resume()
            for row in self.state.trace:
                self.log(int(row["step"]), {name: value for name, value in row.items() if name != "step"})
            for epoch in range(self.state.epoch, self.settings.epochs):
                if not self._epoch(epoch, stop):
                    return self.state
                if self._judged(epoch):
                    break
            if self.best:
                self._load(self.best)
        self.model.eval()
        return self.state

    # one epoch

    def _epoch(self, epoch: int, stop: int | None) -> bool:
        """Train on every lesson once; False when stopped before the end."""
        state, settings = self.state, self.settings
        examples, counts = self.course.teacher.epoch(self.course.lessons, epoch)
        if not examples:
            raise DataError("no instance fits the prompt's budget", field="policy.budget", mend="raise it")
        batches = plan(examples, settings.batch, settings.seed, epoch)
        if not state.done:
            self.say(f"epoch {epoch + 1} of {settings.epochs}: " + ", ".join(f"{k} {v}" for k, v in counts.items()))
        self.model.train()
        started = said = time.monotonic()
        begin = state.done
        for number in range(begin, len(batches)):
            share = (epoch + number / len(batches)) / settings.epochs
            batch = [examples[i] for i in batches[number]]
            row = self._step(batch, settings.rate * rate_at(share))
            state.done, state.step = number + 1, state.step + 1
            state.tokens += sum(map(len, batch))
            state.trace.append({"step": state.step, **row})
            self.log(state.step, row)
            if state.step % settings.checkpoint == 0:
                self._save()
            if state.step == stop:
                return False
            if time.monotonic() - said > 20:
                said = time.monotonic()
                left = (said - started) / (number + 1 - begin) * (len(batches) - number - 1)
                recent = state.trace[-50:]
                loss = np.mean([r["loss"] for r in recent if "loss" in r])
                self.say(f"step {number + 1}/{len(batches)}, loss {loss:.4f}; about {left:.0f} s left in this epoch")
        return True

    def _step(self, batch: Sequence[Example], rate: float) -> dict[str, float]:
        """One update; the loss is the mean over all weighted tokens of the batch, however it is laid out."""
        most = self.settings.row or max(map(len, batch))
        rows, at_once = plan_rows([len(e) for e in batch], most), max(1, self.settings.tokens // most)
        answers = sum(len(e) - e.prompt for e in batch)
        prompts = sum(e.prompt - 1 for e in batch)
        whole = answers + self.settings.prompt_weight * prompts
        self.optimiser.zero_grad()
        told = read = 0.0
        for i in range(0, len(rows), at_once):
            packed = pack(batch, rows[i : i + at_once])
            labels_BT = packed.labels_BT
            if not self.settings.prompt_weight:
                labels_BT = labels_BT.masked_fill(~packed.answer_BT, -100)
            with self._precision():
                found_BT = log_probs(self.model, packed.ids_BT, labels_BT, packed.segments_BT)
            answer = -found_BT[packed.answer_BT].sum()
            prompt = -found_BT[~packed.answer_BT].sum()
            ((answer + self.settings.prompt_weight * prompt) / whole).backward()  # type: ignore[no-untyped-call]
            told, read = told + answer.item(), read + prompt.item()
        norm = float(nn.utils.clip_grad_norm_(self.trained.values(), CLIP))
        if not math.isfinite(norm):
            raise DataError(f"the gradient is not finite at step {self.state.step + 1}", mend="lower the learning rate")
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        figures = {"loss": told / answers, "rate": rate, "gradient": norm}
        return {**figures, "prompt_loss": read / prompts} if self.settings.prompt_weight else figures

    def _precision(self) -> torch.autocast:
        device = next(iter(self.trained.values())).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.settings.precision == "bfloat16")

    def _judged(self, epoch: int) -> bool:
        """Judge after an epoch and keep the best weights; whether training should stop."""
        state = self.state
        state.epoch, state.done = epoch + 1, 0
        if self.course.judge is not None:
            self.model.eval()
            found = self.course.judge(self.model)
            self.say(f"epoch {epoch + 1}: " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()))
            state.trace.append({"step": state.step, **found})
            self.log(state.step, found)
            score = next(iter(found.values()))
            if state.best is None or score > state.best[0]:
                state.best = (score, epoch)
                self.best = {name: p.detach().clone() for name, p in self.trained.items()}
        self._save()
        patience = self.settings.patience
        return bool(patience and state.best is not None and epoch - state.best[1] >= patience)

    # checkpoints

    def _key(self) -> str:
        """Identifies a training: start weights, lessons, tokens of the first epoch's first lessons, settings."""
        shown = "|".join(lesson.key for lesson in self.course.lessons)
        digest = hashlib.sha256(f"{asdict(self.settings)}|{shown}".encode())
        for lesson in self.course.lessons[:8]:
            try:
                digest.update(repr(self.course.teacher.render(lesson, 0).example).encode())
            except DataError:
                digest.update(b"over budget")
        for name, parameter in self.trained.items():
            digest.update(name.encode())
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def _save(self) -> None:
        with publish_directory(self.folder) as partial:
            save_file({name: p.detach().clone() for name, p in self.trained.items()}, partial / "weights.safetensors")
            state = {
                f"{name}:{part}": value.detach().clone()
                for name, p in self.trained.items()
                for part, value in sorted(self.optimiser.state[p].items())
            }
            save_file(state, partial / "optimiser.safetensors")
            if self.best:
                save_file(self.best, partial / "best.safetensors")
            write_json(partial / "training.json", {"key": self.key, "state": asdict(self.state)})

    def _resume(self) -> None:
        if not self.folder.is_dir():
            return
        stored: dict[str, Any] = read_json(check_complete(self.folder) / "training.json")
        if stored["key"] != self.key:
            return
        state = stored["state"]
        self.state = State(**{**state, "best": tuple(state["best"]) if state["best"] else None})
        self._load(load_file(self.folder / "weights.safetensors"))
        for entry, value in load_file(self.folder / "optimiser.safetensors").items():
            name, part = entry.rsplit(":", 1)
            self.optimiser.state[self.trained[name]][part] = value
        if (self.folder / "best.safetensors").is_file():
            self.best = load_file(self.folder / "best.safetensors")
        self.say(f"going on after step {self.state.step}")

    def _load(self, weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(weights[name])


def plan(examples: Sequence[Example], batch: int, seed: int, epoch: int) -> list[list[int]]:
    """Batches of one epoch: random order, sorted by length within pools, the batches in random order."""
    random = np.random.default_rng(stable_seed(seed, "batches", epoch))
    order = random.permutation(len(examples)).tolist()
    batches: list[list[int]] = []
    for part in _parts(order, batch * POOL):
        batches += _parts(sorted(part, key=lambda i: (len(examples[i]), i)), batch)
    return [batches[i] for i in random.permutation(len(batches)).tolist()]


def _parts(items: list[int], size: int) -> Iterator[Any]:
    for i in range(0, len(items), size):
        yield items[i : i + size]


def rate_at(share: float) -> float:
    """Share of the peak learning rate when so many of all examples have been seen: linear up, then a cosine down."""
    if share < WARM_UP:
        return max(share, 1e-3) / WARM_UP
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))
