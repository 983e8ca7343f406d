"""`certrank doctor`: is everything in order, and if not, what mends it?

Each check returns findings; it changes nothing and downloads nothing. A finding is `ok`, `warn` (works, but look at it)
or `fail` (something will not work or is not what it seems).
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline import tables
from pipeline.errors import CertrankError
from pipeline.files import COMPLETE, check_complete, read_json, sha256_file
from pipeline.params import Params, load_params
from pipeline.skeletons import intents_from_table, load_intents

Level = Literal["ok", "warn", "fail"]
FREE = 2 * 2**30
"""Bytes; with less free disk `doctor` warns."""

SETUP = "`make env` installs what requirements/main.txt says"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding: what was looked at, how it stands, and how to mend it."""

    level: Level
    check: str
    what: str
    mend: str = ""


def examine(root: str | Path = "data") -> list[Finding]:
    """Every check in order; those that need params are left out when params.yaml is wrong."""
    findings = [*_python(), *_packages(), *_torch()]
    try:
        params: Params | None = load_params()
        findings.append(Finding("ok", "params", "params.yaml is valid"))
    except CertrankError as error:
        params = None
        findings.append(Finding("fail", "params", str(error), "mend params.yaml; git diff params.yaml shows changes"))
    needing: tuple[Callable[[Params, Path], Iterator[Finding]], ...] = (_corpus, _intents, _data, _checked, _models)
    for check in needing:
        if params is not None:
            findings += check(params, Path(root))
    return [*findings, *_dvc(), *_leftovers(Path(root)), *_disk(), *_git()]


# ---- environment ----------------------------------------------------------------------------------------------------


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    if sys.version_info[:2] == (3, 11):
        yield Finding("ok", "python", f"Python {version}")
    else:
        yield Finding("fail", "python", f"Python {version}, not 3.11", "install Python 3.11 and run `make env`")


