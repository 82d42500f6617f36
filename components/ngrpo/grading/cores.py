"""How many processor cores this process may use: a grader for each."""

from __future__ import annotations

import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of processor time a period, and the period (Linux, cgroup v2): how Kubernetes limits a container."""


def usable_cores(quota: Path = _QUOTA) -> int:
    """Return the cores that this process may run on, or the whole ones that its container has a right to where those are fewer.

    More graders than cores would take time from each other, and an answer has a limit of time.

    Args:
        quota: File with the limit of the container.
    """
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        allowed = os.cpu_count() or 1
    try:
        granted, period = quota.read_text(encoding="ascii").split()
        return allowed if granted == "max" else max(1, min(allowed, int(granted) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # there is no such file, or it is of another version
        return allowed
