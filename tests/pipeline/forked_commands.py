"""Commands as forks of one process that has imported libraries but no module of ngrpo: importing them takes most of a command's time.

Run as a script, this is that process: it reads one command per line (written by `Commands.run`), forks, and reports how the fork ended.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, NoReturn

LIBRARIES = (
    "boto3",
    "cryptography.fernet",
    "filelock",
    "jinja2",
    "mlflow",
    "mlflow.db",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "kfp.local",
    "pydantic",
    "rich.live",
    "rich.table",
    "typer",
)
COMMAND = "ngrpo_kfp.pipelines.cli.app"
STAGE_FORKS = "ngrpo_kfp.pipelines.local.stage_forks"
RUNS = ("run", "rerun")
"""Commands that start the process of stages."""
SECONDS = 240
"""Seconds after which a hanging command is killed."""


class Commands:
    """Runs `python -m ngrpo_kfp.pipelines.cli.app` in forks."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def run(
        self, arguments: Sequence[str], environment: Mapping[str, str], cwd: Path
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; ngrpo is imported from `PYTHONPATH`."""
        if self._server is None:
            variables = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
            self._server = subprocess.Popen(
                [sys.executable, __file__], env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        with tempfile.TemporaryDirectory() as folder:
            said = [Path(folder) / name for name in ("stdout", "stderr")]
            job = {
                "arguments": list(arguments),
                "environment": dict(environment),
                "cwd": str(cwd),
                "said": list(map(str, said)),
            }
            self._server.stdin.write(json.dumps(job) + "\n")
            self._server.stdin.flush()
            code = int(self._server.stdout.readline())
            return subprocess.CompletedProcess(arguments, code, *(file.read_text() for file in said))

    def close(self) -> None:
        """End the process that forks."""
        if self._server is not None:
            self._server.stdin.close()
            self._server.wait()
            self._server = None


# --- the process that forks ----------------------------------------------------------------------------------------------


class Spare:
    """A fork that has imported libraries but no module of ngrpo. It waits to become the process of stages, or for the command's end.

    Used once, in place of the `subprocess.Popen` that starts that process.
    """

    def __init__(self, cwd: str):
        self._channel, channel = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            self._channel.close()
            _stand_by(channel, cwd)
        channel.close()

    def __call__(self, command: Sequence[str], *, env: Mapping[str, str], stderr: IO[bytes], **_: object) -> "Spare":
        assert command[1:3] == ["-m", STAGE_FORKS]
        reader, stdin = os.pipe()
        stdout, writer = os.pipe()
        told = json.dumps({"arguments": command[3:], "environment": dict(env)}).encode()
        socket.send_fds(self._channel, [told], [reader, writer, stderr.fileno()])
        for descriptor in (reader, writer):
            os.close(descriptor)
        self._channel.close()
        self.stdin, self.stdout = os.fdopen(stdin, "w"), os.fdopen(stdout)
        return self

    def wait(self) -> int:
        """Wait for its end and return its exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def _stand_by(channel: socket.socket, cwd: str) -> NoReturn:
    told, descriptors, _, _ = socket.recv_fds(channel, 1 << 20, 3)
    if not told:
        os._exit(0)
    channel.close()
    os.setsid()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    _run_module(STAGE_FORKS, cwd=cwd, **json.loads(told))


def _serve() -> None:
    jobs, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # no fork looks through, and so copies, what is there for good
    for line in jobs:
        child = os.fork()
        if child == 0:
            jobs.close()
            answers.close()
            _be(**json.loads(line))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        answers.write(f"{code}\n")
        answers.flush()


def _be(arguments: list[str], environment: dict[str, str], cwd: str, said: list[str]) -> NoReturn:
    """Run the command in this process, and exit."""
    spare = Spare(cwd) if arguments[0] in RUNS else None
    signal.alarm(SECONDS)
    for descriptor, file in enumerate(said, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    _run_module(COMMAND, arguments, environment, cwd, spare)


def _run_module(
    name: str, arguments: list[str], environment: dict[str, str], cwd: str, spare: Spare | None = None
) -> NoReturn:
    """Do what `python -m` does; where a spare is given, it becomes the process of stages."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path[:1] = [cwd, *environment["PYTHONPATH"].split(os.pathsep)]
    sys.argv = [name, *arguments]
    if spare is not None:
        importlib.import_module(STAGE_FORKS).subprocess = SimpleNamespace(Popen=spare, PIPE=subprocess.PIPE)
    runpy.run_module(name, run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    _serve()
