"""Checkpoints of a stage in object storage, so that training can resume on another machine.

A checkpoint is an artifact (see `ngrpo.storage.artifacts`): it is complete once it has a manifest, and everything that is read is hashed.
If several nodes train, each uploads its files as a separate artifact, and the checkpoint is complete once all of these are. Each save has
its own folder, `<store>/checkpoints/<stage>/<key>/<step>-<random>/<part>of<parts>/`, so that a stray process that still runs elsewhere
cannot overwrite anything.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ngrpo.errors import StoreError
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.disk import disk_trouble
from ngrpo.storage.manifest import MANIFEST, SUSPECT
from ngrpo.storage.objects import ObjectStore

_NAME = re.compile(r"\d{9}-[0-9a-f]+")
_PART = re.compile(r"\d+of(\d+)/")


@dataclass(frozen=True)
class Part:
    """The part of a checkpoint that one node uploads.

    Attributes:
        save: Random id that all parts of one save share.
        number: Index of the part, from 0.
        count: Number of parts of the checkpoint.
    """

    save: str
    number: int = 0
    count: int = 1

    def __str__(self) -> str:
        """Name of the part's folder below that of the save."""
        return f"{self.number}of{self.count}"


class CheckpointStore:
    """The checkpoints of one stage and key."""

    def __init__(self, objects: ObjectStore, place: str, downloads: Path, *, waits: Sequence[float] | None = None):
        """Use a folder of a store.

        Args:
            objects: The store.
            place: Folder of the checkpoints, relative to the store.
            downloads: Directory for incomplete downloads, on the same file system as the restored checkpoints.
            waits: See `ArtifactStore`.
        """
        self.place = place
        self._objects = objects
        self._downloads = downloads
        self._artifacts = ArtifactStore(objects, downloads, waits=waits)

    @classmethod
    def open(cls, store: str | None, place: str | None, downloads: Path) -> CheckpointStore | None:
        """Return the checkpoint store at a place below a store, or None if either is None. See `__init__`."""
        return None if store is None or place is None else cls(ObjectStore(store, proven=True), place, downloads)

    def put(self, step: int, directory: Path, part: Part, *, keep: int, best: int | None) -> None:
        """Upload a checkpoint, or a node's part of it; then delete all but the newest complete ones and the best.

        Damaged checkpoints are deleted as well. Incomplete uploads are deleted if they are older than all kept checkpoints; a newer one
        may belong to a process that still runs elsewhere.

        Args:
            step: Number of completed training steps.
            directory: The checkpoint; it must not change during the upload.
            part: The part to upload; only the upload of part 0 deletes others.
            keep: Number of newest complete checkpoints to keep.
            best: Step of another checkpoint to keep, or None.

        Raises:
            StoreError: The service cannot be used; earlier checkpoints are not affected.
        """
        # The folder contains the key, which covers settings, source and inputs.
        place = f"{self.place}/{step:09d}-{part.save}"
        self._artifacts.publish(place, str(part), directory, config_digest="", code_version="", inputs={})
        if part.number > 0:
            return
        whole, partial, damaged = _sorted(self._saves())
        oldest = min(map(_step, whole[:keep]), default=0)
        outdated = [name for name in whole[keep:] if _step(name) != best]
        self._discard(outdated + [name for name in partial if _step(name) < oldest] + damaged)

    def restore(
        self, directory: Path, *, after: int, until: float = math.inf, only: tuple[str, ...] | None = None
    ) -> None:
        """Download the newest intact checkpoint to `directory/checkpoint-<step>`, if there is one.

        Damaged checkpoints are skipped, and kept until a newer one is complete.

        Args:
            directory: Local directory of checkpoints.
            after: Newest local step; only newer checkpoints are downloaded.
            until: Newest step to download.
            only: Prefixes of the paths to download; by default all files.

        Raises:
            StoreError: The service cannot be used, or the disk is full.
        """
        saves = self._saves()
        whole, _, suspects = _sorted(saves)
        for name in sorted(whole + suspects, reverse=True):
            step = _step(name)
            if step > until:
                continue
            if step <= after:
                break
            parts = self._fetch(name, _parts(saves[name]), only)
            if not parts:
                continue
            target = directory / f"checkpoint-{step}"
            try:
                shutil.rmtree(target, ignore_errors=True)  # left by a killed save
                directory.mkdir(parents=True, exist_ok=True)
                first, *others = parts
                for part in others:
                    shutil.copytree(part, first, copy_function=os.replace, dirs_exist_ok=True)
                (first / MANIFEST).unlink()
                first.rename(target)
            except OSError as error:
                raise StoreError(f"{target}: cannot be written ({disk_trouble(error, directory)})") from error
            break
        shutil.rmtree(self._downloads, ignore_errors=True)

    def clear(self) -> None:
        """Delete every checkpoint."""
        self._discard(list(self._saves()))

    def _fetch(self, name: str, parts: list[str], only: tuple[str, ...] | None) -> list[Path]:
        """Download the parts of a save. Returns an empty list if a part is missing or damaged; damage is marked in the store."""
        fetched = []
        for part in parts:
            reference = self._artifacts.find(f"{self.place}/{name}", part)
            if reference is None:
                return []
            try:
                fetched.append(self._artifacts.fetch(reference, only=only))
            except StoreError:
                problems = self._artifacts.verify(reference)
                if not problems:
                    raise
                print(
                    f"checkpoint of step {_step(name)}: damaged in object storage ({problems[0]}), not used", flush=True
                )
                self._objects.put_bytes(problems[0].encode(), f"{self.place}/{name}/{part}/{SUSPECT}")
                return []
        return fetched

    def _saves(self) -> dict[str, set[str]]:
        """Return the files below each save, by its name, newest first."""
        saves: dict[str, set[str]] = {}
        for key in sorted(self._objects.list(f"{self.place}/"), reverse=True):
            name, _, file = key.removeprefix(f"{self.place}/").partition("/")
            if _NAME.fullmatch(name):
                saves.setdefault(name, set()).add(file)
        return saves

    def _discard(self, names: list[str]) -> None:
        """Delete saves, their manifests first."""
        for name in names:
            keys = self._objects.list(f"{self.place}/{name}/")
            for key in sorted(keys, key=lambda key: not key.endswith(f"/{MANIFEST}")):
                self._objects.delete(key)


def _parts(files: set[str]) -> list[str]:
    """Return the names of the parts that a save must have, judging by its files."""
    counts = {int(found[1]) for file in files if (found := _PART.match(file))}
    return [f"{number}of{count}" for count in counts for number in range(count)]


def _sorted(saves: dict[str, set[str]]) -> tuple[list[str], list[str], list[str]]:
    """Split saves into complete ones, incomplete ones (a manifest is missing) and damaged ones, keeping their order."""
    whole: list[str] = []
    partial: list[str] = []
    damaged: list[str] = []
    for name, files in saves.items():
        parts = _parts(files)
        if not parts or any(f"{part}/{MANIFEST}" not in files for part in parts):
            partial.append(name)
        elif any(f"{part}/{SUSPECT}" in files for part in parts):
            damaged.append(name)
        else:
            whole.append(name)
    return whole, partial, damaged


def _step(name: str) -> int:
    return int(name.partition("-")[0])
