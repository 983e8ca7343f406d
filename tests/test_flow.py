"""The flow on a real server: states, logs, artifacts, retries, overrides, cancellation, schedules, a killed worker.

`certrank ui` is started once on a toy pipeline, on a free port of the loopback device, and asked through its API.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.ui import ask
from tests import toy

FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
TOKEN = "hunter2-of-the-toy"
PATIENCE = 400

pytestmark = pytest.mark.timeout(900)  # servers and whole runs, on a machine that may be busy


@dataclass
class Ui:
    """A running `certrank ui`."""

    folder: Path
    url: str
    process: subprocess.Popen[str]
    first: str = ""

    def deployments(self) -> dict[str, Any]:
        return {d["name"]: d for d in ask(self.url, "POST", "/deployments/filter", {})}

    def start(self, name: str = "on-demand", **parameters: Any) -> str:
        run = ask(self.url, "POST", f"/deployments/{self.deployments()[name]['id']}/create_flow_run",
                  {"parameters": parameters})  # fmt: skip
        return str(run["id"])

    def state(self, run: str) -> dict[str, Any]:
        return dict(ask(self.url, "GET", f"/flow_runs/{run}")["state"])

    def wait(self, run: str, types: set[str] = FINAL) -> dict[str, Any]:
        until(lambda: self.state(run)["type"] in types)
        return self.state(run)

    def tasks(self, run: str) -> dict[str, dict[str, Any]]:
        """Task runs by name, in order of their start."""
        wanted = {"task_runs": {"flow_run_id": {"any_": [run]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return {t["name"]: t for t in ask(self.url, "POST", "/task_runs/filter", wanted)}

    def logs(self, run: str) -> list[str]:
        wanted = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200}
        return [log["message"] for log in ask(self.url, "POST", "/logs/filter", wanted)]

    def artifacts(self, run: str) -> dict[str, Any]:
        wanted = {"artifacts": {"flow_run_id": {"any_": [run]}}}
        return {a["key"]: a["data"] for a in ask(self.url, "POST", "/artifacts/filter", wanted) if a["key"]}


def until(holds: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.3)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


_RUNNING: dict[str, Ui] = {}


@pytest.fixture(scope="module", autouse=True)
def _ended() -> Iterator[None]:
    yield
    for found in _RUNNING.values():
        if found.process.poll() is None:
            found.process.send_signal(signal.SIGTERM)
            found.process.wait(60)
    _RUNNING.clear()


@pytest.fixture
def ui(tmp_path_factory: pytest.TempPathFactory) -> Ui:
    """The server, started when it is first asked for and again when a test has ended it; everything is built."""
    found = _RUNNING.get("ui")
    if found is None or found.process.poll() is not None:
        found = _RUNNING["ui"] = _start(tmp_path_factory.mktemp("flow") / "toy")
        found.first = found.start("nightly")
        assert found.wait(found.first)["type"] == "COMPLETED", found.logs(found.first)
    (found.folder / "mode.txt").write_text("ok")
    return found


def _start(place: Path) -> Ui:
    folder = toy.make(place)
    port = free_port()
    command = [sys.executable, "-m", "pipeline.cli", "ui", "--port", str(port)]
    said = folder.parent / "ui.log"
    with said.open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=toy.environment(TOY_TOKEN=TOKEN), stdout=log, stderr=log)
    until(lambda: "shows the runs" in said.read_text() or process.poll() is not None)
    assert process.poll() is None, said.read_text()
    return Ui(folder, f"http://127.0.0.1:{port}", process)


def test_a_run_shows_every_stage_as_a_task_with_logs_and_artifacts(ui: Ui) -> None:
    run = ui.first
    assert list(ui.tasks(run)) == toy.STAGES
    assert {t["state"]["name"] for t in ui.tasks(run).values()} == {"Ran"}
    until(lambda: any("trained with l2" in line for line in ui.logs(run)), 20)
    found = ui.artifacts(run)
    assert {f"stage-{n}" for n in ("first", "check-first", "train", "rank-a", "rank-b", "report")} <= set(found)
    assert "| data/first/numbers.parquet | 4 |" in found["stage-first"]
    assert "| seed | 20250521 |" in found["stage-first"]
    assert toy.lock(ui.folder)["first"]["outs"][0]["md5"] in found["stage-first"]
    assert "| data/quality/first.json | true |" in found["stage-check-first"]
    assert json.loads(found["metrics"]) == [
        {"metric": "metrics: toy.ndcg.value", "value": 0.5, "last run": None, "difference": None}
    ]
    link = found["page-report"].split("(")[1].split(")")[0]
    with urllib.request.urlopen(link, timeout=20) as page:
        assert b"<title>toy report</title>" in page.read()
    everything = json.dumps([ui.logs(run), found]) + (ui.folder.parent / "ui.log").read_text()
    assert TOKEN not in everything and "https://[hidden]@example.org" in everything


def test_an_unchanged_run_is_cached_throughout(ui: Ui) -> None:
    toy.dvc(ui.folder, "repro", "-q")
    before = (ui.folder / "dvc.lock").read_bytes()
    run = ui.start("nightly")
    assert ui.wait(run)["type"] == "COMPLETED"
    assert [t["state"]["name"] for t in ui.tasks(run).values()] == ["Cached"] * len(toy.STAGES)
    assert (ui.folder / "dvc.lock").read_bytes() == before
    assert not any("Running stage" in line for line in ui.logs(run))


def test_overrides_hold_for_one_run_and_are_recorded(ui: Ui) -> None:
    toy.dvc(ui.folder, "repro", "-q")
    toy.commit(ui.folder)
    before = {name: (ui.folder / name).read_bytes() for name in ("params.yaml", "dvc.lock", "data/metrics.json")}
    run = ui.start("on-demand", overrides={"reward.l2": 3.0})
    state = ui.wait(run)
    assert state["type"] == "COMPLETED", (state, ui.logs(run))
    states = {name: t["state"]["name"] for name, t in ui.tasks(run).items()}
    assert states["first"] == "Cached" and states["train"] == states["report"] == "Ran"
    (row,) = json.loads(ui.artifacts(run)["metrics"])
    assert (row["value"], row["last run"], row["difference"]) == (0.25, 0.5, -0.25)
    assert {name: (ui.folder / name).read_bytes() for name in before} == before
    assert toy.dvc(ui.folder, "status").strip() == "Data and pipelines are up to date."
    name = "flow-" + ask(ui.url, "GET", f"/flow_runs/{run}")["name"]
    assert name in toy.dvc(ui.folder, "exp", "list", "--all-commits", "--name-only")
    assert "l2: 3" in subprocess.check_output(
        ["git", "show", f"{_ref(ui, name)}:params.yaml"], cwd=ui.folder, text=True
    )


def _ref(ui: Ui, name: str) -> str:
    refs = subprocess.check_output(["git", "for-each-ref", "--format=%(refname)"], cwd=ui.folder, text=True)
    return next(ref for ref in refs.split() if ref.startswith("refs/exps/") and ref.endswith(f"/{name}"))


def test_an_override_of_no_parameter_fails_and_changes_nothing(ui: Ui) -> None:
    before = (ui.folder / "params.yaml").read_bytes()
    run = ui.start("on-demand", overrides={"reward.l3": 1})
    state = ui.wait(run)
    assert state["type"] == "FAILED" and "l3" in state["message"]
    assert (ui.folder / "params.yaml").read_bytes() == before


def test_only_a_transient_failure_is_tried_again(ui: Ui) -> None:
    for mode, type_, count in (("transient", "COMPLETED", 2), ("data", "FAILED", 1), ("bug", "FAILED", 1)):
        (ui.folder / "data/.work/tries").unlink(missing_ok=True)
        (ui.folder / "mode.txt").write_text(mode)
        run = ui.start("on-demand", targets=["train"])
        state = ui.wait(run)
        assert state["type"] == type_, (mode, state, ui.logs(run))
        assert ui.tasks(run)["train"]["run_count"] == count
        assert type_ == "COMPLETED" or f"[{mode}]" in state["message"]


def test_a_cancelled_run_leaves_no_process_and_the_waiting_one_goes_on(ui: Ui) -> None:
    (ui.folder / "mode.txt").write_text("sleep")
    (ui.folder / "data/.work/pids").unlink(missing_ok=True)
    run = ui.start("on-demand", targets=["train"])
    until((ui.folder / "data/.work/pids").exists)
    pids = json.loads((ui.folder / "data/.work/pids").read_text())
    assert all(toy.alive(pid) for pid in pids)
    second = ui.start("on-demand", targets=["check_first"])
    time.sleep(5)
    assert ui.state(second)["type"] in {"SCHEDULED", "PENDING"}  # one run at a time in a workspace
    ask(ui.url, "POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    # Prefect says "crashed" where the process could not acknowledge in time, as on a crowded machine.
    assert ui.wait(run)["type"] in {"CANCELLED", "CRASHED"}
    until(lambda: not any(toy.alive(pid) for pid in pids), 20)
    assert not (ui.folder / "models/train").exists()
    (ui.folder / "mode.txt").write_text("ok")
    assert ui.wait(second)["type"] == "COMPLETED"


def test_a_killed_worker_does_not_lose_the_run_nor_the_next(ui: Ui) -> None:
    (ui.folder / "mode.txt").write_text("sleep")
    (ui.folder / "data/.work/pids").unlink(missing_ok=True)
    run = ui.start("on-demand", targets=["train"])
    until((ui.folder / "data/.work/pids").exists)
    pids = json.loads((ui.folder / "data/.work/pids").read_text())
    (worker,) = processes(ui, "worker start")
    os.kill(worker, signal.SIGKILL)
    os.kill(pids[0], signal.SIGKILL)  # the stage dies: transient, tried again
    (ui.folder / "mode.txt").write_text("ok")
    assert ui.wait(run)["type"] in FINAL
    until(lambda: bool(processes(ui, "worker start")))
    second = ui.start("nightly")
    state = ui.wait(second)
    assert state["type"] == "COMPLETED", (state, ui.logs(second))
    assert not any(toy.alive(pid) for pid in pids)


def processes(ui: Ui, words: str) -> list[int]:
    """Ids of the processes of this server that run Prefect with these words; guards left out."""
    listed = subprocess.check_output(["ps", "-eo", "pid,args"], text=True).splitlines()
    found = [line.split(None, 1) for line in listed if f"-m prefect {words}" in line and "guard.py" not in line]
    return [int(pid) for pid, _ in found if Path(f"/proc/{pid}/cwd").resolve() == ui.folder.resolve()]


def test_the_schedules_are_those_of_prefect_yaml_and_fire(ui: Ui) -> None:
    found = ui.deployments()
    assert {"nightly", "on-demand", "sample", "jsonl", "casie", "rams", "maven_ere"} == set(found)
    (nightly,) = found["nightly"]["schedules"]
    assert nightly["active"] and nightly["schedule"]["cron"] == "0 3 * * *"
    assert ask(ui.url, "GET", "/work_pools/certrank")["concurrency_limit"] == 1
    known = {r["id"] for r in ask(ui.url, "POST", "/flow_runs/filter", {})}
    path = f"/deployments/{found['nightly']['id']}/schedules/{nightly['id']}"
    ask(ui.url, "PATCH", path, {"schedule": {"cron": "* * * * *", "timezone": "UTC"}})
    wanted = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}

    def fired() -> bool:
        runs = ask(ui.url, "POST", "/flow_runs/filter", wanted)
        return any(r["auto_scheduled"] and r["id"] not in known for r in runs)

    until(fired)
    ask(ui.url, "PATCH", path, {"active": False})


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_the_run_page_in_a_browser(ui: Ui, tmp_path: Path) -> None:
    name = ask(ui.url, "GET", f"/flow_runs/{ui.first}")["name"]

    def complete() -> bool:
        dom = subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}",
             "--virtual-time-budget=20000", "--dump-dom", f"{ui.url}/runs/flow-run/{ui.first}"],
            capture_output=True, text=True, check=True, timeout=100,
        ).stdout  # fmt: skip
        return all(text in dom for text in (name, "nightly", "Completed", f"{len(toy.STAGES)} Task runs"))

    until(complete)  # a page that was asked for while the server was busy has gaps


def test_servers_listen_on_the_loopback_device_alone(ui: Ui) -> None:
    port = int(ui.url.rsplit(":", 1)[1])
    listening = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            if state == "0A" and int(address.rsplit(":", 1)[1], 16) in {port, port + 1}:
                listening.append(address.rsplit(":", 1)[0])
    assert len(listening) == 2 and set(listening) == {"0100007F"}


@pytest.mark.parametrize(
    ("path", "host"),
    [
        ("/params.yaml", None), ("/data/report/../../params.yaml", None),
        ("/data/report/%2e%2e/%2e%2e/params.yaml", None),
        ("/data/report/", None), ("/data/first/numbers.parquet", None), ("/data/report/index.html", "evil.example:80"),
    ],
)  # fmt: skip
def test_the_pages_are_served_and_nothing_else(ui: Ui, path: str, host: str | None) -> None:
    import http.client

    port = int(ui.url.rsplit(":", 1)[1]) + 1
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest("GET", path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{port}")
    connection.endheaders()
    assert connection.getresponse().status == 404
    connection.close()


def test_the_end_of_the_server_ends_the_run(ui: Ui) -> None:
    """`certrank ui` is killed, and with it server, worker, flow and stage."""
    (ui.folder / "mode.txt").write_text("sleep")
    (ui.folder / "data/.work/pids").unlink(missing_ok=True)
    ui.start("on-demand", targets=["train"])
    until((ui.folder / "data/.work/pids").exists)
    pids = json.loads((ui.folder / "data/.work/pids").read_text())
    ui.process.kill()
    ui.process.wait()
    until(lambda: not any(toy.alive(pid) for pid in pids), 60)
    until(lambda: not processes(ui, ""), 60)


def test_one_run_leaves_the_lock_that_dvc_leaves(tmp_path: Path) -> None:
    """`certrank flow run` on its temporary server, beside `dvc repro` in another clone; a failure is one line."""
    one, other = toy.make(tmp_path / "one"), toy.make(tmp_path / "other")
    toy.dvc(other, "repro")
    done = toy.certrank(one, "flow", "run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"stages": dict.fromkeys(toy.STAGES, "Ran")}
    assert toy.lock(one) == toy.lock(other)
    (one / "mode.txt").write_text("data")
    failed = toy.certrank(one, "flow", "run", "train")
    assert failed.returncode == 1
    last = failed.stderr.strip().splitlines()
    (line,) = [text for text in last if text.startswith("certrank: error: ")]
    assert line == "certrank: error: train: [data] corpus.jsonl:3: a broken record; mend it"
