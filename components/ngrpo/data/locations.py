"""Data sets and models outside the hub: local directories, and copies in object storage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ngrpo.config.sources import is_bucket, is_path
from ngrpo.environment import redacted
from ngrpo.errors import DataError, NGRPOError, StoreError
from ngrpo.storage.disk import disk_trouble
from ngrpo.storage.whole_files import put_in_place

RELATIVE = "in a preset a path is relative to the preset file, on the command line to the current directory"

__all__ = ["RELATIVE", "download", "explained", "is_bucket", "is_local", "local_directory", "reason"]


def is_local(location: str) -> bool:
    """Return whether a source's id names a local directory: one that exists, or a path rather than `org/name`."""
    return is_path(location) or Path(location).is_dir()


def local_directory(location: str, named: str) -> Path:
    """Return the directory that a source names.

    Args:
        location: The directory.
        named: The setting that names it, for messages.

    Raises:
        DataError: There is no such directory.
    """
    path = Path(location).expanduser()
    if not path.is_dir():
        hub = ", a hub id (org/name)" if named.startswith("id=") else ""
        raise DataError(f"{named}: no such directory; name one that exists{hub} or an s3:// prefix ({RELATIVE})")
    return path


def download(
    location: str, directory: Path, wanted: Callable[[str], bool] = lambda key: True, *, named: str | None = None
) -> None:
    """Download the objects under an `s3://bucket/prefix` into a directory, keeping relative paths.

    Existing files are kept: downloads are renamed into place only when complete.

    Args:
        location: Prefix in object storage.
        directory: Directory to download to.
        wanted: Selects keys, relative to `location`.
        named: The setting that names the location, for messages; by default its `id`.

    Raises:
        DataError: No object is selected, or a key is not a valid file name.
        StoreError: The object store cannot be reached or refuses the credentials, or the directory cannot be written.
    """
    from ngrpo.storage.address import path_problem
    from ngrpo.storage.objects import ObjectStore

    named = named or f"id={location!r}"
    objects = ObjectStore(location)
    # A key that ends with a slash marks a folder.
    keys = [key for key in objects.list("") if not key.endswith("/") and wanted(key)]
    if not keys:
        raise DataError(f"{named}: nothing to read there; copy the data set's or model's files to this prefix")
    for key in keys:
        problem = path_problem(key)
        if problem is not None:
            raise DataError(f"{named}: {key!a} is not a valid file name: {problem}; rename or delete it there")
    for key in keys:
        target = directory / key
        if not target.exists():
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_name(
                    f"{target.name}.partial"
                )  # an interrupted download is overwritten by the next
                objects.get_file(key, partial)
                put_in_place(partial, target)
            except OSError as error:
                raise StoreError(f"{target}: cannot be written ({disk_trouble(error, directory)})") from error


def reason(error: BaseException) -> str:
    """Return type and first line of another library's error, with credentials redacted."""
    lines = str(error.__cause__ or error).strip().splitlines()
    return redacted(": ".join([type(error).__name__, *(line[:300] for line in lines[:1])]))


@contextmanager
def explained(what: str, cure: str, place: Path | None = None) -> Iterator[None]:
    """Convert any error that a library raises for an external file into a one-line `DataError`.

    Args:
        what: The file, and that it cannot be used.
        cure: What the user should do.
        place: Directory of links or copies that the library reads. Its path is removed from the error; `what` names the user's path.

    Raises:
        DataError: The body raised anything other than an `NGRPOError`, a `MemoryError` or an interrupt.
    """

    def said(error: BaseException) -> str:
        text = reason(error)
        return text if place is None else text.replace(f"{place}/", "").replace(str(place), "the directory")

    try:
        yield
    except (NGRPOError, MemoryError):
        raise
    # Parsers raise all kinds of exceptions for damaged files, even StopIteration, so no list of types would be complete.
    except Exception as error:
        raise DataError(f"{what}: {said(error)}; {cure}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # from Rust libraries; the class cannot be imported
            raise
        raise DataError(f"{what}: {said(error)}; {cure}") from error
