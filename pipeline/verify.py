"""`certrank verify`: do the certificates of these rankings hold?

First against the documents on their own (`certificates.check_documents`): every span lies in a document of its window,
the document is byte for byte the cited one, limits are kept. Then, where the extractor's trajectories are at hand,
against validity in full and the label-free verifier: the spans must recover the candidate they are cited for.

An entry that its system itself calls uncertified is counted under the reason that it gives and is no failure. An entry
that claims to be certified and is not is a failure, and so is a list that cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import tables
from pipeline.certificates import REJECT_CODES, Corpus, Limits, check_documents
from pipeline.lists import Listed
from pipeline.params import Verifier as VerifierParams
from pipeline.rankings import Task, judge
from pipeline.skeletons import MICRO, Intent, intents_from_table
from pipeline.windows import Window, load_windows


@dataclass(frozen=True, slots=True)
class Failure:
    """A certified entry that does not hold; rank 0 stands for the whole list."""

    place: str
    window_id: str
    intent_id: str
    rank: int
    candidate_id: str
    code: str
    what: str

    def line(self) -> str:
        """`place: window, intent, rank 2, candidate: [code] what`."""
        parts = [self.window_id, self.intent_id, f"rank {self.rank}" if self.rank else "", self.candidate_id]
        where = ", ".join(part for part in parts if part)
        return f"{self.place}: {where}{': ' if where else ''}[{self.code}] {self.what}"


@dataclass(slots=True)
class Report:
    """Counts and failures.

    Args:
        lists, entries: read.
        certified: entries that claim to be certified; `failures` says which of them are not.
        uncertified: entries that do not, by the reason that their system gives.
        recovered: entries that the verifier was re-run on; None when it was not asked to.
        skipped: lists that it could not be re-run on: their window or intent is not among the trajectories.
    """

    lists: int = 0
    entries: int = 0
    certified: int = 0
    uncertified: dict[str, int] = field(default_factory=dict)
    recovered: int | None = None
    skipped: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failures


class Trajectories:
    """Windows and intents of one roster setting, for re-running the verifier; lists come in window order."""

    def __init__(self, setting: str, params: VerifierParams, root: str | Path = "data") -> None:
        self.intents = {i.intent_id: i for i in intents_from_table(tables.read("trajectories/skeletons", root))}
        self._limits = Limits.of(params)
        self._accept, self._margin = round(params.accept * MICRO), round(params.margin * MICRO)
        self._windows: Iterator[Window] = load_windows(setting, tables.SPLITS, root)
        self._window: Window | None = None

    @staticmethod
    def present(setting: str, root: str | Path = "data") -> bool:
        """Whether the tables of this setting are there."""
        return all(tables.path(f"trajectories/{name}", root).is_file() for name in ("skeletons", f"{setting}/steps"))

    def task(self, window_id: str, intent_id: str) -> Task | None:
        """The instance, or None when its window is not kept or its intent is not registered."""
        while self._window is None or self._window.window_id < window_id:
            following = next(self._windows, None)
            if following is None:
                return None
            self._window = following
        intent: Intent | None = self.intents.get(intent_id)
        if self._window.window_id != window_id or intent is None:
            return None
        return Task(self._window, intent, self._limits, self._accept, self._margin)


def verify(lists: Iterable[Listed], corpus: Corpus, limits: Limits, trajectories: Trajectories | None = None) -> Report:
    """Check lists, which come in window order.

    Args:
        corpus: the documents.
        limits: how much an entry may cite.
        trajectories: re-run the verifier on these, too.
    """
    report = Report(recovered=None if trajectories is None else 0)
    for listed in lists:
        report.lists += 1
        if listed.certified is None:
            error = listed.error
            assert error is not None  # a list is read or has an error
            what = error.what.removeprefix(f"[{error.code}] ")
            report.failures.append(Failure(listed.place, "", "", 0, "", error.code, what))
            continue
        rejected = {**check_documents(listed.certified, corpus, limits), **dict(listed.broken)}
        if trajectories is not None:
            _recover(listed, trajectories, rejected, report)
        _count(listed, rejected, report)
    return report


def _recover(listed: Listed, trajectories: Trajectories, rejected: dict[int, str], report: Report) -> None:
    """Validity in full and the verifier, on the list as a whole: its entries compete for candidates."""
    assert listed.certified is not None
    task = trajectories.task(listed.certified.window_id, listed.certified.intent_id)
    if task is None:
        report.skipped += 1
        return
    report.recovered = (report.recovered or 0) + len(listed.certified.entries)
    for rank, code in enumerate(judge(task, listed.certified.entries), start=1):
        if code is not None:
            rejected.setdefault(rank, code)


def _count(listed: Listed, rejected: dict[int, str], report: Report) -> None:
    certified = listed.certified
    assert certified is not None
    place = (listed.place, certified.window_id, certified.intent_id)
    if 0 in rejected:
        report.failures.append(Failure(*place, 0, "", rejected[0], REJECT_CODES[rejected[0]]))
    for rank, (entry, stated) in enumerate(zip(certified.entries, listed.codes, strict=True), start=1):
        report.entries += 1
        if stated is not None:
            reason = stated or "no reason given"
            report.uncertified[reason] = report.uncertified.get(reason, 0) + 1
            continue
        report.certified += 1
        if rank in rejected:
            code = rejected[rank]
            report.failures.append(Failure(*place, rank, entry.candidate_id, code, REJECT_CODES[code]))
