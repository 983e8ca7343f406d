"""A ranking system's task and its answer, and how answers become the three tables of `data/rank/<system>/<setting>/`.

A system maps a `Task` to a `Draft`: an ordering of candidates, a prefix of which it *emits* with certificates. The
writer judges what was emitted (valid, and recovered by the verifier) and completes the list to K; it repairs nothing.
Baselines, policies and the oracle all write through here, so their files cannot differ in anything but content.

    with RankingWriter("random", "closed") as writer:
        for window in load_windows("closed", ["test"]):
            writer.add(task, draft)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import polars as pl

from pipeline import certificates, tables
from pipeline.certificates import Entry, Limits
from pipeline.errors import CertificateError
from pipeline.skeletons import Intent, Skeleton
from pipeline.tables import SHARD_WINDOWS
from pipeline.verifier import Verifier
from pipeline.windows import Window

TABLES = ("rankings", "certificates", "generations")
Status = Literal["parsed", "uncertified", "rejected"]
OVER_BUDGET = "prompt_over_budget"
"""Code of an instance that a policy was not asked, because its prompt and an answer do not fit."""
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Task:
    """One instance as a ranking system gets it.

    Args:
        window: in the roster setting to rank.
        intent: what is asked.
        limits: of a legal bundle.
        accept, margin: the verifier's thresholds in 1e-6.
    """

    window: Window
    intent: Intent
    limits: Limits
    accept: int
    margin: int

    @property
    def skeleton(self) -> Skeleton:
        return self.intent.skeleton

    @cached_property
    def candidates(self) -> tuple[str, ...]:
        """Canonical ids of the roster, in canonical order."""
        return tuple(c.candidate_id for c in self.window.candidates)

    @cached_property
    def verifier(self) -> Verifier:
        return Verifier(self.candidates, self.window.steps, self.skeleton, self.accept, self.margin)

    @cached_property
    def certifiable(self) -> dict[str, Entry]:
        """The candidates for which the verifier accepts some legal bundle, with that bundle."""
        return certificates.certifiable(self.window, self.skeleton, self.limits, self.verifier)

    @property
    def answerable(self) -> bool:
        """Whether the window has a trigger to cite at all; if not, the emitted list must be empty."""
        return certificates.has_trigger(self.window)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One text that a system wrote, as the table `generations` has it; its columns' docs say more.

    Args:
        text: as written.
        status, reject_code: what the system's strict parser says of it.
        sample, attempt: its place among the instance's texts.
        chosen: whether the list was taken from it.
        prompt_tokens, tokens: read and written.
        temperature, seed, log_prob, model_log_prob, finish: of the sampling; None where nothing was generated.
        dropped_steps: that the prompt's budget left out.
    """

    text: str
    status: Status
    reject_code: str | None
    sample: int = 0
    attempt: int = 0
    chosen: bool = True
    prompt_tokens: int = 0
    tokens: int = 0
    temperature: float | None = None
    seed: int | None = None
    log_prob: float | None = None
    model_log_prob: float | None = None
    finish: str | None = None
    dropped_steps: int = 0


@dataclass(frozen=True, slots=True)
class Draft:
    """A system's answer.

    Args:
        order: canonical ids, best first, without repetition; at least K of them, or the whole roster.
        scores: candidate_id -> the system's score, for all of `order`.
        emitted: certified entries for the first candidates of `order`; possibly none.
        text: the line that the entries come from, None when they were built directly.
        generations: everything that a policy wrote; () for a system that writes one line over the window's own ids,
            which is then recorded.
        seconds: that generating them took.
    """

    order: tuple[str, ...]
    scores: Mapping[str, float]
    emitted: tuple[Entry, ...]
    text: str | None = None
    generations: tuple[Generation, ...] = ()
    seconds: float = 0.0


def count_windows(splits: Sequence[str], root: str | Path = "data") -> int:
    """How many windows of these splits are ranked."""
    chosen = pl.col("kept") & pl.col("split").is_in(list(splits))
    return sum(batch.filter(chosen).height for batch in tables.Reader("roster/windows", root).batches())


