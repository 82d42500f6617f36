"""Run the nodes of a plan on this machine, through kfp.local."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.console import Console

from ngrpo.environment import environment
from ngrpo.stages.supervision import QUIET
from ngrpo.storage.state import DamagedStateError
from ngrpo_kfp.pipelines.local.announcing import RunError
from ngrpo_kfp.pipelines.local.decisions import decide, only_decides
from ngrpo_kfp.pipelines.local.kept_arguments import kept_arguments
from ngrpo_kfp.pipelines.local.lifeline import lifeline
from ngrpo_kfp.pipelines.local.progress import StageProgress, last_line
from ngrpo_kfp.pipelines.local.stage_forks import can_fork, forked_stages
from ngrpo_kfp.pipelines.local.stage_records import read_record
from ngrpo_kfp.pipelines.local.workspace import written
from ngrpo_kfp.pipelines.planning.nodes import Plan

if TYPE_CHECKING:
    from kfp import local

Runner: TypeAlias = "local.SubprocessRunner | local.DockerRunner"

_SECONDS_TO_DIE = 3.0


class StageError(RunError):
    """A stage failed; the message names it, says why and where its log is."""


def in_processes() -> Runner:
    """Return the runner that runs each stage in a process on this machine."""
    from kfp import local

    return local.SubprocessRunner(use_venv=False)


def run_stages(
    plan: Plan, run_directory: Path, console: Console, runner: Callable[[], Runner] | None = None
) -> dict[str, dict[str, Any]]:
    """Run the nodes of a plan that have to run, one after another: through kfp, unless only decisions are left.

    Args:
        plan: The plan of the run.
        run_directory: Directory of the run; gets `logs/`, `stages/` and kfp's own outputs.
        console: Where progress is shown.
        runner: Makes kfp's runner, called in the environment of the stages; by default `in_processes`.

    Returns:
        By node that ran, its record: `key`, `cached`, `artifact`, `digest`, `seconds`.

    Raises:
        StageError: A stage failed; results that earlier stages published are kept.
        Interrupted: The run was told to stop; its stage has ended.
    """
    with written(run_directory / "logs"):
        (run_directory / "logs").mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="ngrpo-") as scratch,
        environment({"NGRPO_RUN_DIR": str(run_directory), "TMPDIR": scratch, **QUIET}),
        StageProgress(plan, run_directory, console),
    ):
        if runner is None and only_decides(plan):
            with lifeline(run_directory):
                failure = decide(plan, run_directory)
        else:
            failure = _run_in_processes(plan, run_directory, runner)
    records = {node.name: read_record(run_directory, node.name) for node in plan.to_run}
    culprit = first_failure(records)
    if culprit is not None:
        record = records[culprit]
        raise StageError(_describe(culprit, record, run_directory), f"{culprit}: {_brief(record)}") from failure
    if failure is not None:
        raise failure
    return {name: record for name, record in records.items() if record is not None}


def _run_in_processes(plan: Plan, run_directory: Path, runner: Callable[[], Runner] | None) -> Exception | None:
    with (
        forked_stages(plan.stages_to_run, run_directory / "logs" / "kfp.log")
        if runner is None and can_fork()
        else contextlib.nullcontext(),
        _reaped(plan, run_directory),
        lifeline(run_directory),
    ):
        return _run_pipeline(plan, run_directory, (runner or in_processes)())


def _run_pipeline(plan: Plan, run_directory: Path, runner: Runner) -> Exception | None:
    """Let kfp run the pipeline, with its output in a file; return its error if a task failed."""
    from kfp import local

    from ngrpo_kfp.pipelines.graph import kubeflow_pipeline

    local.init(
        runner=runner,
        pipeline_root=str(run_directory / "kfp"),
        # kfp deletes this directory at the end, with all its contents.
        workspace_root=str(run_directory / "kfp" / "workspace"),
        raise_on_error=True,
    )
    with (
        (run_directory / "logs" / "kfp.log").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        warnings.catch_warnings(),
        kept_arguments(),
    ):
        warnings.simplefilter("ignore")
        try:
            kubeflow_pipeline(plan)()
        except RuntimeError as error:
            return error
    return None


def first_failure(records: Mapping[str, Mapping[str, Any] | None]) -> str | None:
    """Return the node that failed: one that started and did not succeed, or else one that did not start; None if all succeeded.

    Args:
        records: Record of each node that had to run, None for one that did not start. kfp starts independent nodes in any order.
    """
    for name, record in records.items():
        if record is not None and ("artifact" not in record or "error" in record):
            return name
    return next((name for name, record in records.items() if record is None), None)


def _describe(node: str, record: Mapping[str, Any] | None, run_directory: Path) -> str:
    log = run_directory / "logs" / f"{node}.log"
    if record is None:
        return f"{node}: did not start: see {log.with_name('kfp.log')}"
    if "error" in record:
        return f"{node}: {record['error']} (log: {log})"
    word = last_line(log)
    return (
        f"{node}: its process was killed, perhaps for want of memory; the next run resumes it "
        f"(last words: {word or 'none'}; log: {log})"
    )


def _brief(record: Mapping[str, Any] | None) -> str:
    """Return why a node failed, without details that must not leave the machine."""
    if record is None:
        return "did not start"
    return str(record.get("reason", "its process was killed, perhaps for want of memory"))


@contextlib.contextmanager
def _reaped(plan: Plan, run_directory: Path) -> Iterator[None]:
    """Wait at the end until every process of a stage has ended; a killed stage may leave children behind."""
    try:
        yield
    finally:
        for node in plan.to_run:
            try:
                record = read_record(run_directory, node.name)
            except DamagedStateError:  # the lifeline ends its process, and the run reports the damage below
                continue
            if record is not None and "seconds" not in record:
                _kill_group(record["pid"])


def _kill_group(group: int) -> None:
    deadline = time.monotonic() + _SECONDS_TO_DIE
    while time.monotonic() < deadline:
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            return
        time.sleep(0.05)
