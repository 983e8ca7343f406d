"""The schema of every Parquet table, and deterministic, atomic, streaming access to it.

Every table is sorted by its `sort` columns, the first of which is `window_id` wherever rows belong to a window. The
corpus is processed in *shards*, runs of consecutive windows; a writer turns each appended shard into row groups of
its own, so that a later stage reads one shard by row-group statistics and memory is bounded by the shard, not by the
corpus. Equal rows give equal bytes: fixed row groups, zstd, no timestamps.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import TableError
from pipeline.files import partial_path

ROW_GROUP = 32_768
SHARD_WINDOWS = 256
"""Windows per shard: the unit of streaming and of resumption."""

STR, INT, FLOAT, BOOL, STRS = pl.String(), pl.Int64(), pl.Float64(), pl.Boolean(), pl.List(pl.String())
ARROW: dict[pl.DataType, pa.DataType] = {
    STR: pa.string(), INT: pa.int64(), FLOAT: pa.float64(), BOOL: pa.bool_(), STRS: pa.list_(pa.string()),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Column:
    """One column: name, polars type, what it means, whether it may be null."""

    name: str
    dtype: pl.DataType
    doc: str
    nullable: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A declared table. `name` is its path under data/ without suffix; `<x>` parts vary. `key` columns are unique."""

    name: str
    doc: str
    columns: tuple[Column, ...]
    sort: tuple[str, ...]
    key: tuple[str, ...]

    @property
    def schema(self) -> pl.Schema:
        return pl.Schema({c.name: c.dtype for c in self.columns})

    @property
    def arrow(self) -> pa.Schema:
        return pa.schema([pa.field(c.name, ARROW[c.dtype], c.nullable) for c in self.columns])

    def empty(self) -> pl.DataFrame:
        return pl.DataFrame(schema=self.schema)

    def frame(self, rows: Iterable[dict[str, object]]) -> pl.DataFrame:
        """Rows as a frame of this schema, sorted."""
        return pl.DataFrame(list(rows), schema=self.schema, orient="row").sort(self.sort, maintain_order=True)


def _c(name: str, dtype: pl.DataType, doc: str, nullable: bool = False) -> Column:
    return Column(name, dtype, doc, nullable)


_WINDOW = _c("window_id", STR, "the unit of ranking: a URL's snippets, one document, or the corpus' group")
_DOC = _c("doc_id", STR, "document id, opaque and unique in the corpus")
_START = _c("start", INT, "first character, from 0")
_END = _c("end", INT, "one past the last character")
_SURFACE = _c("surface", STR, "text[start:end]")
_SPLIT = _c("split", STR, "train, tune, cal or test; never differs within a window")
_INTENT = _c("intent_id", STR, "id of the intent (intents/<source>/*.yaml)")
_CONF = _c("confidence", FLOAT, "calibrated probability in [0, 1]")
_CAND = _c("candidate_id", STR, "canonical id: the citation string of the candidate's first mention")
_ROLE = _c("role", STR, "argument role, corpus prefixes stripped")
_SPAN = (_DOC, _START, _END)


def _table(name: str, doc: str, columns: tuple[Column, ...], sort: str, key: str) -> Table:
    return Table(name, doc, columns, tuple(sort.split()), tuple(key.split()))


