"""Times of schedules in a time zone: the UTC times for Kubeflow, and the task's check of the local time."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.kubeflow.scheduling.cron import cron_values
from ngrpo_kfp.pipelines.kubeflow.scheduling.local_times import cron_in_utc, is_due, time_zone

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def fires(cron: str) -> Callable[[datetime], bool]:
    """Return what says whether a cron expression means a moment of the clock it is read by (robfig/cron 1.2, spec.go: dayMatches)."""
    seconds, minutes, hours, days, months, weekdays = cron_values(cron)
    fields = cron.split()
    either = fields[3][0] not in "*?" and fields[5][0] not in "*?"

    def at(moment: datetime) -> bool:
        day, weekday = moment.day in days, moment.isoweekday() % 7 in weekdays
        return (
            moment.second in seconds
            and moment.minute in minutes
            and moment.hour in hours
            and moment.month in months
            and (day or weekday if either else day and weekday)
        )

    return at


@pytest.mark.parametrize(
    ("cron", "zone", "utc"),
    [
        ("0 0 3 * * MON", "UTC", "0 0 3 * * MON"),
        ("0 0 3 * * MON", "Europe/Berlin", "0 0 1,2 * * 1"),
        ("0 0 1 * * MON", "Europe/Berlin", "0 0 0,23 * * 0,1"),
        ("0 30 9 * * *", "Asia/Kolkata", "0 0 4 * * *"),
        ("0 0 8 * * MON-FRI", "Asia/Tokyo", "0 0 23 * * 0,1,2,3,4"),
        ("0 0 0 1 * *", "Europe/Berlin", "0 0 22,23 28,29,30,31 * *"),
        ("0 0 22 31 DEC *", "America/New_York", "0 0 2,3 1 1,12 *"),
        ("@daily", "Europe/Berlin", "0 0 22,23 * * *"),
    ],
)
def test_kubeflow_is_given_the_times_in_utc(cron, zone, utc):
    assert cron_in_utc(cron, ZoneInfo(zone), NOW) == utc


@pytest.mark.parametrize(
    ("cron", "zone"),
    [
        ("0 0 0 1 * *", "Europe/Berlin"),
        ("0 0 23 31 * *", "America/New_York"),
        ("0 30 2 ? * SAT,SUN", "Australia/Lord_Howe"),
        ("0 15 20 29 2,3 *", "Pacific/Auckland"),
        ("0 0 1 13 * FRI", "Asia/Kathmandu"),
        ("0 45 22 */9 JAN-MAR 1", "America/St_Johns"),
    ],
)
def test_every_time_of_a_zone_is_done_once_and_no_other(cron, zone):
    """A year of what Kubeflow starts: each start looks since the last one, as the task does."""
    clock = ZoneInfo(zone)
    told = cron_in_utc(cron, clock, NOW)
    moments = [NOW + timedelta(minutes=15) * number for number in range(4 * 24 * 366)]
    local = [(moment, moment.astimezone(clock)) for moment in moments]
    means = fires(cron)
    expected = [moment for moment, there in local if means(there) and not there.fold]
    assert expected
    last, done = NOW, []
    for moment in filter(fires(told), moments):
        started = moment + timedelta(seconds=7)  # the controller looks every few seconds
        if is_due(cron, clock, last, started):
            done.append(moment)
        last = started
    assert done == expected


def test_a_time_that_was_missed_is_due_at_the_next_look():
    """Kubeflow makes up for the last of the times that it was told, which is not always the right one."""
    monday = datetime(2026, 1, 5, tzinfo=UTC)  # winter: three o'clock is at two in UTC
    cron = "0 0 3 * * MON"
    assert not is_due(cron, BERLIN, monday - timedelta(days=6), monday + timedelta(hours=1))
    assert is_due(cron, BERLIN, monday + timedelta(hours=1), monday + timedelta(hours=4))
    assert not is_due(cron, BERLIN, monday + timedelta(hours=4), monday + timedelta(days=6))


def test_an_api_whose_clock_is_behind_the_controllers_neither_loses_a_time_nor_has_it_twice():
    due = datetime(2026, 1, 5, 2, tzinfo=UTC)
    behind = due - timedelta(seconds=20)
    assert is_due("0 0 3 * * MON", BERLIN, due - timedelta(hours=1), behind)
    assert not is_due("0 0 3 * * MON", BERLIN, behind, due + timedelta(hours=1))


def test_a_schedule_of_every_hour_runs_in_both_hours_that_a_clock_shows_twice():
    twice = datetime(2026, 10, 25, tzinfo=UTC)  # 2 o'clock in Berlin at 0 and at 1 in UTC
    for hour in range(3):
        start = twice + timedelta(hours=hour)
        assert is_due("0 0 * * * *", BERLIN, start - timedelta(minutes=50), start)
    assert is_due("0 30 2 * * *", BERLIN, twice, twice + timedelta(minutes=30))
    assert not is_due("0 30 2 * * *", BERLIN, twice + timedelta(minutes=30), twice + timedelta(minutes=90))


@pytest.mark.parametrize("name", ["Europe/Nowhere", "../etc/passwd", "", "/etc/passwd", "Europe"])
def test_what_is_no_time_zone_is_refused_by_name(name):
    with pytest.raises(ConfigError, match="no such time zone; a name of the IANA database, for example Europe/Berlin"):
        time_zone(name, "schedules.weekly.time_zone")
