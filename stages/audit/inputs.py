"""What the audit reads, shard by shard: the lists that systems wrote, and the gold reference that judges them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import polars as pl

from pipeline.certificates import Entry
from pipeline.errors import DataError
from pipeline.spans import Span, parse_citation
from pipeline.tables import Reader
from pipeline.windows import Window

Shard = tuple[str, str]
Key = tuple[str, str]
"""(window_id, intent_id): an instance."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Gold:
    """What gold says of one instance, in terms of one roster's candidates.

    Args:
        grades: candidate_id -> grade; a candidate that stands for no gold candidate has none and counts 0.
        pool: grades of all gold candidates, those that the roster misses included.
        sufficient: candidate_id -> minimal sufficient gold span sets.
    """

    grades: Mapping[str, int]
    pool: tuple[int, ...]
    sufficient: Mapping[str, tuple[tuple[Span, ...], ...]]


@dataclass(frozen=True, slots=True)
class Listed:
    """One system's answer to one instance.

    Args:
        ranking: candidate ids of the full-K ordering, best first.
        local_ids: the same as the system saw them.
        entries: the emitted prefix with its certificates.
        claimed: per emitted entry, whether the system's own stage called it certified.
        outputs: status of the generation that the list was taken from: parsed, uncertified or rejected.
    """

    ranking: tuple[str, ...]
    local_ids: tuple[str, ...]
    entries: tuple[Entry, ...]
    claimed: tuple[bool, ...]
    outputs: tuple[str, ...]


class ReferenceReader:
    """Reads `data/reference/audit` for one shard at a time.

    Args:
        splits: splits that are audited.
        root: data directory.
    """

    def __init__(self, splits: Sequence[str], root: str | Path = "data") -> None:
        self._splits = list(splits)
        names = ("instances", "grades", "mapping", "sufficient")
        self._readers = {name: Reader(f"reference/audit/{name}", root) for name in names}
        self.label_free = self._nothing_kept()

    def _nothing_kept(self) -> bool:
        chosen = pl.col("kept") & pl.col("split").is_in(self._splits)
        return all(batch.filter(chosen).is_empty() for batch in self._readers["instances"].batches())

    def dropped(self) -> dict[str, int]:
        """Instances of the audited splits by the reason why they are not judged; `kept` counts those that are."""
        counts: dict[str, int] = defaultdict(int)
        for batch in self._readers["instances"].batches():
            rows = batch.filter(pl.col("split").is_in(self._splits))
            for reason, kept in rows.select("dropped", "kept").iter_rows():
                counts["kept" if kept else str(reason)] += 1
        return dict(sorted(counts.items()))

    def kept(self, shard: Shard) -> list[Key]:
        """The instances that are judged, in order."""
        frame = self._readers["instances"].frame(shard)
        frame = frame.filter(pl.col("kept") & pl.col("split").is_in(self._splits))
        return list(frame.select("window_id", "intent_id").iter_rows())

    def gold(self, shard: Shard, setting: str) -> dict[Key, Gold]:
        """Gold of the shard's kept instances in one roster setting."""
        mapping: dict[str, dict[str, str]] = defaultdict(dict)
        rows = self._readers["mapping"].frame(shard).filter(pl.col("setting") == setting)
        for window_id, candidate_id, entity_id in rows.select("window_id", "candidate_id", "entity_id").iter_rows():
            mapping[window_id][entity_id] = candidate_id
        grades: dict[Key, dict[str, int]] = defaultdict(dict)
        frame = self._readers["grades"].frame(shard)
        for window_id, intent_id, entity_id, grade in frame.select(
            "window_id", "intent_id", "entity_id", "grade"
        ).iter_rows():
            grades[window_id, intent_id][entity_id] = grade
        sets: dict[Key, dict[str, list[tuple[Span, ...]]]] = defaultdict(lambda: defaultdict(list))
        frame = self._readers["sufficient"].frame(shard)
        for window_id, intent_id, entity_id, spans in frame.select(
            "window_id", "intent_id", "entity_id", "spans"
        ).iter_rows():
            sets[window_id, intent_id][entity_id].append(tuple(parse_citation(s) for s in spans))
        out = {}
        for key in self.kept(shard):
            mapped = mapping[key[0]]
            out[key] = Gold(
                {mapped[e]: g for e, g in grades[key].items() if e in mapped},
                tuple(grades[key].values()),
                {mapped[e]: tuple(s) for e, s in sets[key].items() if e in mapped},
            )
        return out


class ListReader:
    """Reads the lists of one (system, setting).

    Raises:
        TableError: the system was not run.
    """

    def __init__(self, system: str, setting: str, root: str | Path = "data") -> None:
        self.system, self.setting = system, setting
        self._readers = {
            name: Reader(f"rank/{system}/{setting}/{name}", root)
            for name in ("rankings", "certificates", "generations")
        }

    def lists(self, shard: Shard, windows: Mapping[str, Window]) -> dict[Key, Listed]:
        """The shard's lists by instance.

        Raises:
            DataError: a citation's sha256 is not that of the document in the corpus, or its document is unknown.
        """
        cited: dict[tuple[str, str, int], dict[str, list[Span]]] = defaultdict(lambda: defaultdict(list))
        for row in self._readers["certificates"].frame(shard).iter_rows(named=True):
            if row["window_id"] not in windows:
                continue
            self._check_hash(row, windows[row["window_id"]])
            span = Span(row["doc_id"], row["start"], row["end"])
            cited[row["window_id"], row["intent_id"], row["rank"]][row["slot_id"]].append(span)
        outputs: dict[Key, list[str]] = defaultdict(list)
        for row in self._readers["generations"].frame(shard).filter("chosen").iter_rows(named=True):
            outputs[row["window_id"], row["intent_id"]].append(row["status"])
        ranked: dict[Key, Rows] = defaultdict(list)
        roster = {key: {c.candidate_id for c in window.candidates} for key, window in windows.items()}
        for row in self._readers["rankings"].frame(shard).iter_rows(named=True):
            if row["window_id"] not in windows:
                continue
            if row["candidate_id"] not in roster[row["window_id"]]:
                self._refuse(row, f"{row['candidate_id']!r:.80} is ranked but not in the roster", "candidate_id")
            ranked[row["window_id"], row["intent_id"]].append(row)
        out = {}
        for key, rows in ranked.items():
            emitted = [row for row in rows if row["emitted"]]
            entries = tuple(
                Entry(
                    row["candidate_id"],
                    tuple((s, tuple(sorted(spans))) for s, spans in sorted(cited[*key, row["rank"]].items())),
                )
                for row in emitted
            )
            out[key] = Listed(
                tuple(row["candidate_id"] for row in rows),
                tuple(row["local_id"] for row in rows),
                entries,
                tuple(row["status"] == "certified" for row in emitted),
                tuple(outputs[key]),
            )
        return out

    def _check_hash(self, row: Mapping[str, Any], window: Window) -> None:
        document = window.documents.get(row["doc_id"])
        if document is None:
            self._refuse(
                row, f"a certificate cites {row['doc_id']!r:.80}, which is no document of the window", "doc_id"
            )
        elif document.sha256 != row["sha256"]:
            self._refuse(row, f"document {row['doc_id']!r:.80} has changed since it was cited", "sha256")

    def _refuse(self, row: Mapping[str, Any], what: str, column: str) -> NoReturn:
        raise DataError(
            f"window {row['window_id']!r:.80}: {what}",
            file=self._readers["rankings"].path.parent,
            field=column,
            mend="run `dvc repro rank`",
        )
