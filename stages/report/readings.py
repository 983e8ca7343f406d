"""The rankings shown in full: which ones, and everything the page says about each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pipeline.certificates import REJECT_CODES
from pipeline.errors import DataError
from pipeline.params import Params
from pipeline.skeletons import MICRO, Intent, Slot
from pipeline.spans import Span
from pipeline.tables import Reader
from pipeline.windows import Window, load_windows
from stages.audit.cases import Case, View
from stages.audit.inputs import Gold, Key, Listed, ListReader, ReferenceReader
from stages.audit.lists import judge
from stages.report import words
from stages.report.passages import Passage, passage, shown

NAME = 100
"""Characters of a name that are shown: a mention may span a whole document."""

WANTED = ("ndcg", "cert_ndcg", "cert_ndcg_gold", "evid_cons")


@dataclass(frozen=True, slots=True)
class Quote:
    """A cited span: where it stands in the page, its citation string and its words."""

    anchor: str
    citation: str
    text: str


@dataclass(frozen=True, slots=True)
class SlotView:
    """A matched slot of an entry."""

    slot_id: str
    plan: str
    quotes: tuple[Quote, ...]


@dataclass(frozen=True, slots=True)
class EntryView:
    """One emitted entry.

    Args:
        rank, name, local_id: as listed.
        status: certified, rejected, not recovered.
        reason: the status in words.
        grade, meaning: gold grade and what it stands for; None without gold.
        gold_gate: whether the certificate holds sufficient gold evidence; None without gold.
        support, runner_up: the verifier's support for the candidate and for the best other one.
        rival: name of that other one.
    """

    rank: int
    name: str
    local_id: str
    status: str
    reason: str
    code: str
    grade: int | None
    meaning: str
    gold_gate: bool | None
    support: float
    runner_up: float
    rival: str
    slots: tuple[SlotView, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """One ranking shown in full.

    Args:
        plan: per slot: id, what fills it, weight, whether it is the climax.
        entries: what was emitted.
        completed: (name, grade) of the candidates that complete the list to K.
        missed: (name, grade) of relevant candidates of the roster that are not on the list, best first.
        absent: relevant gold candidates that nobody in the roster stands for.
    """

    number: int
    window_id: str
    intent_id: str
    title: str
    plan: tuple[tuple[str, str, float, bool], ...]
    k: int
    candidates: int
    figures: Mapping[str, float | None]
    entries: tuple[EntryView, ...]
    completed: tuple[tuple[str, int | None], ...]
    missed: tuple[tuple[str, int], ...]
    absent: int
    passages: tuple[Passage, ...]

    @property
    def score(self) -> float:
        """CertNDCG, or EvidCons without gold."""
        certified = self.figures["cert_ndcg"]
        return certified if certified is not None else self.figures["evid_cons"] or 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a system emitted for an instance, in short.

    Args:
        score: CertNDCG, or EvidCons without gold.
        entries: (name, reject code, gold grade), best first; the code is empty for a certified entry, the grade None
            without gold.
    """

    system: str
    score: float | None
    entries: tuple[tuple[str, str, int | None], ...]


def choose(system: str, setting: str, n: int, root: str | Path = "data") -> list[Key]:
    """Instances to show: evenly spread from the best to the worst, from as many windows as possible.

    Ordered by CertNDCG (EvidCons without gold), ties by sha256; the same audit gives the same choice.
    """
    scores: dict[Key, dict[str, float]] = {}
    here = (pl.col("system") == system) & (pl.col("setting") == setting)
    wanted = pl.col("metric").is_in(["cert_ndcg", "evid_cons"]) & pl.col("value").is_not_null()
    for batch in Reader("audit/instances", root).batches():
        rows = batch.filter(here & wanted).select("window_id", "intent_id", "metric", "value")
        for window_id, intent_id, metric, value in rows.iter_rows():
            scores.setdefault((window_id, intent_id), {})[metric] = value

    def place(key: Key) -> tuple[float, str]:
        found = scores[key]
        return -found.get("cert_ndcg", found.get("evid_cons", 0.0)), hashlib.sha256("|".join(key).encode()).hexdigest()

    ordered = sorted(scores, key=place)
    n = min(n, len(ordered))
    chosen: set[int] = set()
    used: set[str] = set()
    for i in range(n):
        target = round(i * (len(ordered) - 1) / max(n - 1, 1))
        free = sorted((j for j in range(len(ordered)) if j not in chosen), key=lambda j: (abs(j - target), j))
        pick = next((j for j in free if ordered[j][0] not in used), free[0])
        chosen.add(pick)
        used.add(ordered[pick][0])
    return [ordered[j] for j in sorted(chosen)]


