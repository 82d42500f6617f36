"""The parent of an embedded SeaweedFS; a script that `ngrpo.storage.seaweed` starts, with the standard library alone.

It ends the server when its standard input is closed, which the kernel does when the process that holds the other end is
gone, however it ended, and then removes what the server leaves behind. Arguments: paths to remove, `--`, the server's command.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_SECONDS_TO_STOP = 1.0
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_guard() -> None:
    """Let the kernel kill this process when the guard is itself killed. Runs in the server's process, before the server."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _watch(server: "subprocess.Popen[bytes]") -> None:
    os.read(0, 1)
    server.terminate()
    try:
        # Its own shutdown waits for idle connections. Objects are on disk once acknowledged: a kill loses none.
        server.wait(_SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        server.kill()


def main(arguments: list[str]) -> int:
    """Run the server until it ends or standard input is closed, and return its exit status."""
    at = arguments.index("--")
    leftovers, command = arguments[:at], arguments[at + 1 :]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_end_with_guard)
    threading.Thread(target=_watch, args=(server,), daemon=True).start()
    status = server.wait()
    for path in map(Path, leftovers):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
