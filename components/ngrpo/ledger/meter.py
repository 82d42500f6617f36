"""What a process takes: wall time, processor time with that of its children, and the energy of its GPUs."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from ngrpo.ledger.devices import energy_used


@dataclass(frozen=True)
class Reading:
    """What was taken since the meter was started."""

    seconds: float
    """Wall time."""
    processor_seconds: float
    """Processor time of this process and its children, on all cores together."""
    joules: float | None
    """Energy of the GPUs, whoever used them; none where there are none, or where it is not told."""


class Meter:
    """Measures this process from now on."""

    def __init__(self, gpus: Sequence[str] = ()):
        """Start.

        Args:
            gpus: The GPUs that are this process's, as `visible_gpus` names them.
        """
        self._gpus = tuple(gpus)
        self._energy = energy_used(self._gpus) if self._gpus else None
        self._processor = _processor_seconds()
        self._began = time.monotonic()

    def read(self) -> Reading:
        """Return what was taken so far."""
        now = energy_used(self._gpus) if self._energy is not None else None
        return Reading(
            seconds=time.monotonic() - self._began,
            processor_seconds=max(0.0, _processor_seconds() - self._processor),
            joules=None if now is None or self._energy is None else sum(now) - sum(self._energy),
        )


def _processor_seconds() -> float:
    """Return the processor time of this process, of the children that have ended, and of those at work."""
    ended = sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
    alive = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it ends while it is looked at
            continue
        alive += (
            times.user + times.system + getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
        )
    return ended + alive
