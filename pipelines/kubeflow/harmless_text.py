"""Text of unknown origin on a terminal."""

from __future__ import annotations


def harmless(text: str) -> str:
    """Return a text with its control characters spelled out, because a terminal would obey them.

    Of a line that overwrote itself, such as a progress bar, the last state is kept.
    """
    last = text.rstrip("\r").rpartition("\r")[2]
    return "".join(letter if letter.isprintable() or letter == "\t" else ascii(letter)[1:-1] for letter in last)
