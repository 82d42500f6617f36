"""Retry requests to an S3 service for minutes if the fault may be temporary.

If a service has responded before, requests are retried for five minutes while it cannot be reached: days of training must not be lost
because a server was restarted. If the first request fails, that is reported at once, because the address may be wrong.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ngrpo.errors import StoreError
from ngrpo.storage.service_faults import (
    FAULTS,
    GarbledError,
    NoSuchObjectError,
    OutOfReachError,
    UnreadableError,
    endpoint,
)

T = TypeVar("T")

PATIENCE = 300.0
"""Seconds to retry while a service cannot be reached."""
_PATIENCE_WITH_OBJECT = 60.0
"""Seconds to retry an object that cannot be read while the service responds: it may be damaged on the service's disk."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 15.0
_GARBLED_TRIES = 3
_reached: set[str] = set()
"""Endpoints that have responded to this process."""


@dataclass
class _Tries:
    """State of one request's retries: start of the failures, start of the last try, next wait in seconds, number of tries."""

    since: float | None = None
    began: float = 0.0
    wait: float = _FIRST_WAIT
    count: int = 0


class PatientSender:
    """Sends the requests of one store with retries; thread-safe."""

    def __init__(self, store: str, answers: Callable[[], bool], *, seconds: float, proven: bool):
        """Store the arguments; nothing is sent.

        Args:
            store: Address of the store, for messages.
            answers: Returns whether the service responds now.
            seconds: Seconds to retry while the service cannot be reached.
            proven: Whether the parent process has reached the service; if so, even the first request is retried.
        """
        self._store = store
        self._answers = answers
        self._seconds = seconds
        self._endpoint = endpoint()
        self._interrupted = threading.Event()
        self._said = False
        self.accepted = False
        """Whether the service has accepted a request of this store."""
        if proven:
            _reached.add(self._endpoint)

    def interrupt(self) -> None:
        """Stop the retries of other threads, whose requests then fail, because the process is ending."""
        self._interrupted.set()

    def pause(self, seconds: float) -> None:
        """Pause before an object is checked again.

        Raises:
            StoreError: The process is ending.
        """
        if self._interrupted.wait(seconds):
            raise StoreError(f"object store {self._store}: interrupted")

    def send(self, work: Callable[[], T], fault_of: Callable[[Exception], StoreError]) -> T:
        """Send a request and retry it after temporary faults.

        Args:
            work: Sends the request; it can be called many times.
            fault_of: Converts an error of boto3.

        Raises:
            OutOfReachError: The service could not be reached with any retry, or with the first request.
            NoSuchObjectError: The object does not exist.
            UnreadableError: The object could not be read for a minute although the service responded.
            StoreError: The service refuses the request.
        """
        tries = _Tries()
        while True:
            tries.began = time.monotonic()
            tries.count += 1
            try:
                result = work()
            except FAULTS as error:
                fault = fault_of(error)
                if not self._goes_on(fault, tries):
                    raise fault from error
            else:
                _reached.add(self._endpoint)
                self.accepted = True
                if self._said and tries.since is not None:
                    self._said = False
                    print(f"object store {self._store}: it responds again", file=sys.stderr, flush=True)
                return result

    def _goes_on(self, fault: StoreError, tries: _Tries) -> bool:
        """Wait for the next try; returns False if there should be none."""
        if self._endpoint not in _reached or isinstance(fault, NoSuchObjectError):
            return False
        if not isinstance(fault, OutOfReachError | UnreadableError):
            return False
        if isinstance(fault, GarbledError) and tries.count >= _GARBLED_TRIES:
            return False
        now = time.monotonic()
        if now - tries.began > PATIENCE:
            tries.since, tries.wait = (
                now,
                _FIRST_WAIT,
            )  # a try that took this long made progress, so start counting again
        elif tries.since is None:
            tries.since = tries.began
        left = tries.since + self._seconds - now
        if left <= 0:
            return False
        if isinstance(fault, UnreadableError) and now - tries.since > _PATIENCE_WITH_OBJECT and self._answers():
            return False
        if not self._said:
            self._said = True
            what = str(fault).partition("; ")[0]
            print(f"{what}; trying again for up to {self._seconds:.0f} seconds", file=sys.stderr, flush=True)
        if self._interrupted.wait(min(left, random.uniform(0.5, 1.5) * tries.wait)):
            return False
        tries.wait = min(2 * tries.wait, _LONGEST_WAIT)
        return True
