"""Cells of a table as text: values with exactly one sensible text form are converted, everything else is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from ngrpo.errors import DataError


def cell_at(row: Mapping[str, Any], column: str) -> Any:
    """Return a cell of a row, or None if there is no such column. `a.b` names the field `b` of the object in column `a`."""
    if column in row:
        return row[column]
    top, dot, below = column.partition(".")
    inner = row.get(top)
    return cell_at(inner, below) if dot and isinstance(inner, Mapping) else None


def column_names(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of a row's columns, and of the fields of columns that hold objects, in the form that `cell_at` accepts."""
    for name, cell in row.items():
        yield name
        if isinstance(cell, Mapping):
            yield from (f"{name}.{part}" for part in column_names(cell))


def cell_text(cell: Any) -> str:
    """Return the text of a cell without surrounding white space; an empty text if there is no value (None or NaN).

    A whole number is written without a decimal point, whatever its type: integer columns with missing cells are often read as floats.

    Raises:
        ValueError: The cell has no text form, or more than one. The message names the kind of value and the cure.
    """
    if cell is None:
        return ""
    if isinstance(cell, str):
        if not cell.isascii() and any("\ud800" <= character <= "\udfff" for character in cell):
            raise ValueError("half of a character (an unpaired surrogate), not text: correct the file's encoding")
        return cell.strip()
    if isinstance(cell, bool):
        raise ValueError(f"{str(cell).lower()}, not text: write the word that a response should contain")
    if isinstance(cell, int):
        return str(cell)
    if isinstance(cell, float | Decimal):
        return _number(cell)
    raise ValueError(f"{kind_of(cell)}, not text: {_cure(cell)}")


def text_at(cell: Any, place: str) -> str:
    """Return the text of a cell; see `cell_text`.

    Args:
        cell: The cell.
        place: Where it is, for the message: table, row and column.

    Raises:
        DataError: The cell is not text.
    """
    try:
        return cell_text(cell)
    except ValueError as error:
        raise DataError(f"{place} holds {error}") from error


def kind_of(cell: Any) -> str:
    """Describe the value of a cell that is not text, for error messages."""
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
        raise ValueError("an infinite number, not text: write the text that a response should contain")
    # `repr` of a float is the shortest text that reads back as the same float; a Decimal keeps its digits.
    exact = Decimal(repr(cell)) if isinstance(cell, float) else cell
    return str(int(exact)) if exact == exact.to_integral_value() else format(exact, "f")


def _cure(cell: Any) -> str:
    if isinstance(cell, datetime | date | time | timedelta):
        return "write it as text, in the form that a response should have"
    if isinstance(cell, bytes):
        return "decode it and store text"
    if isinstance(cell, Mapping) and cell:
        return f"name one of its fields, for example COLUMN.{next(iter(cell))}, or store text"
    return "name another column, or store text"
