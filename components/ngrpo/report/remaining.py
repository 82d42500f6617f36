"""How long something still takes, by the pace that it has had, and a curve in one line."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from itertools import pairwise

LEFT = re.compile(r", (about [^,]+ left)")
"""What `Remaining.words` adds to a line of progress."""
_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = 16


class Remaining:
    """Estimates the time that is left from what was done since it was made.

    What was done before, by a try that was killed for example, is not counted: it took no time here.
    """

    def __init__(self, done: float = 0):
        """Start the clock.

        Args:
            done: Amount that was done before.
        """
        self._before = done
        self._began = time.monotonic()

    def seconds(self, done: float, total: float) -> float | None:
        """Return the seconds that are left; None before anything was done, and once all is done."""
        if not self._before < done < total:
            return None
        return (time.monotonic() - self._began) / (done - self._before) * (total - done)

    def words(self, done: float, total: float) -> str:
        """Return what to add to a line of progress: `, about 2 min 10 s left`, or nothing."""
        seconds = self.seconds(done, total)
        return "" if seconds is None else f", about {duration(seconds)} left"


def duration(seconds: float) -> str:
    """Return a time in the two largest units that it has: `12 s`, `3 min 20 s`, `5 h 4 min`, `2 d 3 h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    largest = next(place for place, (_, size) in enumerate(units) if whole >= size)
    (name, size), (small, part) = units[largest], units[largest + 1]
    rest = whole % size // part
    return f"{whole // size} {name}" + (f" {rest} {small}" if rest else "")


def sparkline(values: Sequence[float]) -> str:
    """Return a curve of finite values in at most 16 characters, each the mean of its share; empty where the output cannot show it.

    A single value has no curve.
    """
    if len(values) < 2 or not _shows(sys.stdout.encoding):
        return ""
    count = min(_COLUMNS, len(values))
    edges = [place * len(values) // count for place in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    return "".join(_BARS[round((mean - low) / span * (len(_BARS) - 1)) if span > 0 else 0] for mean in means)


def _shows(encoding: str | None) -> bool:
    try:
        _BARS.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
