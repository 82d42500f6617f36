"""Artifacts: directories in object storage that a manifest makes whole, and a local cache that is verified at every use.

An artifact lives at `<store>/<stage>/<key>/`. Its payload is uploaded first and `manifest.json` last, on the condition that
there is none; without a manifest there is no artifact. Whatever is read is hashed and compared with the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from ngrpo.errors import StoreError
from ngrpo.storage.objects import ObjectStore

MANIFEST = "manifest.json"
REFERENCE = "reference.json"
_READ_TO_VERIFY = 256 << 20
"""Artifacts up to this size, in bytes, are read and hashed to verify them; of larger ones only the sizes are compared, and a
damaged byte is found when the artifact is fetched."""
_TRANSFERS = 4


@dataclass(frozen=True)
class Reference:
    """What stands for an artifact in a pipeline.

    Attributes:
        uri: `s3://bucket/prefix/stage/key/`.
        key: Key of the result.
        digest: sha256 of the manifest.
    """

    uri: str
    key: str
    digest: str

    def to_json(self) -> str:
        """Return the reference as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))

    def write(self, path: Path) -> None:
        """Write the reference to a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a reference from a file.

        Raises:
            StoreError: The file is missing or holds no reference.
        """
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError) as error:
            raise StoreError(f"{path}: holds no reference to an artifact ({error})") from error


@dataclass(frozen=True)
class FileEntry:
    """A file of an artifact: sha256 of its content and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """What an artifact consists of and where it comes from.

    Attributes:
        stage: Stage that made it.
        key: Key of the result.
        config_digest: Digest of the stage's settings.
        code_version: Hash of the stage's source.
        inputs: Key of each input, by the input's name.
        files: Entry of each file, by its path relative to the artifact.
    """

    stage: str
    key: str
    config_digest: str
    code_version: str
    inputs: Mapping[str, str]
    files: Mapping[str, FileEntry]

    def to_bytes(self) -> bytes:
        """Return the one JSON text of the manifest."""
        return json.dumps(asdict(self), sort_keys=True, indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: It is not a manifest.
        """
        try:
            tree = json.loads(data)
            files = {name: FileEntry(**entry) for name, entry in tree.pop("files").items()}
            return cls(**tree, files=files)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a manifest: {error}") from error


