"""Dropping problems by reason, and comparing their texts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TypeVar

from ngrpo.errors import DataError

T = TypeVar("T")


class Screen:
    """Drops items of one source and counts them by reason."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.dropped: dict[str, int] = {}

    def drop(self, reason: str, items: Sequence[T], drops: Sequence[bool]) -> list[T]:
        """Return the items that are not to be dropped.

        Raises:
            DataError: None is left.
        """
        kept = [item for item, dropped in zip(items, drops, strict=True) if not dropped]
        if len(kept) < len(items):
            self.dropped[reason] = len(items) - len(kept)
        if not kept:
            counts = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
            raise DataError(
                f"{self.label}: nothing is left, every problem was dropped ({counts}); use another source or limit"
            )
        return kept


def fingerprint(text: str) -> str:
    """Return a text without what the same problem may differ by: case, white space, dollar signs, forms of a character."""
    return re.sub(r"[\s$]+", "", unicodedata.normalize("NFKC", text).casefold())
