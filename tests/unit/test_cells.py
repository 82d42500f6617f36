"""Cells of tables as text: parsed, or refused with a message."""

from datetime import date, datetime
from decimal import Decimal

import pytest

from ngrpo.data.cells import cell_text, text_at
from ngrpo.errors import DataError


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        ("007", "007"),
        ("  5\n", "5"),
        ("nan", "nan"),
        ("", ""),
        (None, ""),
        (float("nan"), ""),
        (Decimal("NaN"), ""),
        (7, "7"),
        (-12345678901234567890, "-12345678901234567890"),
        (5.0, "5"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (1e-7, "0.0000001"),
        (1e22, "10000000000000000000000"),
        (Decimal("2.50"), "2.50"),
        (Decimal("5.00"), "5"),
    ],
)
def test_what_is_one_text_is_understood(cell, text):
    assert cell_text(cell) == text


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (True, "true, not text: write the word"),
        (float("inf"), "an infinite number"),
        (["3", "9"], "a list of 2 values, not text: name another column"),
        (["3"], "a list of 1 value, "),
        ({"value": 3, "unit": "m"}, r"an object \(value, unit\), not text"),
        (date(2024, 5, 1), r"a date \(2024-05-01\), not text: write it as text"),
        (datetime(2024, 5, 1, 12), r"a datetime \(2024-05-01 12:00:00\), not text: write it as text"),
        (b"5", r"raw bytes \(1\), not text: decode it"),
    ],
)
def test_what_is_none_or_several_is_refused_with_its_place(cell, message):
    with pytest.raises(DataError, match=f"^mine.csv, row 3, column 'answer' holds {message}") as failure:
        text_at(cell, "mine.csv, row 3, column 'answer'")
    assert "\n" not in str(failure.value)
