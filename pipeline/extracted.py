"""What `certrank extract` found: trajectories, certificates and rankings with their evidence, window by window."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline import tables
from pipeline.certificates import Entry, Limits
from pipeline.inspect import Inspection, inspect, shown
from pipeline.inspect import show as show_ranking
from pipeline.params import Params
from pipeline.rankings import Task
from pipeline.skeletons import MICRO, Intent
from pipeline.spans import Span
from pipeline.windows import Window, load_windows

SETTING, SYSTEM = "predicted", "rm_attach"
SHOWN_CANDIDATES, SHOWN_STEPS = 12, 4
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One role hypothesis of a candidate with its evidence: the spans of trigger and mention, and what stands there."""

    type: str
    role: str
    confidence: float
    trigger: tuple[Span, str]
    mention: tuple[Span, str]

    def as_json(self) -> Row:
        return {"type": self.type, "role": self.role, "confidence": self.confidence, "trigger": _quoted(*self.trigger),
                "mention": _quoted(*self.mention)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trajectory:
    """What a candidate is reported to have done.

    Args:
        steps: in extracted order.
        certificates: intent -> (slot, span, text) of a certificate that the verifier accepts on its own; empty for a
            window that is too small to be ranked, since a candidate is recovered among others or not at all.
    """

    candidate_id: str
    local_id: str
    name: str
    steps: tuple[Step, ...]
    certificates: Mapping[str, tuple[tuple[str, Span, str], ...]]

    def as_json(self) -> Row:
        return {
            "candidate_id": self.candidate_id, "local_id": self.local_id, "name": self.name,
            "steps": [step.as_json() for step in self.steps],
            "certificates": {
                intent: [{"slot_id": slot, **_quoted(span, text)} for slot, span, text in cited]
                for intent, cited in self.certificates.items()
            },
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """A window: its documents (id -> file), how many candidates it has, its trajectories, and a ranking per intent."""

    window_id: str
    documents: Mapping[str, str]
    characters: int
    candidates: int
    kept: bool
    trajectories: tuple[Trajectory, ...]
    rankings: tuple[Inspection, ...]

    def as_json(self) -> Row:
        rankings = [inspection.as_json() for inspection in self.rankings]
        return {
            "window_id": self.window_id, "documents": dict(self.documents), "characters": self.characters,
            "candidates": self.candidates, "kept": self.kept,
            "trajectories": [trajectory.as_json() for trajectory in self.trajectories],
            "rankings": [{k: v for k, v in ranking.items() if k != "documents"} for ranking in rankings],
        }  # fmt: skip


@dataclass(slots=True)
class Extraction:
    """A finished run.

    Args:
        workspace: where its params.yaml and data/ are.
        model, reward: names of the kept models; no ranking without a reward model.
        notes: what a reader should know about the input, one line each.
    """

    workspace: Path
    params: Params
    intents: list[Intent]
    model: str
    reward: str | None
    notes: list[str] = field(default_factory=list)
    file_of: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        return self.workspace / "data"

    def sizes(self) -> list[int]:
        """Candidates of every window."""
        return tables.read("roster/windows", self.data)["n"].to_list()

    def windows(self) -> Iterator[Found]:
        """Every window in order; memory is bounded by one."""
        ranked = load_windows(SETTING, ["test"], self.data)
        for row in tables.read("roster/windows", self.data).iter_rows(named=True):
            yield self._window(row, next(ranked) if row["kept"] else None)

    def _window(self, row: Row, window: Window | None) -> Found:
        key = row["window_id"]
        texts = dict(self._rows("ingest/documents", key).sort("position").select("doc_id", "text").iter_rows())
        rankings: tuple[Inspection, ...] = ()
        if window is not None and self.reward is not None:
            rankings = tuple(inspect(key, SYSTEM, SETTING, root=self.data))
        certified = {} if window is None else self._certified(window)
        return Found(
            key, {doc_id: self.file_of[doc_id] for doc_id in texts}, row["characters"], row["n"], row["kept"],
            tuple(self._trajectories(key, texts, certified)), rankings,
        )  # fmt: skip

    def _rows(self, name: str, window_id: str) -> pl.DataFrame:
        return tables.Reader(name, self.data).frame((window_id, window_id))

    def _certified(self, window: Window) -> dict[str, dict[str, Entry]]:
        """intent -> candidate -> a certificate that the verifier accepts on its own."""
        verifier = self.params.verifier
        accept, margin = (round(x * MICRO) for x in (verifier.accept, verifier.margin))
        return {
            intent.intent_id: Task(window, intent, Limits.of(verifier), accept, margin).certifiable
            for intent in self.intents
        }

    def _trajectories(
        self, window_id: str, texts: Mapping[str, str], certified: Mapping[str, Mapping[str, Entry]]
    ) -> Iterator[Trajectory]:
        """In roster order. Built here and not read, because the stage leaves out windows too small to be ranked."""
        from stages.trajectories.steps import build_steps

        events, relations, mentions, arguments = (
            self._rows(name, window_id)
            for name in (
                "extract/events",
                "extract/relations",
                f"roster/{SETTING}/mentions",
                f"roster/{SETTING}/arguments",
            )
        )
        rows = build_steps(events, relations, mentions, arguments, SETTING)
        steps: dict[str, list[Step]] = {}

        def cited(row: Row, kind: str) -> tuple[Span, str]:
            span = Span(row["doc_id"], row[f"{kind}_start"], row[f"{kind}_end"])
            return span, texts[span.doc_id][span.start : span.end]

        for row in rows.iter_rows(named=True):
            step = Step(row["type"], row["role"], row["confidence"], cited(row, "trigger"), cited(row, "mention"))
            steps.setdefault(row["candidate_id"], []).append(step)
        for row in self._rows(f"roster/{SETTING}/candidates", window_id).iter_rows(named=True):
            key = row["candidate_id"]
            yield Trajectory(
                key, row["local_id"], row["name"], tuple(steps.get(key, ())),
                {
                    intent: tuple(
                        (slot, span, texts[span.doc_id][span.start : span.end])
                        for slot, spans in entries[key].slots for span in spans
                    )
                    for intent, entries in certified.items() if key in entries
                },
            )  # fmt: skip


def _quoted(span: Span, text: str) -> Row:
    return {"span": str(span), "text": text}


# ---- showing --------------------------------------------------------------------------------------------------------


def show(found: Found, least: int, console: Console) -> None:
    """Print a window: its trajectories with their evidence, then what `certrank inspect --brief` prints.

    Args:
        least: candidates that a ranking needs.
    """
    head = Text(shown(found.window_id), "bold")
    count = len(found.documents)
    head.append(f"  {count} document{'s'[: count != 1]}, {found.characters} characters, ", "not bold")
    head.append(f"{found.candidates} candidate{'s'[: found.candidates != 1]}", "not bold")
    console.print(head)
    acting = [t for t in found.trajectories if t.steps]
    acting.sort(key=lambda t: (-len(t.certificates), -max(step.confidence for step in t.steps)))
    console.print(_trajectories(acting[:SHOWN_CANDIDATES]))
    if len(acting) > SHOWN_CANDIDATES:
        console.print(Text(f"{len(acting) - SHOWN_CANDIDATES} more candidates with events; --json has all", "dim"))
    if idle := found.candidates - len(acting):
        console.print(Text(f"{idle} candidates without an event", "dim"))
    if not found.kept:
        console.print(Text(f"not ranked: {found.candidates} candidates, and a ranking needs {least}", "red"))
    if found.rankings:
        console.print()
        show_ranking(found.rankings, console, brief=True)


def _trajectories(some: Sequence[Trajectory]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("id", "candidate", "certified under", "event, role and evidence"):
        table.add_column(name, overflow="fold")
    for trajectory in some:
        best = sorted(trajectory.steps, key=lambda step: -step.confidence)[:SHOWN_STEPS]
        lines = [_line(step) for step in trajectory.steps if step in best]
        if rest := len(trajectory.steps) - len(lines):
            lines.append(Text(f"{rest} more", "dim"))
        certified = Text(", ".join(trajectory.certificates) or "-", "green" if trajectory.certificates else "dim")
        table.add_row(trajectory.local_id, Text(shown(trajectory.name)), certified, Text("\n").join(lines))
    return table


def _line(step: Step) -> Text:
    (trigger, word), (mention, name) = step.trigger, step.mention
    line = Text(shown(f"{step.type} {step.role} {step.confidence:.2f}: "))
    line.append(shown(f"[{word}] [{name}]").replace("\n", " "), "bold")
    line.append(shown(f" {trigger} {mention}"), "dim")
    return line
