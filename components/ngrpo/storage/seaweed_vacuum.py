"""Free the disk space of objects that were deleted from an embedded SeaweedFS, which by itself does so only after 15 minutes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from ngrpo.errors import StoreError

_SECONDS = 600.0
_PATIENCE = 30.0
_PAUSE = 1.0
_COMMANDS = "lock\nvolume.vacuum -garbageThreshold=0.001\nunlock\nexit\n"


def vacuum(directory: Path, deleted: int) -> bool:
    """Compact the volumes of a running server (`ngrpo.storage.seaweed.serve`).

    The server processes deletions in the background, so compaction is repeated until most of the deleted bytes are freed.

    Args:
        directory: Data directory of the server.
        deleted: Bytes that were deleted.

    Returns:
        Whether at least half of the bytes were freed within half a minute; if not, a server that runs longer frees them later.

    Raises:
        StoreError: The server is not running, or compaction fails.
    """
    before, deadline = _size(directory), time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        _compact(directory)
        if before - _size(directory) >= deleted / 2:
            return True
        time.sleep(_PAUSE)
    return False


def _compact(directory: Path) -> None:
    program = Path(sys.executable).with_name("weed")
    command = str(program) if program.exists() else shutil.which("weed")
    home = directory.with_name(f"{directory.name}.server")
    # The directory of the master, whose name contains its port, exists only while the server runs.
    masters = [path.name[1:] for path in directory.glob("m[0-9]*") if path.is_dir()]
    if command is None or len(masters) != 1:
        raise StoreError(
            f"object store directory {directory}: its server is not running, so no space was freed; run the command again"
        )
    try:
        done = subprocess.run(
            [command, "shell", f"-master=127.0.0.1:{masters[0]}"],
            input=_COMMANDS,
            env={"HOME": str(home.absolute())},
            cwd=home,  # its keys are there
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise StoreError(
            f"object store directory {directory}: its volumes were not compacted within {_SECONDS:.0f} s; the next long run does it"
        ) from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise StoreError(
            f"object store directory {directory}: its volumes were not compacted ({said}); the next long run does it"
        )


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.dat"))
