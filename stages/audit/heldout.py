"""What the held-out extractor says of each window, as the steps that the verifier takes: the atoms of level L3."""

from __future__ import annotations

from pathlib import Path

from pipeline import tables
from pipeline.errors import DataError
from pipeline.spans import Span
from pipeline.tables import Reader
from pipeline.windows import Step
from stages.audit.inputs import Shard
from stages.trajectories.steps import build_steps


class HeldoutReader:
    """Reads data/heldout for one roster setting.

    Args:
        setting: roster setting.
        root: data directory.
    """

    def __init__(self, setting: str, root: str | Path = "data") -> None:
        self.setting = setting
        self._windows, self._events, self._relations, self._arguments, self._mentions = (
            Reader(name, root)
            for name in (
                "heldout/windows", "heldout/events", "heldout/relations", f"heldout/{setting}/arguments",
                f"roster/{setting}/mentions",
            )
        )  # fmt: skip
        self.present = self._windows.rows > 0
        """Whether there is a held-out extractor at all."""

    def steps(self, shard: Shard) -> dict[str, tuple[Step, ...]]:
        """Steps by window, of every window of the shard that was read; those without a step have an empty tuple."""
        out: dict[str, list[Step]] = {window_id: [] for window_id in self._windows.frame(shard)["window_id"].to_list()}
        frame = build_steps(
            # Trajectories join events by their own columns alone, so a chain is not needed.
            self._events.frame(shard), self._relations.frame(shard), self._mentions.frame(shard),
            self._arguments.frame(shard), self.setting,
        )  # fmt: skip
        for row in frame.iter_rows(named=True):
            out[row["window_id"]].append(
                Step(
                    row["candidate_id"], row["event_id"], row["type"], row["role"], row["order"], row["confidence"],
                    Span(row["doc_id"], row["trigger_start"], row["trigger_end"]),
                    Span(row["doc_id"], row["mention_start"], row["mention_end"]),
                )
            )  # fmt: skip
        return {window_id: tuple(steps) for window_id, steps in out.items()}

    def of(self, read: dict[str, tuple[Step, ...]], window_id: str) -> tuple[Step, ...] | None:
        """The steps of a window out of those of its shard; None where there is no held-out extractor.

        Raises:
            DataError: there is one, and it did not read this window.
        """
        if not self.present:
            return None
        if window_id not in read:
            raise DataError(
                f"the held-out extractor did not read window {window_id!r:.80}", file=tables.path("heldout/windows"),
                mend="run `dvc repro heldout`",
            )  # fmt: skip
        return read[window_id]
