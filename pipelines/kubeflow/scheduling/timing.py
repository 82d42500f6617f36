"""When a schedule runs, as stored in Kubeflow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Timing:
    """When a schedule runs, and its other fields in Kubeflow."""

    cron: str
    """Six fields, seconds first, in UTC."""
    max_concurrency: int = 1
    """Number of its runs that may be active at the same time, 10 at most."""
    catch_up: bool = False
    """Whether every missed time starts a run, and not only the last one."""
    description: str = ""
    """The description, a line of at most 255 characters: the origin of the schedule."""

    @classmethod
    def of(cls, schedule: Any) -> Timing:
        """Return the timing of a schedule on the cluster, a `V2beta1RecurringRun`."""
        return cls(
            cron=str(schedule.trigger.cron_schedule.cron),
            max_concurrency=int(schedule.max_concurrency),
            catch_up=not schedule.no_catchup,
            description=schedule.description or "",
        )
