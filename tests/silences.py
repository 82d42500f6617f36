"""How long a command says nothing: `python tests/silences.py [--terminal] COMMAND…` names every silence and what was said around it.

Through a pipe lines are said; on a terminal (`--terminal`) also what replaces a line.
"""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST = 5.0
"""Seconds that a command may say nothing."""


@dataclass(frozen=True)
class Silence:
    """A time without output: seconds since the start, its length in seconds, and what was said before and after."""

    began: float
    seconds: float
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s of silence at {self.began:.1f} s, between {self.before!r} and {self.after!r}"


def silences(command: Sequence[str], *, terminal: bool, longest: float = LONGEST) -> tuple[int, float, list[Silence]]:
    """Run a command.

    Args:
        command: The command and its arguments.
        terminal: Whether its output is a terminal, else a pipe.
        longest: Seconds that are no silence yet.

    Returns:
        Its exit code, its seconds, and its silences; the start and the end count as something said.
    """
    reader, writer = pty.openpty() if terminal else os.pipe()
    began = last = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer)
    os.close(writer)
    found, before = [], "(start)"
    while True:
        try:
            said = os.read(reader, 65536)
        except OSError:  # of a terminal that nothing writes to any more
            said = b""
        now = time.monotonic()
        after = _last(said) if said else "(end)"
        if now - last > longest:
            found.append(Silence(last - began, now - last, before, after))
        if not said:
            break
        last, before = now, after or before
    os.close(reader)
    return process.wait(), time.monotonic() - began, found


def _last(said: bytes) -> str:
    lines = said.decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")[-100:]


def main(arguments: Sequence[str]) -> int:
    """Print the silences of a command; its output is not shown."""
    terminal = arguments[0] == "--terminal"
    code, seconds, found = silences(arguments[terminal:], terminal=terminal)
    print(f"{' '.join(arguments)}: exit code {code} after {seconds:.1f} s, {len(found)} silences")
    for silence in found:
        print(f"  {silence}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
