"""Stages of a local run as forks of one process, so that libraries are imported once per run and not once per stage.

Run as a module, this is that process. It imports what the first stage needs, and reads one job per line from its standard input. For each
job it imports the stage's module, forks, and reports how the fork ended; while the first stage runs, it imports what later stages need.
The fork does the same as kfp's own process of a stage: it writes the component's source to a file and executes it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from ngrpo.stages.process import stage_process
from ngrpo.stages.supervision import QUIET

_RUNTIME = {"_KFP_RUNTIME": "true"}
"""Environment variable that tells kfp that a process executes a component; kfp then does not import its compiler."""
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd")
_IMPORTED_BY_ALL = (
    "kfp.dsl.executor_main",
    "ngrpo.config",
    "ngrpo.stages.execution",
    "ngrpo.stages.keys",
    "ngrpo.stages.soundness",
    "ngrpo.storage.checkpoint_store",
    "ngrpo.tracking.mlflow_runs",
)
_IMPORTED_FOR_A_DATABASE = (
    "ngrpo.tracking.database",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
)


def can_fork() -> bool:
    """Whether stages may be forks: on Linux without a GPU driver, which may not be open when a process forks."""
    return sys.platform == "linux" and not any(map(os.path.exists, _DRIVERS))


@contextlib.contextmanager
def forked_stages(stages: Sequence[str], log: Path) -> Iterator[None]:
    """Let kfp's `SubprocessRunner` fork its stages while the context is open.

    Args:
        stages: Stages that will run.
        log: File for output of a stage before its own log is open.
    """
    from kfp.local import subprocess_task_handler

    with log.open("ab") as errors:
        server = subprocess.Popen(
            [sys.executable, "-m", __name__, *stages],
            env={**os.environ, **QUIET, **_RUNTIME},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # Ctrl-C must reach only the run, which ends its stages
        )
    assert server.stdin is not None
    assert server.stdout is not None
    requests, answers = server.stdin, server.stdout

    def run(full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        # sh -ec SCRIPT SOURCE ARGUMENT…, as kfp compiles a component
        job = {
            "source": full_command[3],
            "arguments": full_command[4:],
            "environment": {**os.environ, **(env_vars or {})},
            "log": str(log),
        }
        try:
            requests.write(json.dumps(job) + "\n")
            requests.flush()
            return int(answers.readline())
        except (BrokenPipeError, ValueError):  # the process was killed, so the stage ends with the run
            return 1

    original = subprocess_task_handler.run_local_subprocess
    # kfp has no hook for other runners.
    subprocess_task_handler.run_local_subprocess = run
    try:
        yield
    finally:
        subprocess_task_handler.run_local_subprocess = original
        with contextlib.suppress(BrokenPipeError):
            requests.close()
        server.wait()
        answers.close()


def _serve(stages: list[str]) -> None:
    stage_process()
    gc.disable()  # imports make no garbage, and scanning them for it takes a quarter of the time
    jobs, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    # Before MLflow, which imports scipy: transformers would find it and import much more of it (`light_imports`).
    _import_stage(stages.pop(0))
    for name in _IMPORTED_BY_ALL:
        importlib.import_module(name)
    if os.environ["MLFLOW_TRACKING_URI"].startswith("sqlite:"):
        for name in _IMPORTED_FOR_A_DATABASE:
            importlib.import_module(name)
    for line in jobs:
        job = json.loads(line)
        _import_stage(job["arguments"][job["arguments"].index("--function_to_execute") + 1])
        gc.freeze()  # a collection in a fork would copy the memory that it scans
        child = os.fork()
        if child == 0:
            gc.enable()
            jobs.close()
            answers.close()
            _execute(**job)
        while stages:
            _import_stage(stages.pop(0))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(BrokenPipeError):  # the run was killed
            answers.write(f"{code}\n")
            answers.flush()
    os._exit(0)


def _import_stage(name: str) -> None:
    """Import what a stage needs. A failing import is left to the stage, so that the error is in its log."""
    from ngrpo.stages.declarations import DECLARED

    with contextlib.suppress(Exception):
        DECLARED[name].function()


def _execute(source: str, arguments: list[str], environment: dict[str, str], log: str) -> NoReturn:
    """Run a stage in this process, and exit with its code."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    os.environ.clear()
    os.environ.update({**environment, **_RUNTIME})
    tempfile.tempdir = None  # an import may have set it
    program = Path(tempfile.mkdtemp()) / "ephemeral_component.py"
    program.write_text(source, encoding="utf-8")
    sys.argv = ["kfp.dsl.executor_main", "--component_module_path", str(program), *arguments]
    from kfp.dsl.executor_main import executor_main

    executor_main()
    sys.exit()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _serve(sys.argv[1:])
