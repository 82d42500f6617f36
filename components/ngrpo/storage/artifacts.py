"""Artifacts: directories in object storage that are complete once they have a manifest, with a local cache that is verified at every use.

An artifact is stored at `<store>/<stage>/<key>/`. Its payload is uploaded first and `manifest.json` last, with a conditional write that
fails if a manifest exists. Without a manifest there is no artifact. Everything that is read is hashed and compared with the manifest.

A failed read does not mean damage (`ngrpo.storage.inspection`). A damaged artifact is kept until its replacement is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from ngrpo.errors import StoreError
from ngrpo.storage.address import parse_address, path_problem
from ngrpo.storage.digest import digest_of, file_sha256
from ngrpo.storage.disk import disk_trouble
from ngrpo.storage.inspection import Found, Inspection, side_by_side
from ngrpo.storage.manifest import MANIFEST, OWN_FILES, REFERENCE, SUSPECT, FileEntry, Manifest, Reference
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.service_faults import NoSuchObjectError, UnreadableError
from ngrpo.storage.whole_files import put_in_place


class ArtifactStore:
    """Publishes and fetches artifacts."""

    def __init__(self, objects: ObjectStore, cache: Path, *, waits: Sequence[float] | None = None):
        """Use a store and a cache.

        Args:
            objects: Object store with the artifacts.
            cache: Local directory for downloads; several processes may share it.
            waits: Seconds to wait before each further check of a file that seems to be damaged; see `Inspection`.
        """
        self._objects = objects
        self._cache = cache
        self._inspection = Inspection(objects, waits)

    @property
    def objects(self) -> ObjectStore:
        """The object store with the artifacts."""
        return self._objects

    def find(self, stage: str, key: str) -> Reference | None:
        """Return the artifact of a stage and key, or None. It is not checked for damage: see `verify`.

        Raises:
            StoreError: The service cannot be used, so it is unknown whether there is an artifact.
        """
        found = self._inspection.look_up(f"{stage}/{key}")
        return None if found is None else self._reference(stage, key, found)

    def find_sound(self, stage: str, key: str) -> Reference | None:
        """Return the artifact of a stage and key, or None if it does not exist or is damaged.

        Raises:
            StoreError: The service cannot be used, so it is unknown whether there is an artifact.
        """
        reference = self.find(stage, key)
        return None if reference is None or self.verify(reference) else reference

    def verify(self, reference: Reference) -> list[str]:
        """Compare an artifact in the store with its manifest.

        The digests that a service reports (ETag, checksums) differ between services and, for a multipart upload, are not
        the hash of the content. So `publish` stores the sha256 of each file as metadata of its object. If an object was
        overwritten, the metadata is missing or different, which one HEAD request shows on any S3 service. The content is read
        and hashed

        - for artifacts up to 256 MB, to detect bit rot on the service's disk as well;
        - for objects without that metadata;
        - for artifacts that a consumer could not fetch. Bit rot in a larger artifact is only detected by `fetch`, which refuses
          the artifact and leaves a marker so that the next `verify` reads all of it.

        A problem is checked again after a pause. It counts as damage only if it is the same each time and the service works, or if a
        working service cannot read the object for a minute.

        Returns:
            The damage, one line per file; empty if the artifact is sound.

        Raises:
            StoreError: The service cannot be used, or answers differently each time, so the artifact's state is unknown.
        """
        place = self._place(reference)
        found = self._inspection.look_up(place)
        if found is None or found.digest != reference.digest:
            return [f"{MANIFEST} is missing or was changed"]
        problems = self._inspection.problems(place, found)
        if not problems and self._objects.get_bytes(f"{place}/{REFERENCE}") != reference.to_json().encode():
            # The publisher was killed after writing the manifest, or this file was changed.
            self._objects.put_bytes(reference.to_json().encode(), f"{place}/{REFERENCE}")
        return problems

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

        Leftovers of a killed publisher are replaced, and so is a damaged artifact. If the content is the same, its files are written
        again. Otherwise the new files go to a separate folder, one write replaces the manifest, and only then are the old files
        deleted. Publishing the same content again changes nothing. If another process has published different content under the
        key, that artifact is kept and this call fails: returning the other reference would be wrong, because the metrics that this
        process has logged belong to its own content.

        Args:
            stage: Stage that produced the result.
            key: Key of the result.
            directory: The payload. Links to files are followed.
            config_digest: See `Manifest`.
            code_version: See `Manifest`.
            inputs: See `Manifest`.

        Raises:
            StoreError: The key already has an intact artifact with different content, the payload cannot be stored, or the upload
                fails.
        """
        names = _payload(directory)
        try:
            entries = side_by_side(self._objects, lambda name: _entry(directory / name), names)
        except OSError as error:
            raise StoreError(
                f"{directory}: cannot be read for the upload ({error.strerror}); check the disk"
            ) from error
        files = dict(zip(names, entries, strict=True))
        manifest = Manifest(stage, key, config_digest, code_version, dict(inputs), files)
        place = f"{stage}/{key}"
        found = self._inspection.look_up(place)
        if found is None or self._inspection.problems(place, found):
            found = self._replace(place, directory, manifest, found)
        if found is None or not found.is_of(manifest):
            raise StoreError(
                f"artifact {self._objects.uri}/{place}/: another process published a different result under this key; run again"
            )
        reference = self._reference(stage, key, found)
        self._objects.put_bytes(reference.to_json().encode(), f"{place}/{REFERENCE}")
        return reference

    def fetch(self, reference: Reference, *, only: str | tuple[str, ...] | None = None) -> Path:
        """Return a local directory with an artifact, including its manifest. The directory is read-only by convention.

        Files are downloaded beside that directory, hashed and renamed into place. Files in the cache are hashed again, and
        downloaded again if they do not match. A file lock serializes processes that fetch the same artifact.

        Args:
            reference: The artifact.
            only: Prefix of the paths to fetch, for example `model/`, or several prefixes; by default all files.

        Raises:
            StoreError: The artifact does not exist any more, a file does not match the manifest, the service cannot be used, or the
                cache cannot be written.
        """
        place = self._place(reference)
        found = self._inspection.look_up(place)
        if found is None:
            raise StoreError(f"artifact {reference.uri}: gone from the store; run the pipeline again to restore it")
        if found.digest != reference.digest:
            raise StoreError(f"artifact {reference.uri}: not the one referred to; run the pipeline again")
        if found.manifest is None:
            raise StoreError(
                f"artifact {reference.uri}: its manifest is damaged: {found.problem}; run the pipeline again: the stage "
                f"{place.partition('/')[0]} will be repeated"
            )
        manifest, files = found.manifest, found.manifest.files
        wanted = [name for name in files if only is None or name.startswith(only)]
        if only is not None and not wanted:
            raise StoreError(
                f"artifact {reference.uri}: has no file that starts with {only!r}; name a file in its manifest"
            )
        directory = self._cache / place
        partial = directory.with_name(f".{directory.name}.partial")
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(directory.with_name(f".{directory.name}.lock")):
                shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
                directory.mkdir(exist_ok=True)
                if only is None:
                    _remove_others(directory, {*files, MANIFEST})
                try:
                    side_by_side(
                        self._objects,
                        lambda name: self._fetch_file(reference, manifest, name, directory, partial),
                        wanted,
                    )
                    _write(directory / MANIFEST, found.data, partial)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            needed = sum(files[name].size for name in wanted if not (directory / name).is_file())
            raise StoreError(
                f"cache {self._cache}: {directory} cannot be written ({disk_trouble(error, directory, needed=needed)}) or set "
                "NGRPO_CACHE_DIR to another place"
            ) from error
        return directory

    def discard(self, reference: Reference) -> None:
        """Delete an artifact, its manifest first, so that it can be published again."""
        place = self._place(reference)
        self._objects.delete(f"{place}/{MANIFEST}")
        for key in self._objects.list(f"{place}/"):
            self._objects.delete(key)

    def _replace(self, place: str, directory: Path, manifest: Manifest, damaged: Found | None) -> Found | None:
        """Upload a payload and its manifest unless an intact manifest exists; return the manifest that is in place afterwards."""
        repair = damaged is not None and damaged.is_of(manifest)
        if damaged is not None:
            content = digest_of({name: entry.sha256 for name, entry in manifest.files.items()})
            folder = damaged.manifest.folder if repair and damaged.manifest is not None else content[:16]
            manifest = replace(manifest, folder=folder)

        def upload(name: str) -> None:
            metadata = {"sha256": manifest.files[name].sha256}
            self._objects.put_file(directory / name, f"{place}/{manifest.object_name(name)}", metadata=metadata)

        side_by_side(self._objects, upload, list(manifest.files))
        data, key = manifest.to_bytes(), f"{place}/{MANIFEST}"
        if repair:
            stands = damaged
        elif damaged is None:
            stands = Found(data, "", manifest) if self._objects.put_bytes(data, key, if_none_match=True) else None
        else:
            etag = self._objects.swap(data, key, damaged.etag)
            stands = None if etag is None else Found(data, etag, manifest)
        if stands is None:
            return self._outrun(place, manifest)
        if damaged is not None:
            self._sweep(place, manifest)
        return stands

    def _outrun(self, place: str, manifest: Manifest) -> Found | None:
        """Return the manifest of another publisher that was faster, and delete this upload."""
        stands = self._inspection.look_up(place)
        if stands is None or stands.is_of(manifest):
            return stands
        if manifest.folder:
            others = set() if stands.manifest is None else set(map(stands.manifest.object_name, stands.manifest.files))
            for name in set(map(manifest.object_name, manifest.files)) - others:
                self._objects.delete(f"{place}/{name}")
        elif self._inspection.problems(place, stands):
            # Two first publishers raced and overwrote each other's payload: neither result is complete.
            self.discard(Reference(f"{self._objects.uri}/{place}/", place.rpartition("/")[2], stands.digest))
        return stands

    def _sweep(self, place: str, manifest: Manifest) -> None:
        """Delete the leftovers of a damaged artifact that was replaced."""
        kept = {f"{place}/{name}" for name in (MANIFEST, REFERENCE, *map(manifest.object_name, manifest.files))}
        for key in self._objects.list(f"{place}/"):
            if key not in kept:
                self._objects.delete(key)

    def _reference(self, stage: str, key: str, found: Found) -> Reference:
        return Reference(f"{self._objects.uri}/{stage}/{key}/", key, found.digest)

    def _place(self, reference: Reference) -> str:
        """Return `stage/key` of an artifact of this store.

        Raises:
            StoreError: The artifact is not in this store, or its address is invalid.
        """
        parse_address(reference.uri, "artifact")
        if not reference.uri.startswith(f"{self._objects.uri}/"):
            raise StoreError(f"artifact {reference.uri}: not in the store {self._objects.uri}; set NGRPO_STORE")
        place = reference.uri[len(self._objects.uri) + 1 :].removesuffix("/")
        if path_problem(reference.key) is not None or place.rpartition("/")[2] != reference.key:
            raise StoreError(
                f"artifact {reference.uri}: does not have the key {reference.key!a}; run the pipeline again"
            )
        return place

    def _fetch_file(self, reference: Reference, manifest: Manifest, name: str, directory: Path, partial: Path) -> None:
        path, entry, place = directory / name, manifest.files[name], self._place(reference)
        if path.is_file() and _entry(path) == entry:
            return
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        download = partial / name
        download.parent.mkdir(parents=True, exist_ok=True)
        looks: list[str] = []
        for wait in (0.0, *self._inspection.waits):
            self._objects.pause(wait)
            final = False
            try:
                found = f"sha256 {self._objects.get_file(f'{place}/{manifest.object_name(name)}', download)}"
            except UnreadableError as error:
                found, final = str(error), not isinstance(error, NoSuchObjectError)
            if found == f"sha256 {entry.sha256}":
                path.parent.mkdir(parents=True, exist_ok=True)
                put_in_place(download, path)
                return
            if not looks:
                self._inspection.say(place, name, f"damaged or misread ({found})")
            looks.append(found)
            if final:
                break
        # Without write permission, still report the damage.
        with suppress(StoreError):
            self._objects.put_bytes(name.encode(), f"{place}/{SUSPECT}")
        now = self._inspection.look_up(place)
        if now is None or now.digest != reference.digest:
            raise StoreError(f"artifact {reference.uri}: not the one referred to any more; run the pipeline again")
        if len(set(looks)) > 1:
            raise StoreError(self._inspection.unknown(place, name, len(looks)))
        raise StoreError(
            f"artifact {self._objects.uri}/{place}/: {name} is damaged: expected sha256 {entry.sha256}, found {found}; run "
            f"the pipeline again: the stage {place.partition('/')[0]} will be repeated"
        )


