"""`certrank inspect WINDOW`: one window in the terminal, with its ranking and the cited evidence highlighted.

Texts are untrusted: everything shown goes through `shown`, which replaces control and direction characters one for
one, so that offsets stay right and no escape sequence reaches the terminal.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline import tables
from pipeline.errors import DataError
from pipeline.spans import Span
from pipeline.windows import Window, load_windows

COLOURS = ("bold black on green3", "bold black on sky_blue1", "bold black on orange1", "bold black on plum2",
           "bold black on khaki1")  # fmt: skip
SHORT = 100
"""Characters of a name or a quotation in the table."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cited:
    """A cited span: `rank` and `slot_id` of the entry that cites it, and the cited text."""

    rank: int
    slot_id: str
    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Ranked:
    """One line of a ranking with its evidence; fields as in the table `rankings`."""

    rank: int
    local_id: str
    name: str
    candidate_id: str
    score: float
    emitted: bool
    status: str
    reject_code: str | None
    evidence: tuple[Cited, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """A window under one intent, as one system ranked it."""

    window: Window
    intent_id: str
    title: str
    system: str
    entries: tuple[Ranked, ...]

    def as_json(self) -> Row:
        """Plain values: the ranking with quoted evidence, and the documents."""
        return {
            "window_id": self.window.window_id, "split": self.window.split, "setting": self.window.setting,
            "system": self.system, "intent_id": self.intent_id, "title": self.title, "k": self.window.k,
            "candidates": len(self.window.candidates), "handles": len(self.window.handles),
            "documents": [
                {"doc_id": d.doc_id, "sha256": d.sha256, "text": d.text} for d in self.window.documents.values()
            ],
            "entries": [{**asdict(entry), "evidence": [_plain(c) for c in entry.evidence]} for entry in self.entries],
        }  # fmt: skip


def _plain(cited: Cited) -> Row:
    return {"slot_id": cited.slot_id, "span": str(cited.span), "text": cited.text}


def inspect(
    window_id: str, system: str, setting: str, intent_id: str | None = None, root: str | Path = "data"
) -> list[Inspection]:
    """Gather a window's rankings, one per intent (or only the one asked for).

    Raises:
        DataError: an unknown window or intent, or a window that is not ranked.
        TableError: the system has not been run in this setting.
    """
    name = f"rank/{system}/{setting}"
    rankings = tables.Reader(f"{name}/rankings", root)
    ranked = rankings.frame((window_id, window_id))
    _check_window(window_id, setting, ranked.is_empty(), rankings, root)
    window = next(iter(load_windows(setting, tables.SPLITS, root, only=window_id)), None)
    if window is None:
        raise DataError(f"window {window_id!r} is ranked but no longer kept", file=rankings.path, mend="`dvc repro`")
    intents = ranked["intent_id"].unique().sort().to_list()
    if intent_id is not None and intent_id not in intents:
        raise DataError(f"no intent {intent_id!r} here", field="--intent", mend=f"one of {', '.join(intents)}")
    titles = dict(tables.read("trajectories/skeletons", root).select("intent_id", "title").iter_rows())
    cited = tables.Reader(f"{name}/certificates", root).frame((window_id, window_id))
    out = []
    for key in intents if intent_id is None else [intent_id]:
        of_intent = cited.filter(pl.col("intent_id") == key)
        entries = tuple(
            _entry(row, of_intent, window) for row in ranked.filter(pl.col("intent_id") == key).iter_rows(named=True)
        )
        out.append(Inspection(window, key, titles.get(key, key), system, entries))
    return out


def default_setting(window_id: str, settings: Sequence[str], root: str | Path = "data") -> str:
    """The first of these roster settings in which the window has a candidate, or simply the first.

    Without annotation nobody stands in the closed roster.
    """
    windows = tables.read("roster/windows", root).filter(pl.col("window_id") == window_id)
    peopled = [s for s in settings if windows[f"n_{s}"].sum()]
    return (peopled or list(settings))[0]


def _check_window(
    window_id: str, setting: str, unranked: bool, rankings: tables.Reader, root: str | Path
) -> None:  # fmt: skip
    """Say why there is nothing to see, as exactly as the tables allow."""
    if not unranked:
        return
    windows = tables.read("roster/windows", root)
    row = next(windows.filter(pl.col("window_id") == window_id).iter_rows(named=True), None)
    if row is None:
        ids = sorted({i for batch in rankings.batches(columns=["window_id"]) for i in batch["window_id"]})
        close = difflib.get_close_matches(window_id, ids, 1, 0) or ids[:1]
        mend = f"for example {close[0]!r}" if close else "`dvc repro` ranks some"
        raise DataError(f"no window {window_id!r}", field="WINDOW", mend=mend)
    if not row["kept"]:
        raise DataError(f"window {window_id!r} is not ranked: {row['dropped']}", field="WINDOW")
    if not row[f"n_{setting}"]:
        peopled = [s for s in tables.SETTINGS if row[f"n_{s}"]]
        what = f"nobody stands in the {setting} roster of window {window_id!r}"
        raise DataError(what, field="--setting", mend=f"one of {', '.join(peopled)}")
    what = f"window {window_id!r} is of split {row['split']}, which was not ranked"
    raise DataError(what, field="WINDOW", mend=f"add {row['split']} to rank.splits in params.yaml")


def _entry(row: Row, cited: pl.DataFrame, window: Window) -> Ranked:
    evidence = []
    for c in cited.filter(pl.col("rank") == row["rank"]).iter_rows(named=True):
        span = Span(c["doc_id"], c["start"], c["end"])
        document = window.documents.get(span.doc_id)
        text = "" if document is None else document.text[span.start : span.end]
        evidence.append(Cited(row["rank"], c["slot_id"], span, text))
    keys = ("rank", "local_id", "name", "candidate_id", "score", "emitted", "status", "reject_code")
    return Ranked(**{key: row[key] for key in keys}, evidence=tuple(evidence))


# ---- showing --------------------------------------------------------------------------------------------------------


def show(inspections: Sequence[Inspection], console: Console, brief: bool = False) -> None:
    """Print: the window, then per intent the ranking with its evidence and the texts with the evidence highlighted.

    Args:
        brief: of the texts, only the sentences that hold evidence.
    """
    window = inspections[0].window
    head = Text()
    head.append(shown(window.window_id), "bold")
    head.append(
        f"  {window.split}, {window.setting} roster of {len(window.candidates)}, K = {window.k}, "
        f"{len(window.documents)} documents, {window.characters} characters, {len(window.handles)} handles"
    )
    console.print(head)
    for inspection in inspections:
        console.print()
        console.print(Text(f"{inspection.system}: {shown(inspection.title)} ({inspection.intent_id})", "bold"))
        console.print(_ranking(inspection))
        for document in window.documents.values():
            marks = [c for e in inspection.entries for c in e.evidence if c.span.doc_id == document.doc_id]
            if not marks and brief:
                continue
            console.print()
            console.print(Text(shown(document.doc_id), "dim"))
            sentences = document.sentences if brief else ((0, len(document.text)),)
            for start, end in sentences:
                if not brief or any(start <= c.span.start < end for c in marks):
                    console.print(highlight(document.text, marks, start, end))


def _ranking(inspection: Inspection) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, justify in (("#", "right"), ("id", "left"), ("candidate", "left"), ("score", "right"), ("", "left"),
                          ("evidence", "left")):  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for e in inspection.entries:
        status = e.status if e.emitted else "completes the list"
        colour = {"certified": "green", "uncertified": "red"}.get(status, "dim")
        reason = f" [{e.reject_code}]" if e.reject_code else ""
        evidence = Text("; ").join(
            Text(f"{slot} ")
            + Text(", ").join(Text(_short(c.text), COLOURS[(e.rank - 1) % len(COLOURS)]) for c in cited)
            for slot, cited in _by_slot(e.evidence)
        )
        table.add_row(
            str(e.rank), e.local_id, Text(_short(e.name)), f"{e.score:.3f}", Text(status + reason, colour), evidence
        )
    return table


def _by_slot(evidence: Sequence[Cited]) -> list[tuple[str, list[Cited]]]:
    slots: dict[str, list[Cited]] = {}
    for cited in evidence:
        slots.setdefault(cited.slot_id, []).append(cited)
    return list(slots.items())


def highlight(text: str, marks: Sequence[Cited], start: int, end: int) -> Text:
    """`text[start:end]` with the cited spans coloured by rank, and in `[[ ]]#rank` for who sees no colour."""
    out = Text()
    at = start
    for mark in sorted(marks, key=lambda c: (c.span, c.rank, c.slot_id)):
        if not start <= mark.span.start < end or mark.span.start < at:
            continue  # in another sentence, or a second entry cites the same characters
        stop = min(mark.span.end, end)
        ranks = sorted({c.rank for c in marks if c.span.overlaps(mark.span)})
        out.append(shown(text[at : mark.span.start]))
        out.append(f"[[{shown(text[mark.span.start : stop])}]]", COLOURS[(ranks[0] - 1) % len(COLOURS)])
        out.append(",".join(f"#{rank}" for rank in ranks), "dim")
        at = stop
    out.append(shown(text[at:end]))
    return out


def shown(text: str) -> str:
    """The text, safe for a terminal and of the same length: control pictures, and a mark for invisible characters."""
    return "".join(c if c.isprintable() or c in "\n\u00a0" else _picture(c) for c in text)


def _short(text: str) -> str:
    """A name or a quotation in the table; a mention may span a whole document, which is shown below it in full."""
    return shown(text) if len(text) <= SHORT else shown(text[:SHORT]) + "…"


def _picture(c: str) -> str:
    return chr(0x2400 + ord(c)) if ord(c) < 0x20 else "\N{REPLACEMENT CHARACTER}"
