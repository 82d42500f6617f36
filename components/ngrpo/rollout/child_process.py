"""A child process with devices of its own, controlled over a socket; it never outlives its parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import IO, Any

from ngrpo import errors
from ngrpo.environment import redacted
from ngrpo.errors import EngineError, NGRPOError
from ngrpo.rollout.in_child_process import Failure

VISIBLE = "CUDA_VISIBLE_DEVICES"
_END_SECONDS = 60.0
"""Seconds that a process may take to end after it was told to."""
_RELAY_SECONDS = 5.0
"""Seconds to wait for the remaining output of a process that has ended."""
_LONGEST_LINE = 500
# Variables that torchrun sets for training processes: a child is not one of them.
_OF_A_GROUP = (
    "RANK",
    "LOCAL_RANK",
    "GROUP_RANK",
    "ROLE_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


class ChildProcess:
    """A child process, which runs a module that calls `ngrpo.rollout.in_child_process.serve`."""

    def __init__(self, module: str, arguments: Sequence[str], device: str | None, who: str, cure: str):
        """Start it.

        Args:
            module: Name of the module.
            arguments: Its command line; the descriptor of the socket follows.
            device: GPUs that it gets, as CUDA names them; none where there are no GPUs.
            who: Its name in errors.
            cure: Last sentence of errors that the process did not raise itself.
        """
        self._who = who
        self._cure = cure
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours.detach())
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments, str(theirs.fileno())],
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

    def send(self, message: object) -> None:
        """Send something."""
        with suppress(OSError):  # it is gone: `receive` says so
            self.connection.send(message)

    def receive(self) -> Any:
        """Return its next message; none if there is none yet.

        Raises:
            NGRPOError: It failed or is gone.
        """
        gone = self._process.poll() is not None  # checked first, so that messages sent before its end are still read
        try:
            if not self.connection.poll():
                if gone:
                    raise EOFError
                return None
            reply = self.connection.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if isinstance(reply, Failure):
            raise self._failure(reply)
        return reply

    def end(self) -> None:
        """Let it end, so that its devices are free."""
        self.send(None)
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"{self._who} does not end by itself: it is killed", file=sys.stderr, flush=True)

    def kill(self) -> None:
        """Kill it and the processes that it started."""
        if self.connection.closed:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._relay.join(_RELAY_SECONDS)
        self.connection.close()

    def _failure(self, said: Failure) -> NGRPOError:
        if said.kind is None:
            return EngineError(f"{self._who} failed: {said.message}; the log has its traceback. {self._cure}")
        known = getattr(errors, said.kind, NGRPOError)
        return (known if isinstance(known, type) and issubclass(known, NGRPOError) else NGRPOError)(said.message)

    def _death(self) -> EngineError:
        self.kill()
        code = self._process.returncode
        how = (
            f"was killed by {signal.Signals(-code).name}, for want of memory perhaps"
            if code < 0
            else f"ended with {code}"
        )
        return EngineError(f"{self._who} {how}; its last line: {self._last or 'none'}. {self._cure}")

    def _pass_on(self, printed: IO[bytes]) -> None:
        """Forward its output, without credentials, and remember the last line."""
        for line in printed:
            text = redacted(line.decode(errors="replace"))
            sys.stderr.write(text)
            sys.stderr.flush()
            self._last = text.strip()[:_LONGEST_LINE] or self._last


def visible_gpus(count: int) -> list[str]:
    """Return the names by which CUDA knows the GPUs that this process sees.

    Args:
        count: How many these are.
    """
    names = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()][:count]
    return names or [str(number) for number in range(count)]


def processes_of_node() -> int:
    """Return the number of training processes on this machine, as set by torchrun; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _environment(device: str | None) -> Mapping[str, str]:
    own = {
        name: value
        for name, value in os.environ.items()
        if name not in _OF_A_GROUP and not name.startswith("TORCHELASTIC_")
    }
    return own if device is None else own | {VISIBLE: device}
