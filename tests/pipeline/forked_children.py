"""A stand-in for `subprocess.Popen` where engines get their own processes: a fork that has already imported everything."""

import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from subprocess import TimeoutExpired
from time import monotonic, sleep
from typing import BinaryIO

from ngrpo.rollout import child_process

MODULES = ("ngrpo.evaluation.sampling_worker", "ngrpo.rollout.separate_process")


class ForkedChild:
    """A process that runs a module as `python -m` does."""

    def __init__(self, command: Sequence[str], *, pass_fds: Sequence[int], env: Mapping[str, str], **options: object):
        assert command[1] == "-m"
        assert command[2] in MODULES
        assert options["start_new_session"]
        (descriptor,) = pass_fds
        reader, writer = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                os.environ.clear()
                os.environ.update(env)
                _become(writer, descriptor)
                sys.argv = ["", *command[3:]]
                runpy.run_module(command[2], run_name="__main__")
            finally:
                os._exit(70)
        os.close(writer)
        self.stdout: BinaryIO = os.fdopen(reader, "rb")

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and monotonic() > end:
                raise TimeoutExpired("fork", timeout)
            sleep(0.01)
        return code


def fork_children(monkeypatch) -> list[ForkedChild]:
    """Start child processes of the library as forks; returns the ones that were started."""
    made: list[ForkedChild] = []

    def fork(*arguments, **options):
        made.append(ForkedChild(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(child_process.subprocess, "Popen", fork)
    return made


def _become(writer: int, kept: int) -> None:
    """Close everything that a new process would not have: inherited sockets would hide that their owners have ended."""
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in (0, 1, 2, kept):
            try:
                os.close(int(name))
            except OSError:
                continue  # that of the list itself
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
