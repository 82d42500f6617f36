"""Copy data sets and models, in the layout of their repositories, for machines without access to the hub."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Lock

from huggingface_hub import snapshot_download

from ngrpo.config import Copied, CopiedModel, DirectoryModel, FilesSource, HubSource, RunConfig
from ngrpo.data.copies import files_of, is_copy, is_read, last_part
from ngrpo.data.locations import download, explained, is_bucket, local_directory
from ngrpo.data.own_files import own_files, place_of
from ngrpo.storage.listing import content_digest
from ngrpo.storage.objects import ObjectStore


def copied_sources(config: RunConfig) -> Mapping[str, Copied]:
    """Return the sources of a configuration that are on the hub, in a copy, or in the user's files, by setting."""
    sources = {
        "model.source": config.model.source,
        **{f"data.{setting}": source for setting, source in config.data.training_sets().items()},
        "data.warm_start": config.data.warm_start,
        **{f"data.benchmarks.{name}": source for name, source in config.data.benchmarks.items()},
    }
    return {setting: source for setting, source in sources.items() if isinstance(source, Copied)}


class _Copied:
    """Counts the bytes that are copied, for several threads."""

    def __init__(self, total: int, progress: Callable[[int, int], None]):
        self._done, self._total = 0, total
        self._progress = progress
        self._lock = Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            # A file that is uploaded again counts twice.
            self._progress(min(self._done, self._total), self._total)


def mirror(source: Copied, target: str, progress: Callable[[int, int], None] = lambda done, total: None) -> str:
    """Copy a data set or model: from the hub at its pinned revision, from a copy as it is now. A rerun resumes an interrupted copy.

    Args:
        source: Source to copy, on the hub, in a local directory or in object storage.
        target: Directory or `s3://bucket/prefix` to copy to.
        progress: Called with the bytes that are copied, and all bytes to copy.

    Returns:
        The id or path to set in order to read the copy.

    Raises:
        DataError: The source cannot be reached.
        StoreError: An object store cannot be reached or refuses the credentials.
    """
    # Keep the last part of the location: the ids of the problems contain it and must not change.
    revision = None if isinstance(source, FilesSource | DirectoryModel) else source.revision
    version = revision or content_digest(own_files(source) if isinstance(source, FilesSource) else files_of(source))
    place = f"{target.rstrip('/')}/{version[:12]}"
    if not isinstance(source, FilesSource):  # the ids of their problems contain file names instead
        place += f"/{last_part(source)}"
    with tempfile.TemporaryDirectory() as scratch:
        directory, names = _files_of(source, Path(scratch))
        copied = _Copied(sum((directory / name).stat().st_size for name in names), progress)
        if is_bucket(place):
            objects = ObjectStore(place)
            for name in names:
                objects.put_file(directory / name, name, sent=copied.add)
        else:
            place = str(Path(place).expanduser().absolute())
            for name in names:
                copy = Path(place) / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(directory / name, copy)
                copied.add(copy.stat().st_size)
    file = place_of(source.path).file if isinstance(source, FilesSource) else None
    return place if file is None else f"{place}/{file}"


def _files_of(source: Copied, scratch: Path) -> tuple[Path, list[str]]:
    """Return a directory and the names of the files to copy from it."""
    if isinstance(source, FilesSource):
        names = [*own_files(source, lambda path: "")]
        base = place_of(source.path).base
        if is_bucket(base):
            download(base, scratch, lambda key: key in names, named=source.named)
        return scratch if is_bucket(base) else Path(base), names
    directory = _repository(source, scratch)
    return directory, [*_names(directory)]


def _repository(source: HubSource | CopiedModel, scratch: Path) -> Path:
    if isinstance(source, CopiedModel):
        # Imported late: transformers takes seconds to import, and there may be no model to copy.
        from ngrpo.data import hub_model

        return hub_model.fetch(source, scratch, weights=True)
    if is_bucket(source.id):
        download(source.id, scratch, is_read(source))
        return scratch
    if is_copy(source):
        return local_directory(source.id, source.named)
    with explained(
        f"data set {source.id!r} (revision {source.revision}) cannot be copied",
        "check id and revision, and HF_TOKEN if it is gated",
    ):
        # Into a separate directory, because the hub's cache consists of links.
        return Path(snapshot_download(source.id, repo_type="dataset", revision=source.revision, local_dir=scratch))


def _names(directory: Path) -> Iterator[str]:
    """Yield the relative path of every file, except hidden ones such as the hub's download metadata."""
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix()
