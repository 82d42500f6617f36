"""Show what a command is doing during silent work: a spinner on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.markup import escape

from ngrpo.report.remaining import duration

PREPARING = "starting the services, looking at what is there"
_QUIET_SECONDS = 4.0
"""Longest silence in seconds without a terminal, in the first minutes: less than the five that a person may wait for a sign."""
_YOUNG_SECONDS = 600.0
_QUIET_LATER_SECONDS = 60.0
"""Longest silence after that: work of days would otherwise fill its log with repeated lines."""


def longest_silence(seconds: float) -> float:
    """Return how many seconds work may go on without a line, after so many seconds of it."""
    return _QUIET_SECONDS if seconds < _YOUNG_SECONDS else _QUIET_LATER_SECONDS


class Phase:
    """Silent work that is shown until it ends."""

    def __init__(self, console: Console, what: str) -> None:
        """Begin to show it; see `phase`."""
        self._console = console
        self._what = what
        self._over = threading.Event()
        self._spinner = console.status(escape(what)) if console.is_terminal else None
        if self._spinner is not None:
            self._spinner.start()
        self._thread = threading.Thread(target=self._follow, name="phase", daemon=True)
        if self._spinner is None:
            self._thread.start()

    def now(self, what: str) -> None:
        """Show what the command is doing now, for example how far it is."""
        self._what = what
        if self._spinner is not None:
            self._spinner.update(escape(what))

    def end(self) -> None:
        """Show it no longer."""
        self._over.set()
        if self._spinner is not None:
            self._spinner.stop()
        else:
            self._thread.join()

    def _follow(self) -> None:
        began = time.monotonic()
        seconds = 0.0
        with suppress(OSError):  # an output that is closed or full: the command itself will say so
            while not self._over.wait(longest_silence(seconds)):
                seconds = time.monotonic() - began
                self._console.print(f"{self._what}: {duration(seconds)}", markup=False, highlight=False, soft_wrap=True)


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
    return Console(stderr=True, highlight=False)


def messages(console: Console, *, as_json: bool) -> Console:
    """Return where a command shows what it does: where its result goes, or the standard error if the result is JSON for programs."""
    return standard_error() if as_json else console
