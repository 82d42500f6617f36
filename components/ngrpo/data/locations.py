"""Data sets and models that do not come from the hub: a local directory, or a copy in object storage."""

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
    """Say whether a source's id names a local directory: it exists, or is written as a path and not as `org/name`."""
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
    """Copy what lies under an `s3://bucket/prefix` into a directory, keeping relative paths.

    A file that is already there is kept: it was renamed into place when all of it was on disk.

    Args:
        location: Place in object storage.
        directory: Directory to fill.
        wanted: Which keys, relative to `location`, to copy.
        named: The setting that names it, for messages; by default its `id`.

    Raises:
        DataError: Nothing wanted lies there, or an object's key is no name of a file.
        StoreError: The object store cannot be reached or refuses the credentials, or the directory cannot be written.
    """
    from ngrpo.storage.address import path_problem
    from ngrpo.storage.objects import ObjectStore

    named = named or f"id={location!r}"
    objects = ObjectStore(location)
    # A key that ends with a slash is the marker of a folder.
    keys = [key for key in objects.list("") if not key.endswith("/") and wanted(key)]
    if not keys:
        raise DataError(f"{named}: nothing to read there; copy the data set's or model's files to this prefix")
    for key in keys:
        problem = path_problem(key)
        if problem is not None:
            raise DataError(f"{named}: {key!a} is no name of a file: {problem}; rename or delete it there")
    for key in keys:
        target = directory / key
        if not target.exists():
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_name(f"{target.name}.partial")  # a try that was killed leaves it to the next
                objects.get_file(key, partial)
                put_in_place(partial, target)
            except OSError as error:
                raise StoreError(f"{target}: cannot be written ({disk_trouble(error, directory)})") from error


def reason(error: BaseException) -> str:
    """Return one line that says what an error of another library is about, without credentials that may be in it."""
    lines = str(error.__cause__ or error).strip().splitlines()
    return redacted(": ".join([type(error).__name__, *(line[:300] for line in lines[:1])]))


@contextmanager
def explained(what: str, cure: str, place: Path | None = None) -> Iterator[None]:
    """Turn whatever a library raises over a file from elsewhere into one line.

    Args:
        what: The file, and that it cannot be used.
        cure: What to do.
        place: The directory of links or copies that the library was given. Its path is left out of the error; `what` has the user's.

    Raises:
        DataError: Anything was raised but an error of ours, or one that says nothing of the file.
    """

    def said(error: BaseException) -> str:
        text = reason(error)
        return text if place is None else text.replace(f"{place}/", "").replace(str(place), "the directory")

    try:
        yield
    except (NGRPOError, MemoryError):
        raise
    # Parsers of formats raise what they please over a damaged file, a StopIteration for example: no list of kinds holds them all.
    except Exception as error:
        raise DataError(f"{what}: {said(error)}; {cure}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of a library in Rust; its class cannot be imported
            raise
        raise DataError(f"{what}: {said(error)}; {cure}") from error