def _payload(directory: Path) -> list[str]:
    """Return the relative path of every file below a directory, sorted.

    Raises:
        StoreError: A file cannot be stored, or its name is reserved by the store or invalid.
    """
    names = []
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if name in OWN_FILES:
            raise StoreError(f"{path}: this name is reserved by the store; give the stage's file another name")
        problem = path_problem(name)
        if problem is not None:
            raise StoreError(f"{str(path)!a}: cannot be stored under this name: {problem}; rename it")
        if path.is_file():
            names.append(name)
        elif path.is_symlink() or not path.is_dir():
            raise StoreError(
                f"{path}: only files, directories and links to files can be stored; replace it with a copy"
            )
    return names


def _entry(path: Path) -> FileEntry:
    return FileEntry(file_sha256(path), path.stat().st_size)


def _remove_others(directory: Path, names: set[str]) -> None:
    """Delete cached files that are not in `names`: those of an earlier artifact with the same key."""
    for path in directory.rglob("*"):
        if not path.is_dir() and path.relative_to(directory).as_posix() not in names:
            path.unlink()


def _write(path: Path, data: bytes, partial: Path) -> None:
    partial.mkdir(parents=True, exist_ok=True)
    download = partial / path.name
    download.write_bytes(data)
    put_in_place(download, path)
