"""A lock that also works between machines: one object that one process at a time may change, taken over after a crash.

The object holds a small state and who holds it. Every change is a conditional write: it succeeds only if the object is still the
one that this process read or wrote last. No two clocks are ever compared, so clocks that differ do no harm: a process that waits
takes over once it has seen the same write for the holder's whole lease, by its own clock; and the holder counts, by
its own clock, from before that write was sent, so it stops earlier than anyone may take over. That clock is one that nobody can set, and
it goes on while a machine sleeps.

The object is checked when it is read: a damaged lock has no holder, and nobody can take it.
"""

from __future__ import annotations

import json
import os
import random
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from pydantic import Field
from typing_extensions import TypedDict  # pydantic refuses the one of `typing` before Python 3.12

from ngrpo.errors import StoreError
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.state import parse_state

S = TypeVar("S", bound=Mapping[str, Any])

_PAUSE = (0.05, 0.2)
"""Shortest and longest time between two looks at a lock that another process holds, in seconds."""


class _Holder(TypedDict):
    name: str
    seconds: Annotated[float, Field(gt=0, le=86400)]


class _Document(TypedDict, Generic[S]):
    state: S
    holder: _Holder | None
    write: str


@dataclass(frozen=True)
class Content(Generic[S]):
    """Content of a lock's object, besides its holder.

    Attributes:
        expected: Type of the state, for `parse_state`.
        initial: Returns the state with which its first holder creates the object.
        cure: What to do about damage, for the error.
    """

    expected: type[S]
    initial: Callable[[], S]
    cure: str


ANYTHING: Content[Any] = Content(dict[str, Any], dict, "delete it once no process uses it")
"""Any object of JSON, empty at first."""


class LeaseLostError(StoreError):
    """The lease has run out: another process has the lock, or may take it at any moment."""


class Lease(Generic[S]):
    """The lock while this process holds it (see `hold`).

    Attributes:
        state: Content of the object, besides its holder.
    """

    state: S

    def __init__(self, objects: ObjectStore, key: str, seconds: float, content: Content[S] = ANYTHING):
        """Prepare to take the lock at `key`; nothing is read yet."""
        self._content = content
        self._objects = objects
        self._key = key
        self._seconds = seconds
        self._etag: str | None = None
        self._until = 0.0

    def write(self, state: S) -> None:
        """Replace the state; this renews the lease.

        Raises:
            LeaseLostError: Another process has taken over; its state is kept.
        """
        holder = {"name": f"{socket.gethostname()}:{os.getpid()}", "seconds": self._seconds}
        began = _now()
        if not self._swap(state, holder):
            raise LeaseLostError(self._lost())
        self._until = began + self._seconds

    def require(self) -> None:
        """Make sure that nobody can have taken over yet; call it before anything that relies on the lock.

        Raises:
            LeaseLostError: The lease has run out.
        """
        if _now() >= self._until:
            raise LeaseLostError(self._lost())

    def acquire(self, patience: float) -> None:
        """Wait for the lock and take it (see `hold`).

        Raises:
            DamagedStateError: The object is not what was written.
            StoreError: Another process holds the lock for longer than `patience`, or the store cannot be reached.
        """
        began = _now()
        seen: str | None = None
        since = began
        while True:
            found = self._objects.get_tagged(self._key)
            document = None if found is None else self._parse(found[0])
            self._etag = None if found is None else found[1]
            if self._etag != seen:
                seen, since = self._etag, _now()
            holder = None if document is None else document["holder"]
            if holder is None or _now() - since >= holder["seconds"]:
                try:
                    self.write(self._content.initial() if document is None else document["state"])
                except LeaseLostError:
                    pass  # another waiting process was faster
                else:
                    return
            if _now() - began > patience:
                who = "other processes take turns with" if holder is None else f"{holder['name']} holds"
                raise StoreError(
                    f"{self._objects.uri}/{self._key}: {who} this lock, after {patience:.0f} seconds of waiting; wait for it to end, or "
                    "end it"
                )
            time.sleep(random.uniform(*_PAUSE))

    def release(self) -> None:
        """Release the lock, the state stays; a no-op if another process took it over."""
        self._swap(self.state, None)

    def _parse(self, data: bytes) -> _Document[S]:
        document: type[_Document[S]] = _Document[self._content.expected]  # type: ignore[name-defined]
        return parse_state(data, document, where=f"{self._objects.uri}/{self._key}", cure=self._content.cure)

    def _swap(self, state: S, holder: Mapping[str, Any] | None) -> bool:
        # The random name makes every write unique, because an ETag may be the hash of the content.
        document = json.dumps({"state": state, "holder": holder, "write": uuid.uuid4().hex}).encode()
        etag = self._objects.swap(document, self._key, self._etag)
        if etag is None:
            # The write may have succeeded with its answer lost; the repeated request was then refused because of the first.
            found = self._objects.get_tagged(self._key)
            if found is None or found[0] != document:
                return False
            etag = found[1]
        self._etag, self.state = etag, state
        return True

    def _lost(self) -> str:
        return (
            f"{self._objects.uri}/{self._key}: this process was too slow and lost the lock after {self._seconds:.0f} seconds; what it "
            "had decided by then counts, nothing else: run it again"
        )


def _now() -> float:
    """Return seconds of a clock that nobody can set and, where the system has one, that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@contextmanager
def hold(
    objects: ObjectStore,
    key: str,
    content: Content[S] = ANYTHING,
    *,
    seconds: float = 60.0,
    patience: float = 600.0,
) -> Iterator[Lease[S]]:
    """Hold a lock while the context is open.

    Args:
        objects: Where the lock is.
        key: Its key; the object is made by its first holder.
        content: What it holds.
        seconds: Length of the lease after each write of the state. A killed process blocks others for this long.
        patience: Seconds to wait for another process.

    Raises:
        DamagedStateError: The lock is damaged; it is left unchanged.
        StoreError: Another process holds it for longer than `patience`, or the store cannot be reached.
    """
    lease = Lease(objects, key, seconds, content)
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
