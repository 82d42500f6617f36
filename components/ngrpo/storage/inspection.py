"""Look up artifacts in the store and check them for damage.

A failed read does not prove damage. A problem is checked again after a pause, and counts as damage only if it is the same each time while
the service works. If the state of an artifact remains unknown, that is an error.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from ngrpo.errors import StoreError
from ngrpo.storage.manifest import MANIFEST, SUSPECT, FileEntry, Manifest
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.service_faults import NoSuchObjectError, UnreadableError
from ngrpo.storage.state import DamagedStateError

T = TypeVar("T")

_READ_TO_VERIFY = 256 << 20
_TRANSFERS = 2
WAITS = (1.0, 2.0, 3.0)
"""Seconds to wait before each further check of a file that seems to be damaged."""


@dataclass(frozen=True)
class Found:
    """The manifest at a place, as it was read.

    Attributes:
        data: Its bytes.
        etag: Its ETag.
        manifest: The parsed manifest; None if it is damaged.
        problem: What is wrong with it; empty if it is intact.
    """

    data: bytes
    etag: str
    manifest: Manifest | None
    problem: str = ""

    @property
    def digest(self) -> str:
        """The sha256 of the manifest, as in a `Reference`."""
        return hashlib.sha256(self.data).hexdigest()

    def is_of(self, manifest: Manifest) -> bool:
        """Whether it describes the same result, regardless of the folder of the files."""
        return self.manifest is not None and replace(manifest, folder=self.manifest.folder) == self.manifest


@dataclass(frozen=True)
class _Problem:
    """A problem found by one check of an object.

    Attributes:
        says: What is wrong, for messages.
        seen: The observation. If it differs between checks, the state of the object is unknown.
        final: Whether the check already included many retries over time.
    """

    says: str
    seen: str
    final: bool = False


class Inspection:
    """Looks up and checks the artifacts of a store."""

    def __init__(self, objects: ObjectStore, waits: Sequence[float] | None = None):
        """Store the arguments; nothing is read.

        Args:
            objects: Object store with the artifacts.
            waits: Seconds to wait before each further check of a file that seems to be damaged; by default `WAITS`.
        """
        self._objects = objects
        self.waits = tuple(WAITS if waits is None else waits)

    def look_up(self, place: str) -> Found | None:
        """Read the manifest at a place. If it seems damaged, or is listed but missing, read it again after a pause.

        Returns:
            The manifest, possibly damaged, or None if there is none.

        Raises:
            StoreError: The service cannot be used, or answers differently each time.
        """
        where = f"{place}/{MANIFEST}"
        looks: list[Found | None] = []
        for wait in (0.0, *self.waits):
            self._objects.pause(wait)
            tagged = self._objects.get_tagged(where)
            if tagged is None and where not in self._objects.list(where):
                return None
            looks.append(None if tagged is None else self._parsed(place, *tagged))
            last = looks[-1]
            if last is not None and last.manifest is not None:
                return last
            if wait == 0.0:
                self.say(place, MANIFEST, "listed but not there" if last is None else last.problem)
        last = looks[-1]
        if last is None or len({None if look is None else look.data for look in looks}) > 1:
            raise StoreError(self.unknown(place, MANIFEST, len(looks)))
        self._objects.check()  # the result means nothing if the service does not work
        return last

    def _parsed(self, place: str, data: bytes, etag: str) -> Found:
        where = f"{self._objects.uri}/{place}/{MANIFEST}"
        try:
            manifest = Manifest.from_bytes(data, where)
        except DamagedStateError as error:
            problem = str(error).removeprefix(f"{where}: damaged: ").rpartition("; ")[0]
            return Found(data, etag, None, problem)
        if f"{manifest.stage}/{manifest.key}" != place:
            return Found(data, etag, None, f"it belongs to {manifest.stage}/{manifest.key}")
        return Found(data, etag, manifest)

    def problems(self, place: str, found: Found) -> list[str]:
        """Return what is wrong with an artifact, like `ArtifactStore.verify`. If it is intact, its suspicion marker is deleted."""
        manifest = found.manifest
        if manifest is None:
            return [f"its manifest is damaged: {found.problem}"]
        suspect = self._objects.get_bytes(f"{place}/{SUSPECT}") is not None
        read = suspect or manifest.size <= _READ_TO_VERIFY
        files = manifest.files

        def look(name: str) -> _Problem | None:
            return self._problem(f"{place}/{manifest.object_name(name)}", files[name], read)

        seen: dict[str, list[_Problem]] = {name: [] for name in files}
        suspects = list(files)
        for wait in (0.0, *self.waits):
            self._objects.pause(wait)
            looks = dict(zip(suspects, side_by_side(self._objects, look, suspects), strict=True))
            found_wrong = {name: problem for name, problem in looks.items() if problem is not None}
            for name, problem in found_wrong.items():
                if not seen[name]:
                    self.say(place, name, problem.says)
                seen[name].append(problem)
            sound = {name for name, problem in looks.items() if problem is None}
            seen = {name: problems for name, problems in seen.items() if name not in sound}
            suspects = [name for name, problem in found_wrong.items() if not problem.final]
            if not suspects:
                break
        if seen:
            self._require_health(place, found)
        elif suspect:
            self._objects.delete(f"{place}/{SUSPECT}")
        for name, problems in seen.items():
            if len({problem.seen for problem in problems}) > 1:
                raise StoreError(self.unknown(place, name, len(problems)))
        return [f"{name}: {problems[-1].says}" for name, problems in seen.items()]

    def _problem(self, key: str, entry: FileEntry, read: bool) -> _Problem | None:
        """Check an object. Its content is read if `read` is set or if its metadata has no sha256."""
        try:
            head = self._objects.head(key)
            if head is None:
                return _Problem("missing", "missing")
            if head.size != entry.size:
                return _Problem(f"{head.size} bytes instead of {entry.size}", f"{head.size}")
            stored = head.metadata.get("sha256")
            if stored is not None and stored != entry.sha256:
                return _Problem("its content was changed", stored)
            if stored is not None and not read:
                return None
            content = self._objects.sha256(key)
        except UnreadableError as error:
            return _Problem(str(error), str(error), final=not isinstance(error, NoSuchObjectError))
        return None if content == entry.sha256 else _Problem("its content was changed", content)

    def _require_health(self, place: str, found: Found) -> None:
        """Before reporting damage, check that the service works and still returns the same manifest.

        Raises:
            StoreError: The service does not work, or the manifest was replaced.
        """
        self._objects.check()
        now = self.look_up(place)
        if now is None or now.data != found.data:
            raise StoreError(f"artifact {self._objects.uri}/{place}/: was replaced while it was read; run again")

    def say(self, place: str, name: str, problem: str) -> None:
        """Log that a file seems to be damaged and will be checked again."""
        print(f"artifact {self._objects.uri}/{place}/: {name}: {problem}; checking again", file=sys.stderr, flush=True)

    def unknown(self, place: str, name: str, looks: int) -> str:
        """Return the error message for a file whose content differed between reads."""
        return (
            f"artifact {self._objects.uri}/{place}/: {name}: its content differed between {looks} reads, so its state is unknown; "
            "check network and memory, and run again"
        )


def side_by_side(objects: ObjectStore, work: Callable[[str], T], names: Iterable[str]) -> list[T]:
    """Process several files in parallel threads. The first error is raised, and work that has not begun is cancelled."""
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        try:
            return list(pool.map(work, names))
        except BaseException as error:
            if not isinstance(error, Exception):
                objects.interrupt()  # threads may be waiting for the service
            pool.shutdown(wait=False, cancel_futures=True)
            raise