def answers(
    keys: Sequence[Key], systems: Sequence[str], settings: Sequence[str], root: str | Path = "data"
) -> dict[Key, dict[str, list[Answer]]]:
    """Per chosen instance and roster setting what every system emitted, as the audit judged it."""
    wanted = set(keys)
    here = pl.col("window_id").is_in(sorted({window_id for window_id, _ in wanted}))
    names: dict[tuple[str, str, str], str] = {}
    for setting in settings:
        for batch in Reader(f"roster/{setting}/candidates", root).batches():
            for window_id, candidate_id, name in (
                batch.filter(here).select("window_id", "candidate_id", "name").iter_rows()
            ):
                names[setting, window_id, candidate_id] = short(name)
    emitted: dict[tuple[str, str, Key], list[tuple[str, str, int | None]]] = {}
    for batch in Reader("audit/entries", root).batches():
        for row in batch.filter(here).iter_rows(named=True):
            key, setting = (row["window_id"], row["intent_id"]), row["setting"]
            if key in wanted and setting in settings:
                recovered = row["recovered"] == row["candidate_id"]
                code = row["reject_code"] or ("" if recovered else "not_recovered")
                name = names[setting, row["window_id"], row["candidate_id"]]
                emitted.setdefault((row["system"], setting, key), []).append((name, code, row["grade"]))
    scores: dict[tuple[str, str, Key], dict[str, float]] = {}
    for batch in Reader("audit/instances", root).batches():
        measured = batch.filter(here & pl.col("metric").is_in(["cert_ndcg", "evid_cons"]))
        for row in measured.iter_rows(named=True):
            cell = (row["system"], row["setting"], (row["window_id"], row["intent_id"]))
            scores.setdefault(cell, {})[row["metric"]] = row["value"]

    def answer(system: str, setting: str, key: Key) -> Answer:
        found = scores.get((system, setting, key), {})
        score = found.get("cert_ndcg") if found.get("cert_ndcg") is not None else found.get("evid_cons")
        return Answer(system, score, tuple(emitted.get((system, setting, key), ())))

    return {key: {s: [answer(system, s, key) for system in systems] for s in settings} for key in keys}


def short(name: str) -> str:
    """A name as it is shown: without control characters, and no longer than `NAME`."""
    return shown(name) if len(name) <= NAME else shown(name[:NAME]) + "…"


def read(
    keys: Sequence[Key], system: str, setting: str, intents: Mapping[str, Intent], params: Params
) -> list[Reading]:
    """Everything shown of the chosen instances, in their order.

    Raises:
        DataError: a window or a list that the audit saw is no longer there.
    """
    reference = ReferenceReader(params.rank.splits)
    lists = ListReader(system, setting)
    headings = Reader("ingest/documents")
    readings = []
    for number, key in enumerate(keys, 1):
        window_id, intent_id = key
        window = next(load_windows(setting, params.rank.splits, only=window_id), None)
        shard = (window_id, window_id)
        listed = lists.lists(shard, {window_id: window}).get(key) if window is not None else None
        if window is None or listed is None:
            raise DataError(f"window {window_id!r:.80} was audited but is gone", mend="run `dvc repro audit`")
        gold = reference.gold(shard, setting).get(key)
        titles = {
            doc_id: " · ".join(part for part in (title, date) if part)
            for doc_id, title, date in headings.frame(shard).select("doc_id", "title", "date").iter_rows()
        }
        readings.append(_reading(number, window, intents[intent_id], params, gold, listed, titles))
    return readings


