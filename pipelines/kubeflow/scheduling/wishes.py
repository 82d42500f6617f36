"""What a schedule's task decides on the day, beside the plan: base model, seed, and whether the clock of a time zone says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from ngrpo.config import RunConfig
from ngrpo.config.reading import override
from ngrpo_kfp.pipelines.kubeflow.scheduling.local_times import is_due, time_zone

EACH_RUN = "each-run"
"""For another seed in each run."""


@dataclass(frozen=True)
class Wishes:
    """As parameters of the task; empty where there is nothing to decide."""

    base: str = ""
    """`champion` for runs that start from the champion of their day."""
    cron: str = ""
    """Times of the schedule in `time_zone`, where that is not UTC."""
    time_zone: str = ""
    """Name of the time zone."""
    seed: str = ""
    """`EACH_RUN`, or the seed of the configuration."""

    def due(self, last: Callable[[], datetime], started: datetime) -> bool:
        """Say whether a time of the schedule has come.

        Args:
            last: Says when the task ran last, or else the schedule was made; asked only where it matters.
            started: When this one started.

        Raises:
            ConfigError: This machine does not know the time zone.
        """
        return not self.cron or is_due(self.cron, time_zone(self.time_zone, "time_zone"), last(), started)

    def seeded(self, config: RunConfig, started: datetime) -> RunConfig:
        """Return the configuration with the seed of the day: the second since 1970 in which Kubeflow started the task."""
        return override(config, [f"seed={int(started.timestamp())}"]) if self.seed == EACH_RUN else config
