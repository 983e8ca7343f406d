"""Examples side by side in rows of bounded length, so that hardly any token is padding.

Axes: B rows, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.mla import IGNORED
from stages.sft.lessons import Example


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Rows of examples.

    Args:
        ids_BT: token ids, 0 where padded.
        labels_BT: the ids themselves, `IGNORED` where padded.
        segments_BT: number of the example in its row from 1, 0 where padded: nothing is seen across examples.
        answer_BT: which tokens belong to an answer.
    """

    ids_BT: Tensor
    labels_BT: Tensor
    segments_BT: Tensor
    answer_BT: Tensor


def plan_rows(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Which examples share a row: first fit, the longest first. An example longer than `most` has a row of its own."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for row, left in enumerate(room):
            if lengths[i] <= left:
                rows[row].append(i)
                room[row] -= lengths[i]
                break
        else:
            rows.append([i])
            room.append(most - lengths[i])
    return rows


def pack(examples: Sequence[Example], rows: Sequence[Sequence[int]]) -> Packed:
    """Lay examples out as planned, padded to the longest of these rows."""
    width = max(sum(len(examples[i]) for i in row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full_like(ids, IGNORED)
    segments = torch.zeros_like(ids)
    answer = torch.zeros(len(rows), width, dtype=torch.bool)
    for b, row in enumerate(rows):
        at = 0
        for number, i in enumerate(row, start=1):
            example = examples[i]
            own = slice(at, at + len(example))
            ids[b, own] = torch.tensor(example.ids)
            labels[b, own] = ids[b, own]
            segments[b, own] = number
            answer[b, at + example.prompt : own.stop] = True
            at = own.stop
    return Packed(ids, labels, segments, answer)
