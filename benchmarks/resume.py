"""Extraction that is killed and goes on: is a finished shard ever read again, and are the bytes the same?

    python benchmarks/resume.py [--linear 100000] [--encoder 2000 --encoder-model FOLDER]

For each extractor a generated corpus of so many documents is read by a kept model, once from beginning to end, and once
more in a second workspace, where SIGKILL ends the process at about a third and again at about two thirds of the shards.
A shard was not read again if none of its files was written anew: inode and time of change are the same as at the kill.
The published files of both workspaces are compared byte for byte. Exits 1 when a shard was redone or a byte differs.

A generated window has three documents where the linear model reads, one where the encoder does: a shard is 256 windows,
and a few thousand documents should still make several. --shard-windows makes them smaller, for a quick look.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe  # noqa: E402
from pipeline import files, tables  # noqa: E402
from stages.extract.portions import portions  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "resume.json"
PER_WINDOW = {"linear": 3, "encoder": 1}
PUBLISHED = ("data/extract", "models/extract")
POLL = 0.02
STAGE = "import runpy; from pipeline import tables; tables.SHARD_WINDOWS = {size}; " \
        "runpy.run_module('stages.{stage}', run_name='__main__', alter_sys=True)"  # fmt: skip

Stamps = dict[str, tuple[int, int]]
"""File of a finished shard -> its inode and the time of its last change in nanoseconds."""


class Workspace:
    """A folder in which the stages run, each a process of its own.

    Args:
        folder: where.
        shard_windows: windows per shard.
    """

    def __init__(self, folder: Path, shard_windows: int) -> None:
        self.folder, self.shard_windows = folder, shard_windows

    def fill(self, kind: str, documents: int, model: Path) -> None:
        """Parameters for so many generated documents, and the kept model."""
        yaml = YAML()
        raw = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        raw["ingest"]["sample"].update(documents=PER_WINDOW[kind], windows=max(1, documents // PER_WINDOW[kind]))
        raw["extract"]["from"] = "kept"
        with (self.folder / "params.yaml").open("w", encoding="utf-8") as file:
            yaml.dump(raw, file)
        (self.folder / "stages").symlink_to(ROOT / "stages")
        with files.publish_directory(self.folder / "models/fitted/kept/extract") as kept:
            shutil.copytree(model, kept, dirs_exist_ok=True, ignore=shutil.ignore_patterns(files.COMPLETE))
            (kept / "README.md").touch()

    def start(self, stage: str) -> subprocess.Popen[bytes]:
        """Start a stage."""
        command = [sys.executable, "-c", STAGE.format(size=self.shard_windows, stage=stage)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
        with (self.folder / f"{stage}.log").open("ab") as log:
            return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)

    def finish(self, stage: str, process: subprocess.Popen[bytes]) -> None:
        """Wait for a stage.

        Raises:
            SystemExit: it failed.
        """
        if process.wait():
            raise SystemExit((self.folder / f"{stage}.log").read_text(encoding="utf-8"))

    def stamps(self) -> Stamps:
        """The files of the shards that are finished; empty before the first one and after the stage."""
        found: Stamps = {}
        for marker in (self.folder / files.WORK / "extract").glob(f"*/*/{files.COMPLETE}"):
            try:
                for file in marker.parent.iterdir():
                    stat = file.stat()
                    found[f"{marker.parent.name}/{file.name}"] = (stat.st_ino, stat.st_mtime_ns)
            except FileNotFoundError:  # the stage has ended and is clearing up
                continue
        return found

    def published(self) -> dict[str, str]:
        """Published file -> sha256."""
        paths = (p for name in PUBLISHED for p in (self.folder / name).rglob("*") if p.is_file())
        return {p.relative_to(self.folder).as_posix(): files.sha256_file(p) for p in sorted(paths)}


def shards_of(stamps: Stamps) -> set[str]:
    return {name.split("/")[0] for name in stamps}


def watch(workspace: Workspace, known: Stamps, enough: int | None) -> tuple[Stamps, set[str], bool]:
    """Run `extract` until it ends, or until so many shards are finished: then SIGKILL ends it.

    Returns:
        The files of finished shards, those shards of `known` that were written anew, and whether it was killed.
    """
    process = workspace.start("extract")
    redone: set[str] = set()
    seen: Stamps = {}
    while process.poll() is None:
        seen = workspace.stamps() or seen
        redone |= {name.split("/")[0] for name, stamp in seen.items() if known.get(name, stamp) != stamp}
        if enough is not None and len(shards_of(seen)) >= enough:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return workspace.stamps(), redone, True
        time.sleep(POLL)
    workspace.finish("extract", process)
    return seen, redone, False


def measure(kind: str, documents: int, model: Path, shard_windows: int) -> dict[str, Any]:
    """Both readings of one extractor."""
    with tempfile.TemporaryDirectory() as name:
        whole, broken = (Workspace(Path(name) / part, shard_windows) for part in ("whole", "broken"))
        for workspace in (whole, broken):
            workspace.folder.mkdir()
            workspace.fill(kind, documents, model)
        whole.finish("ingest", whole.start("ingest"))
        shutil.copytree(whole.folder / "data/ingest", broken.folder / "data/ingest")
        started = time.monotonic()
        whole.finish("extract", whole.start("extract"))
        seconds = time.monotonic() - started
        tables.SHARD_WINDOWS = shard_windows
        shards = len(portions(whole.folder / "data"))
        known: Stamps = {}
        finished: list[int] = []
        redone: set[str] = set()
        started = time.monotonic()
        for third in (1, 2):
            enough = max(third, shards * third // 3)
            known, again, killed = watch(broken, known, enough)
            if not killed:
                raise SystemExit(f"{kind}: {shards} shards are too few, the stage ended before it could be killed")
            redone |= again
            finished.append(len(shards_of(known)))
        _, again, _ = watch(broken, known, None)
        redone |= again
        both = [workspace.published() for workspace in (whole, broken)]
        different = sorted(name for name in both[0].keys() | both[1].keys() if both[0].get(name) != both[1].get(name))
        rows = {name: tables.Reader(f"extract/{name}", whole.folder / "data").rows for name in ("events", "mentions")}
        return {
            "model": kind, "documents": documents, "shards": shards, "seconds": round(seconds, 1),
            "seconds_killed_twice": round(time.monotonic() - started, 1), "finished_at_kills": finished,
            "shards_redone": len(redone), "files_compared": len(both[0]), "files_different": different, **rows,
        }  # fmt: skip


def main() -> None:
    """Run both extractors, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--linear", type=int, default=100_000, help="documents; 0 leaves it out")
    parser.add_argument("--encoder", type=int, default=2_000, help="documents; 0 leaves it out")
    parser.add_argument("--linear-model", type=Path, default=ROOT / "models/extract", help="a fitted linear extractor")
    parser.add_argument("--encoder-model", type=Path, help="a fitted encoder extractor")
    parser.add_argument("--shard-windows", type=int, default=tables.SHARD_WINDOWS)
    options = parser.parse_args()
    if options.encoder and options.encoder_model is None:
        parser.error("--encoder-model is needed, or --encoder 0")
    rows = []
    for kind, documents, model in (
        ("linear", options.linear, options.linear_model), ("encoder", options.encoder, options.encoder_model),
    ):  # fmt: skip
        if documents:
            row = measure(kind, documents, model, options.shard_windows)
            rows.append({**row, "shard_windows": options.shard_windows})
            print(
                f"{kind:<8} {documents:>7} documents {row['shards']:>4} shards: whole {row['seconds']:.1f} s; killed "
                f"after {row['finished_at_kills']} shards {row['seconds_killed_twice']:.1f} s, {row['shards_redone']} "
                f"read again, {len(row['files_different'])} of {row['files_compared']} files different",
                flush=True,
            )
    known = files.read_json(RESULTS)["rows"] if RESULTS.is_file() else []
    kinds = {row["model"] for row in rows}
    rows = sorted([r for r in known if r["model"] not in kinds] + rows, key=lambda r: r["model"] != "linear")
    RESULTS.parent.mkdir(exist_ok=True)
    files.write_json(RESULTS, {"machine": describe(), "rows": rows})
    if any(row["shards_redone"] or row["files_different"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
