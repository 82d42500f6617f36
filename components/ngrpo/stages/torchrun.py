"""Run this node's part of a stage as processes of torchrun: one per GPU or, without GPUs, one per node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from ngrpo import errors
from ngrpo.config import Section
from ngrpo.environment import redacted
from ngrpo.errors import NGRPOError, Preempted, StoreError
from ngrpo.stages.context import Context
from ngrpo.stages.declarations import DECLARED
from ngrpo.storage.disk import disk_fault
from ngrpo.storage.state import read_state, write_state

_RENDEZVOUS_SECONDS = 3600
_ERROR = "error.json"
_KILLED = 128
"""Offset of exit codes of processes that a signal has killed."""


class _Task(TypedDict):
    """The task of each process."""

    stage: str
    config: str
    inputs: dict[str, str]
    output: str
    context: Context


class _Failure(TypedDict):
    """Why a process failed: the name of an error in `ngrpo.errors`, none for a defect, and its message."""

    kind: str | None
    message: str


def run(
    stage: str, config: Section, inputs: Mapping[str, Path], output: Path, context: Context, *, processes: int
) -> None:
    """Run a stage as several processes and wait for them; SIGTERM is passed on.

    Where the environment names nodes (`PET_NNODES`, `PET_NODE_RANK`, `PET_MASTER_ADDR`, `PET_MASTER_PORT`, as Kubeflow Trainer's
    torch runtime sets them), they are this node's part of them all; only the first process of node 0 writes the artifact.

    Args:
        stage: Name of the stage.
        config: Its settings.
        inputs: Its inputs.
        output: Empty directory for the artifact.
        context: See `Context`; the processes print their progress.
        processes: Number of processes on this machine.

    Raises:
        Preempted: SIGTERM arrived here or at another node, before the processes had finished.
        NGRPOError: As the stage raised it.
        RuntimeError: A process failed in any other way; its traceback is in the log.
    """
    error = context.work / _ERROR
    error.unlink(missing_ok=True)
    task = context.work / "task.json"
    named = {name: str(path) for name, path in inputs.items()}
    told = _Task(stage=stage, config=config.model_dump_json(), inputs=named, output=str(output), context=context)
    write_state(
        task, TypeAdapter(_Task).dump_python(told, mode="json", exclude={"context": {"progress", "variable", "deploy"}})
    )
    # torchrun reads `PET_*` itself. Nodes may be ready at very different times, because images and inputs are large.
    together = f"--rdzv-conf=timeout={_RENDEZVOUS_SECONDS}" if "PET_NNODES" in os.environ else "--standalone"
    launcher = [sys.executable, "-m", "ngrpo.stages.torchrun_agent", together, f"--nproc-per-node={processes}"]
    told_to_stop = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal told_to_stop
        told_to_stop = True
        group.terminate()

    group = subprocess.Popen([*launcher, "-m", __name__, str(task)])
    before = signal.signal(signal.SIGTERM, stop)
    try:
        code = group.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
        group.kill()
    if code == os.EX_TEMPFAIL or (code and told_to_stop):
        raise Preempted
    said = read_state(error, _Failure, cure="see the log, and run again")
    if said is not None and said["kind"] is not None:
        kind = getattr(errors, said["kind"], NGRPOError)
        raise (kind if isinstance(kind, type) and issubclass(kind, NGRPOError) else NGRPOError)(said["message"])
    one = f"{stage}: one of its {processes} processes"
    if code > _KILLED:
        raise RuntimeError(f"{one} was killed by {signal.Signals(code - _KILLED).name}, for want of memory perhaps")
    if said is not None:
        raise RuntimeError(f"{one} failed: {said['message']}")
    if code:
        raise RuntimeError(f"{one} ended with {code}: see the log")


def join() -> None:
    """Set up a process that torchrun has started: it selects its GPU, if there are any, before anything uses one."""
    import torch
    from accelerate import PartialState

    on_processors = not torch.cuda.is_available()
    if on_processors:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # without it accelerate does not connect the processes
    PartialState(cpu=on_processors)


def _work(task: Path) -> None:
    """Run one of the processes."""
    join()
    said = read_state(task, _Task, cure="run again")
    if said is None:
        raise StoreError(f"{task}: missing; run again")
    stage = DECLARED[said["stage"]]
    config = stage.config.model_validate_json(said["config"])
    inputs = {name: Path(path) for name, path in said["inputs"].items()}
    stage.function()(config, inputs, Path(said["output"]), said["context"])


def _leave_word(work: Path, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Record the error of a process for the group, which raises it; only a defect is printed here, with its traceback.

    Once one process has recorded its error, failures of the others follow from it: they lose their connection.
    """
    path = work / _ERROR
    if isinstance(error, NGRPOError):
        write_state(path, _Failure(kind=kind.__name__, message=str(error)))
        return
    if path.exists():
        return
    fault = disk_fault(error, work)
    if fault is not None:
        write_state(path, _Failure(kind=StoreError.__name__, message=fault))
        return
    sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace))))
    message = "".join(traceback.format_exception_only(error)).strip()
    write_state(path, _Failure(kind=None, message=message))


if __name__ == "__main__":
    sys.excepthook = partial(_leave_word, Path(sys.argv[1]).parent)
    _work(Path(sys.argv[1]))
