"""Cron expressions as Kubeflow reads them: six fields, seconds first, or a descriptor such as `@daily` (github.com/robfig/cron 1.2).

croniter's syntax differs: it accepts 7 for Sunday, `FRI-MON`, `22-2`, `L` and `1#2`, which Kubeflow refuses, and refuses `@every 12h`,
which Kubeflow accepts. Only the syntax is checked here; Kubeflow computes the times.
"""

from __future__ import annotations

import re

from ngrpo.errors import ConfigError

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_FIELDS = (
    ("second", 0, 59, ()),
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 6, _DAYS),
)
_LONGEST_MONTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_DESCRIPTOR = re.compile(
    r"@(?:yearly|annually|monthly|weekly|daily|midnight|hourly|every (?:[0-9]+(?:\.[0-9]+)?(?:h|m|s))+)"
)
_ITEM = re.compile(r"(?:[*?]|(?P<from>\w+)(?:-(?P<to>\w+))?)(?:/(?P<step>[0-9]{1,4}))?")


def check_cron(expression: str, what: str = "--cron") -> str:
    """Return a cron expression after checking that Kubeflow accepts it and that it matches some time.

    Args:
        expression: Second, minute, hour, day of the month, month, day of the week; or a descriptor.
        what: The option or setting that it comes from, for the message.

    Raises:
        ConfigError: The number of fields is wrong, a field is invalid, or no year has such a date.
    """
    fields = expression.split()
    if expression.startswith("@"):
        if not _DESCRIPTOR.fullmatch(expression):
            raise ConfigError(
                f"{what} {expression!r}: unknown; write @hourly, @daily, @weekly, @monthly, @yearly or '@every 12h'"
            )
        return expression
    if len(fields) == len(_FIELDS) - 1:
        raise ConfigError(
            f"{what} {expression!r}: five fields, but Kubeflow expects seconds first: write '0 {expression}'"
        )
    if len(fields) != len(_FIELDS):
        raise ConfigError(
            f"{what} {expression!r}: {len(fields)} fields; write six: second minute hour day month weekday, for example "
            "'0 0 3 * * MON' for Mondays at three"
        )
    values = cron_values(expression, what)
    days, months = values[3], values[4]
    # If days of the month and of the week are both restricted, a day that matches either counts.
    if fields[5][0] in "*?" and not any(day <= _LONGEST_MONTHS[month - 1] for month in months for day in days):
        raise ConfigError(f"{what} {expression!r}: no year has such a date: correct the day or the month")
    return " ".join(fields)


def cron_values(expression: str, what: str = "--cron") -> list[set[int]]:
    """Return the values that each of the six fields stands for.

    Args:
        expression: Six fields.
        what: The option or setting that it comes from, for the message.

    Raises:
        ConfigError: A field is invalid.
    """
    return [
        _values(f"{what} {expression!r}", field, *limits)
        for field, limits in zip(expression.split(), _FIELDS, strict=True)
    ]


def _values(what: str, field: str, name: str, low: int, high: int, names: tuple[str, ...]) -> set[int]:
    """Return the values that a field stands for."""
    values: set[int] = set()
    for item in field.split(","):
        span = _span(item, low, high, names)
        if span is None:
            raise ConfigError(f"{what}: {name} {item!r} cannot be: it goes from {low} to {high}")
        values.update(span)
    return values


def _span(item: str, low: int, high: int, names: tuple[str, ...]) -> range | None:
    """Return the values that one item of a field stands for; None if it is invalid."""
    match = _ITEM.fullmatch(item)
    if match is None:
        return None
    step = int(match["step"] or 1)
    first: int | None = low
    last: int | None = high
    if match["from"]:
        first = _number(match["from"], low, names)
        # `5/15` is short for `5-59/15`.
        last = _number(match["to"], low, names) if match["to"] else high if match["step"] else first
    if first is None or last is None or not low <= first <= last <= high or step < 1:
        return None
    return range(first, last + 1, step)


def _number(text: str, low: int, names: tuple[str, ...]) -> int | None:
    """Return the value of a number or name; None if it is invalid."""
    if text.upper() in names:
        return names.index(text.upper()) + low
    return int(text) if re.fullmatch("[0-9]{1,4}", text) else None
