"""Copies of data sets and models, known by their content: which files count, and whether they are those that a run was planned with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from ngrpo.config import Copied, CopiedModel, FilesSource, HubModel, HubSource
from ngrpo.data.locations import is_bucket, is_local, local_directory
from ngrpo.errors import DataError
from ngrpo.section import Section
from ngrpo.storage.digest import file_sha256
from ngrpo.storage.listing import File, content_digest, directory_files, prefix_files

DESCRIPTION = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
WEIGHTS = ("*.safetensors",)


def is_copy(source: Copied) -> bool:
    """Say whether a source is a copy, in a directory or in object storage, and not on the hub."""
    return (
        not isinstance(source, HubSource | HubModel)
        or source.digest is not None
        or is_bucket(source.id)
        or is_local(source.id)
    )


def last_part(source: HubSource | CopiedModel) -> str:
    """Return the last part of a source's place, which is in the ids of a hub data set's problems."""
    return source.location.rstrip("/").rpartition("/")[2]


def is_read(source: HubSource | CopiedModel, *, weights: bool = True) -> Callable[[str], bool]:
    """Return which files of a source are read, by relative path.

    Of a data set all that are not hidden. Of a model settings, tokenizer and weights, which lie side by side.

    Args:
        source: The source.
        weights: Whether the weights of a model are.
    """
    if isinstance(source, HubSource):
        return lambda name: not any(part.startswith(".") for part in PurePosixPath(name).parts)
    patterns = DESCRIPTION + (WEIGHTS if weights else ())
    return lambda name: "/" not in name and any(fnmatch(name, pattern) for pattern in patterns)


def files_of(source: HubSource | CopiedModel, sha256: Callable[[Path], str] = file_sha256) -> dict[str, File]:
    """Return the files of a copy that are read, by relative path.

    Args:
        source: The copy.
        sha256: Returns the sha256 of a file's content.

    Raises:
        DataError: There are none, or they cannot be read.
        StoreError: The object store that holds the copy cannot be reached or refuses the credentials.
    """
    try:
        if is_bucket(source.location):
            from ngrpo.storage.objects import ObjectStore

            files = prefix_files(ObjectStore(source.location), is_read(source))
        else:
            files = directory_files(local_directory(source.location, source.named), is_read(source), sha256)
    except OSError as error:
        raise DataError(
            f"{source.named}: {error.filename} cannot be read ({error.strerror}); check its rights and the disk"
        ) from error
    if not files:
        raise DataError(f"{source.named}: nothing to read there; copy the data set's or model's files to this place")
    return files


def require_planned(source: Copied, files: Callable[[Any], dict[str, File]] = files_of) -> None:
    """Refuse a copy whose content is not what the run was planned with: the result would stand under the key of the other content.

    Args:
        source: The copy.
        files: Returns its files.

    Raises:
        DataError: It is not.
        StoreError: The object store that holds the copy cannot be reached or refuses the credentials.
    """
    if source.digest is None:  # of the hub, or read outside a run
        return
    found = content_digest(files(source))
    if found != source.digest:
        raise DataError(
            f"{source.named}: its content is not what the run was planned with (digest {found}, not {source.digest}): plan and "
            "run again, or correct `digest` where the settings name one"
        )


@contextmanager
def planned(source: Copied, files: Callable[[Any], dict[str, File]] = files_of) -> Iterator[None]:
    """Read a copy that is what the run was planned with, and still is when it was read; see `require_planned`."""
    require_planned(source, files)
    yield
    require_planned(source, files)


def identity(source: Section) -> dict[str, Any]:
    """Return what of a source's settings decides what is read, besides the content of a copy: not where it lies.

    Of the place of a copied data set only the name is left, which is in the ids of the problems; names of own files are in their digest.
    """
    tree = source.model_dump(mode="json")
    if not isinstance(source, Copied) or not is_copy(source):
        return tree
    settings = {name: value for name, value in tree.items() if name not in ("id", "path", "revision", "digest")}
    if isinstance(source, FilesSource):
        return settings
    return settings | {"kind": "copy"} | ({"name": last_part(source)} if isinstance(source, HubSource) else {})
