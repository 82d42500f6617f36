"""Several processes that generate samples with one model, each with a GPU of its own, and share one queue of parts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO

import pyarrow as pa
import torch

from ngrpo import errors
from ngrpo.environment import redacted
from ngrpo.errors import ConfigError, EngineError, NGRPOError
from ngrpo.evaluation.samples import Part
from ngrpo.evaluation.sampling_worker import Failure, Task
from ngrpo.storage.state import write_state

_WORKER = "ngrpo.evaluation.sampling_worker"
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_LOOK_SECONDS = 1.0
"""How often it is looked whether a process is still there; as a rule its end is heard of at once."""
_END_SECONDS = 60.0
"""Longest time that a process may take to end after its last part."""
_RELAY_SECONDS = 5.0
"""Longest wait for what a process that is gone had printed."""
_LONGEST_LINE = 500


def devices_of_processes(asked: int | None, gpus_each: int) -> list[str | None]:
    """Return of each process that is to generate the GPUs that it gets, as CUDA names them; none where there are no GPUs.

    Args:
        asked: How many processes there are to be: without one a process for every `gpus_each` GPUs, or one on processors.
        gpus_each: GPUs that share a model.

    Raises:
        ConfigError: There are fewer GPUs than share a model.
    """
    count = torch.cuda.device_count()  # uses none: this process must not hold memory of theirs
    if not count:
        return [None] * (asked or 1)
    if count < gpus_each:
        raise ConfigError(
            f"evaluation.vllm.tensor_parallel_size={gpus_each} but {count} GPU{'s are' if count > 1 else ' is'} visible here: lower it, or "
            "raise resources.benchmark_evaluation.gpus"
        )
    visible = [name.strip() for name in os.environ.get(_VISIBLE, "").split(",") if name.strip()][:count]
    names = visible or [str(number) for number in range(count)]
    groups = [",".join(names[start : start + gpus_each]) for start in range(0, count - gpus_each + 1, gpus_each)]
    return list(groups[:asked])


def sampled_by_processes(
    task: Task,
    parts: Sequence[Part],
    devices: Sequence[str | None],
    *,
    ahead: int,
    work: Path,
    what: str,
) -> Generator[tuple[Part, pa.Table]]:
    """Generate samples with one model in several processes; the one that is done with a part gets the next.

    Whatever ends this also ends the processes, and the failure of one ends this. To be closed if it is not read to its end.

    Args:
        task: The model and its prompts.
        parts: What is to be generated, in the order in which it is given out.
        devices: Of each process the GPUs that it gets (`devices_of_processes`).
        ahead: A process is given parts until it has so many requests.
        work: Directory for a file that tells the processes their task.
        what: What is done, for errors.

    Yields:
        Parts with their samples, as they are ready.

    Raises:
        NGRPOError: As a process raised it.
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
        left = len(parts)
        while left:
            # The one with least to do first: with few parts all get some.
            while waiting and (idlest := min(workers, key=lambda worker: worker.requests)).requests < ahead:
                idlest.give(*waiting.popleft())
            ready = wait(list(by_connection), _LOOK_SECONDS)
            for worker in [by_connection[one] for one in ready if isinstance(one, Connection)] or workers:
                found = worker.receive()
                if found is not None:
                    left -= 1
                    yield found
        for worker in workers:
            worker.end()


class _Worker:
    """One of the processes, and what it is at work on."""

    def __init__(self, task: Path, device: str | None, who: str):
        self._who = who
        self._under_way: dict[int, Part] = {}
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours.detach())
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _WORKER, str(task), str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=_environment(device),
            )
        assert self._process.stdout is not None
        self._last = ""
        self._relay = threading.Thread(target=self._pass_on, args=(self._process.stdout,), name="relay", daemon=True)
        self._relay.start()

    @property
    def requests(self) -> int:
        """Requests that it was given and has not answered."""
        return sum(len(part.requests) for part in self._under_way.values())

    def give(self, number: int, part: Part) -> None:
        """Send a part."""
        self._under_way[number] = part
        with suppress(OSError):  # it is gone: `receive` says so
            self.connection.send((number, part))

    def receive(self) -> tuple[Part, pa.Table] | None:
        """Return a part that is ready with its samples; none if there is none yet.

        Raises:
            NGRPOError: It failed or is gone.
        """
        gone = self._process.poll() is not None  # asked first: what it sent before its end can be read afterwards
        try:
            if not self.connection.poll():
                if gone:
                    raise EOFError
                return None
            reply = self.connection.recv()
        except (EOFError, OSError):
            raise self._death() from None
        match reply:
            case int() as number, pa.Table() as table:
                return self._under_way.pop(number), table
        raise self._failure(reply)

    def end(self) -> None:
        """Let it end, so that the next model finds its devices free.

        Raises:
            EngineError: It does not.
        """
        with suppress(OSError):
            self.connection.send(None)
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"{self._who} does not end by itself: it is killed", file=sys.stderr, flush=True)

    def kill(self) -> None:
        """Kill what still runs of it, with the processes of its engine."""
        if self.connection.closed:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._relay.join(_RELAY_SECONDS)
        self.connection.close()

    def _failure(self, said: Failure) -> NGRPOError:
        kind, message = said
        if kind is None:
            return EngineError(f"{self._who} failed: {message}; the log has its traceback. {_KEPT}")
        known = getattr(errors, kind, NGRPOError)
        return known(message) if isinstance(known, type) and issubclass(known, NGRPOError) else NGRPOError(message)

    def _death(self) -> EngineError:
        self.kill()
        code = self._process.returncode
        how = (
            f"was killed by {signal.Signals(-code).name}, for want of memory perhaps"
            if code < 0
            else f"ended with {code}"
        )
        return EngineError(f"{self._who} {how}; its last line: {self._last or 'none'}. {_KEPT}")

    def _pass_on(self, printed: IO[bytes]) -> None:
        """Print what it prints, without credentials, and remember the last line."""
        for line in printed:
            text = redacted(line.decode(errors="replace"))
            sys.stderr.write(text)
            sys.stderr.flush()
            self._last = text.strip()[:_LONGEST_LINE] or self._last


_KEPT = "Samples that are ready are kept: run again, and only the others are generated"


def _environment(device: str | None) -> Mapping[str, str]:
    return dict(os.environ) if device is None else {**os.environ, _VISIBLE: device}
