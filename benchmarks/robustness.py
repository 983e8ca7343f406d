"""Hostile and outsized texts through every stage that reads them: seconds, peak memory, and what happened.

    python benchmarks/robustness.py [--model models/extract] [--cases NAME ...] [--limit-mib 6000] [--limit-seconds 170]

Every case is a workspace of its own with a corpus of JSON lines; every stage in it is a process of its own, as DVC runs
it, whose largest resident set is reported. A process that exceeds a limit is killed and the case counts as failed, as
does one that ends with anything but what is expected of it. After the last stage all spans of all tables are compared
with the texts. Sentences and plans fit the model: those of the synthetic corpus or those of CASIE.

The 10,000 candidates have a gold annotation, so that closed rosters, the reference and the oracle are as large as the
predicted ones. Models are adopted, never fitted: the extractor from --model, the reward model from --reward. Results of
several models stand beside each other in one file; a run replaces those of its own model and cases.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import polars as pl  # noqa: E402

from benchmarks.machine import describe  # noqa: E402
from pipeline import files, tables  # noqa: E402
from pipeline.spans import parse_citation  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "robustness.json"
SETTINGS = ("closed", "predicted", "hybrid")
STAGES = (
    ("ingest",), ("extract",), ("roster",), ("trajectories",), ("reference",),
    *(("rank", "rm_attach", setting) for setting in SETTINGS), *(("rank_oracle", setting) for setting in SETTINGS),
    ("heldout",), ("audit",),
)  # fmt: skip
LONG = 100_000
CROWD = 10_000

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Domain:
    """What the model was trained on: a plan's folder, and per verb its event type and the roles of subject and object.

    Args:
        source: folder of intents.
        verbs: (surface, event type, role of the subject, role of the object).
    """

    source: str
    verbs: tuple[tuple[str, str, str, str], ...]


SAMPLE = Domain("sample", (
    ("blackmailed", "extortion.demand", "extortionist", "victim"), ("bribed", "corruption.bribe", "briber", "official"),
    ("torched", "property.ignite", "arsonist", "owner"), ("hired", "contact.recruit", "recruiter", "recruit"),
))  # fmt: skip
CASIE = Domain("casie", (
    ("hacked", "Attack.Databreach", "Attacker", "Victim"), ("phished", "Attack.Phishing", "Attacker", "Victim"),
    ("extorted", "Attack.Ransom", "Attacker", "Victim"),
))  # fmt: skip


# ---- corpora ---------------------------------------------------------------------------------------------------------


def name_of(number: int) -> str:
    """A name of two words that no other number has; pronounceable, as a reader would expect one.

    >>> name_of(0), name_of(12345)
    ('Bab Babab', 'Bab Folan')
    """
    first, last = divmod(number, 7_000)
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    syllables = [c + v for c in consonants for v in vowels]
    given = syllables[first % 70] + consonants[first // 70 % 14]
    family = syllables[last % 70] + syllables[last // 70 % 70] + consonants[last // 4900 % 14]
    return f"{given.capitalize()} {family.capitalize()}"


class Story:
    """Annotated text of one document, sentence by sentence."""

    def __init__(self, domain: Domain, seed: int) -> None:
        self.domain, self.draw = domain, random.Random(seed)
        self.text = ""
        self.mentions: dict[str, list[dict[str, int]]] = {}
        self.events: list[Record] = []
        self.arguments: list[Record] = []

    def tell(self, subject: str, other: str, ending: str = ". ") -> None:
        """One event between two people."""
        verb, kind, *roles = self.draw.choice(self.domain.verbs)
        event = f"e{len(self.events)}"
        self._name(subject, event, roles[0])
        self.events.append({"id": event, "type": kind, "start": len(self.text), "end": len(self.text) + len(verb)})
        self.text += verb + " "
        self._name(other, event, roles[1])
        self.text = self.text[:-1] + ending

    def _name(self, name: str, event: str, role: str) -> None:
        own = self.mentions.setdefault(name, [])
        self.arguments.append({"event": event, "mention": f"{name}/{len(own)}", "role": role})
        own.append({"start": len(self.text), "end": len(self.text) + len(name)})
        self.text += name + " "

    def record(self, **own: Any) -> Record:
        """The document as a line of the corpus, with its annotation."""
        entities = [
            {"id": name, "mentions": [{"id": f"{name}/{i}", **place} for i, place in enumerate(places)]}
            for name, places in self.mentions.items()
        ]
        return {
            **own, "text": self.text, "entities": entities, "events": self.events, "arguments": self.arguments,
        }  # fmt: skip


def plain(domain: Domain, characters: int, ending: str = ". ") -> str:
    """Text about a hundred people."""
    story = Story(domain, 1)
    while len(story.text) < characters:
        one, other = story.draw.sample(range(100), 2)
        story.tell(name_of(one), name_of(other), ending)
    return story.text[:characters].strip()


def foreign(*words: str, space: str, stop: str) -> Callable[[Domain], Iterator[Record]]:
    """20,000 characters of a script."""

    def records(_: Domain) -> Iterator[Record]:
        draw = random.Random(2)
        text = ""
        while len(text) < 20_000:
            text += space.join(draw.choices(words, k=12)) + stop
        yield {"doc_id": "d", "text": text}

    return records


def crowd(domain: Domain, split: str) -> Iterator[Record]:
    """10,000 candidates in one document, two in every sentence; everybody acts once."""
    story = Story(domain, 3)
    for n in range(0, CROWD, 2):
        story.tell(name_of(n), name_of(n + 1))
    yield story.record(doc_id="d", split=split)


def queue(domain: Domain) -> Iterator[Record]:
    """10,000 candidates in one sentence, most of them only listed."""
    story = Story(domain, 4)
    for n in range(CROWD):
        name = name_of(n)
        story.mentions[name] = [{"start": len(story.text), "end": len(story.text) + len(name)}]
        story.text += name + ", "
        if n % 100 == 99:
            story.tell(f"{name_of(n)} Senior", f"{name_of(n)} Junior", ", ")
    yield story.record(doc_id="d", split="test")


def namesakes(domain: Domain) -> Iterator[Record]:
    """10,000 people with one surname, each also called by the surname alone."""
    story = Story(domain, 5)
    for n in range(0, CROWD, 2):
        story.tell(f"{name_of(n).split()[1]} Olten", f"{name_of(n + 1).split()[1]} Olten")
        story.text += "Olten left. "
    yield story.record(doc_id="d", split="test")


def one_actor(domain: Domain) -> Iterator[Record]:
    """Four people who take part in 10,000 events."""
    story = Story(domain, 6)
    for _ in range(CROWD):
        one, other = story.draw.sample(range(4), 2)
        story.tell(name_of(one), name_of(other))
    yield story.record(doc_id="d", split="test")


def many_long(domain: Domain) -> Iterator[Record]:
    """Forty windows of 100,000 characters, which are one shard."""
    for n in range(40):
        yield {"doc_id": f"d{n:02d}", "text": plain(domain, LONG)}


def blank(domain: Domain) -> Iterator[Record]:
    """Documents with nothing to read, beside one with something."""
    texts = ("", " \n\t ", "\u200b\u200b", "\u00a0\u3000", "\ufeff", "…", plain(domain, 400))
    for n, text in enumerate(texts):
        yield {"doc_id": f"d{n}", "group": "g", "text": text}


def control(domain: Domain) -> Iterator[Record]:
    """Control characters, unpaired direction marks and stray combining marks between the words."""
    draw, text = random.Random(7), plain(domain, 20_000)
    signs = [*map(chr, range(32)), "\x7f", "\x85", "\u2028", "\u202e", "\u2066", "\u0301", "\ufffd", "\U000e0001"]
    yield {"doc_id": "d", "text": "".join(c + draw.choice(signs) if draw.random() < 0.1 else c for c in text)}


def surrogate(_: Domain) -> Iterator[Record]:
    """Half of a character: JSON can spell it, UTF-8 cannot hold it."""
    yield {"doc_id": "d", "text": "Ann \ud800 Bob"}


CHINESE = ("黑客", "攻击", "了", "银行", "并", "要求", "赎金", "公司", "报警")
CASES: dict[str, Callable[[Domain], Iterator[Record]]] = {
    "100,000 characters": lambda domain: iter([{"doc_id": "d", "text": plain(domain, LONG)}]),
    "the same without sentence ends": lambda domain: iter([{"doc_id": "d", "text": plain(domain, LONG, " and ")}]),
    "one token of 100,000 characters": lambda domain: iter([{"doc_id": "d", "text": "a" * LONG}]),
    "100,000 characters, no space": lambda domain: iter([{"doc_id": "d", "text": "a-b_c=" * (LONG // 6)}]),
    "40 windows of 100,000 characters": many_long,
    "empty and blank documents": blank,
    "Chinese": foreign(*CHINESE, space="", stop="。"),
    "Chinese without stops": foreign(*CHINESE, space="", stop=""),
    "Arabic and Hebrew": foreign("هاجم", "القراصنة", "المصرف", "תקפו", "האקרים", "את", "הבנק", space=" ", stop=". "),
    "Thai": foreign("แฮกเกอร์", "โจมตี", "ธนาคาร", "เมื่อวานนี้", "และ", "เรียกค่าไถ่", space="", stop=" "),
    "Devanagari": foreign("हैकर्स", "ने", "बैंक", "पर", "हमला", "किया", "और", "फिरौती", "माँगी", space=" ", stop="। "),
    "control characters": control,
    "a lone surrogate": surrogate,
    "10,000 candidates": lambda domain: crowd(domain, "test"),
    "10,000 candidates, train split": lambda domain: crowd(domain, "train"),
    "10,000 candidates in one sentence": queue,
    "10,000 namesakes": namesakes,
    "4 candidates in 10,000 events": one_actor,
}
REFUSED = {"a lone surrogate": "lone surrogate"}
"""Cases that ingest must refuse, and with which words."""


# ---- running them ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Run:
    """One stage of one case."""

    stage: str
    seconds: float
    peak_mib: float
    ended: str
    said: list[str] = field(default_factory=list)


def workspace(folder: Path, case: str, domain: Domain, model: Path, reward: Path) -> None:
    """A workspace with the case's corpus and kept models."""
    yaml = YAML()
    raw = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["ingest"].update(source="jsonl", path="corpus.jsonl", on_error="fail" if case in REFUSED else "quarantine")
    raw["extract"]["from"] = "kept"
    raw["roster"]["settings"] = list(SETTINGS)
    raw["rank"]["systems"] = ["rm_attach"]
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(raw, file)
    (folder / "stages").symlink_to(ROOT / "stages")
    (folder / "intents").mkdir()
    (folder / "intents/jsonl").symlink_to(ROOT / "intents" / domain.source)
    with files.publish_directory(folder / "models/fitted/kept/extract") as kept:
        shutil.copytree(model, kept, dirs_exist_ok=True, ignore=shutil.ignore_patterns(files.COMPLETE))
        (kept / "README.md").touch()
    (folder / "models/reward").symlink_to(reward.resolve())
    lines = (json.dumps(record) + "\n" for record in CASES[case](domain))
    (folder / "corpus.jsonl").write_text("".join(lines), encoding="utf-8")


