"""Copies of data sets and models, in the layout of their repositories, for machines that the hub is out of reach of."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub import snapshot_download

from ngrpo.config import Copied, CopiedModel, DirectoryModel, FilesSource, HubSource, RunConfig
from ngrpo.data.copies import files_of, is_copy, is_read, last_part
from ngrpo.data.locations import download, explained, is_bucket, local_directory
from ngrpo.data.own_files import own_files, place_of
from ngrpo.storage.listing import content_digest
from ngrpo.storage.objects import ObjectStore


def copied_sources(config: RunConfig) -> Mapping[str, Copied]:
    """Return what a configuration reads from the hub, from a copy of it or from own files, by the setting that names it."""
    sources = {
        "model.source": config.model.source,
        **{f"data.{setting}": source for setting, source in config.data.training_sets().items()},
        "data.warm_start": config.data.warm_start,
        **{f"data.benchmarks.{name}": source for name, source in config.data.benchmarks.items()},
    }
    return {setting: source for setting, source in sources.items() if isinstance(source, Copied)}


def mirror(source: Copied, target: str) -> str:
    """Copy a data set or a model at its pinned revision, or as a copy is now; a copy that was broken off is completed by the next one.

    Args:
        source: What to copy; itself from the hub, from a local directory or from object storage.
        target: Directory or `s3://bucket/prefix` that holds the copies.

    Returns:
        The id or path by which the copy is read.

    Raises:
        DataError: The source cannot be reached.
        StoreError: An object store cannot be reached or refuses the credentials.
    """
    # The last part is that of the source: it is in the ids of the problems, which are to stay the same.
    revision = None if isinstance(source, FilesSource | DirectoryModel) else source.revision
    version = revision or content_digest(own_files(source) if isinstance(source, FilesSource) else files_of(source))
    place = f"{target.rstrip('/')}/{version[:12]}"
    if not isinstance(source, FilesSource):  # whose problems are called by the names of files
        place += f"/{last_part(source)}"
    with tempfile.TemporaryDirectory() as scratch:
        directory, names = _files_of(source, Path(scratch))
        if is_bucket(place):
            objects = ObjectStore(place)
            for name in names:
                objects.put_file(directory / name, name)
        else:
            place = str(Path(place).expanduser().absolute())
            for name in names:
                copy = Path(place) / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(directory / name, copy)
    file = place_of(source.path).file if isinstance(source, FilesSource) else None
    return place if file is None else f"{place}/{file}"


def _files_of(source: Copied, scratch: Path) -> tuple[Path, list[str]]:
    """Return a directory and the names of the files in it that are to be copied."""
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
        # Imported late: transformers takes seconds, and there may be nothing to copy.
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
        # In a directory of its own, for the hub's cache consists of links.
        return Path(snapshot_download(source.id, repo_type="dataset", revision=source.revision, local_dir=scratch))


def _names(directory: Path) -> Iterator[str]:
    """Return every file by its path, less what is hidden: the hub's own notes on a download."""
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix()