_ALL = (
    # ---- ingest: inputs -------------------------------------------------------------------------------------------
    _table("ingest/documents", "The corpus: exact texts.", (
        _WINDOW, _DOC, _c("position", INT, "order of the document within its window, from 0"), _SPLIT,
        _c("text", STR, "the exact text; spans index its code points"), _c("sha256", STR, "of the UTF-8 text"),
        _c("title", STR, "headline", True), _c("date", STR, "ISO date", True), _c("url", STR, "source", True),
    ), "window_id position doc_id", "doc_id"),
    _table("ingest/sentences", "Sentence boundaries.", (
        _WINDOW, _DOC, _c("sentence", INT, "index in the document, from 0"), _START, _END,
    ), "window_id doc_id sentence", "doc_id sentence"),
    _table("ingest/images", "Attached images; no pixel is decoded at ingest.", (
        _WINDOW, _DOC, _c("img", INT, "index within the document, from 0"), _c("path", STR, "relative to the corpus"),
        _c("sha256", STR, "of the file's bytes"), _c("width", INT, "pixels", True), _c("height", INT, "pixels", True),
        _c("media_type", STR, "e.g. image/png", True), _c("source", STR, "file or caption"),
    ), "window_id doc_id img", "doc_id img"),
    _table("ingest/roster", "Input of the closed roster, every split: who the candidates are and where they are "
           "mentioned; no event, no role, no grade.", (
        _WINDOW, _c("entity_id", STR, "candidate cluster, unique in the corpus"), *_SPAN, _SURFACE,
        _c("kind", STR, "entity or event_chain"),
    ), "window_id entity_id doc_id start end", "entity_id doc_id start end"),
    # ---- ingest: gold, one directory per split ----------------------------------------------------------------------
    _table("ingest/gold/<split>/entities", "Gold participant clusters.", (
        _WINDOW, _c("entity_id", STR, "unique in the corpus"), _c("name", STR, "longest surface"),
        _c("type", STR, "entity type", True),
    ), "window_id entity_id", "entity_id"),
    _table("ingest/gold/<split>/mentions", "Gold participant mentions.", (
        _WINDOW, _c("mention_id", STR, "unique in the corpus"), _c("entity_id", STR, "its cluster"), *_SPAN, _SURFACE,
        _c("type", STR, "mention or filler type", True),
    ), "window_id doc_id start end mention_id", "mention_id"),
    _table("ingest/gold/<split>/events", "Gold event mentions (triggers).", (
        _WINDOW, _c("event_id", STR, "unique in the corpus"), _c("chain_id", STR, "coreference chain"), *_SPAN,
        _SURFACE, _c("type", STR, "event type"), _c("realis", STR, "Actual, Generic or Other", True),
    ), "window_id doc_id start end event_id", "event_id"),
    _table("ingest/gold/<split>/arguments", "Gold arguments: which mention plays which role in which event.", (
        _WINDOW, _c("event_id", STR, "event"), _c("mention_id", STR, "mention"), _ROLE,
    ), "window_id event_id mention_id role", "event_id mention_id role"),
    _table("ingest/gold/<split>/relations", "Gold relations between event mentions, directed.", (
        _WINDOW, _c("head_event_id", STR, "from"), _c("tail_event_id", STR, "to"),
        _c("type", STR, "BEFORE, CAUSE, PRECONDITION or SUBEVENT"),
    ), "window_id head_event_id tail_event_id type", "head_event_id tail_event_id type"),
    _table("ingest/gold/<split>/labelled", "Sentences annotated exhaustively for events: only there is 'no event' a "
           "negative.", (_WINDOW, _DOC, _c("sentence", INT, "index in the document")),
           "window_id doc_id sentence", "doc_id sentence"),
    # ---- extract ----------------------------------------------------------------------------------------------------
    _table("extract/mentions", "Participant mentions found by the frozen extractor, role or not.", (
        _WINDOW, _c("mention_id", STR, "unique in the corpus"), _c("entity_id", STR, "predicted cluster within the "
        "window"), *_SPAN, _SURFACE, _c("type", STR, "mention type", True), _CONF,
    ), "window_id doc_id start end mention_id", "mention_id"),
    _table("extract/events", "Event mentions found, one row per (span, type) hypothesis.", (
        _WINDOW, _c("event_id", STR, "unique in the corpus"), _c("chain_id", STR, "predicted coreference chain"),
        *_SPAN, _SURFACE, _c("type", STR, "event type"), _CONF,
        _c("order", INT, "rank in the window's extracted event order, from 0 (topological over BEFORE, ties by text)"),
    ), "window_id doc_id start end event_id", "event_id"),
    _table("extract/arguments", "Role hypotheses between found events and found mentions.", (
        _WINDOW, _c("event_id", STR, "event"), _c("mention_id", STR, "mention"), _ROLE, _CONF,
    ), "window_id event_id mention_id role", "event_id mention_id role"),
    _table("extract/relations", "Relations found between events.", (
        _WINDOW, _c("head_event_id", STR, "from"), _c("tail_event_id", STR, "to"),
        _c("type", STR, "BEFORE, CAUSE, PRECONDITION or SUBEVENT"), _CONF,
    ), "window_id head_event_id tail_event_id type", "head_event_id tail_event_id type"),
    # ---- roster ------------------------------------------------------------------------------------------------------
    _table("roster/windows", "Windows, their size and whether they are ranked.", (
        _WINDOW, _SPLIT, _c("documents", INT, "number of documents"), _c("characters", INT, "sum of text lengths"),
        _c("n_closed", INT, "candidates in the closed roster"), _c("n_predicted", INT, "in the predicted one"),
        _c("n_hybrid", INT, "in the hybrid one"), _c("n", INT, "n_closed where gold exists, else n_predicted"),
        _c("k", INT, "min(5, n // 2): length of the list, the same in every roster setting"),
        _c("kept", BOOL, "whether the window is ranked"), _c("dropped", STR, "reason when it is not", True),
    ), "window_id", "window_id"),
    _table("roster/<setting>/candidates", "The candidates of a window in one roster setting.", (
        _WINDOW, _CAND, _c("local_id", STR, "C01, C02 ...: drawn from sha256(seed | window_id | 0)"),
        _c("name", STR, "longest surface"), _c("mentions", INT, "number of mentions"),
    ), "window_id candidate_id", "window_id candidate_id"),
    _table("roster/<setting>/mentions", "Their mentions.", (
        _WINDOW, _CAND, _c("mention_id", STR, "unique in the table"), *_SPAN, _SURFACE, _CONF,
    ), "window_id doc_id start end mention_id", "window_id mention_id"),
    _table("roster/<setting>/arguments", "The extractor's role hypotheses for these mentions.", (
        _WINDOW, _c("event_id", STR, "of extract/events"), _c("mention_id", STR, "of this roster"), _ROLE, _CONF,
    ), "window_id event_id mention_id role", "window_id event_id mention_id role"),
    # ---- heldout: what the second extractor says, for the audit alone ------------------------------------------------
    _table("heldout/windows", "Windows that the held-out extractor read: the ranked ones of the audited splits; none "
           "where there is no such extractor.", (
        _WINDOW, _c("words", INT, "words of its texts"), _c("hidden", INT, "of these, hidden as names"),
    ), "window_id", "window_id"),
    _table("heldout/events", "Event mentions that it found, one row per (span, type) hypothesis.", (
        _WINDOW, _c("event_id", STR, "unique in the corpus"), *_SPAN, _SURFACE, _c("type", STR, "event type"), _CONF,
        _c("order", INT, "rank in the window's order, as in extract/events"),
    ), "window_id doc_id start end event_id", "event_id"),
    _table("heldout/relations", "Relations that it found between events.", (
        _WINDOW, _c("head_event_id", STR, "from"), _c("tail_event_id", STR, "to"),
        _c("type", STR, "BEFORE, CAUSE, PRECONDITION or SUBEVENT"), _CONF,
    ), "window_id head_event_id tail_event_id type", "head_event_id tail_event_id type"),
    _table("heldout/<setting>/arguments", "The roles of a roster's mentions that it believes.", (
        _WINDOW, _c("event_id", STR, "of heldout/events"), _c("mention_id", STR, "of roster/<setting>/mentions"), _ROLE,
        _CONF,
    ), "window_id event_id mention_id role", "window_id event_id mention_id role"),
    # ---- trajectories ------------------------------------------------------------------------------------------------
    _table("trajectories/skeletons", "Plan skeletons of the registered intents, one row per slot.", (
        _INTENT, _c("version", INT, "of the intent"), _c("title", STR, "what it asks for"),
        _c("sha256", STR, "of the intent's canonical JSON"), _c("slot_id", STR, "s1, s2 ..."),
        _c("types", STRS, "event types; a trailing .* stands for a family"),
        _c("roles", STRS, "allowed roles; * any, !role none but"), _c("weight", FLOAT, "weights sum to 1"),
        _c("required", BOOL, "whether the plan needs it"), _c("climax", BOOL, "whether it is the target event"),
        _c("predecessors", STRS, "slots that come before it"),
    ), "intent_id slot_id", "intent_id slot_id"),
    _table("trajectories/<setting>/steps", "Trajectories: what each candidate does, in extracted order. One row per "
           "(event, candidate mention, role) hypothesis.", (
        _WINDOW, _CAND, _c("step", INT, "index in the candidate's trajectory, from 0"),
        _c("event_id", STR, "of extract/events"), _c("type", STR, "event type"), _ROLE,
        _c("order", INT, "of the event in the window"), _CONF, _DOC, _c("trigger_start", INT, "trigger span"),
        _c("trigger_end", INT, "trigger span"), _c("mention_start", INT, "argument span"),
        _c("mention_end", INT, "argument span"), _c("trigger_handle", STR, "its handle at epoch 0"),
        _c("mention_handle", STR, "its handle at epoch 0"),
    ), "window_id candidate_id step", "window_id candidate_id step"),
    _table("trajectories/<setting>/handles", "Evidence handles: every span the extractor produced in the window.", (
        _WINDOW, _c("handle_id", STR, "E01, E02 ...: drawn from sha256(seed | window_id | 0)"), *_SPAN, _SURFACE,
        _c("kind", STR, "trigger, mention or both"), _c("sentence", INT, "sentence it stands in"), _CONF,
        _c("bucket", STR, "high, medium or low confidence"),
    ), "window_id doc_id start end", "window_id doc_id start end"),
    _table("trajectories/negatives", "Hard negatives (task definition, section 4) on train windows.", (
        _WINDOW, _INTENT, _c("negative_id", STR, "unique"), _c("kind", STR, "drop_climax, swap_steps, swap_role, "
        "co_participant, same_type, same_head, shifted_spans, other_candidate, cite_all"), _CAND,
        _c("other_id", STR, "the other real candidate, for kinds that need one", True),
        _c("steps", STR, "JSON list of [type, role, order]: the altered trajectory", True),
        _c("spans", STRS, "citation strings of a certificate negative", True),
    ), "window_id intent_id negative_id", "negative_id"),
    # ---- reference ---------------------------------------------------------------------------------------------------
    _table("reference/<part>/instances", "(window, intent) pairs and whether they are kept.", (
        _WINDOW, _INTENT, _SPLIT, _c("k", INT, "list length"), _c("idcg", FLOAT, "ideal DCG@k over gold candidates"),
        _c("kept", BOOL, "some grade >= 2 and two grades occur"), _c("dropped", STR, "reason when not kept", True),
    ), "window_id intent_id", "window_id intent_id"),
    _table("reference/<part>/grades", "Relevance grades of gold candidates.", (
        _WINDOW, _INTENT, _c("entity_id", STR, "of ingest/roster"), _c("grade", INT, "0 to 3"),
    ), "window_id intent_id entity_id", "window_id intent_id entity_id"),
    _table("reference/<part>/mapping", "Roster candidate -> gold candidate, by maximum total mention IoU.", (
        _WINDOW, _c("setting", STR, "closed, predicted or hybrid"), _CAND, _c("entity_id", STR, "of ingest/roster"),
        _c("iou", FLOAT, "total mention IoU of the pair"),
    ), "window_id setting candidate_id", "window_id setting candidate_id"),
    _table("reference/<part>/sufficient", "Minimal sufficient gold span sets; any one of them suffices.", (
        _WINDOW, _INTENT, _c("entity_id", STR, "gold candidate"), _c("set", INT, "index of the set, from 0"),
        _c("spans", STRS, "citation strings, sorted"),
    ), "window_id intent_id entity_id set", "window_id intent_id entity_id set"),
    # ---- rank --------------------------------------------------------------------------------------------------------
    _table("rank/<system>/<setting>/rankings", "Ordered top-K. The emitted list is the prefix with emitted = true; the "
           "rest completes it to K for NDCG and is never certified.", (
        _WINDOW, _INTENT, _SPLIT, _c("rank", INT, "from 1"), _CAND, _c("local_id", STR, "as the system saw it"),
        _c("name", STR, "longest surface"), _c("score", FLOAT, "the system's score"),
        _c("emitted", BOOL, "whether the system put it on its list"),
        _c("status", STR, "certified (valid and recovered by the verifier) or uncertified"),
        _c("reject_code", STR, "why uncertified", True),
    ), "window_id intent_id rank", "window_id intent_id rank"),
    _table("rank/<system>/<setting>/certificates", "Cited spans, resolved.", (
        _WINDOW, _INTENT, _c("rank", INT, "of the entry"), _CAND, _c("slot_id", STR, "slot it supports"),
        _c("nth", INT, "of the slot's citations as written, from 0: a policy may cite one span twice, which is never "
           "valid (repeated_span) and never repaired"), *_SPAN,
        _c("handle_id", STR, "as cited"), _c("sha256", STR, "of the document's text"),
    ), "window_id intent_id rank slot_id doc_id start end nth", "window_id intent_id rank slot_id nth"),
    _table("rank/<system>/<setting>/generations", "What the system wrote, raw, every sample and attempt. A policy's "
           "ids are those of its prompt: the naming follows from the seed of params.yaml and epoch 0 "
           "(`pipeline.naming.draw_names`), and a text is read again against the window as printed "
           "(`Prompter.render`).", (
        _WINDOW, _INTENT, _c("sample", INT, "index of the sample, from 0"),
        _c("attempt", INT, "of the sample, from 0: asked again after a reject, or for the next part of the answer"),
        _c("chosen", BOOL, "whether the list was taken from it; true for one row of every instance"),
        _c("text", STR, "as written: compact certificate form (sft_json: JSON); empty where nothing was asked"),
        _c("status", STR, "parsed, uncertified (nothing was asked) or rejected"),
        _c("reject_code", STR, "when not parsed", True),
        _c("prompt_tokens", INT, "read for it; 0 for a baseline"),
        _c("tokens", INT, "written, the end token included; 0 for a baseline"),
        _c("temperature", FLOAT, "of the sampling, 0 is greedy; null where nothing was generated", True),
        _c("seed", INT, "of the sampling; null where nothing was generated", True),
        _c("log_prob", FLOAT, "log-probability of the whole answer as it was drawn, mask and temperature included; 0 "
           "when greedy, null where nothing was generated", True),
        _c("model_log_prob", FLOAT, "the same under the model alone at temperature 1; null where unknown", True),
        _c("finish", STR, "stop or length (cut off); null where nothing was generated", True),
        _c("dropped_steps", INT, "steps that the prompt's budget left out; 0 where there was no prompt"),
    ), "window_id intent_id sample attempt", "window_id intent_id sample attempt"),
    _table("rank/<policy>/<setting>/timings", "How long a policy took: the only table whose values differ between runs "
           "on one machine.", (
        _WINDOW, _INTENT,
        _c("seconds", FLOAT, "wall time of generating the instance's texts: its batches', divided among what was in "
           "them; of texts that several systems share, that of the run which generated them"),
    ), "window_id intent_id", "window_id intent_id"),
    _table("rank/<policy>/<setting>/probes", "What a policy answered when a few instances were asked again: under "
           "other names and with the roster in another order, or with a text planted that asks for something. For the "
           "audit; never part of a list.", (
        _WINDOW, _INTENT,
        _c("kind", STR, "names (renamed and reordered), control (a harmless text), else the kind of attack"),
        _c("probe", STR, "number of the rendering, else id of the text in rank_policy.probes.attacks"),
        _c("target", STR, "candidate whose rank the text is to raise; null for names", True),
        _c("shown", BOOL, "whether the prompt held the whole text; true for names"),
        _c("status", STR, "parsed, uncertified (nothing was asked) or rejected"),
        _c("reject_code", STR, "when not parsed", True), _c("emitted", STRS, "candidate ids, best first"),
        _c("cited", STRS, "names: per emitted candidate a JSON list of citation strings; else empty, as the planted "
           "text moves what stands behind it"),
        _c("text", STR, "as written, in the ids of its prompt; of several texts the one that counts"),
        _c("prompt_tokens", INT, "read for all its texts"), _c("tokens", INT, "written in all its texts"),
        _c("dropped_steps", INT, "steps that the prompt's budget left out"),
    ), "window_id intent_id kind probe", "window_id intent_id kind probe"),
    # ---- audit -------------------------------------------------------------------------------------------------------
    _table("audit/instances", "Metrics per (system, setting, window, intent).", (
        _c("system", STR, "ranking system"), _c("setting", STR, "roster setting"), _WINDOW, _INTENT,
        _c("metric", STR, "name as in metrics.json"), _c("value", FLOAT, "null where undefined", True),
    ), "system setting window_id intent_id metric", "system setting window_id intent_id metric"),
    _table("audit/entries", "Verdict per emitted entry.", (
        _c("system", STR, "ranking system"), _c("setting", STR, "roster setting"), _WINDOW, _INTENT,
        _c("rank", INT, "from 1"), _CAND, _c("grade", INT, "gold grade, null where no gold", True),
        _c("valid", BOOL, "validity v"), _c("reject_code", STR, "first reject code", True),
        _c("recovered", STR, "candidate that the verifier recovers", True),
        _c("recovered_l3", STR, "candidate that it recovers by the held-out extractor; null also without one", True),
        _c("sigma", FLOAT, "support"),
        _c("gold_gate", BOOL, "contains a minimal sufficient gold set", True), _c("characters", INT, "cited"),
    ), "system setting window_id intent_id rank", "system setting window_id intent_id rank"),
)  # fmt: skip

