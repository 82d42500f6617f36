"""Drop problems and count them by reason; normalize texts for comparison."""

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
        """Return the items to keep, and count the others under a reason.

        Args:
            reason: Reason for dropping.
            items: The items.
            drops: Whether to drop each item.

        Raises:
            DataError: No item is left.
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
    """Normalize a text so that copies of a problem compare equal: no case, white space or dollar signs, Unicode in NFKC form."""
    return re.sub(r"[\s$]+", "", unicodedata.normalize("NFKC", text).casefold())
