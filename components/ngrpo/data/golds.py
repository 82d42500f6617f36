"""Extract gold answers from the cells of a column, including cells with a list of accepted answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from ngrpo.config.grading import Gold, Graded, GradingConfig
from ngrpo.errors import DataError
from ngrpo.grading.extraction import last
from ngrpo.grading.grader import gold_answers

_LIST_AS_TEXT = re.compile(r"""\[\s*(['"]).*\1\s*\]|\(\s*(['"]).*\2\s*,?\s*\)""", re.DOTALL)

_WORDS = {
    "boxed": r" inside \boxed{}",
    "####": " after ####",
    "<answer>": " inside <answer>...</answer>",
    "regex": " where grading.gold_pattern matches",
}

Place = Callable[[int], str]
"""Describes the position of a row's cell, for messages."""
ReadText = Callable[[Any, str], str]
"""Returns the text of a cell, or an empty text if there is none; the second argument is its position, for errors."""


def form_of(source: Graded) -> str:
    """Return the form of the gold answer in its column: `boxed`, or the value of `grading.gold`."""
    return "boxed" if getattr(source, "answer_is_boxed", False) else source.grading.gold


def form_in_words(form: str) -> str:
    """Describe a form as words that follow "no answer" in a message."""
    return _WORDS.get(form, "")


def gold_column(source: Graded, cells: Sequence[Any], place: Place, text: ReadText) -> list[Gold]:
    """Return the gold answer of each cell, or a list of answers if the source accepts several; empty if a cell has none.

    Args:
        source: Source with the settings of the column and of grading.
        cells: The cells of the column.
        place: Describes the position of a row's cell, for errors.
        text: Reads a cell that is not a list.

    Raises:
        DataError: A cell holds a list where one answer is expected, a value that is not an answer, or a list that was converted to text;
            or matching the user's `grading.gold_pattern` failed.
    """
    grading = source.grading
    form = form_of(source)
    several = grading.accepted != "one"
    parts = [_parts(cell, several=several, place=place(row), text=text) for row, cell in enumerate(cells)]
    if form == "text":
        found = parts
    else:
        looked = GradingConfig.model_construct(gold=form, gold_pattern=grading.gold_pattern)
        answers = iter(gold_answers([part for each in parts for part in each], looked))
        found = [
            [answer for _ in each for answer in _found(next(answers), place(row), several=several)]
            for row, each in enumerate(parts)
        ]
    if several:
        return [[answer for answer in answers if answer] for answers in found]
    return [answers[0] if answers else "" for answers in found]


def _found(result: tuple[list[str], str | None], place: str, *, several: bool) -> list[str]:
    answers, error = result
    if error is not None:
        raise DataError(f"{place}: {error}; simplify grading.gold_pattern")
    return answers if several else [last(answers) or ""]


def _parts(cell: Any, *, several: bool, place: str, text: ReadText) -> list[str]:
    """Return the texts of a cell: a single one, or the elements of a list."""
    if isinstance(cell, str) and several and cell.lstrip().startswith("["):
        cell = _parsed(cell)
    if isinstance(cell, list | tuple):
        if not several:
            raise DataError(
                f'{place} holds a list of {len(cell)} answers where one is expected: set grading.accepted to "any" (one of them is '
                'enough) or "all", or name a column with one answer'
            )
        return [_element(each, number, place, text) for number, each in enumerate(cell)]
    only = text(cell, place)
    if _LIST_AS_TEXT.fullmatch(only):
        raise DataError(
            f"{place} holds a list that was turned into text ({only:.60}): "
            + (
                'write it as JSON, ["3", "9"], or store a list'
                if several
                else 'store one answer, or a list, with grading.accepted set to "any" or "all"'
            )
        )
    return [only] if only else []


def _parsed(cell: str) -> Any:
    """Parse a JSON list, the form of lists in CSV files; return any other text unchanged."""
    try:
        # Keep numbers as they are written.
        return json.loads(cell, parse_float=str, parse_int=str)
    except (ValueError, RecursionError):
        return cell


def _element(cell: Any, number: int, place: str, text: ReadText) -> str:
    where = f"{place}, answer {number} of its list,"
    if isinstance(cell, list | tuple | dict):
        raise DataError(f"{where} is a {type(cell).__name__}, not text or a number: write a list of answers")
    answer = text(cell, where)
    if not answer:
        raise DataError(f"{where} is empty: remove it from the list")
    return answer
