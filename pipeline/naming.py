"""Local ids and handles of a window under names drawn anew for every epoch, and the way back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from pipeline.windows import Window, local_ids

_WORD = re.compile(r"[A-Za-z0-9]+")


@dataclass(frozen=True)
class Naming:
    """A permutation of a window's candidate and handle ids. `printed`: own id -> id in the prompt."""

    printed: dict[str, str]

    @cached_property
    def own(self) -> dict[str, str]:
        """Id in the prompt -> own id."""
        return {new: old for old, new in self.printed.items()}

    def to_own(self, line: str) -> str:
        """A line over printed ids in the window's own ids. Nothing is judged: unknown words stay as they are."""
        return _WORD.sub(lambda m: self.own.get(m[0], m[0]), line)

    def to_printed(self, line: str) -> str:
        """The inverse of `to_own`."""
        return _WORD.sub(lambda m: self.printed.get(m[0], m[0]), line)


def draw_names(window: Window, seed: int, epoch: int) -> Naming:
    """Permute the ids of a window: its own ones when `seed` is the roster's and `epoch` is 0."""
    printed: dict[str, str] = {}
    candidates = [c.local_id for c in window.candidates]
    for prefix, own in (("C", candidates), ("E", [h.handle_id for h in window.handles])):
        drawn, ordered = local_ids(prefix, len(own), seed, window.window_id, epoch), sorted(own)
        printed |= {old: ordered[int(new[1:]) - 1] for old, new in zip(own, drawn, strict=True)}
    return Naming(printed)