TABLES: dict[str, Table] = {table.name: table for table in _ALL}
GOLD = ("entities", "mentions", "events", "arguments", "relations", "labelled")
SPLITS = ("train", "tune", "cal", "test")
SETTINGS = ("closed", "predicted", "hybrid")


def table(name: str) -> Table:
    """The declared table of a concrete name, e.g. `roster/closed/mentions` -> `roster/<setting>/mentions`."""
    if name in TABLES:
        return TABLES[name]
    parts = name.split("/")
    for declared in TABLES.values():
        pattern = declared.name.split("/")
        if len(pattern) == len(parts) and all(a == b or a.startswith("<") for a, b in zip(pattern, parts, strict=True)):
            return declared
    raise TableError(f"no table is declared under the name {name!r}")


def path(name: str, root: str | Path = "data") -> Path:
    """Where a concrete table lives: `data/<name>.parquet`."""
    return Path(root) / f"{name}.parquet"


class Writer:
    """Writes one table shard by shard; nothing is visible under the final name until `with` ends without error.

    Args:
        name: concrete table name, e.g. `extract/events`.
        root: data directory.
        file: write there instead of `path(name, root)`.
    """

    def __init__(self, name: str, root: str | Path = "data", file: str | Path | None = None) -> None:
        self.table = table(name)
        self.name = name
        self.path = Path(file) if file is not None else path(name, root)
        self.rows = 0
        self._last: tuple[object, ...] | None = None

    def __enter__(self) -> Self:
        self._partial = partial_path(self.path)
        try:
            self._file = pq.ParquetWriter(
                self._partial, self.table.arrow, compression="zstd", compression_level=3, version="2.6",
                write_statistics=True, store_schema=False,
            )  # fmt: skip
        except OSError:
            self._partial.unlink(missing_ok=True)
            raise
        return self

    def append(self, frame: pl.DataFrame) -> None:
        """Append rows, sorted here; TableError when columns, types, nulls or the order to earlier rows are wrong."""
        if frame.is_empty():
            return
        schema = self.table.schema
        if set(frame.columns) != set(schema):
            raise TableError(f"columns {sorted(frame.columns)} are not {sorted(schema)}", field=self.name)
        try:
            frame = frame.select([pl.col(n).cast(t) for n, t in schema.items()])
        except pl.exceptions.PolarsError as error:
            raise TableError(f"wrong type: {error}", field=self.name) from None
        for column in self.table.columns:
            if not column.nullable and frame[column.name].null_count():
                raise TableError("null in a column that may not be null", field=f"{self.name}.{column.name}")
        frame = frame.sort(self.table.sort, maintain_order=True)
        first = frame.select(self.table.sort).row(0)
        if self._last is not None and first < self._last:
            raise TableError(f"rows out of order: {first} after {self._last}", field=self.name)
        self._last = frame.select(self.table.sort).row(-1)
        self._file.write_table(frame.to_arrow().cast(self.table.arrow), row_group_size=ROW_GROUP)
        self.rows += frame.height

    def finish(self) -> None:
        """Write what is missing to the disk, still under the temporary name: whatever can fail, fails here."""
        self._file.close()
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self.finish()
                self._partial.replace(self.path)
            else:
                self._file.close()
        finally:
            self._partial.unlink(missing_ok=True)


