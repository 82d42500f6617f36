"""`schedules.toml`: the schedules of a cluster as a file, which is read and checked as a whole before the cluster is contacted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from ngrpo.config import RunConfig, Section, validate
from ngrpo.config.reading import named_preset, read_toml
from ngrpo.errors import ConfigError
from ngrpo.section import Flag, Line, Name, NonEmpty, count
from ngrpo_kfp.pipelines.kubeflow.scheduling.cron import check_cron
from ngrpo_kfp.pipelines.kubeflow.scheduling.local_times import cron_in_utc, time_zone
from ngrpo_kfp.pipelines.kubeflow.scheduling.origin import Origin
from ngrpo_kfp.pipelines.kubeflow.scheduling.timing import Timing
from ngrpo_kfp.pipelines.kubeflow.scheduling.wishes import EACH_RUN, Wishes
from ngrpo_kfp.pipelines.planning.requests import PRESETS, cluster_config

_UTC = "UTC"
_LARGEST_SEED = 2**32 - 1
_ELSEWHERE = {
    "seed": "it is a setting of the schedule itself",
    "preset": "it is a setting of the schedule itself",
    "extends": "name the preset by the schedule's own setting `preset`",
}


def _check_seed(value: Any) -> Any:
    if value == EACH_RUN or (type(value) is int and 0 <= value <= _LARGEST_SEED):
        return value
    raise ValueError(f"a whole number from 0 to {_LARGEST_SEED}, or {EACH_RUN!r} for another seed in each run")


class ScheduleSettings(Section):
    """A schedule, as its file describes it."""

    cron: Line
    """Second, minute, hour, day of the month, month, day of the week, or `@daily` and the like, in `time_zone`."""
    time_zone: Line = _UTC
    """Name of a time zone of the IANA database, for example `Europe/Berlin`."""
    preset: NonEmpty
    """Name of a preset, or a TOML file relative to this one."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the runs, on top of the preset."""
    seed: Annotated[int | str | None, PlainValidator(_check_seed)] = None
    """Seed of every run; by default the preset's. With `each-run` each run has another: the seconds from 1970 to its start by Kubeflow."""
    base: Literal["champion"] | None = None
    """`champion` for runs that start from the current champion."""
    cluster: NonEmpty | None = None
    """TOML file with the section `cluster`, relative to this one."""
    enabled: Flag = True
    """Whether it runs, or is paused."""
    max_concurrency: Annotated[int, count(1, 10)] = 1
    """Number of its runs that may be active at the same time."""
    catch_up: Flag = False
    """Whether every missed time starts a run, and not only the last one; needs times in UTC."""


class ScheduleFile(Section):
    """A file of schedules."""

    owner: Name
    """Label of the schedules created from this file; schedules of other owners are not changed."""
    schedules: dict[Name, ScheduleSettings] = Field(default_factory=dict)
    """The schedules by name."""


@dataclass(frozen=True)
class Wanted:
    """A schedule as defined in its file."""

    name: str
    config: RunConfig
    wishes: Wishes
    timing: Timing
    enabled: bool


@dataclass(frozen=True)
class WantedSchedules:
    """All schedules of a file."""

    origin: Origin
    schedules: Sequence[Wanted]
    left_out: Mapping[str, Sequence[str]]
    """By schedule, the benchmarks that its runs leave out because their pods have no token for the hub."""


def read_schedules(path: Path, now: datetime) -> WantedSchedules:
    """Read a file of schedules, and the configuration of each.

    Args:
        path: TOML file.
        now: Start of the period for which times are converted to UTC.

    Raises:
        ConfigError: A file cannot be read or is not TOML, or settings are unknown or invalid: a line for each, which names the schedule,
            the field, the value and what is allowed.
    """
    tree = read_toml("schedules", path)
    try:
        file = validate(ScheduleFile, tree)
    except ConfigError as error:
        raise ConfigError("\n".join(f"{path.name}: {line}" for line in str(error).splitlines())) from error
    origin = Origin(path.name[-100:], file.owner)
    wanted, problems, left_out = [], [], {}
    for name, settings in file.schedules.items():
        try:
            schedule, closed = _wanted(path, name, settings, origin, now)
        except ConfigError as error:
            where = f"{path.name}: schedules.{name}"
            problems += [line if line.startswith(where) else f"{where}: {line}" for line in str(error).splitlines()]
        else:
            wanted.append(schedule)
            if closed:
                left_out[name] = closed
    if problems:
        raise ConfigError("\n".join(problems))
    return WantedSchedules(origin, wanted, left_out)


def _wanted(
    path: Path, name: str, settings: ScheduleSettings, origin: Origin, now: datetime
) -> tuple[Wanted, list[str]]:
    """Return a schedule, and the benchmarks that its runs leave out."""
    where = f"{path.name}: schedules.{name}"
    for field, why in _ELSEWHERE.items():
        if field in settings.settings:
            raise ConfigError(f"{where}.settings.{field}: {why}; leave it out here")
    cron = check_cron(settings.cron, f"{where}.cron")
    zone = time_zone(settings.time_zone, f"{where}.time_zone")
    local = settings.time_zone != _UTC
    if local and cron.startswith("@every"):
        raise ConfigError(f"{where}.cron {cron!r}: it names no time of day, so leave time_zone out")
    if local and settings.catch_up:
        raise ConfigError(
            f"{where}.catch_up=true needs times in UTC, and time_zone={settings.time_zone!r}: leave one of them out"
        )
    if "cluster" in settings.settings and settings.cluster is not None:
        raise ConfigError(
            f"{where}.cluster: {where.partition(' ')[2]}.settings.cluster says it too; leave one of them out"
        )
    preset = named_preset(settings.preset, f"{where}.preset", path.parent, PRESETS)
    cluster = None if settings.cluster is None else path.parent / Path(settings.cluster).expanduser()
    seed = [f"seed={settings.seed}"] if isinstance(settings.seed, int) else []
    config, closed = cluster_config(preset, seed, cluster, [(path, settings.settings)])
    wishes = Wishes(
        base=settings.base or "",
        cron=cron if local else "",
        time_zone=settings.time_zone if local else "",
        seed=EACH_RUN if settings.seed == EACH_RUN else "",
    )
    timing = Timing(
        cron=cron_in_utc(cron, zone, now) if local else cron,
        max_concurrency=settings.max_concurrency,
        catch_up=settings.catch_up,
        description=origin.text,
    )
    return Wanted(name, config, wishes, timing, settings.enabled), closed
