"""A lock between machines: an object that one process at a time may change, and that others take over after a crash.

The object contains a small state and the holder. Every change is a conditional write, which succeeds only if the object is still the one
that this process last read or wrote. Clocks of different machines are never compared. A waiting process takes over once it has seen the
same write for the whole duration of the lease, by its own clock. The holder counts the lease from before it sent that write, so it stops
before anyone can take over. The clock cannot be set, and continues while a machine sleeps.

The object is validated when it is read: nobody can take a damaged lock.
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
from typing_extensions import TypedDict  # pydantic does not support `typing.TypedDict` before Python 3.12

from ngrpo.errors import StoreError
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.state import parse_state

S = TypeVar("S", bound=Mapping[str, Any])

_PAUSE = (0.05, 0.2)
"""Shortest and longest pause before a held lock is read again, in seconds."""


class _Holder(TypedDict):
    name: str
    seconds: Annotated[float, Field(gt=0, le=86400)]


class _Document(TypedDict, Generic[S]):
    state: S
    holder: _Holder | None
    write: str


@dataclass(frozen=True)
class Content(Generic[S]):
    """Type of a lock's state.

    Attributes:
        expected: Type of the state, for `parse_state`.
        initial: Returns the initial state, for the holder that creates the object.
        cure: What to do about damage, for the error.
    """

    expected: type[S]
    initial: Callable[[], S]
    cure: str


ANYTHING: Content[Any] = Content(dict[str, Any], dict, "delete it once no process uses it")
"""Any JSON object; initially empty."""


class LeaseLostError(StoreError):
    """The lease has expired: another process has the lock, or may take it at any moment."""


class Lease(Generic[S]):
    """The lock while this process holds it (see `hold`).

    Attributes:
        state: The state in the object.
    """

    state: S

    def __init__(self, objects: ObjectStore, key: str, seconds: float, content: Content[S] = ANYTHING):
        """Store the arguments (see `hold`); nothing is read."""
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
        """Check that the lease has not expired; call this before every action that relies on the lock.

        Raises:
            LeaseLostError: The lease has expired.
        """
        if _now() >= self._until:
            raise LeaseLostError(self._lost())

    def acquire(self, patience: float) -> None:
        """Wait for the lock and take it (see `hold`).

        Raises:
            DamagedStateError: The object is damaged.
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
                    f"{self._objects.uri}/{self._key}: {who} this lock, after {patience:.0f} seconds of waiting; wait until it ends, or "
                    "stop it"
                )
            time.sleep(random.uniform(*_PAUSE))

    def release(self) -> None:
        """Release the lock and keep the state; a no-op if another process took it over."""
        self._swap(self.state, None)

    def _parse(self, data: bytes) -> _Document[S]:
        document: type[_Document[S]] = _Document[self._content.expected]  # type: ignore[name-defined]
        return parse_state(data, document, where=f"{self._objects.uri}/{self._key}", cure=self._content.cure)

    def _swap(self, state: S, holder: Mapping[str, Any] | None) -> bool:
        # The random id makes every write unique, because an ETag can be the hash of the content.
        document = json.dumps({"state": state, "holder": holder, "write": uuid.uuid4().hex}).encode()
        etag = self._objects.swap(document, self._key, self._etag)
        if etag is None:
            # If the response to a successful write was lost, the retry is refused because of the first write.
            found = self._objects.get_tagged(self._key)
            if found is None or found[0] != document:
                return False
            etag = found[1]
        self._etag, self.state = etag, state
        return True

    def _lost(self) -> str:
        return (
            f"{self._objects.uri}/{self._key}: this process was too slow and lost the lock after {self._seconds:.0f} seconds; only what "
            "it had decided before counts: run it again"
        )


def _now() -> float:
    """Return the seconds of a monotonic clock; if the system has one, a clock that continues during sleep."""
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
        objects: Object store of the lock.
        key: Key of the lock's object; the first holder creates it.
        content: Type of the state.
        seconds: Duration of the lease after each write of the state. A killed process blocks others for this long.
        patience: Seconds to wait while other processes hold the lock.

    Raises:
        DamagedStateError: The lock is damaged; it is not changed.
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
            error.add_note(f"its lock expires by itself: {failure}")
        raise
    lease.release()
