"""Show what a command is doing during silent work: a spinner on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

_QUIET_SECONDS = 5.0


@contextmanager
def phase(console: Console | None, what: str) -> Iterator[Callable[[], None]]:
    """Show what the command is doing until the context ends, or until the yielded function is called.

    Args:
        console: Where to show it; none to show nothing, if the output is for programs.
        what: The work, for example `starting the object store`.
    """
    if console is None:
        yield lambda: None
        return
    over = threading.Event()

    def follow() -> None:
        began = time.monotonic()
        while not over.wait(_QUIET_SECONDS):
            seconds = time.monotonic() - began
            console.print(f"{what}: {seconds:.0f} s", markup=False, highlight=False, soft_wrap=True)

    spinner = console.status(what) if console.is_terminal else None
    thread = threading.Thread(target=follow, name="phase", daemon=True)
    if spinner is not None:
        spinner.start()
    else:
        thread.start()

    def end() -> None:
        over.set()
        if spinner is not None:
            spinner.stop()

    try:
        yield end
    finally:
        end()
