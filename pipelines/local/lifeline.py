"""The lifeline of a run: its stages end when the run ends, for whatever reason.

The lock is one of `fcntl`, because all stages wait for it with shared locks, which filelock does not support.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ngrpo.stages.process import LIFELINE
from ngrpo_kfp.pipelines.local.interrupted import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def lifeline(run_directory: Path) -> Iterator[None]:
    """Hold the lifeline of a run.

    A stage waits for the lock on the file `lifeline` of its run, and ends itself and its children when it gets it: that is when
    this process releases it or has ended. SIGINT, SIGTERM and SIGHUP first release it and then raise, because kfp waits for the
    stage's process before it passes an exception on.

    Raises:
        Interrupted: One of those signals arrived.
    """
    descriptor = os.open(run_directory / LIFELINE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)

    def interrupt(number: int, frame: FrameType | None) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        raise Interrupted(number)

    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(descriptor)
