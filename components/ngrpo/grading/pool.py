"""Isolated processes that compare answers. They start when first needed, and are replaced after a failure or a number of requests."""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from ngrpo.errors import GradingError
from ngrpo.grading import sandbox
from ngrpo.grading import worker as messages
from ngrpo.grading.patterns import MOST, Span
from ngrpo.grading.worker import HEADER, LONGEST_ERROR, SEARCH, encode

Request = tuple[str, str | None] | tuple[str, str, str]
"""Gold answer and answer (None to check whether the gold answer can be parsed), optionally preceded by `COUNTDOWN`."""
Response = tuple[bool, str | None]
Found = tuple[list[Span], str | None]
_Search = tuple[str, str, str]

_WORKER = "ngrpo.grading.worker"

_PATIENCE = 60.0
"""Seconds after a request's limit at which the pool kills a silent worker, one that is suspended or cannot start."""

_STARTS = 3
"""Number of workers in a row that may end before they are ready, so that a temporary shortage of time or memory loses no result."""

_LONGEST_MESSAGE = 4096
"""Largest message of a worker in bytes: an error, with up to twelve bytes per character, and little else."""

_REQUESTS_OF_A_LIFE = 1000
"""Requests after which a worker is replaced, so that changes that an answer made in it do not last."""


class GradingPool:
    """Processes that answer the requests of `ngrpo.grading.worker`.

    A worker is a new interpreter and not a fork, so it has none of the parent's memory, environment, descriptors, threads, locks or
    devices, and does not import the parent's main module. Messages of a worker are untrusted: it can give a wrong verdict on its answer,
    and nothing more. The pool is thread-safe; calls are served one after the other. Workers end with the pool, or with the parent,
    however that ends.
    """

    def __init__(self, workers: int, timeout_seconds: float):
        """Set up the pool; nothing is started yet.

        Args:
            workers: Largest number of processes.
            timeout_seconds: Wall-clock limit of one request, counted from when a loaded worker begins it.
        """
        self._size = workers
        self._seconds = timeout_seconds
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._ended_early = 0

    def run(self, requests: Sequence[Request]) -> list[Response]:
        """Answer requests, in their order.

        Raises:
            GradingError: Workers do not start.
        """
        return cast("list[Response]", self._answer(requests))

    def search(self, pattern: str, texts: Sequence[str]) -> list[Found]:
        """Return for each text where the only group of a regular expression matches, the last matches only, and an error or None.

        Raises:
            RuntimeError: A worker does not start.
        """
        return cast("list[Found]", self._answer([(SEARCH, pattern, text) for text in texts]))

    def close(self) -> None:
        """End the workers. The pool can be used again and then starts new ones."""
        with self._lock:
            self._close()

    def _answer(self, requests: Sequence[Request | _Search]) -> list[Response | Found]:
        with self._lock:
            try:
                return self._run(requests)
            except BaseException:
                self._close()  # a reply to an unfinished request would be taken for one of the next call
                raise

    def _run(self, requests: Sequence[Request | _Search]) -> list[Response | Found]:
        responses: dict[int, Response | Found] = {}
        waiting = deque(range(len(requests)))
        self._ended_early = 0
        while len(responses) < len(requests):
            for worker in [worker for worker in self._workers if worker.idle and not worker.usable()]:
                self._end(worker)
            unanswered = len(requests) - len(responses)
            while len(self._workers) < min(self._size, unanswered):
                self._workers.append(_Worker(self._seconds))
            for worker in self._workers:
                if worker.idle and waiting:
                    task = waiting.popleft()
                    worker.begin(task, requests[task])
            busy = [worker for worker in self._workers if not worker.idle]
            for worker in _wait(busy):
                self._hear(worker, responses)
            for worker in busy:
                if time.monotonic() > worker.deadline:
                    worker.process.kill()  # and the closed pipe wakes the pool
        return [responses[index] for index in range(len(requests))]

    def _hear(self, worker: _Worker, responses: dict[int, Response | Found]) -> None:
        task, request = worker.task, worker.request
        try:
            message = worker.receive()
            if message is None:
                return
            if task is None:
                for missing in _missing_walls(_decode(message)):
                    _say(missing)
                self._ended_early = 0
            else:
                responses[task] = _response(_decode(message), worker.nonce, request)
            worker.rest()
        except (EOFError, ValueError) as error:
            status = self._end(worker)
            if task is None:
                self._ended_early += 1
                if self._ended_early < _STARTS:
                    return
                raise GradingError(
                    f"{_STARTS} grading workers in a row ended before they were ready, the last with status {status} (-9: killed for lack "
                    f"of memory, or after {_PATIENCE:.0f} s): give the machine less to do at a time, or more memory, and run again"
                ) from None
            # A worker that sent nonsense was killed for it, so its exit status means nothing.
            why = self._death(status) if isinstance(error, EOFError) else str(error)
            responses[task] = ([], why) if request[0] == SEARCH and len(request) == 3 else (False, why)

    def _death(self, status: int) -> str:
        attempt = sandbox.refusal(status)
        if attempt is not None:
            return f"refused: the answer made the grader {attempt}"
        if status == -signal.SIGALRM:
            return f"no verdict within {self._seconds:g} s"
        return f"the grading worker died with status {status}"

    def _end(self, worker: _Worker) -> int:
        self._workers.remove(worker)
        return worker.end()

    def _close(self) -> None:
        while self._workers:
            self._workers.pop().end()


