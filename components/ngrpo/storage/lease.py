"""A lock that also works between machines: one object that one process at a time may change, taken over after a crash.

The object holds a small state and who holds it. Every change is a conditional write: it succeeds only if the object is still the
one that this process read or wrote last. No two clocks are ever compared, so clocks that differ do no harm: a process that waits
takes over once it has seen the same write for as long as the holder asked for, by its own clock; and the holder counts, by
its own clock, from before that write was sent, so it stops earlier than anyone may take over.
"""

from __future__ import annotations

import json
import os
import random
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ngrpo.errors import StoreError
from ngrpo.storage.objects import ObjectStore

_PAUSE = (0.05, 0.2)
"""Shortest and longest time between two looks at a lock that another process holds, in seconds."""


class LeaseLostError(StoreError):
    """The lock was held for too long: another process has it, or may have it at any moment."""


class Lease:
    """The lock while this process holds it (see `hold`).

    Attributes:
        state: What the object holds besides its holder.
    """

    def __init__(self, objects: ObjectStore, key: str, seconds: float):
        """Prepare to take the lock at `key`; nothing is read yet."""
        self.state: dict[str, Any] = {}
        self._objects = objects
        self._key = key
        self._seconds = seconds
        self._etag: str | None = None
        self._until = 0.0

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace the state; from now on the lock is held for its whole time again.

        Raises:
            LeaseLostError: Another process has taken over; the state is as that process wants it.
        """
        holder = {"name": f"{socket.gethostname()}:{os.getpid()}", "seconds": self._seconds}
        began = time.monotonic()
        if not self._swap(state, holder):
            raise LeaseLostError(self._lost())
        self._until = began + self._seconds

    def require(self) -> None:
        """Make sure that nobody can have taken over yet; to be called before whatever relies on the lock.

        Raises:
            LeaseLostError: The lock was held for longer than its time.
        """
        if time.monotonic() >= self._until:
            raise LeaseLostError(self._lost())

    def acquire(self, patience: float) -> None:
        """Wait for the lock and take it (see `hold`)."""
        began = time.monotonic()
        seen: str | None = None
        since = began
        while True:
            found = self._objects.get_tagged(self._key)
            document = {"state": {}, "holder": None} if found is None else json.loads(found[0])
            self._etag = None if found is None else found[1]
            if self._etag != seen:
                seen, since = self._etag, time.monotonic()
            holder = document["holder"]
            if holder is None or time.monotonic() - since >= holder["seconds"]:
                try:
                    self.write(document["state"])
                except LeaseLostError:
                    pass  # another process that waited was faster
                else:
                    return
            if time.monotonic() - began > patience:
                who = "other processes take turns with" if holder is None else f"{holder['name']} holds"
                raise StoreError(
                    f"{self._objects.uri}/{self._key}: {who} this lock, after {patience:.0f} seconds of waiting; wait for it to end, or "
                    "end it"
                )
            time.sleep(random.uniform(*_PAUSE))

    def release(self) -> None:
        """Give the lock back; the state stays. Where another process has taken over there is nothing to give."""
        self._swap(self.state, None)

    def _swap(self, state: Mapping[str, Any], holder: Mapping[str, Any] | None) -> bool:
        # The random name makes every write another one: an ETag may be the hash of the content.
        document = json.dumps({"state": state, "holder": holder, "write": uuid.uuid4().hex}).encode()
        etag = self._objects.swap(document, self._key, self._etag)
        if etag is None:
            # Perhaps it was written and the answer was lost; then the request that was sent again met its own result.
            found = self._objects.get_tagged(self._key)
            if found is None or found[0] != document:
                return False
            etag = found[1]
        self._etag, self.state = etag, dict(state)
        return True

    def _lost(self) -> str:
        return (
            f"{self._objects.uri}/{self._key}: this process was too slow and lost the lock after {self._seconds:.0f} seconds; what it "
            "had decided by then counts, nothing else: run it again"
        )


@contextmanager
def hold(objects: ObjectStore, key: str, *, seconds: float = 60.0, patience: float = 600.0) -> Iterator[Lease]:
    """Hold a lock while the context is open.

    Args:
        objects: Where the lock is.
        key: Its key; the object is made by its first holder.
        seconds: How long the lock is held after each write of its state. A process that is killed keeps others out for as long.
        patience: Seconds to wait for another process.

    Raises:
        StoreError: Another process holds it for longer than `patience`, or the store cannot be reached.
    """
    lease = Lease(objects, key, seconds)
    lease.acquire(patience)
    try:
        yield lease
    except BaseException as error:
        try:
            lease.release()
        except StoreError as failure:
            error.add_note(f"its lock ends by itself: {failure}")
        raise
    lease.release()