class RankingWriter:
    """Writes one system's answers in one setting, streamed; nothing is visible before the `with` ends without error.

    Args:
        system: name under data/rank/.
        setting: roster setting.
        root: data directory.
        more: further tables below `rank/<system>/<setting>/`, for `also`.
    """

    def __init__(self, system: str, setting: str, root: str | Path = "data", more: Sequence[str] = ()) -> None:
        self._root, self._place = root, f"rank/{system}/{setting}"
        self._rows: dict[str, Rows] = {name: [] for name in (*TABLES, *more)}
        self._held: set[str] = set()
        self.emitted = self.certified = self.lists = self.empty = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._writers = stack.enter_context(
                tables.writers((f"{self._place}/{name}" for name in self._rows), self._root)
            )
            self._stack = stack.pop_all()
        return self

    def add(self, task: Task, draft: Draft) -> None:
        """Judge and write one answer. Answers come in window order; those of one window together.

        Raises:
            ValueError: the emitted candidates are not the first of the order, are more than K, or one is repeated; or
            something was emitted for a window in which nothing can be cited; or not exactly one generation is chosen.
        """
        window, k = task.window, min(task.window.k, len(task.candidates))
        listed = tuple(entry.candidate_id for entry in draft.emitted)
        prefix = listed == draft.order[: len(listed)] and len(listed) <= (k if task.answerable else 0)
        if not prefix or len(set(draft.order[:k])) < k:
            where = f"{window.window_id}, {task.intent.intent_id}"
            raise ValueError(f"{where}: emitted {listed} of order {draft.order}, k {k}")
        generations = draft.generations or (_generation(task, draft),)
        if sum(generation.chosen for generation in generations) != 1:
            raise ValueError(f"{window.window_id}, {task.intent.intent_id}: not exactly one generation is chosen")
        if window.window_id not in self._held and len(self._held) == SHARD_WINDOWS:
            self._flush()
        self._held.add(window.window_id)
        place = {"window_id": window.window_id, "intent_id": task.intent.intent_id}
        codes = judge(task, draft.emitted)
        by_id = {c.candidate_id: c for c in window.candidates}
        for i, candidate_id in enumerate(draft.order[:k]):
            emitted = i < len(listed)
            self._rows["rankings"].append({
                **place, "split": window.split, "rank": i + 1, "candidate_id": candidate_id,
                "local_id": by_id[candidate_id].local_id, "name": by_id[candidate_id].name,
                "score": float(draft.scores[candidate_id]), "emitted": emitted,
                "status": "certified" if emitted and codes[i] is None else "uncertified",
                "reject_code": codes[i] if emitted else None,
            })  # fmt: skip
        for i, entry in enumerate(draft.emitted):
            self._rows["certificates"] += [{**place, "rank": i + 1, **row} for row in cited_rows(window, entry)]
        self._rows["generations"] += [{**place, **asdict(generation)} for generation in generations]
        self.lists += 1
        self.empty += not draft.emitted
        self.emitted += len(draft.emitted)
        self.certified += codes.count(None)

    def also(self, task: Task, table: str, rows: Rows) -> None:
        """Write rows of a further table about the instance that was added last; all but its ids."""
        place = {"window_id": task.window.window_id, "intent_id": task.intent.intent_id}
        self._rows[table] += [{**place, **row} for row in rows]

    def summary(self) -> str:
        """What was written, in one line."""
        return f"{self.lists} lists, {self.empty} empty; {self.emitted} entries emitted, {self.certified} certified"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, tb)
            return
        with self._stack:
            self._flush()

    def _flush(self) -> None:
        for name, rows in self._rows.items():
            writer = self._writers[f"{self._place}/{name}"]
            writer.append(writer.table.frame(rows))
            rows.clear()
        self._held.clear()


def judge(task: Task, emitted: tuple[Entry, ...]) -> list[str | None]:
    """Why each entry of an emitted list is not certified, None where it is: valid, and recovered from the list."""
    verdicts = task.verifier.verify([entry.spans for entry in emitted]) if emitted else []
    codes: list[str | None] = []
    for entry, verdict in zip(emitted, verdicts, strict=True):
        code = certificates.check(entry, task.window, task.skeleton, task.limits)
        recovered = verdict.candidate_id == entry.candidate_id
        codes.append(code if code is not None or recovered else "not_recovered")
    return codes


def cited_rows(window: Window, entry: Entry) -> Rows:
    """Rows of `certificates` for one entry, but for the instance and the rank."""
    return [
        {
            "candidate_id": entry.candidate_id, "slot_id": slot_id, "nth": nth, "doc_id": span.doc_id,
            "start": span.start, "end": span.end, "handle_id": window.handle_of[span].handle_id,
            "sha256": window.documents[span.doc_id].sha256,
        }
        for slot_id, spans in entry.slots for nth, span in enumerate(spans)
    ]  # fmt: skip


def _generation(task: Task, draft: Draft) -> Generation:
    """The raw text, and what the strict parser says of it; where nothing can be cited, nothing is asked or parsed."""
    if not task.answerable:
        return Generation(text="", status="uncertified", reject_code="no_trigger_handle")
    text = certificates.render(draft.emitted, task.window) if draft.text is None else draft.text
    try:
        certificates.parse(text, task.window, task.skeleton, task.window.k, task.limits)
    except CertificateError as error:
        return Generation(text=text, status="rejected", reject_code=error.code)
    return Generation(text=text, status="parsed", reject_code=None)
