"""Number of processor cores that this process may use, with one grader for each."""

from __future__ import annotations

import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""File with the processor time per period, and the period, in microseconds (Linux, cgroup v2): Kubernetes' limit of a container."""


def usable_cores(quota: Path = _QUOTA) -> int:
    """Return the number of cores that this process may run on, or the whole cores in its container's limit if those are fewer.

    More graders than cores would slow each other down, and grading an answer has a time limit.

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
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or another version of cgroups
        return allowed
