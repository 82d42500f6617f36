"""Error messages for files that cannot be read or written."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CURES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room or raise the quota",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EROFS: "mount it for writing",
    errno.EACCES: "grant this user access",
    errno.EPERM: "grant this user access",
    errno.EIO: "check the disk",
}
_ELSEWHERE = "or use another place (NGRPO_HOME, NGRPO_WORK_DIR, NGRPO_CACHE_DIR, TMPDIR)"


def disk_trouble(error: OSError, *places: Path, needed: int | None = None) -> str:
    """Describe an OS error and its cure, with the free space if the disk is full.

    Args:
        error: Error of the operating system.
        places: Paths to write to, or their directories; free space is measured in the nearest existing directory.
        needed: Bytes to write; None if unknown.
    """
    return _trouble(_words(error), error.errno, places, needed)


def disk_fault(error: BaseException, *places: Path) -> str | None:
    """Return one line with the file, the problem and the cure, or None if the error is not about files.

    Libraries wrap OS errors in their own exceptions, whose message contains that of the operating system.

    Args:
        error: The exception.
        places: Directories that are written to, to measure free space if the error names no file.
    """
    for cause in _causes(error):
        if isinstance(cause, OSError) and (cause.errno in _CURES or cause.filename is not None):
            return _line(cause.filename, cause.filename2, _words(cause), cause.errno, places)
        for number in _CURES:
            if os.strerror(number) in str(cause):
                return _line(None, None, os.strerror(number), number, places)
    return None


def explain(error: OSError, workspace: Path) -> str:
    """Return one line about any OS error of a command.

    Args:
        error: The exception.
        workspace: Directory that commands write to.
    """
    fault = disk_fault(error, workspace, Path(tempfile.gettempdir()))
    if fault is not None:
        return fault
    return f"{type(error).__name__}: {_words(error)}; check disk, permissions and network, and run the command again"


def _line(file: object, other: object, words: str, number: int | None, places: tuple[Path, ...]) -> str:
    named = [os.fsdecode(name) for name in (file, other) if isinstance(name, str | bytes | os.PathLike)]
    # Errors on opening a file name it; most disk-full errors do not.
    what = " and ".join(map(repr, named)) or "a file, or the standard output,"
    places = tuple(map(Path, named)) or places
    elsewhere = f", {_ELSEWHERE}," if number in _FULL | {errno.EROFS} else ""
    if number in _FULL:
        what += " cannot be written"
    return f"{what}: {_trouble(words, number, places, None)}{elsewhere} and run again"


def _trouble(words: str, number: int | None, places: tuple[Path, ...], needed: int | None) -> str:
    if number in _FULL:
        room = [f"{shutil.disk_usage(place).free} bytes free in {place}" for place in map(_existing, places)]
        if needed is not None:
            room.insert(0, f"{needed} bytes needed")
        words = ": ".join(filter(None, [words, ", ".join(room)]))
    return f"{words}; {_CURES.get(number or 0, 'check that path and its rights')}"


def _words(error: OSError) -> str:
    return " ".join((error.strerror or str(error) or type(error).__name__).split())


def _existing(path: Path) -> Path:
    """Return a path, or its nearest parent that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
