"""Show what a command is doing during silent work: a spinner on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, ClassVar, TypeVar

from ngrpo.report.remaining import Remaining, duration

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

# rich is imported when there is something to show: the command line imports this module as it starts.

PREPARING = "starting the services, looking at what is there"
_QUIET_SECONDS = 4.0
"""Longest silence in seconds without a terminal, in the first minutes: less than the five that a person may wait for a sign."""
_YOUNG_SECONDS = 600.0
_QUIET_LATER_SECONDS = 60.0
"""Longest silence after that: work of days would otherwise fill its log with repeated lines."""


def longest_silence(seconds: float) -> float:
    """Return the longest silence in seconds that is allowed after the work has taken the given seconds."""
    return _QUIET_SECONDS if seconds < _YOUNG_SECONDS else _QUIET_LATER_SECONDS


class Phase:
    """Silent work that is shown until it ends."""

    silent_since: ClassVar[float | None] = None
    """When the process began, which then imported libraries, for its first phase; none in a process that has said something."""

    def __init__(self, console: Console, what: str) -> None:
        """Begin to show it; see `phase`."""
        from rich.markup import escape

        self._began = Phase.silent_since or time.monotonic()
        Phase.silent_since = None
        self._console = console
        self._what = what
        self._remaining: Remaining | None = None
        self._over = threading.Event()
        self._spinner = console.status(escape(what)) if console.is_terminal else None
        if self._spinner is not None:
            self._spinner.start()
        self._thread = threading.Thread(target=self._follow, name="phase", daemon=True)
        if self._spinner is None:
            self._thread.start()

    def now(self, what: str) -> None:
        """Show what the command is doing now, for example how far it is."""
        from rich.markup import escape

        self._what = what
        if self._spinner is not None:
            self._spinner.update(escape(what))

    def reached(self, what: str, done: float, total: float) -> None:
        """Show how far the command is, and the time left at the pace since the first call.

        Args:
            what: The work and how far it is, for example `copied 3 of 12 files`.
            done: Amount of work that is done.
            total: All of it, in the same unit.
        """
        if self._remaining is None:
            self._remaining = Remaining(done)
        self.now(f"{what}{self._remaining.words(done, total)}")

    def each(self, items: Sequence[T], doing: str, unit: str) -> Iterator[T]:
        """Yield items, and show how many of them are done: `reading 3 of 12 runs, about 20 s left`."""
        self._remaining = None
        for number, item in enumerate(items):
            self.reached(f"{doing} {number + 1} of {len(items)} {unit}", number, len(items))
            yield item

    def end(self) -> None:
        """Show it no longer."""
        self._over.set()
        if self._spinner is not None:
            self._spinner.stop()
        else:
            self._thread.join()

    def _follow(self) -> None:
        quiet = _QUIET_SECONDS - (time.monotonic() - self._began)
        with suppress(OSError):  # an output that is closed or full: the command itself will say so
            while not self._over.wait(max(0.0, quiet)):
                seconds = time.monotonic() - self._began
                self._console.print(f"{self._what}: {duration(seconds)}", markup=False, highlight=False, soft_wrap=True)
                quiet = longest_silence(seconds)


@contextmanager
def phase(console: Console, what: str) -> Iterator[Phase]:
    """Show what the command is doing until the context ends, or until `Phase.end`.

    Args:
        console: Where to show it.
        what: The work, for example `starting the object store`.
    """
    shown = Phase(console, what)
    try:
        yield shown
    finally:
        shown.end()


def standard_error() -> Console:
    """Return the console for what must not mix with a command's output."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def messages(console: Console, *, as_json: bool) -> Console:
    """Return where a command shows what it does: where its result goes, or the standard error if the result is JSON for programs."""
    return standard_error() if as_json else console
