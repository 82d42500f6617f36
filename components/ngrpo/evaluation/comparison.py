r"""Whether an answer equals the gold answer, as math-verify reads and compares them."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

_PERCENT = re.compile(r"\s*\\?%$")


@lru_cache(maxsize=1024)
def read(answer: str) -> list[Any]:
    """Parse an answer as math-verify does for the content of a box.

    Returns:
        The expression, then the normalised text; the text alone where math-verify failed on the expression; or nothing.
    """
    from math_verify import LatexExtractionConfig, parse

    # LaTeX only: the other patterns fish for a number in a text that could not be read, and the answer is known to be all of it.
    how = [LatexExtractionConfig(boxed_match_priority=0)]
    return parse(f"\\boxed{{{answer}}}", how, parsing_timeout=None, raise_on_error=True)


def is_expression(parsed: list[Any]) -> bool:
    """Whether parsing gave more than a text to compare letter by letter."""
    return any(not isinstance(item, str) for item in parsed)


def judge(gold: str, answer: str) -> tuple[bool, str | None]:
    r"""Return whether an answer equals the gold answer, and what kept math-verify from comparing them.

    Of a gold percentage the number alone is right too, which math-verify grants to whole numbers: `50` for `50\%`, but not `12.5`
    for `12.5\%`.
    """
    verdict = _compare(gold, answer)
    if verdict[0] or not _PERCENT.search(gold):
        return verdict
    points = _compare(_PERCENT.sub("", gold), _PERCENT.sub("", answer))
    return points if points[0] else verdict


def _compare(gold: str, answer: str) -> tuple[bool, str | None]:
    """Compare two answers.

    math-verify turns its own failures into an empty parse or a verdict of "different". Here they are told apart.
    """
    from math_verify import verify

    expected, given = read(gold), read(answer)
    how = {"timeout_seconds": None, "allow_set_relation_comp": _are_intervals(expected) and _are_bounds(given)}
    if _is_column(expected):
        given = [*given, *_columns(given)]
    try:
        if verify(expected, given, raise_on_error=True, **how):
            return True, None
    except Exception as error:
        # One of several comparisons failed; math-verify's verdict counts the others.
        correct = verify(expected, given, raise_on_error=False, **how)
        return correct, None if correct else _describe(error)
    for name, parsed in (("gold answer", expected), ("answer", given)):
        if not is_expression(parsed):
            return False, f"the {name} cannot be parsed"
    return False, None


def _are_intervals(parsed: list[Any]) -> bool:
    r"""Whether a gold answer is intervals for certain: `(1,5)` may be a point, `[1,5]` and `(1,\infty)` are none."""
    from sympy import Interval, Union

    return any(
        isinstance(item, Union)
        or (isinstance(item, Interval) and (not item.is_open or item.inf.is_infinite or item.sup.is_infinite))
        for item in parsed
    )


def _are_bounds(parsed: list[Any]) -> bool:
    """Whether an answer is a variable between numbers (`1 < x < 5`), so that its set can be told; `x^2 < 4` is not solved."""
    from sympy import And
    from sympy.core.relational import Relational

    for item in parsed:
        relations = item.args if isinstance(item, And) else (item,)
        if all(isinstance(relation, Relational) for relation in relations):
            sides = [side for relation in relations for side in relation.args]
            return len(item.free_symbols) == 1 and all(side.is_Symbol or side.is_number for side in sides)
    return False


def _is_column(parsed: list[Any]) -> bool:
    from sympy import MatrixBase

    return any(isinstance(item, MatrixBase) and item.cols == 1 for item in parsed)


def _columns(parsed: list[Any]) -> list[Any]:
    """Return the column vectors that an answer to a question for one may mean: `(1,2)`, which math-verify reads as an interval."""
    from sympy import Interval, Matrix, Tuple

    return [
        Matrix(item.args[:2] if isinstance(item, Interval) else item.args)
        for item in parsed
        if isinstance(item, Tuple) or (isinstance(item, Interval) and item.is_open)
    ]


def respond(gold: str, answer: str | None) -> tuple[bool, str | None]:
    """Handle one request: judge an answer, or, without one, say whether the gold answer can be parsed."""
    try:
        if answer is None:
            return is_expression(read(gold)), None
        return judge(gold, answer)
    except Exception as error:
        return False, _describe(error)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