def run_stage(stage: tuple[str, ...], folder: Path, limit_mib: int, limit_seconds: float) -> Run:
    """Run one stage, killed at a limit."""
    log = folder / "stage.log"
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        with log.open("wb") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
        os.execve(sys.executable, [sys.executable, "-m", f"stages.{stage[0]}", *stage[1:]], environment)
    ended = ""
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        if not ended and resident_mib(pid) > limit_mib:
            ended = f"killed beyond {limit_mib} MiB"
        elif not ended and time.monotonic() - started > limit_seconds:
            ended = f"killed beyond {limit_seconds:.0f} s"
        if ended:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    ended = ended or ("done" if status == 0 else said[-1] if said else f"status {status}")
    return Run(" ".join(stage), time.monotonic() - started, usage.ru_maxrss / 1024, ended, said)


def resident_mib(pid: int) -> float:
    """Resident memory of a live process; 0 when it has just ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def check_offsets(data: Path) -> int:
    """Compare every span of every table with the texts; return how many there are.

    Raises:
        SystemExit: one is not its surface.
    """
    texts = dict(tables.read("ingest/documents", data).select("doc_id", "text").iter_rows())
    spans = 0
    names = ["extract/mentions", "extract/events"]
    names += [f"{place}/{s}/{name}" for s in SETTINGS
              for place, name in (("roster", "mentions"), ("trajectories", "handles"))]  # fmt: skip
    for name in names:
        for doc_id, start, end, surface in tables.read(name, data).select("doc_id", "start", "end", "surface").rows():
            if not start < end or texts[doc_id][start:end] != surface:
                raise SystemExit(f"{name}: {doc_id}:{start}-{end} is {texts[doc_id][start:end]!r}, not {surface!r}")
            spans += 1
    for setting in SETTINGS:
        for candidate in tables.read(f"roster/{setting}/candidates", data)["candidate_id"].to_list():
            span = parse_citation(candidate)
            if span.end > len(texts[span.doc_id]):
                raise SystemExit(f"{setting}: the candidate {candidate} lies outside of its text")
    return spans


def candidates(data: Path) -> dict[str, int]:
    """The largest roster of each setting."""
    windows = tables.read("roster/windows", data)
    return {setting: int(windows[f"n_{setting}"].cast(pl.Int64).max() or 0) for setting in SETTINGS}  # type: ignore[arg-type]


def run_case(case: str, domain: Domain, options: argparse.Namespace) -> Record:
    """All stages of one case; stops at the first that fails."""
    runs: list[Run] = []
    row: Record = {"case": case}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workspace(folder, case, domain, options.model, options.reward)
        for stage in STAGES:
            run = run_stage(stage, folder, options.limit_mib, options.limit_seconds)
            runs.append(run)
            if options.verbose:
                print(f"    {run.stage:<28} {run.seconds:7.1f} s {run.peak_mib:7.0f} MiB  {run.ended}", flush=True)
                print("".join(f"        {line}\n" for line in run.said if "about" not in line), end="", flush=True)
            if run.ended != "done":
                break
        finished = runs[-1].ended == "done"
        if finished:
            row |= {"candidates": candidates(folder / "data"), "spans": check_offsets(folder / "data")}
    expected = REFUSED.get(case)
    fine = finished if expected is None else runs[-1].stage == "ingest" and expected in runs[-1].ended
    slowest, largest = max(runs, key=lambda r: r.seconds), max(runs, key=lambda r: r.peak_mib)
    return row | {
        "ok": fine, "ended": "done" if finished else f"{runs[-1].stage}: {runs[-1].ended}",
        "seconds": round(sum(r.seconds for r in runs), 1), "peak_mib": round(largest.peak_mib),
        "slowest": slowest.stage, "largest": largest.stage,
        "limits": [line.strip() for run in runs for line in run.said if "limit:" in line],
        "stages": {r.stage: {"seconds": round(r.seconds, 2), "peak_mib": round(r.peak_mib)} for r in runs},
    }  # fmt: skip


def main() -> None:
    """Run the cases, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, default=ROOT / "models/extract", help="folder of a fitted extractor")
    parser.add_argument("--reward", type=Path, default=ROOT / "models/reward", help="folder of a fitted reward model")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--limit-mib", type=int, default=6_000)
    parser.add_argument("--limit-seconds", type=float, default=170)
    parser.add_argument("--verbose", action="store_true", help="every stage, and what it said")
    options = parser.parse_args()
    config = files.read_json(options.model / "config.json")
    kind = "linear" if config["format"] == 1 else "encoder"
    labels = config["trigger_type"]["labels"] if kind == "linear" else config["labels"]["kinds"]
    domain = SAMPLE if SAMPLE.verbs[0][1] in labels else CASIE
    rows = []
    for case in options.cases:
        row = {"model": kind, **run_case(case, domain, options)}
        rows.append(row)
        print(
            f"{kind:<8} {case:<34} {row['seconds']:7.1f} s {row['peak_mib']:6} MiB  {row['ended']:<30.90} "
            f"(slowest {row['slowest']}, largest {row['largest']}; {row.get('candidates', '')})", flush=True,
        )  # fmt: skip
    done = {(row["model"], row["case"]) for row in rows}
    known = files.read_json(RESULTS)["rows"] if RESULTS.is_file() else []
    rows = [row for row in known if (row["model"], row["case"]) not in done] + rows
    order = list(CASES)
    rows = [row for row in rows if row["case"] in order]
    rows.sort(key=lambda row: (row["model"] != "linear", order.index(row["case"])))
    RESULTS.parent.mkdir(exist_ok=True)
    files.write_json(RESULTS, {"machine": describe(), "limit_mib": options.limit_mib, "rows": rows})
    if not all(row["ok"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
