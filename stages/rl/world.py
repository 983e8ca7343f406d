"""The processes of a training: one, or those that `accelerate launch -m stages.rl RUN` starts.

Every process asks its share of the prompts and holds the whole model; what decides anything (rewards, votes, entropies)
is gathered and computed alike everywhere in the order of the prompts, and gradients are summed. So the number of
processes changes nothing but the last digits of sums of gradients.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

from pipeline.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """This process among all."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> World:
        """The processes that were launched together; a process on its own is a world of one."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from accelerate import PartialState  # type: ignore[import-untyped]

        state = PartialState(cpu=not torch.cuda.is_available())
        return cls(state.process_index, state.num_processes)

    def gather(self, items: Sequence[T]) -> list[T]:
        """Items of all processes, in the order of the processes."""
        if self.size == 1:
            return list(items)
        parts: list[list[T]] = [[] for _ in range(self.size)]
        distributed.all_gather_object(parts, list(items))
        return [item for part in parts for item in part]

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes, one by one, in float64."""
        if self.size == 1:
            return list(values)
        whole = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(whole)
        return list(whole.tolist())

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum gradients over all processes; one that is None counts as 0."""
        if self.size == 1:
            return
        own = list(parameters)
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in own])
        distributed.all_reduce(flat)
        at = 0
        for p in own:
            p.grad = flat[at : at + p.numel()].view_as(p).clone()
            at += p.numel()

    def check_equal(self, values: Sequence[float], what: str) -> None:
        """The same numbers everywhere, to the bit.

        Raises:
            DataError: they are not.
        """
        if any(other != list(values) for other in self.gather([list(values)])):
            raise DataError(f"the processes disagree on {what}", mend="this is a bug: keep the checkpoint, report it")

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            distributed.barrier()
