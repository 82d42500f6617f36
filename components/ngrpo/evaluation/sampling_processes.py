"""Several processes that generate samples with one model, each on its own GPUs, from a shared queue of parts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection, wait
from pathlib import Path

import pyarrow as pa
import torch

from ngrpo.errors import ConfigError
from ngrpo.evaluation.samples import Part
from ngrpo.evaluation.sampling_worker import Task
from ngrpo.rollout.child_process import ChildProcess, visible_gpus
from ngrpo.storage.state import write_state

_WORKER = "ngrpo.evaluation.sampling_worker"
_LOOK_SECONDS = 1.0
"""Seconds between checks that a process is still alive; its end is usually noticed at once."""


def devices_of_processes(asked: int | None, gpus_each: int) -> list[str | None]:
    """Return the GPUs of each sampling process, as in `CUDA_VISIBLE_DEVICES`; None for a process without GPUs.

    Args:
        asked: Number of processes; None for a process for every `gpus_each` GPUs, or a single one without GPUs.
        gpus_each: GPUs of each process (tensor parallelism).

    Raises:
        ConfigError: There are fewer GPUs than `gpus_each`.
    """
    count = torch.cuda.device_count()  # creates no CUDA context: this process must not hold GPU memory
    if not count:
        return [None] * (asked or 1)
    if count < gpus_each:
        raise ConfigError(
            f"evaluation.vllm.tensor_parallel_size={gpus_each} but {count} GPU{'s are' if count > 1 else ' is'} visible here: lower it, or "
            "raise resources.benchmark_evaluation.gpus"
        )
    names = visible_gpus(count)
    groups = [",".join(names[start : start + gpus_each]) for start in range(0, count - gpus_each + 1, gpus_each)]
    return list(groups[:asked])


def sampled_by_processes(
    task: Task,
    parts: Sequence[Part],
    devices: Sequence[str | None],
    *,
    more: Callable[[], Sequence[Part]] = tuple,
    ahead: int,
    work: Path,
    what: str,
) -> Generator[tuple[Part, pa.Table]]:
    """Generate samples with one model in several processes; whichever finishes a part gets the next.

    Ending the generator ends the processes, and a failed process ends the generator. Close it if it is not read to its end.

    Args:
        task: The model and its prompts.
        parts: What to generate, in this order.
        devices: GPUs of each process (`devices_of_processes`).
        more: Called when all parts are done; returns further parts, or an empty sequence.
        ahead: A process is given parts until it has this many requests.
        work: Directory for the file with the task of the processes.
        what: What the processes do, for error messages.

    Yields:
        Parts with their samples, as soon as they are ready.

    Raises:
        NGRPOError: A process raised it.
        EngineError: A process failed in any other way, or was killed.
    """
    file = work / "sampling.json"
    write_state(file, task)
    waiting = deque(enumerate(parts))
    with ExitStack() as stack:
        workers = []
        devices = devices[: len(parts)]
        for number, device in enumerate(devices, 1):
            where = f"process {number} of {len(devices)}" + ("" if device is None else f" (GPU {device})")
            workers.append(_Worker(file, device, f"{what}: {where}"))
            stack.callback(workers[-1].kill)
        by_connection = {worker.connection: worker for worker in workers}
        left, given = len(parts), len(parts)
        while left:
            # The least busy process first, so that a few parts are spread over all processes.
            while waiting and (idlest := min(workers, key=lambda worker: worker.requests)).requests < ahead:
                idlest.give(*waiting.popleft())
            ready = wait(list(by_connection), _LOOK_SECONDS)
            for worker in [by_connection[one] for one in ready if isinstance(one, Connection)] or workers:
                found = worker.samples()
                if found is not None:
                    left -= 1
                    yield found
            if not left:
                further = more()
                waiting.extend(enumerate(further, given))
                left, given = len(further), given + len(further)
        for worker in workers:
            worker.end()


class _Worker(ChildProcess):
    """A process and the parts that it works on."""

    def __init__(self, task: Path, device: str | None, who: str):
        super().__init__(_WORKER, [str(task)], device, who, _KEPT)
        self._under_way: dict[int, Part] = {}

    @property
    def requests(self) -> int:
        """Requests that it has not answered yet."""
        return sum(len(part.requests) for part in self._under_way.values())

    def give(self, number: int, part: Part) -> None:
        """Send a part."""
        self._under_way[number] = part
        self.send((number, part))

    def samples(self) -> tuple[Part, pa.Table] | None:
        """Return a finished part with its samples; None if no part is ready.

        Raises:
            NGRPOError: The process failed or is gone.
        """
        reply = self.receive()
        if reply is None:
            return None
        number, table = reply
        return self._under_way.pop(number), table


_KEPT = "Finished samples are kept: run again to generate only the missing ones"
