"""The Prefect flow over dvc.yaml's DAG.

dvc.yaml is the only DAG and DVC the only cache; Prefect adds when, retries, timeouts, cancellation, logs and something
to watch. Every stage of the requested closure is a task of the stage's name, run in DVC's order, which reproduces that
one stage (`pipeline.workspace`) and ends in state `Ran` or `Cached`. A stage that is unchanged, like everything
upstream of it, is `Cached` without a process. Only a transient failure is tried again. The first failure ends the run,
as it ends `dvc repro`. At the end `dvc status` has to be clean.

What it does not do: know any stage, path or default; keep results of its own; run two stages at a time (DVC's lock
file is one); resume a run (DVC does: the next run skips what is finished).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger, runtime
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed
from prefect.tasks import Task
from pydantic import Field

from pipeline import overrides as params_of_run
from pipeline import recovery, shown, workspace
from pipeline.errors import DataError
from pipeline.files import work_lock
from pipeline.secrets import redact
from pipeline.workspace import Plan, StageError, Step

WORDS = {
    "ran": ("Ran", "its command was run"),
    "restored": ("Cached", "restored from DVC's cache"),
    "unchanged": ("Cached", "unchanged"),
}

Targets = Annotated[list[str], Field(description="Stages to build with everything upstream; empty: all of them.")]
Overrides = Annotated[
    dict[str, Any],
    Field(description="Parameter -> value for this run alone, as for `dvc exp run -S`; recorded by `dvc exp save`."),
]


@flow(name="certrank", persist_result=False, validate_parameters=True)
def certrank(targets: Targets = [], overrides: Overrides = {}) -> dict[str, str]:  # noqa: B006 - never changed
    """Build the targets; stage -> state.

    Raises:
        StageError: a stage failed.
        TransientError: another run of the flow is at work in this workspace.
        DataError: a stage did not leave what dvc.lock says.
    """
    log = get_run_logger()
    end_with_owner()
    with work_lock("flow"):
        for line in recovery.mend():
            log.warning(line)
        uncached = workspace.plan().uncached if overrides else ()
        with params_of_run.overridden(overrides, uncached):
            states = build(workspace.plan(targets), targets)
            if overrides:
                name = f"flow-{runtime.flow_run.name}"
                params_of_run.record(name, f"certrank flow run with {redact(str(overrides))}")
                log.info(f"recorded as experiment {name}: `dvc exp show`, `dvc exp apply {name}`")
    return states


def end_with_owner() -> None:
    """See to it that this process gets SIGTERM, as by a cancellation, when `certrank ui` is gone: nobody would show
    or cancel the run any more. Does nothing in a run that it did not start."""
    owner = int(os.environ.get(workspace.OWNER, "0"))

    def watch() -> None:
        while alive(owner):
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    if owner:
        threading.Thread(target=watch, daemon=True).start()


def alive(process: int) -> bool:
    """Whether a process of this id exists."""
    return Path(f"/proc/{process}").is_dir()


def build(plan: Plan, targets: list[str]) -> dict[str, str]:
    """Run the tasks of a plan in order; stage -> name of its final state."""
    log = get_run_logger()
    before = shown.numbers(workspace.metrics())
    todo = workspace.dirty(plan.steps, workspace.changed(targets))
    log.info(f"{len(plan.steps)} stages, {len(plan.steps) - len(todo)} of them unchanged")
    states: dict[str, str] = {}
    for step in plan.steps:
        final: State[Any] = stage_task(step)(step, step.name in todo, return_state=True)
        if not final.is_completed():
            final.result()  # raises what the task raised
            raise DataError(f"ended in state {final.name}", field=step.name)
        states[step.name] = str(final.name)
    shown.show_metrics(before, shown.numbers(workspace.metrics()))
    shown.show_pages(plan)
    if left := workspace.changed(targets):
        names = ", ".join(sorted(left))
        raise DataError(f"changed again after the run: {names}", file="dvc.lock", mend="`dvc status` says what")
    return states


def stage_task(step: Step) -> Task[[Step, bool], State[Any]]:
    """The task of one stage, with the retries that dvc.yaml asks for."""
    return Task(
        run_stage, name=step.name, task_run_name=step.name, retries=step.retries, retry_delay_seconds=step.retry_delay,
        retry_condition_fn=is_transient, cache_policy=NO_CACHE, persist_result=False,
    )  # fmt: skip


def run_stage(step: Step, todo: bool) -> State[Any]:
    """Reproduce a stage where that may be needed, and show what it left."""
    log = get_run_logger()
    outcome = workspace.reproduce(step, lambda line: log.info(redact(line))) if todo else "unchanged"
    name, message = WORDS[outcome]
    shown.show_stage(step, message)
    return Completed(name=name, message=message)


def is_transient(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a failed task may be tried again: only after a transient failure."""
    error = state.data
    return isinstance(error, StageError) and error.failure_class == "transient"
