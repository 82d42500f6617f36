"""Checkpoints of a stage in object storage, so that a stage whose machine is gone goes on elsewhere.

A checkpoint is an artifact like any other (see `ngrpo.storage.artifacts`): it is whole once its manifest is there, and all that is
read of it is hashed. Each has a place of its own, `<store>/checkpoints/<stage>/<key>/<step>-<random>/`: a process that was given up
and still runs somewhere can write over nothing.
"""

from __future__ import annotations

import math
import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from ngrpo.errors import StoreError
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.disk import disk_trouble
from ngrpo.storage.manifest import MANIFEST, SUSPECT, Reference
from ngrpo.storage.objects import ObjectStore

_NAME = re.compile(r"\d{9}-[0-9a-f]+")


class CheckpointStore:
    """The checkpoints of one stage and key."""

    def __init__(self, objects: ObjectStore, place: str, downloads: Path, *, waits: Sequence[float] | None = None):
        """Use a place in a store.

        Args:
            objects: The store.
            place: Where below it the checkpoints are.
            downloads: Directory for a download until it is whole, on the file system that checkpoints are restored to.
            waits: See `ArtifactStore`.
        """
        self.place = place
        self._objects = objects
        self._downloads = downloads
        self._artifacts = ArtifactStore(objects, downloads, waits=waits)

    @classmethod
    def open(cls, store: str | None, place: str | None, downloads: Path) -> CheckpointStore | None:
        """Return the checkpoints at a place below a store; none where there is no store or no place. See `__init__`."""
        return None if store is None or place is None else cls(ObjectStore(store, proven=True), place, downloads)

    def put(self, step: int, directory: Path, *, keep: int, best: int | None) -> None:
        """Upload a checkpoint; once it is whole, delete all but the newest and the best.

        Damaged ones go too, and what was left half uploaded, if it is older than all that is kept: what is newer may be the upload of a
        process that still runs elsewhere.

        Args:
            step: Steps made before it.
            directory: The checkpoint; it must not change meanwhile.
            keep: Newest whole checkpoints that are kept, this one included.
            best: Steps made before a checkpoint that is kept too.

        Raises:
            StoreError: The service cannot be used; what was there before is still there.
        """
        name = f"{step:09d}-{uuid.uuid4().hex[:8]}"
        # Settings, source and inputs are in the key, which is in the place.
        self._artifacts.publish(self.place, name, directory, config_digest="", code_version="", inputs={})
        whole, partial, damaged = self._names()
        oldest = min(map(_step, whole[:keep]))
        outdated = [name for name in whole[keep:] if _step(name) != best]
        self._discard(outdated + [name for name in partial if _step(name) < oldest] + damaged)

    def restore(self, directory: Path, *, after: int, until: float = math.inf) -> None:
        """Download the newest checkpoint that is sound to `directory/checkpoint-<step>`, if there is one.

        A damaged one is passed over for the one before it. It stays until a newer one is whole.

        Args:
            directory: Where checkpoints are on this machine.
            after: Newest step that is there: an older checkpoint is not wanted.
            until: Nor is a newer one than of this step.

        Raises:
            StoreError: The service cannot be used, or the disk is full.
        """
        whole, _, suspects = self._names()
        for name in sorted(whole + suspects, reverse=True):
            step = _step(name)
            if step > until:
                continue
            if step <= after:
                break
            reference = self._artifacts.find(self.place, name)
            if reference is None:
                continue
            try:
                fetched = self._artifacts.fetch(reference)
            except StoreError:
                problems = self._artifacts.verify(reference)
                if not problems:
                    raise
                print(f"checkpoint of step {step}: damaged in object storage ({problems[0]}), not used", flush=True)
                self._objects.put_bytes(problems[0].encode(), f"{self.place}/{name}/{SUSPECT}")
                continue
            target = directory / f"checkpoint-{step}"
            try:
                shutil.rmtree(target, ignore_errors=True)  # left by a save that was killed
                directory.mkdir(parents=True, exist_ok=True)
                (fetched / MANIFEST).unlink()
                fetched.rename(target)
            except OSError as error:
                raise StoreError(f"{target}: cannot be written ({disk_trouble(error, directory)})") from error
            break
        shutil.rmtree(self._downloads, ignore_errors=True)

    def clear(self) -> None:
        """Delete every checkpoint."""
        self._discard([name for names in self._names() for name in names])

    def _names(self) -> tuple[list[str], list[str], list[str]]:
        """Return the names of the checkpoints that are whole, of those without a manifest and of those found damaged, newest first."""
        keys = {key.removeprefix(f"{self.place}/") for key in self._objects.list(f"{self.place}/")}
        names = sorted({key.partition("/")[0] for key in keys}, reverse=True)
        names = [name for name in names if _NAME.fullmatch(name)]
        partial = [name for name in names if f"{name}/{MANIFEST}" not in keys]
        damaged = [name for name in names if f"{name}/{SUSPECT}" in keys and name not in partial]
        return [name for name in names if name not in partial + damaged], partial, damaged

    def _discard(self, names: list[str]) -> None:
        for name in names:
            self._artifacts.discard(Reference(f"{self._objects.uri}/{self.place}/{name}/", name, digest=""))


def _step(name: str) -> int:
    return int(name.partition("-")[0])
