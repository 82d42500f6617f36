"""Give the disk back what was deleted from an embedded SeaweedFS, which else keeps it until it has served for a quarter of an hour."""

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
    """Compact the volumes of a server that is running (`ngrpo.storage.seaweed.serve`).

    The server deletes in the background what it was told to delete: it is asked again until most of that is gone from the disk.

    Args:
        directory: Data of the service.
        deleted: Bytes that were deleted.

    Returns:
        Whether most of them are free within half a minute; else they are free when the server has served for longer.

    Raises:
        StoreError: SeaweedFS refuses.
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
    # Only while a server runs is there a directory of its master, which is called by its port.
    masters = [path.name[1:] for path in directory.glob("m[0-9]*") if path.is_dir()]
    if command is None or len(masters) != 1:
        raise StoreError(
            f"object store directory {directory}: its server is not running, so no room is made; run the command again"
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