@contextlib.contextmanager
def writers(names: Iterable[str], root: str | Path = "data") -> Iterator[dict[str, Writer]]:
    """A writer per table; every table is complete on the disk before the first of them becomes visible."""
    with contextlib.ExitStack() as stack:
        opened = {name: stack.enter_context(Writer(name, root)) for name in names}
        yield opened
        for writer in opened.values():
            writer.finish()


def write(name: str, frame: pl.DataFrame, root: str | Path = "data") -> None:
    """Write a whole table atomically."""
    with Writer(name, root) as writer:
        writer.append(frame)


class Reader:
    """Reads one table, whole or by ranges of windows.

    Raises:
        TableError: missing file, not Parquet, truncated, or not of its declared schema.
    """

    def __init__(self, name: str, root: str | Path = "data", file: str | Path | None = None) -> None:
        self.table = table(name)
        self.path = Path(file) if file is not None else path(name, root)
        if not self.path.is_file():
            raise TableError("table not found", file=self.path, mend="run `dvc repro`")
        with self._readable():
            self._file = pq.ParquetFile(self.path)
        if not self._file.schema_arrow.equals(self.table.arrow, check_metadata=False):
            raise TableError("the schema is not the declared one", file=self.path, mend="run `dvc repro`")
        self.rows: int = self._file.metadata.num_rows

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise TableError(f"not a readable Parquet file: {error}", file=self.path, mend="`dvc checkout`") from None

    def row_groups(self, windows: tuple[str, str]) -> list[int]:
        """Indices of the row groups that may hold rows of these windows (first, last), by their statistics."""
        if self.table.sort[0] != "window_id":
            raise TableError("this table is not sorted by window", file=self.path)
        column = self.table.arrow.get_field_index("window_id")
        found = [self._file.metadata.row_group(i).column(column).statistics for i in range(self._file.num_row_groups)]
        # Parquet leaves out the statistics of very long ids; such a group may hold anything.
        return [i for i, s in enumerate(found) if not s.has_min_max or (s.min <= windows[1] and s.max >= windows[0])]

    def frame(self, windows: tuple[str, str] | None = None) -> pl.DataFrame:
        """Rows as a polars frame; `windows` = (first, last) window id, both inclusive."""
        with self._readable():
            if windows is None:
                return self._polars(self._file.read())
            frame = self._polars(self._file.read_row_groups(self.row_groups(windows)))
        return frame.filter(pl.col("window_id").is_between(pl.lit(windows[0]), pl.lit(windows[1])))

    def batches(self, rows: int = 65_536, columns: list[str] | None = None) -> Iterator[pl.DataFrame]:
        """The table in order, in batches of at most `rows` rows; `columns` in declared order, or all."""
        with self._readable():
            for batch in self._file.iter_batches(rows, columns=columns):
                yield self._polars(pa.Table.from_batches([batch]))

    def _polars(self, data: pa.Table) -> pl.DataFrame:
        frame = pl.DataFrame(data)
        return frame.cast({name: dtype for name, dtype in self.table.schema.items() if name in frame.columns})


def read(name: str, root: str | Path = "data", windows: tuple[str, str] | None = None) -> pl.DataFrame:
    """Read a table, or the rows of a range of windows."""
    return Reader(name, root).frame(windows)


def shards(name: str, root: str | Path = "data", size: int | None = None) -> list[tuple[str, str]]:
    """Runs of `size` (else `SHARD_WINDOWS`) consecutive windows of a table, as (first, last) window ids."""
    size = SHARD_WINDOWS if size is None else size
    ids: list[str] = []
    for batch in Reader(name, root).batches(columns=["window_id"]):
        for value in batch["window_id"].unique(maintain_order=True).to_list():
            if not ids or ids[-1] != value:
                ids.append(value)
    return [(ids[i], ids[min(i + size, len(ids)) - 1]) for i in range(0, len(ids), size)]
