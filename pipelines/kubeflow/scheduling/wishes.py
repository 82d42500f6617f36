"""What a schedule's task decides when it starts, besides the plan: base model, seed, and whether a run is due in the time zone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from ngrpo.config import RunConfig
from ngrpo.config.reading import override
from ngrpo_kfp.pipelines.kubeflow.scheduling.local_times import is_due, time_zone

EACH_RUN = "each-run"
"""Another seed in each run."""


@dataclass(frozen=True)
class Wishes:
    """Parameters of the task; empty where there is nothing to decide."""

    base: str = ""
    """`champion` for runs that start from the current champion."""
    cron: str = ""
    """Times of the schedule in `time_zone`, if that is not UTC."""
    time_zone: str = ""
    """Name of the time zone."""
    seed: str = ""
    """`EACH_RUN`, or the seed of the configuration."""

    def due(self, last: Callable[[], datetime], started: datetime) -> bool:
        """Whether a time of the schedule has passed.

        Args:
            last: Returns when the task last ran, or else when the schedule was created; called only if it matters.
            started: When this one started.

        Raises:
            ConfigError: The time zone is unknown on this machine.
        """
        return not self.cron or is_due(self.cron, time_zone(self.time_zone, "time_zone"), last(), started)

    def seeded(self, config: RunConfig, started: datetime) -> RunConfig:
        """Return the configuration with the seed of this run: the seconds from 1970 to the start of the task."""
        return override(config, [f"seed={int(started.timestamp())}"]) if self.seed == EACH_RUN else config
