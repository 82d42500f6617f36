"""Regular expressions of the user, on texts that a model wrote. Only a grading worker runs them: matching may take forever."""

from __future__ import annotations

import re
from collections import deque

Span = tuple[int, int]

MOST = 64
"""Places that are looked at, the last ones."""


def search(pattern: str, text: str) -> tuple[list[Span], str | None]:
    """Return where the only group of an expression matches in a text, at the last `MOST` places at most, and what kept it from being found.

    Args:
        pattern: The expression.
        text: The text.
    """
    try:
        matches = deque((match.span(1) for match in re.finditer(pattern, text) if match.start(1) >= 0), MOST)
    except (re.error, MemoryError, RecursionError) as error:
        return [], f"the regular expression cannot be matched: {type(error).__name__}"
    return list(matches), None
