"""What the operating system refused, in one line."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT}


def explain(error: OSError, workspace: Path) -> str:
    """Return one line that names the file, what is wrong and the cure.

    Args:
        error: What was raised.
        workspace: Directory in which commands write.
    """
    what = " ".join((error.strerror or str(error) or type(error).__name__).split())
    named = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    where = " and ".join(map(repr, named))
    if error.errno in _FULL:
        # Only what opens a file knows its name, and so do few of those that fill a disk.
        places = [Path(name) for name in named] or [workspace, Path(tempfile.gettempdir())]
        room = ", ".join(f"{shutil.disk_usage(place).free} bytes free for {place}" for place in map(_existing, places))
        return (
            f"{where or 'a file, or the standard output,'} cannot be written: {what} ({room}); make room, or set NGRPO_HOME or "
            "TMPDIR to another disk"
        )
    if where:
        return f"{where}: {what}; check that path and its permissions"
    return f"{type(error).__name__}: {what}; check disk, permissions and network, and run the command again"


def _existing(path: Path) -> Path:
    """Return the nearest directory above a path, or the path itself, that is there."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
