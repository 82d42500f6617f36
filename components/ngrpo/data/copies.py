"""Copies of data sets and models, identified by a digest of their files: which files count, and whether they changed since planning."""

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
    """Return whether a source is a copy in a directory or in object storage, rather than a hub repository."""
    return (
        not isinstance(source, HubSource | HubModel)
        or source.digest is not None
        or is_bucket(source.id)
        or is_local(source.id)
    )


def last_part(source: HubSource | CopiedModel) -> str:
    """Return the last part of a source's location; the ids of a hub data set's problems begin with it."""
    return source.location.rstrip("/").rpartition("/")[2]


def is_read(source: HubSource | CopiedModel, *, weights: bool = True) -> Callable[[str], bool]:
    """Return a predicate on relative paths that selects the files to read from a source.

    Of a data set these are all files that are not hidden; of a model, the configuration, tokenizer and weights at its top level.

    Args:
        source: The source.
        weights: Whether to include the weights of a model.
    """
    if isinstance(source, HubSource):
        return lambda name: not any(part.startswith(".") for part in PurePosixPath(name).parts)
    patterns = DESCRIPTION + (WEIGHTS if weights else ())
    return lambda name: "/" not in name and any(fnmatch(name, pattern) for pattern in patterns)


def files_of(source: HubSource | CopiedModel, sha256: Callable[[Path], str] = file_sha256) -> dict[str, File]:
    """Return the files to read from a copy, by relative path.

    Args:
        source: The copy.
        sha256: Returns the sha256 of a file's content.

    Raises:
        DataError: There are no such files, or they cannot be read.
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
    """Refuse a copy that changed after the run was planned: the result would be stored under the key of the old content.

    Args:
        source: The copy.
        files: Returns its files.

    Raises:
        DataError: The content has changed.
        StoreError: The object store that holds the copy cannot be reached or refuses the credentials.
    """
    if source.digest is None:  # on the hub, or read outside a run
        return
    found = content_digest(files(source))
    if found != source.digest:
        raise DataError(
            f"{source.named}: its content is not what the run was planned with (digest {found}, not {source.digest}): plan and "
            "run again, or correct `digest` where the settings name one"
        )


@contextmanager
def planned(source: Copied, files: Callable[[Any], dict[str, File]] = files_of) -> Iterator[None]:
    """Check a copy with `require_planned` before and after the body reads it."""
    require_planned(source, files)
    yield
    require_planned(source, files)


def identity(source: Section) -> dict[str, Any]:
    """Return the settings of a source that identify its data, for keys: not the location of a copy, whose content is in its digest.

    Of a copied data set's location only the last part is kept, since it is in the ids of the problems. The digest of a user's files covers
    their names.
    """
    tree = source.model_dump(mode="json")
    if not isinstance(source, Copied) or not is_copy(source):
        return tree
    settings = {name: value for name, value in tree.items() if name not in ("id", "path", "revision", "digest")}
    if isinstance(source, FilesSource):
        return settings
    return settings | {"kind": "copy"} | ({"name": last_part(source)} if isinstance(source, HubSource) else {})
