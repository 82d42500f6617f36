"""Artifacts: directories in object storage that a manifest makes whole, and a local cache that is verified at every use.

An artifact lives at `<store>/<stage>/<key>/`. Its payload is uploaded first and `manifest.json` last, on the condition that
there is none; without a manifest there is no artifact. Whatever is read is hashed and compared with the manifest.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from ngrpo.errors import StoreError
from ngrpo.storage.digest import file_sha256
from ngrpo.storage.manifest import FileEntry, Manifest, Reference
from ngrpo.storage.objects import ObjectStore, UnreadableError

MANIFEST = "manifest.json"
REFERENCE = "reference.json"
"""The reference to an artifact, beside its payload: what `dsl.importer` imports."""
SUSPECT = "suspect.txt"
"""Written beside an artifact by a consumer that found it damaged: the next `verify` reads all of it, whatever its size."""
_READ_TO_VERIFY = 256 << 20
_TRANSFERS = 2


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
        """Return the artifact of a stage and key, or none if there is none. Whether it is sound, `verify` says."""
        data = self._objects.get_bytes(f"{stage}/{key}/{MANIFEST}")
        return None if data is None else self._reference(stage, key, data)

    def verify(self, reference: Reference) -> list[str]:
        """Compare an artifact in the store with its manifest.

        What a service tells without reading (ETag, checksums) differs between services and, for an upload in parts, is not
        the hash of the content. So `publish` stores the sha256 of each file as metadata of its object. An object that
        someone wrote anew has lost it or carries another, which one HEAD request shows on any S3 service. Content is read
        and hashed

        - of artifacts up to 256 MB, so that decay on the service's own disk is found too;
        - of objects without that metadata;
        - of artifacts that a consumer could not fetch: in a larger one, decay is found when it is fetched; `fetch` refuses
          the artifact and leaves a note, because of which the next `verify` reads it all.

        An object that the service cannot read although it answers counts as damaged.

        Returns:
            What is wrong, one line a file; empty if the artifact is sound.

        Raises:
            StoreError: The service cannot be used, so that nothing is known of the artifact.
        """
        place = self._place(reference)
        data = self._objects.get_bytes(f"{place}/{MANIFEST}")
        if data is None or hashlib.sha256(data).hexdigest() != reference.digest:
            return [f"{MANIFEST} is missing or was changed"]
        try:
            manifest = Manifest.from_bytes(data)
        except ValueError as error:
            return [f"{MANIFEST}: {error}"]
        suspect = self._objects.get_bytes(f"{place}/{SUSPECT}") is not None
        read = suspect or manifest.size <= _READ_TO_VERIFY
        files = manifest.files
        with ThreadPoolExecutor(_TRANSFERS) as pool:
            problems = list(pool.map(lambda name: self._problem(f"{place}/{name}", files[name], read), files))
        if any(problems):
            return [f"{name}: {problem}" for name, problem in zip(files, problems, strict=True) if problem]
        if suspect:
            self._objects.delete(f"{place}/{SUSPECT}")
        if self._objects.get_bytes(f"{place}/{REFERENCE}") != reference.to_json().encode():
            # Its publisher was killed between the manifest and this file, or the file was changed.
            self._objects.put_bytes(reference.to_json().encode(), f"{place}/{REFERENCE}")
        return []

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

        What a publisher that was killed left, and an artifact that is damaged, are replaced. Publishing the same content again
        changes nothing. Where another process has published other content under the key, the first stays and the second
        is refused: it cannot return the first one's reference, for the metrics that it has logged are not those of that artifact.

        Args:
            stage: Stage that made it.
            key: Key of the result.
            directory: The payload. Links to files are followed.
            config_digest: See `Manifest`.
            code_version: See `Manifest`.
            inputs: See `Manifest`.

        Raises:
            StoreError: There is a sound artifact of other content under the key, the payload cannot be stored as it is, or the
                upload fails.
        """
        names = _payload(directory)
        with ThreadPoolExecutor(_TRANSFERS) as pool:
            files = dict(zip(names, pool.map(lambda name: _entry(directory / name), names), strict=True))
        data = Manifest(stage, key, config_digest, code_version, dict(inputs), files).to_bytes()
        reference = self._reference(stage, key, data)
        existing = self.find(stage, key)
        if existing is not None and self.verify(existing):
            self.discard(existing)
            existing = None
        if existing is None:

            def upload(name: str) -> None:
                metadata = {"sha256": files[name].sha256}
                self._objects.put_file(directory / name, f"{stage}/{key}/{name}", metadata=metadata)

            _each(upload, names)
            self._objects.put_bytes(data, f"{stage}/{key}/{MANIFEST}", if_none_match=True)
            existing = self.find(stage, key)
            if existing not in (None, reference) and self.verify(existing):
                # Two publishers raced and wrote over each other's payload: neither result is whole.
                self.discard(existing)
        if existing != reference:
            raise StoreError(
                f"artifact {reference.uri}: another process published a different result under this key; run again"
            )
        self._objects.put_bytes(reference.to_json().encode(), f"{stage}/{key}/{REFERENCE}")
        return reference

    def fetch(self, reference: Reference, *, only: str | None = None) -> Path:
        """Return a local directory with an artifact, its manifest included; do not write there.

        A file is downloaded beside that directory, hashed and renamed into place. Files that are in the cache are hashed
        again, and one that does not match is downloaded anew. Processes that fetch the same artifact take turns.

        Args:
            reference: The artifact.
            only: Fetch only files whose path starts with this, for example `model/`.

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
        if only is not None and not wanted:
            raise StoreError(
                f"artifact {reference.uri}: has no file that starts with {only!r}; name one of its manifest"
            )
        directory = self._cache / place
        partial = directory.with_name(f".{directory.name}.partial")
        try:
            with _exclusive(directory.with_name(f".{directory.name}.lock")):
                shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
                directory.mkdir(exist_ok=True)
                if only is None:
                    _remove_others(directory, {*files, MANIFEST})
                try:
                    _each(lambda name: self._fetch_file(place, name, files[name], directory, partial), wanted)
                    _write(directory / MANIFEST, data, partial)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            raise StoreError(
                f"cache {self._cache}: {directory} cannot be written ({error.strerror}); make room or set NGRPO_CACHE_DIR"
            ) from error
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
        """Say what is wrong with an object; its content is read if asked for, or if nothing vouches for it."""
        head = self._objects.head(key)
        if head is None:
            return "missing"
        if head.size != entry.size:
            return f"{head.size} bytes instead of {entry.size}"
        stored = head.metadata.get("sha256")
        if stored is not None and stored != entry.sha256:
            return "its content was changed"
        if stored is not None and not read:
            return None
        digest = hashlib.sha256()
        try:
            for block in self._objects.read_blocks(key):
                digest.update(block)
        except UnreadableError as error:
            self._objects.check()  # a service that went down in the meantime says nothing about the object
            return str(error)
        return None if digest.hexdigest() == entry.sha256 else "its content was changed"

    def _fetch_file(self, place: str, name: str, entry: FileEntry, directory: Path, partial: Path) -> None:
        path = directory / name
        if path.is_file() and _entry(path) == entry:
            return
        download = partial / name
        download.parent.mkdir(parents=True, exist_ok=True)
        try:
            found = f"sha256 {self._objects.get_file(f'{place}/{name}', download)}"
        except UnreadableError as error:
            found = str(error)
        if found != f"sha256 {entry.sha256}":
            path.unlink(missing_ok=True)
            # An account that may only read is told of the damage all the same.
            with suppress(StoreError):
                self._objects.put_bytes(name.encode(), f"{place}/{SUSPECT}")
            raise StoreError(
                f"artifact {self._objects.uri}/{place}/: {name} is damaged: expected sha256 {entry.sha256}, found {found}; run "
                f"the pipeline again: the stage {place.partition('/')[0]} will be repeated"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        download.replace(path)


def _each(work: Callable[[str], None], names: list[str]) -> None:
    """Do the work for several files at a time; the first error is raised."""
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        list(pool.map(work, names))


def _payload(directory: Path) -> list[str]:
    """Return the relative path of every file below a directory, in order.

    Raises:
        StoreError: Something there would be lost or would take the place of the store's own files.
    """
    names = []
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if name in {MANIFEST, REFERENCE, SUSPECT}:
            raise StoreError(
                f"{path}: the store keeps a file of its own under this name; name the stage's file otherwise"
            )
        if path.is_file():
            names.append(name)
        elif path.is_symlink() or not path.is_dir():
            raise StoreError(
                f"{path}: only files, directories and links to files can be stored; copy what it stands for"
            )
    return names


def _entry(path: Path) -> FileEntry:
    return FileEntry(file_sha256(path), path.stat().st_size)


@contextmanager
def _exclusive(lock: Path) -> Iterator[None]:
    """Keep other threads and processes out. The kernel releases the lock when its holder ends, however it ends."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_others(directory: Path, names: set[str]) -> None:
    """Delete files that a former artifact under the same key left in the cache."""
    for path in directory.rglob("*"):
        if not path.is_dir() and path.relative_to(directory).as_posix() not in names:
            path.unlink()


def _write(path: Path, data: bytes, partial: Path) -> None:
    partial.mkdir(parents=True, exist_ok=True)
    download = partial / path.name
    download.write_bytes(data)
    download.replace(path)
