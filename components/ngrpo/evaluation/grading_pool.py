"""Isolated processes that run math-verify: started when first needed, ended when one request takes too long, then replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import wait

from ngrpo.evaluation import grading_worker

Request = tuple[str, str | None]
Response = tuple[bool, str | None]

_PATIENCE = 60.0
"""Seconds beyond the limit of a request after which a silent worker is killed from here: it is stopped, or cannot start."""


class MathVerifyPool:
    """Processes that answer the requests of `ngrpo.evaluation.grading_worker`.

    A worker is a new interpreter and not a fork, so it holds neither the parent's memory nor its threads, locks or devices, and
    it runs the worker's file alone: whatever program the parent is, it is not imported a second time. Calls from any thread are
    welcome; they are served one after the other. Workers end with the pool, or with the parent however that ends.
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

    def run(self, requests: Sequence[Request]) -> list[Response]:
        """Answer requests, in their order.

        Raises:
            RuntimeError: A worker does not start.
        """
        with self._lock:
            try:
                return self._run(requests)
            except BaseException:
                self._close()  # a request left in a worker would answer the next call
                raise

    def close(self) -> None:
        """End the workers. The pool can be used again and then starts new ones."""
        with self._lock:
            self._close()

    def _run(self, requests: Sequence[Request]) -> list[Response]:
        responses: dict[int, Response] = {}
        waiting = deque(range(len(requests)))
        self._workers = [worker for worker in self._workers if worker.alive()]
        while len(responses) < len(requests):
            unanswered = len(requests) - len(responses)
            while len(self._workers) < min(self._size, unanswered):
                self._workers.append(_Worker(self._seconds))
            for worker in self._workers:
                if worker.loaded and worker.task is None and waiting:
                    worker.begin(waiting.popleft(), requests)
            active = [worker for worker in self._workers if worker.task is not None or not worker.loaded]
            heard = wait([worker.connection for worker in active], timeout=self._seconds + _PATIENCE)
            for worker in active:
                if not heard:
                    worker.process.kill()
                elif worker.connection in heard:
                    self._hear(worker, responses)
        return [responses[index] for index in range(len(requests))]

    def _hear(self, worker: _Worker, responses: dict[int, Response]) -> None:
        try:
            response = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self._workers.remove(worker)
            status = worker.end()
            if worker.task is None:
                raise RuntimeError(f"a grading worker ended with status {status} before it was ready") from None
            late = status == -signal.SIGALRM
            error = (
                f"no verdict within {self._seconds:g} s" if late else f"the grading worker died with status {status}"
            )
            responses[worker.task] = (False, error)
            return
        if worker.task is None:
            worker.loaded = True
        else:
            responses[worker.task], worker.task = response, None

    def _close(self) -> None:
        while self._workers:
            self._workers.pop().end()


class _Worker:
    """One process and what it is doing."""

    def __init__(self, seconds: float):
        self.connection, theirs = Pipe()
        with theirs:
            arguments = [grading_worker.__file__, str(theirs.fileno()), str(seconds)]
            self.process = subprocess.Popen(
                # -P: the folder of the worker's file holds modules named like the standard library's.
                [sys.executable, "-P", *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # sympy orders terms by their hashes here and there: the same answer gets the same verdict in every run.
                env=os.environ | {"PYTHONHASHSEED": "0"},
            )
        self.loaded = False
        self.task: int | None = None

    def alive(self) -> bool:
        """Whether the process still runs; what is left of one that does not is cleared away."""
        if self.process.poll() is None:
            return True
        self.end()
        return False

    def begin(self, task: int, requests: Sequence[Request]) -> None:
        self.task = task
        with suppress(BrokenPipeError):  # it died just now, and the end of the connection says so
            self.connection.send(requests[task])

    def end(self) -> int:
        """Kill the process if it still runs, and return its exit status."""
        self.connection.close()
        self.process.kill()
        return self.process.wait()
