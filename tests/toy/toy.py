"""The stages of the toy pipeline."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError, TransientError
from pipeline.files import WORK, publish_directory, write_json, write_text
from pipeline.params import Params
from pipeline.stage import run

SLEEP = (
    "import subprocess, sys, time; c = subprocess.Popen(['sleep', '300']); print(c.pid, flush=True); time.sleep(300)"
)


def first(params: Params) -> None:
    with publish_directory("data/first") as out:
        pq.write_table(pa.table({"n": list(range(params.seed % 10 + 3))}), out / "numbers.parquet")


def check_first(params: Params) -> None:
    write_json("data/quality/first.json", {"passed": True, "tables": {"first/numbers": "0"}})


def train(params: Params) -> None:
    mode = Path("mode.txt").read_text().strip()
    tries = WORK / "tries"
    before = int(tries.read_text()) if tries.exists() else 0
    write_text(tries, str(before + 1))
    if mode == "transient" and before < 1:
        raise TransientError("the first try fails")
    if mode == "data":
        raise DataError("a broken record", file="corpus.jsonl", line=3, mend="mend it")
    if mode == "bug":
        raise ZeroDivisionError("as planned")
    if mode == "killed" and before < 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "sleep":
        child = subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.PIPE, text=True)
        write_json(WORK / "pids", [os.getpid(), child.pid, int(child.stdout.readline())])
        time.sleep(300)
    print(f"trained with l2 = {params.reward.l2}")
    print(f"asked https://user:{os.environ.get('TOY_TOKEN', 'unset-secret')}@example.org")
    with publish_directory("models/train") as out:
        write_text(out / "weights.txt", f"{params.seed} {params.reward.l2}\n")


def rank(params: Params) -> None:
    write_text(f"data/rank/{sys.argv[2]}.txt", Path("models/train/weights.txt").read_text() + sys.argv[2])


def report(params: Params) -> None:
    value = float(Path("models/train/weights.txt").read_text().split()[1])
    write_json("data/metrics.json", {"toy": {"ndcg": {"value": 1 / (1 + value), "name": "toy"}}})
    with publish_directory("data/report") as out:
        write_text(out / "index.html", "<!doctype html><title>toy report</title>" + json.dumps(value))


if __name__ == "__main__":
    stage = sys.argv[1]
    run(stage if stage != "rank" else f"rank@{sys.argv[2]}", globals()[stage])
