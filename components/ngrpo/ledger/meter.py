"""Measures a process: wall time, processor time including child processes, and energy of its GPUs."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from ngrpo.ledger.devices import energy_used


@dataclass(frozen=True)
class Reading:
    """Usage since the meter was started."""

    seconds: float
    """Wall time."""
    processor_seconds: float
    """Processor time of this process and its children, on all cores together."""
    joules: float | None
    """Energy of the GPUs, including other processes on them; None without GPUs, or if it is not available."""


class Meter:
    """Measures this process from the creation of the meter on."""

    def __init__(self, gpus: Sequence[str] = ()):
        """Start measuring.

        Args:
            gpus: The GPUs of this process, as `visible_gpus` names them.
        """
        self._gpus = tuple(gpus)
        self._energy = energy_used(self._gpus) if self._gpus else None
        self._processor = _processor_seconds()
        self._began = time.monotonic()

    def read(self) -> Reading:
        """Return the usage so far."""
        now = energy_used(self._gpus) if self._energy is not None else None
        return Reading(
            seconds=time.monotonic() - self._began,
            processor_seconds=max(0.0, _processor_seconds() - self._processor),
            joules=None if now is None or self._energy is None else sum(now) - sum(self._energy),
        )


def _processor_seconds() -> float:
    """Return the processor time of this process and its children, ended and running."""
    ended = sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
    alive = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has just ended
            continue
        alive += (
            times.user + times.system + getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
        )
    return ended + alive