def _reading(
    number: int,
    window: Window,
    intent: Intent,
    params: Params,
    gold: Gold | None,
    listed: Listed,
    titles: Mapping[str, str],
) -> Reading:
    case = Case(View(window), intent, params, gold)
    cited = [(span, rank) for rank, entry in enumerate(listed.entries, 1) for span in entry.spans]
    anchors = {span: f"w{number}s{i}" for i, span in enumerate(sorted({span for span, _ in cited}), 1)}
    emitted = len(listed.entries)
    name = {c.candidate_id: short(c.name) for c in window.candidates}
    grades = case.grades(listed.ranking)
    values = judge(case, listed).values
    missed: list[tuple[str, int]] = []
    if gold:
        missed = [(name[c], g) for c, g in gold.grades.items() if g and c not in listed.ranking]
        missed.sort(key=lambda pair: (-pair[1], pair[0]))
    return Reading(
        number=number,
        window_id=window.window_id,
        intent_id=intent.intent_id,
        title=intent.title,
        plan=tuple((s.slot_id, _plan_words(s), s.weight / MICRO, s.climax) for s in intent.skeleton.slots),
        k=window.k,
        candidates=len(window.candidates),
        figures={metric: values[metric] for metric in WANTED},
        entries=tuple(_entries(case, listed, anchors, name)),
        completed=tuple(
            (name[c], grades[i] if gold else None) for i, c in enumerate(listed.ranking) if i >= emitted
        ),
        missed=tuple(missed),
        absent=sum(g > 0 for g in gold.pool) - sum(g > 0 for g in gold.grades.values()) if gold else 0,
        passages=tuple(
            passage(d, titles.get(d.doc_id, ""), cited, anchors) for d in window.documents.values()
        ),
    )  # fmt: skip


def _entries(
    case: Case, listed: Listed, anchors: Mapping[Span, str], name: Mapping[str, str]
) -> list[EntryView]:  # fmt: skip
    verdicts = case.verdicts(tuple(entry.spans for entry in listed.entries))
    slots = {slot.slot_id: slot for slot in case.intent.skeleton.slots}
    out = []
    for i, (entry, verdict) in enumerate(zip(listed.entries, verdicts, strict=True)):
        facts = case.facts(entry)
        if facts.code is not None:
            status, code, reason = "rejected", facts.code, REJECT_CODES[facts.code]
        elif verdict.candidate_id != entry.candidate_id:
            other = "nobody" if verdict.candidate_id is None else name[verdict.candidate_id]
            status, code, reason = "not recovered", "not_recovered", words.NOT_RECOVERED.format(other)
        else:
            status, code, reason = "certified", "", "valid, and recovered by the verifier from the cited spans alone"
        supports = case.verifier.support(entry.spans)
        others = sorted((-s, c) for c, s in supports.items() if c != entry.candidate_id)
        grade = case.gold.grades.get(entry.candidate_id, 0) if case.gold else None
        out.append(
            EntryView(
                rank=i + 1,
                name=name[entry.candidate_id],
                local_id=listed.local_ids[i],
                status=status,
                reason=reason,
                code=code,
                grade=grade,
                meaning="" if grade is None else words.GRADES[grade],
                gold_gate=facts.gold_gate,
                support=facts.sigma / MICRO,
                runner_up=-others[0][0] / MICRO if others else 0.0,
                rival=name[others[0][1]] if others else "",
                slots=tuple(
                    SlotView(
                        slot_id,
                        _plan_words(slots[slot_id]),
                        tuple(
                            Quote(anchors[s], str(s), shown(case.window.documents[s.doc_id].text[s.start : s.end]))
                            for s in spans
                        ),
                    )
                    for slot_id, spans in entry.slots
                ),
            )
        )
    return out


def _plan_words(slot: Slot) -> str:
    roles = [role for role in slot.roles if not role.startswith("!") and role != "*"]
    barred = [role[1:] for role in slot.roles if role.startswith("!")]
    role = " or ".join(roles) if roles else "any role" + (f" but {' or '.join(barred)}" if barred else "")
    return f"{' or '.join(slot.types)} as {role}"
