"""Requests to an S3 service are sent again, for minutes, where they meet a fault that may pass.

A service that has answered once is waited for when it is out of reach, for five minutes: a training of days must not end because
a server was restarted. A first contact that fails is reported at once, for then the address may be wrong.
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
"""Seconds to try again while a service is out of reach."""
_PATIENCE_WITH_OBJECT = 60.0
"""Seconds for an object that cannot be read while the service answers: perhaps it has decayed on the service's disk."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 15.0
_GARBLED_TRIES = 3
_reached: set[str] = set()
"""Endpoints that have answered this process."""


@dataclass
class _Tries:
    """The tries of one request: when they began to fail, when the last one began, how long to wait, how many there were."""

    since: float | None = None
    began: float = 0.0
    wait: float = _FIRST_WAIT
    count: int = 0


class PatientSender:
    """Sends the requests of one store; threads may share it."""

    def __init__(self, store: str, answers: Callable[[], bool], *, seconds: float, proven: bool):
        """Send nothing yet.

        Args:
            store: Address of the store, for what is said.
            answers: Whether the service answers at this moment.
            seconds: How long to try again while the service is out of reach.
            proven: Whether the process that started this one has reached the service: then it is waited for from the beginning.
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
        """End the waiting of other threads, whose requests then fail: this process is to end."""
        self._interrupted.set()

    def pause(self, seconds: float) -> None:
        """Let time pass before an object is looked at again.

        Raises:
            StoreError: This process is to end.
        """
        if self._interrupted.wait(seconds):
            raise StoreError(f"object store {self._store}: interrupted")

    def send(self, work: Callable[[], T], fault_of: Callable[[Exception], StoreError]) -> T:
        """Send a request, again where it meets a fault that may pass.

        Args:
            work: Sends it. It may be called many times.
            fault_of: Says what an error of boto3 means.

        Raises:
            OutOfReachError: The service was out of reach for all the time of patience, or at first contact.
            NoSuchObjectError: There is no such object.
            UnreadableError: The object could not be read for a minute, while the service did answer.
            StoreError: The service refuses.
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
                    print(f"object store {self._store}: it answers again", file=sys.stderr, flush=True)
                return result

    def _goes_on(self, fault: StoreError, tries: _Tries) -> bool:
        """Wait for the next try; false where there is to be none."""
        if self._endpoint not in _reached or isinstance(fault, NoSuchObjectError):
            return False
        if not isinstance(fault, OutOfReachError | UnreadableError):
            return False
        if isinstance(fault, GarbledError) and tries.count >= _GARBLED_TRIES:
            return False
        now = time.monotonic()
        if now - tries.began > PATIENCE:
            tries.since, tries.wait = now, _FIRST_WAIT  # what went on for so long was getting somewhere
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
