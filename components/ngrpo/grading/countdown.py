r"""Countdown: whether an expression has the value of the gold expression and uses the same numbers, each as often.

A gold answer is one solution of its problem, `(3+5)*7-2`. It gives the problem's numbers and target, and any other expression of the
same numbers with the same value is right too. An expression consists of whole numbers, `+`, `-`, `*`, `/` and parentheses only. It is
parsed by the grammar below, never run as code, and its value is an exact fraction.
"""

from __future__ import annotations

import re
from fractions import Fraction

LONGEST = 200
"""Largest number of characters of an expression, which limits the depth of parentheses to a hundred and the size of numbers."""

_PIECE = re.compile(r"\s*(?:([0-9]{1,6})|(\\times|\\cdot|\\div|[-+*/()×÷·−]))")
_MEANT = {r"\times": "*", "×": "*", r"\cdot": "*", "·": "*", r"\div": "/", "÷": "/", "−": "-"}


def solves(gold: str, answer: str) -> tuple[bool, str | None]:
    """Return whether an answer is right, and why that could not be decided, if so.

    Args:
        gold: A correct expression.
        answer: The expression to judge; a text that is no expression is wrong.
    """
    expected = read(gold)
    if expected is None:
        return False, "the gold answer is no expression of whole numbers"
    return read(answer) == expected, None


def read(text: str) -> tuple[Fraction, list[int]] | None:
    """Return the value of an expression and its sorted numbers; None if it is no expression or has no value."""
    if len(text) > LONGEST:
        return None
    pieces, place = [], 0
    text = text.rstrip()
    while place < len(text):
        match = _PIECE.match(text, place)
        if match is None:
            return None
        pieces.append(match[1] or _MEANT.get(match[2], match[2]))
        place = match.end()
    try:
        return _Parser(pieces).whole()
    except (ValueError, ZeroDivisionError):
        return None


class _Parser:
    """Reads sums of products of numbers and parentheses, from left to right."""

    def __init__(self, pieces: list[str]):
        self._pieces = [*pieces, ""]  # ends with a token that fits nowhere
        self._place = 0
        self._numbers: list[int] = []

    def whole(self) -> tuple[Fraction, list[int]]:
        value = self._sum()
        if self._pieces[self._place]:
            raise ValueError
        return value, sorted(self._numbers)

    def _sum(self) -> Fraction:
        value = self._product()
        while self._pieces[self._place] in ("+", "-"):
            value = value + self._product() if self._next() == "+" else value - self._product()
        return value

    def _product(self) -> Fraction:
        value = self._operand()
        while self._pieces[self._place] in ("*", "/"):
            value = value * self._operand() if self._next() == "*" else value / self._operand()
        return value

    def _operand(self) -> Fraction:
        piece = self._next()
        if piece == "(":
            value = self._sum()
            if self._next() != ")":
                raise ValueError
            return value
        if not piece.isdigit():
            raise ValueError
        self._numbers.append(int(piece))
        return Fraction(int(piece))

    def _next(self) -> str:
        piece = self._pieces[self._place]
        self._place += 1
        return piece
