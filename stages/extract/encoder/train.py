"""Training: the lowest layers' output is computed once, the upper layers and the heads are fitted by AdamW.

A checkpoint is weights, optimiser state and the state of the random generator, published as one directory; a training
that was killed goes on from it and ends with the same bytes as one that was not (on one kind of machine). The order of
batches depends on (seed, epoch) alone, the learning rate on the step.

Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.files import check_complete, publish_directory, read_json, write_json
from pipeline.graph import code_closure
from pipeline.params import Encoder
from pipeline.windows import stable_seed
from stages.extract.encoder.chunks import Chunk, Pieces, bucket
from stages.extract.encoder.heads import Heads
from stages.extract.encoder.network import Backbone, Special, lay_out, pool
from stages.extract.encoder.step import Lesson, losses

ROOT = Path(__file__).resolve().parents[3]
THREADS = 2
"""Fixed: sums depend on how work is split."""
POOL = 128
"""Chunks that are sorted by length together: batches of similar length, in an order that stays random."""
WARM_UP = 0.1
"""Share of the steps over which the learning rate rises."""
DECAY, CLIP = 0.01, 1.0
KEPT_BYTES = 2 << 30
"""The frozen layers' output is kept in memory up to this size; beyond it is computed anew for every batch."""

Say = Callable[[str], None]


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Fixed threads, deterministic kernels and a seeded generator inside; everything as before outside."""
    threads = torch.get_num_threads()
    strict = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        torch.set_num_threads(THREADS)
        torch.use_deterministic_algorithms(True)
        # Filling fresh memory only helps to find code that reads it before writing, and costs a tenth of the time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % (1 << 63))
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """What is trained on: a lesson and its text in chunks."""

    lesson: Lesson
    pieces: Pieces
    chunks: list[Chunk]
    special: Special


class Frozen:
    """Output of the frozen layers for every chunk, kept where it fits."""

    def __init__(self, backbone: Backbone, course: Course, budget: int) -> None:
        self.backbone, self.course = backbone, course
        chunks, extra = course.chunks, course.special.count
        self.first_C = np.cumsum([0, *(c.pieces + extra for c in chunks)])
        size = int(self.first_C[-1])
        self.kept: NDArray[np.float32] | None = None
        if size * backbone.size * 4 <= KEPT_BYTES:
            self.kept = np.empty((size, backbone.size), dtype=np.float32)
            for batch in bucket(chunks, budget, extra):
                laid = lay_out(course.pieces, [chunks[c] for c in batch], course.special)
                hidden = backbone.lower(laid.ids_BS, laid.mask_BS).numpy()
                for row, c in enumerate(batch):
                    self.kept[self.first_C[c] : self.first_C[c + 1]] = hidden[row, : chunks[c].pieces + extra]

    def of(self, batch: list[int], ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """[B, S, D] of the chunks of a batch; zeros where padded."""
        if self.kept is None:
            return self.backbone.lower(ids_BS, mask_BS)
        hidden = np.zeros((*ids_BS.shape, self.kept.shape[1]), dtype=np.float32)
        for row, c in enumerate(batch):
            part = self.kept[self.first_C[c] : self.first_C[c + 1]]
            hidden[row, : len(part)] = part
        return torch.from_numpy(hidden)


def plan(chunks: list[Chunk], budget: int, special: int, seed: int, epoch: int) -> list[list[int]]:
    """Batches of one epoch: chunks in random order, sorted by length within pools, the batches in random order."""
    random = np.random.default_rng(stable_seed(seed, "encoder", epoch))
    order = random.permutation(len(chunks)).tolist()
    batches: list[list[int]] = []
    for i in range(0, len(order), POOL):
        part = order[i : i + POOL]
        batches += [[part[j] for j in batch] for batch in bucket([chunks[c] for c in part], budget, special)]
    return [batches[i] for i in random.permutation(len(batches)).tolist()]


def rate_at(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step (from 0): linear up, then linear down to 0."""
    warm = max(1, math.ceil(WARM_UP * steps))
    return (step + 1) / warm if step < warm else max(0.0, (steps - step) / max(steps - warm, 1))


