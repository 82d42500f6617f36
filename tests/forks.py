"""Processes as forks of one server that has imported the libraries once, because importing them takes ten seconds."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TextIO

IMPORTED_ONCE = [
    "ngrpo.stages.model_promotion",
    "ngrpo.stages.ngrpo_training",
    "ngrpo.stages.execution",
    "ngrpo.tracking.database",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "transformers.models.llama.modeling_llama",
]


def fork(function: Callable[..., None], *arguments: object, environment: Mapping[str, str] = os.environ) -> BaseProcess:
    """Start a process that runs a function, with an environment of its own; it may be killed like any other."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_ONCE)  # the server has opened nothing
    process = context.Process(target=_run, args=(dict(environment), function, arguments))
    process.start()
    return process


def _run(environment: dict[str, str], function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    function(*arguments)


class Script:
    """A script as a fork, to be used as a `subprocess.Popen` whose output is read.

    Args:
        source: The script.
        arguments: `sys.argv[1:]`.
        environment: Of the process.
        errors: File for what it writes to its standard error.
    """

    def __init__(self, source: str, arguments: list[str], environment: Mapping[str, str], errors: str):
        reader, writer = multiprocessing.Pipe(duplex=False)
        self._process = fork(_script, source, arguments, writer, errors, environment=environment)
        writer.close()
        self.stdout: TextIO = os.fdopen(os.dup(reader.fileno()))
        reader.close()

    @property
    def returncode(self) -> int | None:
        """Its exit code, or minus the number of the signal that has killed it; none while it runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self._process.pid, number)

    def wait(self) -> int:
        """Wait for its end and return its exit code."""
        self.communicate()
        return self.returncode

    def communicate(self) -> tuple[str, None]:
        """Wait for its end and return what it has printed since it was last read."""
        output = self.stdout.read()
        self._process.join()
        return output, None


def _script(source: str, arguments: list[str], output: Connection, errors: str) -> None:
    import torch

    os.dup2(output.fileno(), 1)
    output.close()
    descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    torch.set_num_threads(
        int(os.environ["OMP_NUM_THREADS"])
    )  # read when torch was imported, which it was in the server
    sys.argv = ["-c", *arguments]
    try:
        exec(compile(source, "<script>", "exec"), {"__name__": "__main__"})
    except Exception:
        sys.excepthook(
            *sys.exc_info()
        )  # as an interpreter ends; `multiprocessing` would print a traceback whatever hook is set
        sys.exit(1)