def pins(file: Path) -> dict[str, str]:
    """package -> version, of a requirements file; hashes, comments and other lines are passed over."""
    text = file.read_text(encoding="utf-8")
    return {m[1].lower(): m[2] for m in re.finditer(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", text, re.M)}


def _packages(file: Path = Path("requirements/main.txt")) -> Iterator[Finding]:
    if not file.is_file():
        yield Finding("fail", "packages", f"{file} is missing", "run from the root of the repository")
        return
    wrong = []
    pinned = pins(file)
    for name, version in pinned.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        if found.split("+")[0] != version:
            wrong.append(f"{name} {found}, not {version}")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        yield Finding("fail", "packages", "; ".join(wrong[:3]) + more, SETUP)
    else:
        yield Finding("ok", "packages", f"{len(pinned)} packages as pinned")


def _torch() -> Iterator[Finding]:
    expected = pins(Path("requirements/main.in")).get("torch") if Path("requirements/main.in").is_file() else None
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        yield Finding("fail", "torch", "torch is missing", SETUP)
        return
    if expected is not None and version.split("+")[0] != expected:
        yield Finding("fail", "torch", f"torch {version}, not {expected}", SETUP)
    elif any(d.metadata["Name"].lower().startswith("nvidia-") for d in importlib.metadata.distributions()):
        yield Finding("ok", "torch", f"torch {version} with CUDA packages (a CPU needs none of these gigabytes)")
    else:
        yield Finding("ok", "torch", f"torch {version}, CPU build")


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(".").free
    what = f"{free / 2**30:.1f} GiB free"
    if free < FREE:
        yield Finding("warn", "disk", what, "`dvc gc --workspace` drops versions that no commit here uses; ask first")
    else:
        yield Finding("ok", "disk", what)


# ---- corpus, intents, data ------------------------------------------------------------------------------------------


def _corpus(params: Params, root: Path) -> Iterator[Finding]:
    if Path(params.ingest.path).exists():
        yield Finding("ok", "corpus", f"{params.ingest.source} at {params.ingest.path}")
    else:
        yield Finding("fail", "corpus", f"{params.ingest.path} does not exist", "set ingest.path in params.yaml")


def _intents(params: Params, root: Path) -> Iterator[Finding]:
    """The registry loads, and the skeletons in the data are those of the registry."""
    try:
        registered = {i.intent_id: i.sha256 for i in load_intents(Path("intents") / params.ingest.source)}
    except CertrankError as error:
        yield Finding("fail", "intents", str(error), "docs/intents.md tells how to write or mine one")
        return
    yield Finding("ok", "intents", f"{len(registered)} registered for {params.ingest.source}")
    if tables.path("trajectories/skeletons", root).is_file():
        built = {i.intent_id: i.sha256 for i in intents_from_table(tables.read("trajectories/skeletons", root))}
        if built != registered:
            changed = sorted(i for i in built.keys() | registered.keys() if built.get(i) != registered.get(i))
            what = f"rankings are stale: built for another version of {', '.join(changed[:5])}"
            yield Finding("warn", "intents", what, "`dvc repro`")


def _names(params: Params) -> list[str]:
    """The tables that a complete run has written."""
    from pipeline.quality import concrete

    return [c for declared in tables.TABLES for c in concrete(declared, params)]


def _data(params: Params, root: Path) -> Iterator[Finding]:
    names = _names(params)
    missing = [name for name in names if not tables.path(name, root).is_file()]
    broken = []
    for name in names:
        if name not in missing:
            try:
                tables.Reader(name, root)
            except CertrankError as error:
                broken.append(str(error))
    if missing:
        yield Finding("fail", "data", f"{len(missing)} of {len(names)} tables are missing, first {missing[0]}",
                      "`dvc repro` builds them (`dvc checkout` restores them if dvc.lock knows them)")  # fmt: skip
    for what in broken:
        yield Finding("fail", "data", what, "`dvc checkout`, then `dvc repro`")
    if not missing and not broken:
        yield Finding("ok", "data", f"{len(names)} tables are complete and of their declared schema")
    unlisted = sorted(
        path.relative_to(root).parent.as_posix() for path in root.glob("rank/*/*/rankings.parquet")
        if path.relative_to(root).with_suffix("").as_posix() not in names
    )  # fmt: skip
    if unlisted:
        yield Finding("warn", "data", f"rankings that params.yaml does not list: {', '.join(unlisted)}",
                      "the next check of `rank` removes them; add them to rank(_policy).systems")  # fmt: skip


def _checked(params: Params, root: Path) -> Iterator[Finding]:
    """Every stage's tables passed their checks, and are still the tables that passed."""
    stages = sorted(path.parent.name for path in Path("stages").glob("*/expectations.yaml"))
    unchecked = [s for s in stages if not (root / "quality" / f"{s}.json").is_file()]
    if unchecked:
        yield Finding("warn", "quality", f"not checked, or failed: {', '.join(unchecked)}", "`dvc repro` says which")
    stale, broken = [], []
    for stage in stages:
        if stage not in unchecked:
            answer = root / "quality" / f"{stage}.json"
            try:
                found = read_json(answer)
                digests = dict(found["tables"])
            except (CertrankError, KeyError, TypeError, ValueError):
                broken.append(answer.as_posix())
                continue
            for name, digest in digests.items():
                file = tables.path(name, root)
                if file.is_file() and sha256_file(file) != digest:
                    stale.append(name)
    if stale:
        what = f"{len(stale)} tables changed after they were checked, first {stale[0]}"
        yield Finding("fail", "quality", what, "`dvc repro` checks them again")
    if broken:
        what = f"not the answer of a check: {', '.join(broken)}"
        yield Finding("fail", "quality", what, "`dvc checkout`, or delete it and `dvc repro`")
    if not (stale or broken or unchecked):
        yield Finding("ok", "quality", f"the checks of {len(stages)} stages passed")


def _models(params: Params, root: Path) -> Iterator[Finding]:
    """Every fitted model, those that were kept included, is whole and as it was published."""
    complete = sorted(marker.parent for marker in Path("models").rglob(COMPLETE) if ".partial" not in str(marker))
    broken = []
    for folder in complete:
        try:
            check_complete(folder)
        except CertrankError as error:
            broken.append(str(error))
    for what in broken:
        yield Finding("fail", "models", what, "`dvc checkout`; one under models/fitted/ is kept anew, or restored")
    if complete and not broken:
        yield Finding("ok", "models", f"{len(complete)} models are as they were published")


def _leftovers(root: Path) -> Iterator[Finding]:
    left = sorted(p.as_posix() for base in (root, Path("models")) for p in base.rglob(".*.partial"))
    if left:
        what = f"{len(left)} half-written files of a run that was killed, first {left[0]}"
        yield Finding("warn", "leftovers", what, "remove them when no stage is running")


# ---- DVC and git ----------------------------------------------------------------------------------------------------


def _dvc() -> Iterator[Finding]:
    if not Path(".dvc").is_dir() or not Path("dvc.yaml").is_file():
        yield Finding("fail", "dvc", "no .dvc or dvc.yaml here", "run from the root of the repository, or `dvc init`")
        return
    if not Path("dvc.lock").is_file():
        yield Finding("warn", "dvc", "no dvc.lock: nothing has been built", "`dvc repro`")
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"], capture_output=True, text=True, check=False
    )
    try:
        status: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        lines = done.stderr.strip().splitlines() or ["no answer"]
        mend = "a truncated dvc.lock: `git checkout dvc.lock`, or delete it and `dvc repro`"
        yield Finding("fail", "dvc", f"`dvc status` fails: {lines[-1]}", mend)
        return
    if status:
        names = ", ".join(list(status)[:5]) + (" ..." if len(status) > 5 else "")
        yield Finding("warn", "dvc", f"{len(status)} stages are not up to date: {names}", "`dvc repro`")
    else:
        yield Finding("ok", "dvc", "every stage is up to date")


def _git() -> Iterator[Finding]:
    try:
        done = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        yield Finding("warn", "git", "git is not installed", "install it: DVC compares revisions with it")
        return
    if done.returncode:
        yield Finding("warn", "git", "not a git repository: versions cannot be compared", "`git init`")
        return
    changed = [line[3:] for line in done.stdout.splitlines()]
    if changed:
        what = f"{len(changed)} tracked files have changes, first {changed[0]}"
        mend = "commit dvc.lock together with what produced it" if "dvc.lock" in changed else "commit, or `git stash`"
        yield Finding("warn", "git", what, mend)
    else:
        yield Finding("ok", "git", "nothing to commit")
