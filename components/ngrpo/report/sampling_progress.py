"""What an evaluation says while it generates: how far each benchmark is, and how long all that is left takes."""

from __future__ import annotations

import time
from collections.abc import Callable

from ngrpo.report.remaining import Remaining

_QUIET_SECONDS = 5.0


class SamplingProgress:
    """Follows the samples of all models of an evaluation."""

    def __init__(self, total: int, say: Callable[[str], None]):
        """Expect a total number of samples, and print lines with `say`."""
        self._total, self._done = total, 0
        self._say = say
        self._remaining = Remaining()

    def skip(self, count: int) -> None:
        """Expect fewer samples: those that are there already take no time."""
        self._total -= count

    def of(self, what: str, total: int, missing: int) -> Callable[[int], None]:
        """Return what is to be called with the number of samples that a benchmark has got.

        It says a line whenever another tenth of the benchmark is done, or some seconds have gone by.

        Args:
            what: The benchmark and the model.
            total: Samples of the benchmark.
            missing: How many of them are still to be generated.
        """
        said, done = time.monotonic(), total - missing

        def add(count: int) -> None:
            nonlocal done, said
            before, done = done, done + count
            self._done += count
            tenth = 10 * before // total < 10 * done // total
            if tenth or time.monotonic() - said >= _QUIET_SECONDS:
                said = time.monotonic()
                self._say(f"{what}: {done}/{total} samples{self._remaining.words(self._done, self._total)}")

        return add
