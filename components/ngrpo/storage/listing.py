"""List and hash the files of a directory or of a prefix in object storage; location and modification times do not matter."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ngrpo.storage.digest import digest_of, file_sha256

if TYPE_CHECKING:
    from ngrpo.storage.objects import ObjectStore  # imports boto3, which local files do not need


@dataclass(frozen=True)
class File:
    """Size and digest of a file."""

    size: int
    """Size in bytes."""
    digest: str
    """sha256 of its content; in object storage, `<ETag>-<size>`."""


def content_digest(files: Mapping[str, File]) -> str:
    """Return one digest of files by relative path, as 64 hexadecimal digits."""
    return digest_of({name: file.digest for name, file in files.items()})


def directory_files(
    directory: Path, wanted: Callable[[str], bool], sha256: Callable[[Path], str] = file_sha256
) -> dict[str, File]:
    """Return the files below a directory by relative path, sorted.

    Args:
        directory: The directory; links are followed.
        wanted: Selects relative paths.
        sha256: Returns the sha256 of a file's content.

    Raises:
        OSError: A file or a directory cannot be read.
    """
    return {
        name: File((directory / name).stat().st_size, sha256(directory / name))
        for name in sorted(filter(wanted, _names(directory)))
        if (directory / name).is_file()  # reading a named pipe would block
    }


def prefix_files(objects: ObjectStore, wanted: Callable[[str], bool]) -> dict[str, File]:
    """Return the objects below a store's prefix by relative key, sorted. Nothing is downloaded.

    Args:
        objects: The store.
        wanted: Selects relative keys.

    Raises:
        StoreError: The object store cannot be reached or refuses the credentials.
    """
    # A key that ends with a slash marks a folder.
    tags = {key: tag for key, tag in objects.tags().items() if not key.endswith("/") and wanted(key)}
    return {key: File(size, f"{etag.strip(chr(34))}-{size}") for key, (etag, size) in sorted(tags.items())}


def _names(directory: Path) -> Iterator[str]:
    seen = set()  # a link to a parent directory would cause an endless loop
    for root, folders, names in os.walk(directory, followlinks=True, onerror=_raise):
        where = os.stat(root)
        if (where.st_dev, where.st_ino) in seen:
            folders.clear()
            continue
        seen.add((where.st_dev, where.st_ino))
        yield from (Path(root, name).relative_to(directory).as_posix() for name in names)


def _raise(error: OSError) -> None:
    raise error