class ArtifactStore:
    """Publishes and fetches artifacts."""

    def __init__(self, objects: ObjectStore, cache: Path):
        """Use a store and a cache.

        Args:
            objects: Where the artifacts are.
            cache: Local directory for downloads; several processes may share it.
        """
        self._objects = objects
        self._cache = cache

    def find(self, stage: str, key: str) -> Reference | None:
        """Return the artifact of a stage and key, or none if there is none."""
        data = self._objects.get_bytes(f"{stage}/{key}/{MANIFEST}")
        return None if data is None else self._reference(stage, key, data)

    def verify(self, reference: Reference) -> list[str]:
        """Compare an artifact in the store with its manifest, and return what is wrong with it, nothing if it is sound."""
        place = self._place(reference)
        data = self._objects.get_bytes(f"{place}/{MANIFEST}")
        if data is None or hashlib.sha256(data).hexdigest() != reference.digest:
            return [f"{MANIFEST} is missing or was changed"]
        try:
            files = Manifest.from_bytes(data).files
        except ValueError as error:
            return [f"{MANIFEST}: {error}"]
        read = sum(entry.size for entry in files.values()) <= _READ_TO_VERIFY
        with ThreadPoolExecutor(_TRANSFERS) as pool:
            problems = pool.map(lambda item: self._problem(f"{place}/{item[0]}", item[1], read), files.items())
            return [f"{name}: {problem}" for name, problem in zip(files, problems, strict=True) if problem]

    def publish(
        self,
        stage: str,
        key: str,
        directory: Path,
        *,
        config_digest: str,
        code_version: str,
        inputs: Mapping[str, str],
    ) -> Reference:
        """Upload a directory as the artifact of a stage and key.

        What a publisher that was killed left is replaced. Publishing the same content again changes nothing.

        Args:
            stage: Stage that made it.
            key: Key of the result.
            directory: The payload; links are followed.
            config_digest: See `Manifest`.
            code_version: See `Manifest`.
            inputs: See `Manifest`.

        Raises:
            StoreError: There is an artifact of other content under the key, or the upload fails.
        """
        paths = sorted(path for path in directory.rglob("*") if path.is_file())
        files = {path.relative_to(directory).as_posix(): _entry(path) for path in paths}
        data = Manifest(stage, key, config_digest, code_version, dict(inputs), files).to_bytes()
        existing = self.find(stage, key)
        if existing is None:
            with ThreadPoolExecutor(_TRANSFERS) as pool:
                list(pool.map(lambda name: self._objects.put_file(directory / name, f"{stage}/{key}/{name}"), files))
            self._objects.put_bytes(data, f"{stage}/{key}/{MANIFEST}", if_none_match=True)
            existing = self.find(stage, key)
        reference = self._reference(stage, key, data)
        if existing != reference:
            if existing is not None and self.verify(existing):
                # Two publishers raced and wrote over each other's payload: neither result is whole.
                self.discard(existing)
            raise StoreError(
                f"artifact {reference.uri}: another process published a different result under this key; run again"
            )
        self._objects.put_bytes(reference.to_json().encode(), f"{stage}/{key}/{REFERENCE}")
        return reference

    def fetch(self, reference: Reference, *, only: str | None = None) -> Path:
        """Return a local directory with an artifact, its manifest included; do not write there.

        Files that are in the cache are hashed again; one that does not match is downloaded anew.

        Args:
            reference: The artifact.
            only: Fetch only files whose path starts with this.

        Raises:
            StoreError: The artifact is gone, a file does not match the manifest, or the disk is full.
        """
        place = self._place(reference)
        data = self._objects.get_bytes(f"{place}/{MANIFEST}")
        if data is None:
            raise StoreError(f"artifact {reference.uri}: gone from the store; run the pipeline again to make it")
        if hashlib.sha256(data).hexdigest() != reference.digest:
            raise StoreError(f"artifact {reference.uri}: not the one referred to; run the pipeline again")
        files = Manifest.from_bytes(data).files
        wanted = [name for name in files if only is None or name.startswith(only)]
        directory = self._cache / place
        directory.mkdir(parents=True, exist_ok=True)
        if only is None:
            _remove_others(directory, {*files, MANIFEST})
        with ThreadPoolExecutor(_TRANSFERS) as pool:
            list(pool.map(lambda name: self._fetch_file(place, name, files[name]), wanted))
        _replace(directory / MANIFEST, data)
        return directory

    def discard(self, reference: Reference) -> None:
        """Delete an artifact, its manifest first, so that it can be published again."""
        place = self._place(reference)
        self._objects.delete(f"{place}/{MANIFEST}")
        for key in self._objects.list(f"{place}/"):
            self._objects.delete(key)

    def _reference(self, stage: str, key: str, manifest: bytes) -> Reference:
        return Reference(f"{self._objects.uri}/{stage}/{key}/", key, hashlib.sha256(manifest).hexdigest())

    def _place(self, reference: Reference) -> str:
        """Return `stage/key` of an artifact of this store."""
        if not reference.uri.startswith(f"{self._objects.uri}/"):
            raise StoreError(f"artifact {reference.uri}: not in the store {self._objects.uri}; set NGRPO_STORE")
        return reference.uri[len(self._objects.uri) + 1 :].strip("/")

    def _problem(self, key: str, entry: FileEntry, read: bool) -> str | None:
        size = self._objects.size(key)
        if size is None:
            return "missing"
        if size != entry.size:
            return f"{size} bytes instead of {entry.size}"
        if not read:
            return None
        try:
            found = _hash(self._objects.read_blocks(key))
        except StoreError as error:
            return f"unreadable ({error})"
        return None if found == entry.sha256 else "its content was changed"

    def _fetch_file(self, place: str, name: str, entry: FileEntry) -> None:
        path = self._cache / place / name
        if path.exists() and _entry(path) == entry:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            self._objects.get_file(f"{place}/{name}", partial)
            found = _entry(partial)
            if found != entry:
                raise StoreError(
                    f"artifact {self._objects.uri}/{place}/: {name} is damaged (sha256 {found.sha256[:12]}, expected "
                    f"{entry.sha256[:12]}); run the pipeline again: the stage that made it will be repeated"
                )
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        return FileEntry(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def _hash(blocks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def _remove_others(directory: Path, names: set[str]) -> None:
    """Delete files that a former artifact under the same key left in the cache."""
    for path in directory.rglob("*"):
        if (
            path.is_file()
            and not path.name.endswith(".partial")
            and path.relative_to(directory).as_posix() not in names
        ):
            path.unlink()


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(data)
    partial.replace(path)
