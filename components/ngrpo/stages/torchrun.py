"""A stage as several processes, one a GPU or, without GPUs, one a node, started by torchrun: those of this machine or node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from typing_extensions import TypedDict

from ngrpo import errors
from ngrpo.config import Section
from ngrpo.errors import NGRPOError, Preempted, StoreError
from ngrpo.stages.disk import disk_fault
from ngrpo.stages.registry import STAGES
from ngrpo.storage.state import read_state, write_state

_RENDEZVOUS_SECONDS = 3600


class _Task(TypedDict):
    """What each process is to do."""

    stage: str
    config: str
    inputs: dict[str, str]
    output: str
    work: str


class _Failure(TypedDict):
    """Why a process failed: the name of an error of `ngrpo.errors`, and what it says."""

    kind: str
    message: str


def run(stage: str, config: Section, inputs: Mapping[str, Path], output: Path, work: Path, *, processes: int) -> None:
    """Run a stage as several processes and wait for them; SIGTERM is passed on.

    Where the environment names nodes (`PET_NNODES`, `PET_NODE_RANK`, `PET_MASTER_ADDR`, `PET_MASTER_PORT`, as Kubeflow Trainer's
    torch runtime sets them), they are this node's part of them all; only the first process of node 0 writes the artifact.

    Args:
        stage: Name of the stage.
        config: Its settings.
        inputs: Its inputs.
        output: Empty directory for the artifact.
        work: Directory that survives a killed try.
        processes: How many, on this machine.

    Raises:
        Preempted: SIGTERM arrived, and the processes did not end as if they had finished.
        NGRPOError: As the stage raised it, or a process failed in any other way; the log has its words.
    """
    error = work / "error.json"
    error.unlink(missing_ok=True)
    task = work / "task.json"
    named = {name: str(path) for name, path in inputs.items()}
    write_state(
        task, _Task(stage=stage, config=config.model_dump_json(), inputs=named, output=str(output), work=str(work))
    )
    # torchrun reads `PET_*` itself. Nodes may be ready at very different times: images and inputs are large.
    together = f"--rdzv-conf=timeout={_RENDEZVOUS_SECONDS}" if "PET_NNODES" in os.environ else "--standalone"
    launcher = [sys.executable, "-m", "ngrpo.stages.process_group", together, f"--nproc-per-node={processes}"]
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
    if code and told_to_stop:
        raise Preempted
    said = read_state(error, _Failure, cure="see the log, and run again")
    if said is not None:
        kind = getattr(errors, said["kind"], NGRPOError)
        raise (kind if isinstance(kind, type) and issubclass(kind, NGRPOError) else NGRPOError)(said["message"])
    if code:
        raise NGRPOError(
            f"one of its {processes} processes failed (torchrun ended with {code}): see the log, and run again"
        )


def join() -> None:
    """Make this process one of those that torchrun has started: each takes a GPU, if there are any, before anything is put on one."""
    import torch
    from accelerate import PartialState

    on_processors = not torch.cuda.is_available()
    if on_processors:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # without it accelerate leaves each process to itself
    PartialState(cpu=on_processors)


def _work(task: Path) -> None:
    """Be one of the processes."""
    join()
    said = read_state(task, _Task, cure="run again")
    if said is None:
        raise StoreError(f"{task}: missing; run again")
    stage, work = STAGES[said["stage"]], Path(said["work"])
    config = stage.config.model_validate_json(said["config"])
    inputs = {name: Path(path) for name, path in said["inputs"].items()}
    try:
        stage.function()(config, inputs, Path(said["output"]), work)
    except NGRPOError as error:
        write_state(work / "error.json", _Failure(kind=type(error).__name__, message=str(error)))
        sys.exit(1)
    except OSError as error:
        fault = disk_fault(error, work)
        if fault is not None:
            write_state(work / "error.json", _Failure(kind=StoreError.__name__, message=fault))
            sys.exit(1)
        raise


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
