"""The terminal that commands print to."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_WORD = 24
"""Words up to this width, in terminal cells, are never broken: stages, decisions, settings. Longer ones, such as paths, may be wrapped."""
_ENDLESS = 100_000
"""Width that no table reaches, in cells."""


class Terminal(Console):
    """A console on standard output that never truncates tables: text that does not fit into a column is wrapped.

    If columns would be narrower than their words, the table is printed row by row, with one line per cell.
    """

    def __init__(self) -> None:
        super().__init__(file=sys.stdout, highlight=False)

    def print(self, *objects: Any, **settings: Any) -> None:
        """Print like rich, without truncating tables."""
        super().print(*map(self._fitted, objects), **settings)

    def _fitted(self, shown: Any) -> Any:
        if isinstance(shown, Group):
            return Group(*map(self._fitted, shown.renderables))
        # Tables with explicit column widths already fit.
        measured = isinstance(shown, Table) and all(column.width is None for column in shown.columns)
        return self._table(shown) if measured else shown

    def _table(self, table: Table) -> Table:
        """Return a table that is not wider than the terminal and breaks no short words."""
        sizes = [self._sizes(cells) for cells in _columns(table)]
        most = [size.maximum for size in sizes]
        least = [min(size.minimum, _WORD) for size in sizes]
        edges = Measurement.get(self, self.options.update_width(_ENDLESS), table).maximum - sum(most)
        room = self.width - edges
        if sum(least) > room:
            return _row_by_row(table, self.width // 2)
        fitted = copy(table)
        fitted.columns = [
            replace(column, overflow="fold", width=width)
            for column, width in zip(table.columns, _shared(most, least, room), strict=True)
        ]
        return fitted

    def _sizes(self, cells: Sequence[Any]) -> Measurement:
        """Return the widths of a column's longest word and longest line, in terminal cells."""
        options = self.options.update_width(_ENDLESS)
        sizes = [Measurement.get(self, options, cell) for cell in cells]
        return Measurement(max(size.minimum for size in sizes), max(size.maximum for size in sizes))


def _shared(most: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Return column widths with a sum of at most `room`: always shrink the widest column, none below its minimum."""
    widths = list(most)
    while sum(widths) > room:
        _, widest = max((width, number) for number, width in enumerate(widths) if width > least[number])
        widths[widest] -= 1
    return widths


def _row_by_row(table: Table, widest: int) -> Table:
    """Return a table with one line per non-empty cell, after the column's name, which is at most `widest` terminal cells wide."""
    listed = Table(title=table.title, caption=table.caption, caption_justify="left", box=None, show_header=False)
    listed.expand = True  # for the title and the caption
    listed.add_column(overflow="fold", style="bold", max_width=widest)
    listed.add_column(overflow="fold", ratio=1)
    for number, cells in enumerate(zip(*(column.cells for column in table.columns), strict=True)):
        if number:
            listed.add_row()
        for column, cell in zip(table.columns, cells, strict=True):
            if not isinstance(cell, str | Text) or str(cell):
                listed.add_row(column.header, cell)
    return listed


def _columns(table: Table) -> Iterator[list[Any]]:
    for column in table.columns:
        yield [column.header, *column.cells]
