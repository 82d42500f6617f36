"""A process that generates samples with one model on devices of its own: started by `ngrpo.evaluation.sampling_processes`.

It is sent numbered parts and sends back their samples, or why it cannot. It ends when it is told that there are no more parts, and
with all that it has started when the process that started it is gone.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from typing_extensions import TypedDict

from ngrpo.environment import redacted
from ngrpo.errors import NGRPOError, StoreError

if TYPE_CHECKING:
    import pyarrow as pa

    from ngrpo.evaluation.samples import Part

_LONGEST_ERROR = 500

Failure: TypeAlias = "tuple[str | None, str]"
"""Name of an error of `ngrpo.errors`, none for any other, and what it says."""
Reply: TypeAlias = "tuple[int, pa.Table] | Failure"


class Task(TypedDict):
    """What every process of a model is to do."""

    config: str
    """Settings of the stage as JSON."""
    model: str
    """Directory of the model."""
    benchmarks: str
    """Directory of the benchmarks."""


class Inbox:
    """The parts that were sent to this process. Once nobody can send any more, the process ends."""

    def __init__(self, connection: Connection):
        """Begin to receive."""
        self._connection = connection
        self._received: queue.SimpleQueue[tuple[int, Part] | None] = queue.SimpleQueue()
        self._ended = False
        threading.Thread(target=self._receive, name="parts", daemon=True).start()

    def take(self, *, wait: bool) -> tuple[int, Part] | None:
        """See `ngrpo.evaluation.samples.Take`."""
        if self._ended:
            return None
        try:
            given = self._received.get(block=wait)
        except queue.Empty:
            return None
        self._ended = given is None
        return given

    def _receive(self) -> None:
        try:
            while True:
                self._received.put(self._connection.recv())
        except (EOFError, OSError):
            os.killpg(0, signal.SIGKILL)  # a group of its own: the processes of the engine too


def main(task: Path, descriptor: int) -> None:
    """Be such a process.

    Args:
        task: File with a `Task`.
        descriptor: Socket to the process that started this one.
    """
    os.set_inheritable(descriptor, False)
    connection = Connection(descriptor)
    inbox = Inbox(connection)
    try:
        _work(task, inbox, connection.send)
    except NGRPOError as error:
        connection.send((type(error).__name__, str(error)))
    except BaseException as error:
        print(redacted("".join(traceback.format_exception(error))), file=sys.stderr, flush=True)
        said = " ".join("".join(traceback.format_exception_only(error)).split())
        connection.send((None, redacted(said)[:_LONGEST_ERROR]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # taking torch apart lasts seconds


def _work(file: Path, inbox: Inbox, send: Callable[[Reply], None]) -> None:
    # Imported only now, for it takes seconds: whether the process that started this one still lives is watched already.
    from ngrpo.config import BenchmarkEvaluationConfig
    from ngrpo.evaluation.benchmark import read_benchmarks
    from ngrpo.storage.state import read_state

    task = read_state(file, Task, cure="run again")
    if task is None:
        raise StoreError(f"{file}: missing; run again")
    config = BenchmarkEvaluationConfig.model_validate_json(task["config"])
    benchmarks = read_benchmarks(Path(task["benchmarks"]), config.benchmark_gradings)
    chats = [chat for benchmark in benchmarks for chat in benchmark.prompts]

    from ngrpo.evaluation.configured_sampler import start_sampler

    sampler = start_sampler(config, Path(task["model"]), chats)
    with closing(sampler.engine):
        for number, table in sampler.tables(benchmarks, inbox.take):
            send((number, table))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
