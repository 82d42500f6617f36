"""What the user is told when a file cannot be read or written."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_CURES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room or raise the quota",
    errno.EROFS: "mount it for writing, or choose another directory (NGRPO_WORK_DIR, NGRPO_CACHE_DIR)",
    errno.EACCES: "give this user the right to it",
    errno.EPERM: "give this user the right to it",
    errno.EIO: "check the disk",
}


def disk_fault(error: BaseException, *places: Path) -> str | None:
    """Return one line on an error of the file system; none if it is an error of another kind.

    Libraries wrap such errors in their own, which have the words of the operating system in them.

    Args:
        error: What was raised.
        places: Directories that a stage writes to, whose free space is told.
    """
    for cause in _causes(error):
        if isinstance(cause, OSError) and (cause.errno in _CURES or cause.filename is not None):
            return _line(cause.filename, cause.strerror, cause.errno, places)
        for number in _CURES:
            if os.strerror(number) in str(cause):
                return _line(None, os.strerror(number), number, places)
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _line(file: object, words: str | None, number: int | None, places: tuple[Path, ...]) -> str:
    what = f"{file}: {words}" if file is not None else f"a file cannot be written: {words}"
    room = ", ".join(f"{shutil.disk_usage(place).free / 1e6:.0f} MB in {place}" for place in places if place.exists())
    return f"{what}; free: {room}; {_CURES.get(number or 0, 'put it right')} and run again"
