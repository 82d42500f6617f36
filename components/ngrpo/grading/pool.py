"""Isolated processes that compare answers: started when first needed, replaced when they fail, misbehave or have served enough."""

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
"""Gold answer and answer, or none to say whether the gold answer can be parsed; or `COUNTDOWN` before the two."""
Response = tuple[bool, str | None]
Found = tuple[list[Span], str | None]
_Search = tuple[str, str, str]

_WORKER = "ngrpo.grading.worker"

_PATIENCE = 60.0
"""Seconds beyond the limit of a request after which a silent worker is killed from here: it is stopped, or cannot start."""

_STARTS = 3
"""Workers in a row that may end before they are ready: a machine that is short of time or memory for a while costs no result."""

_LONGEST_MESSAGE = 4096
"""Bytes of what a worker sends: an error, each character at worst as twelve bytes, and little else."""

_REQUESTS_OF_A_LIFE = 1000
"""Requests after which a worker is replaced: whatever an answer may have changed in it does not last."""


class GradingPool:
    """Processes that answer the requests of `ngrpo.grading.worker`.

    A worker is a new interpreter and not a fork, so it holds neither the parent's memory, environment and descriptors nor its
    threads, locks or devices, and whatever program the parent is, it is not imported a second time. What a worker sends is
    checked as a stranger's: it can lie about the answer that it was given and do no more. Calls from any thread are welcome; they
    are served one after the other. Workers end with the pool, or with the parent however that ends.
    """

    def __init__(self, workers: int, timeout_seconds: float):
        """Set up the pool; nothing is started yet.

        Args:
            workers: Processes at most.
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
        """Return of each text where the only group of a regular expression matches, at the last places, and why that is not known.

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
                self._close()  # a request left in a worker would answer the next call
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
                    worker.process.kill()  # and the end of its pipe is heard
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
            # One that sent nonsense was killed for it, so its status says nothing.
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
                # -P, -S: from where modules come is said by the environment alone.
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
        # A worker that stops reading or sends half a message must not keep the parent.
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
        """Whether a part of the request is still to be sent."""
        return bool(self._unsent)

    @property
    def requests(self) -> int:
        return self._requests

    @property
    def replies(self) -> int:
        return self._replies

    def usable(self) -> bool:
        """Whether the idle process may be given a request: it runs, sends nothing unasked for, and has not served enough."""
        if not self._served:
            return True  # what is wrong with a new one shows with its first request
        return self._served < _REQUESTS_OF_A_LIFE and not _ready([(self._replies, select.POLLIN)], 0)

    def begin(self, task: int, request: Request | _Search) -> None:
        self.idle, self.task, self.request = False, task, request
        self.nonce = secrets.token_hex(16)
        self.deadline = time.monotonic() + self._seconds + _PATIENCE
        self._unsent = memoryview(encode([self.nonce, *request]))
        self.send()

    def send(self) -> None:
        """Send of the request what the pipe takes."""
        try:
            self._unsent = self._unsent[os.write(self._requests, self._unsent) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:  # it died just now, and the end of its replies says so
            self._unsent = memoryview(b"")

    def receive(self) -> bytearray | None:
        """Return the message that the process sent; none while it is incomplete.

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
        """Be idle after a whole message."""
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
    """Send to and wait for workers until one sent something or is out of time, and return those that sent."""
    channels = [(worker.replies, select.POLLIN) for worker in workers]
    channels += [(worker.requests, select.POLLOUT) for worker in workers if worker.unsent]
    latest = min(worker.deadline for worker in workers)
    ready = _ready(channels, max(0.0, latest - time.monotonic()))
    for worker in workers:
        if worker.unsent and worker.requests in ready:
            worker.send()
    return [worker for worker in workers if worker.replies in ready]


def _ready(channels: Sequence[tuple[int, int]], seconds: float) -> set[int]:
    """Wait for descriptors, and return those that something can be done with or that are closed at the other end."""
    poll = select.poll()
    for descriptor, events in channels:
        poll.register(descriptor, events)
    # In whole milliseconds, of which the last one has passed too.
    return {descriptor for descriptor, _ in poll.poll(int(seconds * 1000) + bool(seconds))}


def _decode(message: bytes | bytearray) -> Any:
    try:
        return json.loads(message)
    except (ValueError, RecursionError):
        raise ValueError("the grading worker sent something that is no reply") from None


def _missing_walls(message: object) -> list[str]:
    """Check the first message of a worker, which has read no answer yet."""
    if not isinstance(message, list) or not all(isinstance(line, str) for line in message):
        raise ValueError("the grading worker sent something that is no list of walls")
    return message


def _response(message: object, nonce: str, request: Request | _Search) -> Response | Found:
    """Check a reply.

    Raises:
        ValueError: It is none, or none to this request.
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
    """Say once that a wall is missing here."""
    print(f"grading: {missing}; the other walls around the grader stand", file=sys.stderr, flush=True)


def _environment() -> dict[str, str]:
    """Return all that a worker needs to know: where modules are, as for this process, and how to order by hashes."""
    package = str(Path(__file__).parents[2])
    # sympy orders terms by their hashes here and there: the same answer gets the same verdict in every run.
    return {
        "PYTHONPATH": os.pathsep.join([os.path.abspath(entry) for entry in sys.path if entry] + [package]),
        "PYTHONHASHSEED": "0",
    }
