"""A stage as a process of a local run: its output goes to a log file, and it ends when the run does.

The two communicate through the directory of the run: the stage writes `logs/<node>.log` and `stages/<node>.json`, named after its node in
the pipeline; the run holds the lock on `lifeline` and writes `parent_run.json`.
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from ngrpo.errors import TrackingError
from ngrpo.storage.state import read_state, write_state

LIFELINE = "lifeline"
PARENT_RUN = "parent_run.json"


@dataclass
class StageProcess:
    """This process as the stage of a run."""

    succeeded: bool = False
    """Set once the stage is done and the process only has to end."""


@cache
def stage_process() -> StageProcess:
    """Return this process as a stage. Call it before the stage's libraries are imported, so that its exit handler runs after theirs."""
    process = StageProcess()
    atexit.register(_skip_teardown, process)
    return process


def attach(run_directory: Path, node: str) -> StageProcess:
    """Make this process the stage of a run.

    Args:
        run_directory: Directory of the run; its file `lifeline` is locked for as long as the run lives.
        node: Name of its place in the pipeline.
    """
    process = stage_process()
    _write_output_to(run_directory / "logs" / f"{node}.log")
    # The runner logs from INFO on, and boto3 logs a line each time it finds its credentials.
    logging.getLogger("botocore").setLevel(logging.WARNING)
    # MLflow uploads from more threads than its client keeps connections; the warning about that is harmless.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    _die_with(run_directory / LIFELINE)
    return process


def write_record(run_directory: Path, node: str, record: dict[str, Any]) -> None:
    """Write `stages/<node>.json` of a run atomically."""
    write_state(run_directory / "stages" / f"{node}.json", record)


class _ParentRun(TypedDict, total=False):
    run_id: str
    error: str


def parent_run_id(run_directory: Path) -> str:
    """Return the MLflow run of this process's run, waiting until it is open.

    Raises:
        TrackingError: It could not be opened.
        DamagedStateError: The run's announcement of it cannot be read.
    """
    path = run_directory / PARENT_RUN
    while (announcement := read_state(path, _ParentRun, cure="run again")) is None:
        time.sleep(0.05)  # the lifeline ends the wait if the run dies
    if "run_id" not in announcement:
        raise TrackingError(announcement.get("error", f"{path}: names no run; run again"))
    return announcement["run_id"]


def _skip_teardown(process: StageProcess) -> None:
    """Exit at once after success: tearing down torch takes seconds."""
    if process.succeeded and getattr(sys, "last_value", None) is None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _write_output_to(path: Path) -> None:
    """Send standard output and error of this process and of its children to a file.

    The runner reads a stage's output as UTF-8 and fails on the first invalid byte, so it must not see any output.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(nothing)
    os.close(log)


def _die_with(lifeline: Path) -> None:
    """Kill this process and its children once the run no longer holds the lifeline.

    The kernel releases the run's lock however the run ends, SIGKILL included. The direct parent of a stage is a shell that
    outlives the run, so the parent's death (PR_SET_PDEATHSIG) would not show that the run ended.
    """
    os.setpgid(0, 0)  # a process group of its own, with the children of the stage only
    descriptor = os.open(lifeline, os.O_RDWR)

    def wait() -> None:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