def train(
    backbone: Backbone, heads: Heads, course: Course, settings: Encoder, seed: int, work: Path, say: Say,
    stop: int | None = None,
) -> int:  # fmt: skip
    """Fit in place; goes on from the checkpoint under `work` where it is one of this very training.

    Args:
        backbone, heads: as initialised.
        course: the train split.
        settings: of the training.
        seed: of order and dropout.
        work: scratch directory.
        say: told about progress.
        stop: stop after so many steps in all, as if killed right after the last checkpoint (for tests).

    Returns:
        Steps taken in this call.
    """
    plans = [plan(course.chunks, settings.batch, course.special.count, seed, e) for e in range(settings.epochs)]
    batches = [batch for epoch in plans for batch in epoch]
    model = nn.ModuleDict({"backbone": backbone, "heads": heads})
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tuned = [p for name, p in trained.items() if name.startswith("backbone.")]
    optimiser = torch.optim.AdamW(
        [{"params": tuned}, {"params": list(heads.parameters())}], lr=0.0, weight_decay=DECAY, betas=(0.9, 0.98),
        fused=True,
    )  # fmt: skip
    key = _key(backbone, trained, course, settings, seed, batches)
    begin = _resume(work / "checkpoint", key, trained, optimiser)
    if begin:
        say(f"going on from step {begin} of {len(batches)}")
    if begin == len(batches):
        model.eval()
        return 0
    frozen = Frozen(backbone, course, 4 * settings.batch)
    model.train()
    seen: dict[str, list[float]] = {}
    started = said = time.monotonic()
    for step in range(begin, len(batches)):
        share = rate_at(step, len(batches))
        optimiser.param_groups[0]["lr"] = settings.rate * share
        optimiser.param_groups[1]["lr"] = settings.head_rate * share
        laid = lay_out(course.pieces, [course.chunks[c] for c in batches[step]], course.special)
        lower = frozen.of(batches[step], laid.ids_BS, laid.mask_BS)
        upper = backbone.upper(lower, laid.mask_BS)
        vectors = heads.combine(pool(lower, laid), pool(upper, laid))
        parts = losses(heads, vectors, laid, course.lesson)
        optimiser.zero_grad()
        torch.stack(list(parts.values())).sum().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained.values(), CLIP)
        optimiser.step()
        for name, value in parts.items():
            seen.setdefault(name, []).append(value.item())
        done = step + 1
        if done % settings.checkpoint == 0 or done == len(batches):
            _save(work / "checkpoint", key, done, trained, optimiser)
        if done == stop:
            return done - begin
        if time.monotonic() - said > 20 or done == len(batches):
            said = time.monotonic()
            left = (said - started) / (done - begin) * (len(batches) - done)
            means = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in sorted(seen.items()))
            say(f"step {done}/{len(batches)}, loss {means}; about {left:.0f} s left")
            seen.clear()
    model.eval()
    return len(batches) - begin


def _key(
    backbone: Backbone,
    trained: dict[str, nn.Parameter],
    course: Course,
    settings: Encoder,
    seed: int,
    batches: list[list[int]],
) -> str:
    """Identifies a training: code, weights (frozen ones included), pieces, targets, batches, settings, seed."""
    digest = hashlib.sha256(f"{settings.model_dump_json()}|{seed}|{course.lesson.labels}|{batches}".encode())
    for path in code_closure("stages.extract", ROOT):
        digest.update((ROOT / path).read_bytes())
    for buffer in (backbone.embeddings, backbone.frozen):
        for parameter in buffer.state_dict().values():
            digest.update(parameter.numpy().tobytes())
    for name, parameter in trained.items():
        digest.update(name.encode())
        digest.update(parameter.detach().numpy().tobytes())
    goal = course.lesson.goal
    for array in (course.pieces.id_P, course.pieces.first_T, *goal.arrays()):
        digest.update(array.tobytes())
    return digest.hexdigest()


def _save(folder: Path, key: str, step: int, trained: dict[str, nn.Parameter], optimiser: torch.optim.AdamW) -> None:
    with publish_directory(folder) as partial:
        save_file({name: p.detach().clone() for name, p in trained.items()}, partial / "weights.safetensors")
        state = {
            f"{name}:{part}": value.detach().clone()
            for name, p in trained.items()
            for part, value in sorted(optimiser.state[p].items())
        }
        state["random"] = torch.get_rng_state()
        save_file(state, partial / "state.safetensors")
        write_json(partial / "training.json", {"key": key, "step": step})


def _resume(folder: Path, key: str, trained: dict[str, nn.Parameter], optimiser: torch.optim.AdamW) -> int:
    """Steps already done: 0 where there is no checkpoint, or one of another training."""
    if not folder.is_dir() or read_json(check_complete(folder) / "training.json")["key"] != key:
        return 0
    weights = load_file(folder / "weights.safetensors")
    state = load_file(folder / "state.safetensors")
    torch.set_rng_state(state.pop("random"))
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(weights[name])
    for entry, value in state.items():
        name, part = entry.rsplit(":", 1)
        optimiser.state[trained[name]][part] = value
    return int(read_json(folder / "training.json")["step"])
