"""Lines such as `report    outputs/…` that end a command: a label, and what belongs to it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from rich.console import Console

LABEL = 10
"""Width of a label with the spaces behind it."""


def print_labelled(lines: Iterable[str], console: Console) -> None:
    """Print lines that begin with a label of `LABEL` characters.

    On a terminal, what does not fit is wrapped between words and indented below its text; paths are never broken. Elsewhere every line
    stays one, so that `grep` finds all of it.
    """
    for line in lines:
        shown = _wrapped(line, console.width) if console.is_terminal else line
        console.print(shown, markup=False, soft_wrap=True)


def _wrapped(line: str, width: int) -> str:
    room = max(width - LABEL, LABEL)
    parts = textwrap.wrap(line[LABEL:], room, break_long_words=False, break_on_hyphens=False)
    return line[:LABEL] + f"\n{'':{LABEL}}".join(parts)
