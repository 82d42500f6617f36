"""Cells of a table as text: what stands for a text in one way only is understood, everything else is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from ngrpo.errors import DataError


def cell_at(row: Mapping[str, Any], column: str) -> Any:
    """Return a cell of a row; none where there is no such column. `a.b` is the part `b` of what the column `a` holds."""
    if column in row:
        return row[column]
    top, dot, below = column.partition(".")
    inner = row.get(top)
    return cell_at(inner, below) if dot and isinstance(inner, Mapping) else None


def column_names(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the columns of a row, and the parts of those that hold objects, as `cell_at` takes them."""
    for name, cell in row.items():
        yield name
        if isinstance(cell, Mapping):
            yield from (f"{name}.{part}" for part in column_names(cell))


def cell_text(cell: Any) -> str:
    """Return the text of a cell, without white space around it; empty where there is no value (none, or NaN).

    A whole number is written without a point, whatever its type: a column of integers with missing cells often arrives as one of floats.

    Raises:
        ValueError: It stands for no text, or for several. The message says what it is and what to do.
    """
    if cell is None:
        return ""
    if isinstance(cell, str):
        if not cell.isascii() and any("\ud800" <= character <= "\udfff" for character in cell):
            raise ValueError(
                "half of a character (a surrogate without its other half), no text: correct the file's encoding"
            )
        return cell.strip()
    if isinstance(cell, bool):
        raise ValueError(f"{str(cell).lower()}, no text: write the word that a response is to have")
    if isinstance(cell, int):
        return str(cell)
    if isinstance(cell, float | Decimal):
        return _number(cell)
    raise ValueError(f"{kind_of(cell)}, no text: {_cure(cell)}")


def text_at(cell: Any, place: str) -> str:
    """Return the text of a cell; see `cell_text`.

    Args:
        cell: The cell.
        place: Where it is, for the message: table, row and column.

    Raises:
        DataError: It is no text.
    """
    try:
        return cell_text(cell)
    except ValueError as error:
        raise DataError(f"{place} holds {error}") from error


def kind_of(cell: Any) -> str:
    """Return what a cell holds that is no text, in words."""
    if isinstance(cell, list | tuple):
        return f"a list of {len(cell)} value{'' if len(cell) == 1 else 's'}"
    if isinstance(cell, Mapping):
        return f"an object ({', '.join(map(str, list(cell)[:4]))})" if cell else "an empty object"
    if isinstance(cell, datetime | date | time | timedelta):
        return f"a {type(cell).__name__} ({cell})"
    if isinstance(cell, bytes):
        return f"raw bytes ({len(cell)})"
    return f"a value of type {type(cell).__name__}"


def _number(cell: float | Decimal) -> str:
    if math.isnan(cell):
        return ""
    if math.isinf(cell):
        raise ValueError("an infinite number, no text: write the text that a response is to have")
    # `repr` of a float is the shortest text that is this float; a Decimal has its digits already.
    exact = Decimal(repr(cell)) if isinstance(cell, float) else cell
    return str(int(exact)) if exact == exact.to_integral_value() else format(exact, "f")


def _cure(cell: Any) -> str:
    if isinstance(cell, datetime | date | time | timedelta):
        return "write it as text, in the form that a response is to have"
    if isinstance(cell, bytes):
        return "decode it and store text"
    if isinstance(cell, Mapping) and cell:
        return f"name one of its parts, COLUMN.{next(iter(cell))} for example, or store text"
    return "name another column, or store text"
