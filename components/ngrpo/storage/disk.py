"""What to say of a disk that does not take what is written to it."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def disk_trouble(error: OSError, directory: Path, needed: int | None) -> str:
    """Say why something could not be written, how much room it lacks, and the cure.

    Args:
        error: What the system said.
        directory: Where it was to be written.
        needed: Bytes that were to be written; none if that is not known.
    """
    why = error.strerror or str(error)
    if error.errno not in _FULL:
        return f"{why}; check what is there and its rights"
    there = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    size = "an unknown number of" if needed is None else str(needed)
    return f"{why}: {size} bytes needed, {shutil.disk_usage(there).free} free; make room"