class _Worker:
    """One process and what it is doing: it loads, works on a task, or is idle."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        theirs, self._requests = os.pipe()
        self._replies, theirs_too = os.pipe()
        try:
            self.process = subprocess.Popen(
                # -P, -S: only the environment determines where modules are imported from.
                [sys.executable, "-P", "-S", "-m", _WORKER, str(theirs), str(theirs_too), str(seconds)],
                pass_fds=(theirs, theirs_too),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                env=_environment(),
            )
        except BaseException:
            os.close(self._requests)
            os.close(self._replies)
            raise
        finally:
            os.close(theirs)
            os.close(theirs_too)
        # A worker that stops reading or sends half a message must not block the parent.
        os.set_blocking(self._requests, False)
        os.set_blocking(self._replies, False)
        self._unsent = memoryview(b"")
        self._received = bytearray()
        self._served = 0
        self.idle = False
        self.task: int | None = None
        self.request: Request | _Search = ("", None)
        self.nonce = ""
        self.deadline = time.monotonic() + seconds + _PATIENCE

    @property
    def unsent(self) -> bool:
        """Whether part of the request has not been sent yet."""
        return bool(self._unsent)

    @property
    def requests(self) -> int:
        return self._requests

    @property
    def replies(self) -> int:
        return self._replies

    def usable(self) -> bool:
        """Whether the idle process can get a request: it is running, sent nothing unasked, and is not due for replacement."""
        if not self._served:
            return True  # problems of a new process show with its first request
        return self._served < _REQUESTS_OF_A_LIFE and not _ready([(self._replies, select.POLLIN)], 0)

    def begin(self, task: int, request: Request | _Search) -> None:
        self.idle, self.task, self.request = False, task, request
        self.nonce = secrets.token_hex(16)
        self.deadline = time.monotonic() + self._seconds + _PATIENCE
        self._unsent = memoryview(encode([self.nonce, *request]))
        self.send()

    def send(self) -> None:
        """Send as much of the request as the pipe accepts."""
        try:
            self._unsent = self._unsent[os.write(self._requests, self._unsent) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:  # it has just died, which the end of its replies shows
            self._unsent = memoryview(b"")

    def receive(self) -> bytearray | None:
        """Return the message that the process sent; None while it is incomplete.

        Raises:
            EOFError: The process has ended.
            ValueError: It sent more than one message.
        """
        try:
            part = os.read(self._replies, _LONGEST_MESSAGE)
        except BlockingIOError:
            return None
        if not part:
            raise EOFError
        self._received += part
        if len(self._received) < HEADER.size:
            return None
        size = HEADER.size + HEADER.unpack_from(self._received)[0]
        if size > _LONGEST_MESSAGE or len(self._received) > size:
            raise ValueError("the grading worker sent more than a reply")
        if len(self._received) < size:
            return None
        return self._received[HEADER.size :]

    def rest(self) -> None:
        """Mark the process as idle after a complete message."""
        self._received.clear()
        self._served += self.task is not None
        self.idle, self.task, self.nonce = True, None, ""

    def end(self) -> int:
        """Kill the process if it still runs, and return its exit status."""
        os.close(self._requests)
        os.close(self._replies)
        self.process.kill()
        return self.process.wait()


def _wait(workers: Collection[_Worker]) -> list[_Worker]:
    """Exchange data with workers until one has sent something or is out of time, and return those that have sent something."""
    channels = [(worker.replies, select.POLLIN) for worker in workers]
    channels += [(worker.requests, select.POLLOUT) for worker in workers if worker.unsent]
    latest = min(worker.deadline for worker in workers)
    ready = _ready(channels, max(0.0, latest - time.monotonic()))
    for worker in workers:
        if worker.unsent and worker.requests in ready:
            worker.send()
    return [worker for worker in workers if worker.replies in ready]


def _ready(channels: Sequence[tuple[int, int]], seconds: float) -> set[int]:
    """Wait for descriptors, and return those that are ready, or closed at the other end."""
    poll = select.poll()
    for descriptor, events in channels:
        poll.register(descriptor, events)
    # Rounded up to whole milliseconds.
    return {descriptor for descriptor, _ in poll.poll(int(seconds * 1000) + bool(seconds))}


def _decode(message: bytes | bytearray) -> Any:
    try:
        return json.loads(message)
    except (ValueError, RecursionError):
        raise ValueError("the grading worker sent something that is no reply") from None


def _missing_walls(message: object) -> list[str]:
    """Check the first message of a worker, sent before it reads any answer."""
    if not isinstance(message, list) or not all(isinstance(line, str) for line in message):
        raise ValueError("the grading worker sent something that is no list of walls")
    return message


def _response(message: object, nonce: str, request: Request | _Search) -> Response | Found:
    """Check a reply.

    Raises:
        ValueError: It is no reply, or not a reply to this request.
    """
    match message, request:
        case [str() as echo, bool() as correct, None | str() as error], (_, _) | (messages.COUNTDOWN, _, _) if (
            echo == nonce
        ):
            if error is None:
                return correct, None
            if not correct and len(error) <= LONGEST_ERROR:
                return False, _printable(error)
        case [str() as echo, list() as spans, None | str() as error], (messages.SEARCH, _, text) if echo == nonce:
            if len(spans) <= MOST and all(_is_span(span, len(text)) for span in spans):
                return [(start, end) for start, end in spans], error and _printable(error[:LONGEST_ERROR])
    raise ValueError("the grading worker sent something that is no reply to its request")


def _is_span(span: object, length: int) -> bool:
    match span:
        case [int() as start, int() as end]:
            return 0 <= start <= end <= length
    return False


def _printable(error: str) -> str:
    return "".join(char if char.isprintable() else " " for char in error)


@cache
def _say(missing: str) -> None:
    """Print once that a wall of the sandbox is missing on this machine."""
    print(f"grading: {missing}; the other walls around the grader stand", file=sys.stderr, flush=True)


def _environment() -> dict[str, str]:
    """Return a worker's environment: where modules are, as for this process, and a fixed hash seed."""
    package = str(Path(__file__).parents[2])
    # sympy orders some terms by hash, so a fixed seed gives the same answer the same verdict in every run.
    return {
        "PYTHONPATH": os.pathsep.join([os.path.abspath(entry) for entry in sys.path if entry] + [package]),
        "PYTHONHASHSEED": "0",
    }
