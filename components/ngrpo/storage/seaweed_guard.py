"""Parent process of an embedded SeaweedFS server; a script that `ngrpo.storage.seaweed` starts. Uses only the standard library.

Each user of the server holds a shared lock. The guard waits for an exclusive lock on the same file, which it gets when the last user is
gone, even if that one was killed. Then it stops the server and removes the files that the server leaves behind.

Arguments: file descriptor of the users' lock; file descriptor of the lock that marks the directory as served, which guard and server
hold; the file to announce the server in; its URL; paths to remove; `--`; the server's command.
"""

import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_SECONDS_TO_STOP = 0.2
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_guard() -> None:
    """Make the kernel kill this process if the guard is killed. Runs in the server's process before exec."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _watch(server: "subprocess.Popen[bytes]", users: int) -> None:
    fcntl.flock(users, fcntl.LOCK_EX)  # held to the end: new users wait until the directory is free
    server.terminate()
    try:
        # A graceful shutdown waits for idle connections. Acknowledged objects are on disk, so killing the server loses nothing.
        server.wait(_SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        server.kill()


def main(arguments: list[str]) -> int:
    """Run the server until it exits or has no users; return its exit status."""
    at = arguments.index("--")
    (users, served, announcement, url, *leftovers), command = arguments[:at], arguments[at + 1 :]
    partial = Path(f"{announcement}.partial")
    partial.write_text(json.dumps({"url": url, "pid": os.getpid()}), encoding="utf-8")
    partial.replace(announcement)
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_end_with_guard, pass_fds=(int(served),))
    threading.Thread(target=_watch, args=(server, int(users)), daemon=True).start()
    status = server.wait()
    for path in map(Path, [announcement, *leftovers]):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
