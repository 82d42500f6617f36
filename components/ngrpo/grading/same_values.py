"""Whether two numbers or expressions have the same value: exactly if both are rational, else to 120 significant digits.

Expressions with variables are compared by their values at several points.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import sympy

from ngrpo.grading.expressions import nodes
from ngrpo.grading.kinds import sign_of_infinity, variables
from ngrpo.grading.values import Calculus, UndefinedError, Valuation, decimal

DIGITS, _MORE_DIGITS = 120, 360
POINTS = (1, 2, -1, -2, -3)
"""Seeds of the points at which expressions with variables are compared; negative seeds give some negative values."""

_PLACES, _SIGNIFICANT = 6, 4
"""A decimal fraction with at least this many places and digits may be the rounded value of a longer number."""


def same_values(gold: Any, answer: Any) -> bool:
    """Whether two expressions have the same value, with variables at every point, or are the same word.

    Raises:
        UndefinedError: The gold answer has no value.
    """
    if _same_letters(gold, answer):
        return True
    ends = [sign_of_infinity(node) for node in (gold, answer)]
    if any(ends):
        return ends[0] == ends[1]
    if not variables(gold) and not variables(answer):
        try:
            return _same_at(gold, answer, None) or _rounded(gold, answer)
        except _UndefinedAnswer:
            return False
    discrete = any(
        isinstance(part, Calculus | sympy.factorial | sympy.binomial) for side in (gold, answer) for part in nodes(side)
    )
    compared = 0
    for seed in POINTS:
        try:
            if not _same_at(gold, answer, seed, whole=discrete):
                return False
        except (UndefinedError, _UndefinedAnswer) as error:
            if _defined(answer if isinstance(error, UndefinedError) else gold, seed, discrete):
                return False
            continue
        compared += 1
    return compared > 1


def _defined(node: Any, seed: int, whole: bool) -> bool:
    try:
        Valuation(DIGITS, seed, whole).of(node, loose=True)
    except UndefinedError:
        return False
    return True


class _UndefinedAnswer(ArithmeticError):
    """The answer has no value, so it does not equal the gold answer."""


def _same_at(gold: Any, answer: Any, seed: int | None, whole: bool = False) -> bool:
    expected, given, distance, approximate = _values(gold, answer, seed, whole, DIGITS)
    if isinstance(expected, Fraction) and isinstance(given, Fraction):
        return bool(expected == given)
    scale = max(abs(expected), abs(given))
    if approximate:
        return bool(distance <= scale * 10.0**-15)
    if distance > scale * 10.0**-40 and distance > 10.0**-60:
        return False
    # Equal so far. What remains is either rounding, which shrinks with more digits, or a difference, which does not.
    *_, closer, _ = _values(gold, answer, seed, whole, _MORE_DIGITS)
    ten = Valuation(_MORE_DIGITS).context.mpf(10)
    return bool(closer <= (distance + scale * ten**-DIGITS) * ten ** -(DIGITS // 2))


def _values(gold: Any, answer: Any, seed: int | None, whole: bool, digits: int) -> tuple[Any, Any, Any, bool]:
    """Return both values, their distance, and whether one is approximate."""
    expected_at, given_at = Valuation(digits, seed, whole), Valuation(digits, seed, whole)
    expected = expected_at.of(gold, loose=seed is not None)
    try:
        given = given_at.of(answer, loose=seed is not None)
    except UndefinedError as error:
        raise _UndefinedAnswer(str(error)) from error
    if isinstance(expected, Fraction) and isinstance(given, Fraction):
        return expected, given, abs(expected - given), False
    expected, given = expected_at.inexact(expected), given_at.inexact(given)
    return expected, given, abs(expected - given), expected_at.approximate or given_at.approximate


def _rounded(gold: Any, answer: Any) -> bool:
    """Whether one is a decimal fraction that is the other one rounded."""
    for short, long in ((answer, gold), (gold, answer)):
        if isinstance(short, sympy.Float):
            rounded = decimal(short)
            count = places(rounded)
            if count < _PLACES or len(str(abs(int(rounded * 10**count)))) < _SIGNIFICANT:
                continue
            value = Valuation(DIGITS).of(long)
            if not isinstance(value, Fraction):
                if value.imag if hasattr(value, "imag") else False:
                    continue
                value = Fraction(int(value.real * 10**100), 10**100)
            difference = abs(rounded - value)
            if difference <= Fraction(1, 2 * 10**count):
                return True
            endless = value.denominator != 2 ** _power(value.denominator, 2) * 5 ** _power(value.denominator, 5)
            if (
                not isinstance(long, sympy.Float)
                and endless
                and difference <= min(Fraction(1, 2 * 10**6), abs(value) / 10**6)
            ):
                return True
    return False


def places(value: Fraction) -> int:
    """Return the number of decimal places of a decimal fraction of at most 90."""
    return next(n for n in range(91) if (value * 10**n).denominator == 1)


def _power(number: int, prime: int) -> int:
    count = 0
    while number % prime == 0:
        number, count = number // prime, count + 1
    return count


def _same_letters(gold: Any, answer: Any) -> bool:
    r"""Whether one is a word and the other the product of its letters, as `\text{red}` and `red` are parsed."""
    for word, letters in ((gold, answer), (answer, gold)):
        if isinstance(word, sympy.Symbol) and len(word.name) > 1 and isinstance(letters, sympy.Mul):
            names = [getattr(part, "name", "e" if part is sympy.E else "?") for part in letters.args]
            if "".join(names) == word.name:
                return True
    return False
