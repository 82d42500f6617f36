"""Times of a schedule in a time zone, for Kubeflow, whose schedules support only UTC.

In many zones the offset to UTC changes twice a year. So Kubeflow gets a superset of the right times, in UTC, and the task that it starts
checks the local time: if no time of the schedule has passed since the last check, there is nothing to do.

Of a local time that occurs twice the first occurrence counts, unless the schedule names every hour. A skipped local time is left out.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.kubeflow.scheduling.cron import cron_values

_SLACK = timedelta(minutes=1)
"""Largest difference between the clocks of Kubeflow's API and its controller."""
_LONGEST = timedelta(days=366)
_DAY = 24 * 60
_FULL = {3: set(range(1, 32)), 4: set(range(1, 13)), 5: set(range(7))}
_DESCRIPTORS = {
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}


def time_zone(name: str, what: str) -> ZoneInfo:
    """Return a time zone.

    Args:
        name: Its name in the IANA database.
        what: The setting that names it, for the message.

    Raises:
        ConfigError: There is no time zone with this name.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            f"{what}={name!r}: no such time zone; a name of the IANA database, for example Europe/Berlin or UTC"
        ) from error


def cron_in_utc(cron: str, zone: ZoneInfo, now: datetime) -> str:
    """Return a cron expression in UTC that matches all times which the given one matches in a time zone, and as few others as possible.

    Args:
        cron: Six fields, or a descriptor that names times of day; checked (`check_cron`).
        zone: The time zone.
        now: The offsets to UTC of the two years from here on are taken into account.
    """
    offsets = {(now + timedelta(days=day)).astimezone(zone).utcoffset() or timedelta() for day in range(731)}
    if offsets == {timedelta()}:
        return cron
    fields = _fields(cron)
    values = cron_values(" ".join(fields))
    minutes, hours, shifts = set(), set(), set()
    for offset, minute, hour in product(offsets, values[1], values[2]):
        shift, of_day = divmod(hour * 60 + minute - round(offset / timedelta(minutes=1)), _DAY)
        shifts.add(shift)
        hours.add(of_day // 60)
        minutes.add(of_day % 60)
    days = {place: _moved(place, values[place], shifts) for place in (3, 4, 5)}
    return " ".join(
        [
            fields[0],
            _written(minutes, set(range(60))),
            _written(hours, set(range(24))),
            *("*" if fields[place][0] in "*?" else _written(days[place], _FULL[place]) for place in (3, 4, 5)),
        ]
    )


def is_due(cron: str, zone: ZoneInfo, after: datetime, until: datetime) -> bool:
    """Whether a time of a schedule has passed.

    Args:
        cron: Six fields, or a descriptor that names times of day, in the time zone.
        zone: The time zone.
        after: Time of the last check, or of the schedule's creation; time-zone-aware, like `until`.
        until: Time of this check.
    """
    fields = _fields(cron)
    seconds, minutes, hours, days, months, weekdays = cron_values(" ".join(fields))
    each_hour, any_day, any_weekday = (fields[place][0] in "*?" for place in (2, 3, 5))
    until += _SLACK
    after = max(after + _SLACK, until - _LONGEST)
    date, last = after.astimezone(zone).date(), until.astimezone(zone).date()
    while date <= last:
        day, weekday = date.day in days, date.isoweekday() % 7 in weekdays
        if date.month in months and (day and weekday if any_day or any_weekday else day or weekday):
            for hour, minute, second, fold in product(hours, minutes, seconds, (0, 1) if each_hour else (0,)):
                local = datetime(date.year, date.month, date.day, hour, minute, second, tzinfo=zone, fold=fold)
                moment = local.astimezone(UTC)
                # A skipped local time changes on the way to UTC and back.
                if after < moment <= until and moment.astimezone(zone).replace(tzinfo=None) == local.replace(
                    tzinfo=None
                ):
                    return True
        date += timedelta(days=1)
    return False


def _fields(cron: str) -> list[str]:
    return _DESCRIPTORS.get(cron, cron).split()


def _moved(place: int, values: set[int], shifts: set[int]) -> set[int]:
    """Return days of the month (place 3), months (4) or days of the week (5) after a shift by days."""
    moved: set[int] = set()
    for value, shift in product(values, shifts):
        if place == 5:
            moved.add((value + shift) % 7)
        elif place == 4:
            moved |= {value, (value - 1 + shift) % 12 + 1}
        elif 1 <= value + shift <= 31:
            moved.add(value + shift)
            # The next day may be the first of the next month.
            moved |= {1} if shift == 1 and value >= 28 else set()
        else:
            moved |= {1} if shift == 1 else {28, 29, 30, 31}
    return moved


def _written(values: set[int], full: set[int]) -> str:
    return "*" if values == full else ",".join(map(str, sorted(values)))
