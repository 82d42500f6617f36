"""The terminal that commands print to."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console, Group
from rich.table import Table


class Terminal(Console):
    """The standard output without truncation: text that does not fit into a column of a table is wrapped."""

    def __init__(self) -> None:
        super().__init__(file=sys.stdout, highlight=False)

    def print(self, *objects: Any, **settings: Any) -> None:
        """Print as rich does, but never truncate tables."""
        for shown in objects:
            for part in shown.renderables if isinstance(shown, Group) else [shown]:
                if isinstance(part, Table):
                    for column in part.columns:
                        column.overflow = "fold"
        super().print(*objects, **settings)
