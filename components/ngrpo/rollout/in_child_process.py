"""The child's side of `ngrpo.rollout.child_process`: receives messages, and reports why it cannot go on.

It ends when it is told to and, with all processes that it started, when its parent is gone.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from ngrpo.environment import redacted
from ngrpo.errors import NGRPOError

_LONGEST_ERROR = 500


class Failure(NamedTuple):
    """Why a child process cannot go on."""

    kind: str | None
    """Name of an error in `ngrpo.errors`; none for any other."""
    message: str


class Inbox:
    """Messages to this process. The process ends once its parent is gone."""

    def __init__(self, connection: Connection):
        """Begin to receive."""
        self._connection = connection
        self._received: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ended = False
        threading.Thread(target=self._receive, name="inbox", daemon=True).start()

    def take(self, *, wait: bool) -> Any:
        """Return the next message; none if the process is to end or, unless it is to be waited for, where there is none yet."""
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


def serve(descriptor: int, work: Callable[[Inbox, Callable[[object], None]], None]) -> None:
    """Run as a child process; does not return.

    Args:
        descriptor: Socket to the process that started this one.
        work: Does the work, given the inbox and a function that sends a reply. By then this process watches whether its parent is alive.
    """
    os.set_inheritable(descriptor, False)
    connection = Connection(descriptor)
    inbox = Inbox(connection)
    try:
        work(inbox, connection.send)
    except NGRPOError as error:
        connection.send(Failure(type(error).__name__, str(error)))
    except BaseException as error:
        print(redacted("".join(traceback.format_exception(error))), file=sys.stderr, flush=True)
        said = " ".join("".join(traceback.format_exception_only(error)).split())
        connection.send(Failure(None, redacted(said)[:_LONGEST_ERROR]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # exit at once: tearing down torch takes seconds
