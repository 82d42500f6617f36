"""A process that generates samples with one model on its own devices, started by `ngrpo.evaluation.sampling_processes`.

It receives numbered parts and sends back their samples, or the error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from typing_extensions import TypedDict

from ngrpo.errors import StoreError
from ngrpo.rollout.in_child_process import Inbox, serve


class Task(TypedDict):
    """The task that all processes of a model share."""

    config: str
    """Settings of the stage as JSON."""
    model: str
    """Directory of the model."""
    benchmarks: str
    """Directory of the benchmarks."""


def main(task: Path, descriptor: int) -> None:
    """Run the process until it is told to end.

    Args:
        task: File with a `Task`.
        descriptor: Socket to the process that started this one.
    """
    serve(descriptor, partial(_work, task))


def _work(file: Path, inbox: Inbox, send: Callable[[object], None]) -> None:
    # Imported late because it takes seconds: by now this process already watches whether its parent is alive.
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
