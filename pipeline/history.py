"""Tables and metrics as they were at a git revision: `certrank history`, `certrank diff`, `certrank show`.

dvc.lock of a revision names every output by hash; DVC's cache holds the bytes. `At(revision)` finds the tables there,
and `query` gives them to DuckDB as a catalog of the revision: the views of `certrank sql`, over files of the cache.
Nothing is checked out. A revision is anything git knows (a commit, `HEAD~2`, a tag) or an experiment of `dvc exp`; `.`
is the workspace, as its dvc.lock says.

When not to use it: for outputs that were never cached here; `dvc fetch` gets them from a remote first.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import tables, views
from pipeline.catalog import Answer
from pipeline.errors import DataError

WORKSPACE = "."
LOCK = "dvc.lock"
METRICS = "data/audit/metrics.json"
HEADLINE, CAP = "cert_ndcg", "oracle"
FETCH = "`dvc fetch --all-commits` gets what the cache lacks"


@dataclass(frozen=True, slots=True)
class Version:
    """One table at a revision.

    Args:
        name: concrete name, e.g. rank/random/closed/rankings.
        file: its bytes, in DVC's cache or in the workspace; None where the cache does not have them.
        md5: of the bytes.
    """

    name: str
    file: Path | None
    md5: str


# ---- revisions ------------------------------------------------------------------------------------------------------


def git(*arguments: str) -> str:
    """What a git command prints.

    Raises:
        DataError: it fails.
    """
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise DataError(f"git {arguments[0]}: {last.removeprefix('fatal: ')}")
    return done.stdout


def resolve(revision: str) -> str:
    """The commit that a revision means; a name of `dvc exp` counts, too.

    Raises:
        DataError: there is none.
    """
    if revision == WORKSPACE:
        return WORKSPACE
    if revision.startswith("-"):
        raise DataError(f"no such revision: {revision!r}", mend="`git log`, `dvc exp list`")
    command = ["git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"]
    known = subprocess.run(command, capture_output=True, text=True, check=False)
    if known.returncode == 0:
        return known.stdout.strip()
    for line in git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps").splitlines():
        commit, _, name = line.partition(" ")
        if name.rsplit("/", 1)[-1] == revision:
            return commit
    raise DataError(f"no such revision: {revision!r}", mend="`git log`, `dvc exp list`")


def text_at(commit: str, path: str) -> str | None:
    """A file's text at a commit, or in the workspace; None where it has no such file."""
    if commit == WORKSPACE:
        return Path(path).read_text(encoding="utf-8") if Path(path).is_file() else None
    done = subprocess.run(["git", "show", f"{commit}:./{path}"], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


# ---- tables at a revision -------------------------------------------------------------------------------------------


class At:
    """The tables and metrics of one revision.

    Raises:
        DataError: no such revision, or it has no dvc.lock that can be read.
    """

    def __init__(self, revision: str) -> None:
        self.revision, self.commit = revision, resolve(revision)
        text = text_at(self.commit, LOCK)
        if text is None:
            raise DataError(f"revision {revision} has no {LOCK}", mend="`certrank history` lists those that have one")
        try:
            stages = YAML(typ="safe", pure=True).load(text)["stages"]
            outs = [out for entry in stages.values() for out in entry.get("outs", ())]
            self.outs = {str(out["path"]): str(out["md5"]) for out in outs}
        except (YAMLError, KeyError, TypeError, AttributeError):
            raise DataError(f"{LOCK} of revision {revision} is broken", file=LOCK) from None
        self.cache = cache_folder()

    def tables(self) -> dict[str, Version]:
        """Declared tables by concrete name, in declared order."""
        found = {}
        for path, md5 in self._files():
            inside = Path(path)
            if inside.parts[0] == "data" and inside.suffix == ".parquet":
                name = inside.relative_to("data").with_suffix("").as_posix()
                if declared(name) is not None:
                    found[name] = Version(name, self._bytes(md5), md5)
        order = {name: i for i, name in enumerate(tables.TABLES)}
        return dict(sorted(found.items(), key=lambda item: (order[tables.table(item[0]).name], item[0])))

    def _files(self) -> Iterator[tuple[str, str]]:
        """(path, md5) of every file of every output; of a folder that is not in the cache, nothing."""
        for path, md5 in self.outs.items():
            if not md5.endswith(".dir"):
                yield path, md5
            elif (listing := self._bytes(md5)) is not None:
                for item in json.loads(listing.read_text(encoding="utf-8")):
                    yield f"{path}/{item['relpath']}", item["md5"]

    def missing(self) -> list[str]:
        """Outputs that are or may hold tables, and whose bytes the cache does not have."""
        return [
            path for path, md5 in self.outs.items()
            if path.startswith("data/") and (path.endswith(".parquet") or md5.endswith(".dir")) and not self._bytes(md5)
        ]  # fmt: skip

    def _bytes(self, md5: str) -> Path | None:
        file = self.cache / md5[:2] / md5[2:]
        return file if file.is_file() else None

    def metrics(self) -> dict[tuple[str, str, str], float | None]:
        """(system, setting, metric) -> value, of the audit; empty where it has none."""
        text = text_at(self.commit, METRICS)
        if text is None:
            return {}
        return {
            (system, setting, metric): found["value"]
            for system, settings in json.loads(text).items()
            for setting, values in settings.items()
            for metric, found in values.items()
        }


def cache_folder() -> Path:
    """Where DVC keeps files by hash (`dvc cache dir`).

    Raises:
        DataError: this is no DVC repository.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            return Path(repo.cache.local.path)
    except DvcException as error:
        raise DataError(str(error).splitlines()[0], mend="run from the root of the repository") from None


def declared(name: str) -> tables.Table | None:
    """The declared table of a concrete name, or None: an older revision may have tables that are no longer declared."""
    try:
        return tables.table(name)
    except DataError:
        return None


def select(name: str, versions: Iterable[Version]) -> str:
    """The union of versions of one declared table, by column name: revisions may differ in columns."""
    parts = []
    for version in versions:
        columns = [f'{views.literal(value)} as "{place}"' for place, value in views.values(name, version.name).items()]
        file = views.literal(views.exact(str(version.file)))
        parts.append(f"select {', '.join([*columns, '*'])} from read_parquet({file})")
    return " union all by name ".join(parts)


def query(sql: str, revision: str) -> Answer:
    """Answer one SELECT from the views of a revision, those of `certrank sql`; nothing else can be read or written.

    Raises:
        DataError: DuckDB refuses, e.g. as the cache has no table of that view.
    """
    by_declared: dict[str, list[Version]] = {}
    for name, version in At(revision).tables().items():
        if version.file is not None:
            by_declared.setdefault(tables.table(name).name, []).append(version)
    files = [str(v.file) for versions in by_declared.values() for v in versions]
    allowed = sorted({form for file in files for form in (file, views.exact(file))})
    with duckdb.connect() as connection:
        for name, versions in by_declared.items():
            view = views.view_of(tables.TABLES[name])
            connection.execute(f'create schema if not exists "{view.schema}"')
            connection.execute(f'create view "{view.schema}"."{view.name}" as {select(name, versions)}')
        connection.execute(f"set allowed_paths=[{', '.join(map(views.literal, allowed))}]")
        connection.execute("set enable_external_access=false")
        connection.execute("set lock_configuration=true")
        try:
            result = connection.execute(sql)
        except duckdb.Error as error:
            raise DataError(str(error).split("\n\n")[0].replace("\n", " "), field="sql") from None
        return Answer([column[0] for column in result.description], result.fetchall())


def show(table: str, revision: str, rows: int = 50) -> Answer:
    """Rows of a view (`rank.rankings`) or of one table (`rank/random/closed/rankings`) at a revision.

    Args:
        table: name of the view or of the table.
        revision: as in `At`.
        rows: at most so many; 0 = all.

    Raises:
        DataError: no such table there, or its bytes are not in the cache.
    """
    found = At(revision).tables()
    wanted = [v for name, v in found.items() if table in (name, str(views.view_of(tables.table(name))))]
    if not wanted:
        there = ", ".join(sorted({str(views.view_of(tables.table(name))) for name in found}))
        raise DataError(f"no table {table!r} at revision {revision}", mend=f"there are {there}" if there else FETCH)
    if lacking := [v.name for v in wanted if v.file is None]:
        raise DataError(f"not in the cache: {', '.join(lacking[:3])}", mend=FETCH)
    declared_name = tables.table(wanted[0].name).name
    view = views.view_of(tables.TABLES[declared_name])
    places = views.values(declared_name, table) if table == wanted[0].name else {}
    where = " and ".join(f'"{place}" = {views.literal(value)}' for place, value in places.items())
    limit = f" limit {rows}" if rows else ""
    return query(f'select * from "{view.schema}"."{view.name}"{where and " where " + where}{limit}', revision)


# ---- history --------------------------------------------------------------------------------------------------------


def history(limit: int = 20) -> list[dict[str, Any]]:
    """The revisions at which dvc.lock changed, latest first: tables, rows (of those in the cache), the best system.

    Raises:
        DataError: no git repository.
    """
    found = []
    lines = git("log", f"-{limit}", "--format=%h%x09%cs%x09%s", "--", LOCK).splitlines()
    for line in lines:
        commit, date, subject = line.split("\t", 2)
        row: dict[str, Any] = {"revision": commit, "date": date, "subject": subject}
        try:
            at = At(commit)
        except DataError as error:
            found.append({**row, "tables": None, "rows": None, HEADLINE: error.what})
            continue
        here = [v.file for v in at.tables().values() if v.file is not None]
        found.append({**row, "tables": len(here), "rows": sum(map(count, here)), HEADLINE: best(at.metrics())})
    return found


def best(metrics: dict[tuple[str, str, str], float | None]) -> str | None:
    """The system and setting of the highest headline metric, which is not the cap that reads gold."""
    found = [
        (value, f"{value:.4f} {system} {setting}") for (system, setting, metric), value in metrics.items()
        if metric == HEADLINE and value is not None and system != CAP
    ]  # fmt: skip
    return max(found)[1] if found else None


def count(file: Path) -> int:
    return int(pq.read_metadata(file).num_rows)


# ---- difference -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """What changed from one revision to another.

    Args:
        tables: (table, rows then, rows now, schema) of the tables whose bytes differ; None for rows where there is no
            such table, "?" for schema where the cache lacks one of them, "" where it is the same.
        metrics: ((system, setting, metric), then, now) of the values that differ.
        rankings: (system, setting, window, intent, candidates then, candidates now) of the lists that differ.
        lacking: outputs that could not be compared, as the cache lacks them.
    """

    tables: list[tuple[str, int | None, int | None, str]]
    metrics: list[tuple[tuple[str, str, str], float | None, float | None]]
    rankings: list[tuple[str, str, str, str, list[str], list[str]]]
    lacking: list[str]


def diff(then: str, now: str) -> Difference:
    """The difference between two revisions.

    Raises:
        DataError: one of them cannot be read.
    """
    a, b = At(then), At(now)
    old, new = a.tables(), b.tables()
    changed = [name for name in {**old, **new} if name not in old or name not in new or old[name].md5 != new[name].md5]
    rows = [(name, rows_of(old.get(name)), rows_of(new.get(name)), schema_change(old.get(name), new.get(name)))
            for name in changed]  # fmt: skip
    before, after = a.metrics(), b.metrics()
    metrics = [
        (key, before.get(key), after.get(key)) for key in {**before, **after} if before.get(key) != after.get(key)
    ]
    lacking = sorted({*a.missing(), *b.missing()})
    return Difference(rows, metrics, ranking_changes(old, new, changed), lacking)


def rows_of(version: Version | None) -> int | None:
    return None if version is None or version.file is None else count(version.file)


def schema_change(old: Version | None, new: Version | None) -> str:
    """Columns that came, went or changed their type, e.g. `+ url string, - page int64`."""
    if old is None or new is None:
        return "new" if old is None else "gone"
    if old.file is None or new.file is None:
        return "?"
    then = {field.name: str(field.type) for field in pq.read_schema(old.file)}
    now = {field.name: str(field.type) for field in pq.read_schema(new.file)}
    parts = [f"+ {name} {now[name]}" for name in now if name not in then]
    parts += [f"- {name} {then[name]}" for name in then if name not in now]
    parts += [f"{n}: {then[n]} to {now[n]}" for n in then if n in now and then[n] != now[n]]
    return ", ".join(parts)


def ranking_changes(
    old: dict[str, Version], new: dict[str, Version], changed: Iterable[str]
) -> list[tuple[str, str, str, str, list[str], list[str]]]:
    """The lists whose candidates or their order differ, of the changed tables of rankings."""
    found = []
    for name in changed:
        if tables.table(name).name != "rank/<system>/<setting>/rankings":
            continue
        place = views.values("rank/<system>/<setting>/rankings", name)
        then, now = lists(old.get(name)), lists(new.get(name))
        for key in sorted({**then, **now}):
            if then.get(key) != now.get(key):
                found.append((place["system"], place["setting"], *key, then.get(key, []), now.get(key, [])))
    return found


def lists(version: Version | None) -> dict[tuple[str, str], list[str]]:
    """(window, intent) -> candidates in rank order."""
    if version is None or version.file is None:
        return {}
    sql = (
        "select window_id, intent_id, list(candidate_id order by rank) "
        f"from read_parquet({views.literal(views.exact(str(version.file)))}) group by all"
    )
    with duckdb.connect() as connection:
        return {(window, intent): ids for window, intent, ids in connection.execute(sql).fetchall()}
