"""When a schedule runs, as Kubeflow keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Timing:
    """When a schedule runs, and what else Kubeflow itself knows of it."""

    cron: str
    """Six fields, seconds first, in UTC."""
    max_concurrency: int = 1
    """How many of its runs may go at the same time, 10 at most."""
    catch_up: bool = False
    """Whether every time that was missed is made up for, in place of the last one only."""
    description: str = ""
    """A line of text, 255 characters at most: where the schedule comes from."""

    @classmethod
    def of(cls, schedule: Any) -> Timing:
        """Return that of a schedule on the cluster, a `V2beta1RecurringRun`."""
        return cls(
            cron=str(schedule.trigger.cron_schedule.cron),
            max_concurrency=int(schedule.max_concurrency),
            catch_up=not schedule.no_catchup,
            description=schedule.description or "",
        )
