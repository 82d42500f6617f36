r"""Whether an answer equals the gold answer: exactly where both are rational, else to a hundred digits, relative to their size.

Numbers are compared by their values (`ngrpo.grading.values`), expressions with variables by their values at several points, sets and
relations by their parts. Words and units count (`ngrpo.grading.quantities`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import Any

import sympy
from latex2sympy2_extended.logic import And
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from ngrpo.grading.expressions import (
    Both,
    Braces,
    Common,
    Either,
    Form,
    Items,
    Joined,
    Row,
    Span,
    Without,
    folded,
    nodes,
    read,
)
from ngrpo.grading.quantities import Quantity, is_text, quantities, same_text
from ngrpo.grading.units import PERCENT, units_agree
from ngrpo.grading.values import Calculus, UndefinedError, UnreadError, Valuation, decimal

_DIGITS, _MORE_DIGITS = 120, 360
_POINTS = (1, 2, -1, -2, -3)
"""Seeds of the points at which expressions with variables are compared; the negative ones have negative values too."""

_PLACES, _SIGNIFICANT = 6, 4
"""A decimal fraction of so many places and digits may be the rounded value of a number that has more."""


_FRACTION = re.compile(r"([+-]?)(?:\\[dt]?frac\{|(?=\d+/))(\d{1,20})(?:\}\{|/)(\d{1,20})(?:(?<=\d)\}|(?<=\d))")
"""A fraction of whole numbers, for which no parser is needed."""


def respond(gold: str, answer: str | None) -> tuple[bool, str | None]:
    """Handle one request: judge an answer, or, without one, say whether the gold answer can be parsed."""
    try:
        if answer is None:
            return _parses(gold), None
        return judge(gold, answer)
    except UndefinedError as error:
        return False, f"the gold answer has no value: {error}"[:200]
    except Exception as error:  # the parser raises what it likes, and no answer may end the run
        return False, _describe(error)


def judge(gold: str, answer: str) -> tuple[bool, str | None]:
    """Return whether an answer equals the gold answer, and what kept the two from being compared."""
    if same_text(gold, answer):
        return True, None
    if is_text(gold):
        return False, None
    fractions = [_FRACTION.fullmatch(text) for text in (gold, answer)]
    if all(match and int(match[3]) for match in fractions):
        return len({_fraction(match) for match in fractions}) == 1, None
    expected, given = quantities(gold), quantities(answer)
    for name, parts in (("gold answer", expected), ("answer", given)):
        try:
            for part in parts:
                read(part.number)
        except Exception as error:  # as above
            return False, f"the {name} cannot be parsed: {_describe(error)}"[:200]
    if len(expected) != len(given):
        return False, None
    return all(_same_quantity(*pair) for pair in zip(expected, given, strict=True)), None


def _fraction(match: Any) -> Fraction:
    return Fraction(int(match[1] + match[2]), int(match[3]))


def _parses(gold: str) -> bool:
    if is_text(gold):
        return True
    for part in quantities(gold):
        read(part.number)
    return True


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def _same_quantity(gold: Quantity, answer: Quantity) -> bool:
    """Compare two quantities. Of a percentage the number alone is right, and its value; a whole number may stand for a percentage."""
    if gold.words != answer.words or gold.bound != answer.bound or not units_agree(gold.unit, answer.unit):
        return False
    expected, given = _read_both(gold.number, answer.number)
    if PERCENT in (gold.unit, answer.unit) and gold.unit != answer.unit:
        value = Fraction(1, 100)
        if gold.unit == PERCENT:
            return _same(expected, given, gold.factor, answer.factor) or _same(
                expected, given, gold.factor * value, answer.factor
            )
        if _same(expected, given, gold.factor, answer.factor * value):
            return True
        return isinstance(expected, sympy.Integer) and _same(expected, given, gold.factor, answer.factor)
    return _same(expected, given, gold.factor, answer.factor)


def _read_both(gold: str, answer: str) -> tuple[Any, Any]:
    """Read both. The case of letters does not count, `3r^2` for `3R^2`, unless one has a letter in both cases, as `R^2 - r^2` has."""
    expected, given = read(gold), read(answer)
    if any(name.lower() in names for names in map(_letters, (expected, given)) for name in names if name.isupper()):
        return expected, given
    return read(folded(gold)), read(folded(answer))


def _letters(node: Any) -> set[str]:
    return {part.name for part in nodes(node) if isinstance(part, sympy.Symbol) and len(part.name) == 1}


def _same(gold: Any, answer: Any, gold_factor: Fraction, answer_factor: Fraction) -> bool:
    return match(_scaled(gold, gold_factor), _scaled(answer, answer_factor))


def _scaled(node: Any, factor: Fraction) -> Any:
    if factor == 1:
        return node
    if isinstance(node, sympy.Eq) and isinstance(node.rhs, sympy.Expr):
        return sympy.Eq(node.lhs, _scaled(node.rhs, factor), evaluate=False)
    if not isinstance(node, sympy.Expr):
        raise UnreadError("a multiple of what is no number")
    if isinstance(node, sympy.Float):
        node = sympy.Rational(*decimal(node).as_integer_ratio())
    return sympy.Mul(sympy.Rational(factor.numerator, factor.denominator), node, evaluate=False)


# --- what kind of answer it is ----------------------------------------------------------------------------------------


def match(gold: Any, answer: Any) -> bool:
    """Whether two expressions are the same answer; the gold answer's form decides."""
    gold, answer = _single(gold), _single(answer)
    if _is_relation(gold) and _is_relation(answer):
        return _same_relations(gold, answer)
    if _is_relation(answer):
        result = _result(answer)
        if result is not None:
            return match(gold, result)
        return _is_region(gold) and _is_bounds(answer) and _same_regions(gold, answer)
    if _is_relation(gold):
        result = _result(gold) if _is_assignment(gold) else None
        if result is not None:
            return match(result, answer)
        return isinstance(answer, Form | sympy.Set) and _is_bounds(gold) and _same_regions(gold, answer)
    if _is_matrix(gold):
        return _same_matrices(gold, answer)
    if isinstance(gold, Form | sympy.Set) or isinstance(answer, Form | sympy.Set):
        return _same_sets(gold, answer)
    if isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr):
        return _same_letters(gold, answer) or same_values(gold, answer)
    return bool(gold == answer)


def _single(node: Any) -> Any:
    """Return the element of a set or a list of one."""
    while isinstance(node, Items | Braces | Row | sympy.Tuple) and len(node.args) == 1:
        if isinstance(node.args[0], Form | sympy.Set):
            break
        node = node.args[0]
    return node


def _is_relation(node: Any) -> bool:
    return isinstance(node, Relational | And | Either | Both)


def _steps(node: Any) -> Sequence[Any]:
    return node._unsorted_args if isinstance(node, And) else (node,)


def _is_assignment(node: Any) -> bool:
    """Whether it says what something with a name is: `x = 5`, `f(x) = x + 1`, `A = B = 5`."""
    steps = _steps(node)
    return all(isinstance(step, sympy.Eq) for step in steps) and all(
        isinstance(part, sympy.Symbol | AppliedUndef | sympy.Tuple | sympy.Mul | sympy.Pow | sympy.Integer)
        for part in nodes(steps[0].lhs)
    )


def _result(node: Any) -> Any | None:
    """Return what an equation or a chain of equations comes to; none where it is no equation, or contradicts itself."""
    steps = _steps(node)
    if not all(isinstance(step, sympy.Eq) for step in steps):
        return None
    for step in steps:
        sides = (step.lhs, step.rhs)
        if all(isinstance(side, sympy.Expr) and not _names(side) for side in sides) and not _consistent(*sides):
            return None
    if len(steps) == 1 and isinstance(steps[0].rhs, sympy.Symbol) and not _names(steps[0].lhs):
        return steps[0].lhs
    # A name may be given to one number only.
    values = [
        side for step in steps for side in (step.lhs, step.rhs) if isinstance(side, sympy.Expr) and not _names(side)
    ]
    if any(not _consistent(first, second) for first, second in pairwise(values)):
        return None
    return steps[-1].rhs


def _consistent(first: Any, second: Any) -> bool:
    r"""Whether two sides of an equation are equal, or one is the other rounded: `25\pi = 78.54`."""
    if match(first, second):
        return True
    for short, long in ((first, second), (second, first)):
        if isinstance(short, sympy.Float):
            rounded, at = decimal(short), Valuation(_DIGITS)
            value = at.inexact(at.of(long))
            return bool(abs(at.inexact(rounded) - value) * 2 * 10 ** _places(rounded) <= 1 + 1e-9)
    return False


# --- numbers and expressions ------------------------------------------------------------------------------------------


def _names(node: Any) -> set[str]:
    """Names of the variables of an expression, and of its unknown functions."""
    bound = {part.args[1].name for part in nodes(node) if isinstance(part, Calculus)}
    found = {part.name for part in nodes(node) if isinstance(part, sympy.Symbol)}
    return (found - bound - {"i"}) | {part.func.__name__ for part in nodes(node) if isinstance(part, AppliedUndef)}


def same_values(gold: Any, answer: Any) -> bool:
    """Whether two expressions have the same value, at every point where they have variables.

    Raises:
        UndefinedError: The gold answer has no value.
    """
    ends = [_infinity(node) for node in (gold, answer)]
    if any(ends):
        return ends[0] == ends[1]
    if not _names(gold) and not _names(answer):
        try:
            return _same_at(gold, answer, None) or _rounded(gold, answer)
        except _UndefinedAnswer:
            return False
    discrete = any(
        isinstance(part, Calculus | sympy.factorial | sympy.binomial) for side in (gold, answer) for part in nodes(side)
    )
    compared = 0
    for seed in _POINTS:
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
        Valuation(_DIGITS, seed, whole).of(node, loose=True)
    except UndefinedError:
        return False
    return True


class _UndefinedAnswer(ArithmeticError):
    """The answer has no value, so it is not the gold answer's."""


def _same_at(gold: Any, answer: Any, seed: int | None, whole: bool = False) -> bool:
    expected, given, distance, approximate = _values(gold, answer, seed, whole, _DIGITS)
    if isinstance(expected, Fraction) and isinstance(given, Fraction):
        return bool(expected == given)
    scale = max(abs(expected), abs(given))
    if approximate:
        return bool(distance <= scale * 10.0**-15)
    if distance > scale * 10.0**-40 and distance > 10.0**-60:
        return False
    # Equal so far: what is left is the rounding, which gets smaller with more digits, or a difference, which does not.
    *_, closer, _ = _values(gold, answer, seed, whole, _MORE_DIGITS)
    ten = Valuation(_MORE_DIGITS).context.mpf(10)
    return bool(closer <= (distance + scale * ten**-_DIGITS) * ten ** -(_DIGITS // 2))


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
    """Whether one is a decimal fraction and the other the number that it is rounded from."""
    for short, long in ((answer, gold), (gold, answer)):
        if isinstance(short, sympy.Float):
            rounded = decimal(short)
            places = _places(rounded)
            if places < _PLACES or len(str(abs(int(rounded * 10**places)))) < _SIGNIFICANT:
                continue
            value = Valuation(_DIGITS).of(long)
            if not isinstance(value, Fraction):
                if value.imag if hasattr(value, "imag") else False:
                    continue
                value = Fraction(int(value.real * 10**100), 10**100)
            difference = abs(rounded - value)
            if difference <= Fraction(1, 2 * 10**places):
                return True
            endless = value.denominator != 2 ** _power(value.denominator, 2) * 5 ** _power(value.denominator, 5)
            if (
                not isinstance(long, sympy.Float)
                and endless
                and difference <= min(Fraction(1, 2 * 10**6), abs(value) / 10**6)
            ):
                return True
    return False


def _places(value: Fraction) -> int:
    """Return the number of decimal places of a decimal fraction of at most 90."""
    return next(n for n in range(91) if (value * 10**n).denominator == 1)


def _power(number: int, prime: int) -> int:
    count = 0
    while number % prime == 0:
        number, count = number // prime, count + 1
    return count


def _infinity(node: Any) -> str:
    return {sympy.S.Infinity: "+", sympy.S.NegativeInfinity: "-"}.get(node, "")


def _same_letters(gold: Any, answer: Any) -> bool:
    r"""Whether one is a word and the other its letters, as `\text{red}` and `red` are read."""
    for word, letters in ((gold, answer), (answer, gold)):
        if isinstance(word, sympy.Symbol) and len(word.name) > 1 and isinstance(letters, sympy.Mul):
            names = [getattr(part, "name", "e" if part is sympy.E else "?") for part in letters.args]
            if "".join(names) == word.name:
                return True
    return False


# --- matrices, sets, tuples -------------------------------------------------------------------------------------------


def _is_matrix(node: Any) -> bool:
    return isinstance(node, sympy.MatrixBase | sympy.MatMul | sympy.MatAdd)


def _same_matrices(gold: Any, answer: Any) -> bool:
    gold = gold.doit()
    if _is_matrix(answer):
        answer = answer.doit()
        if not all(isinstance(side, sympy.MatrixBase) for side in (gold, answer)):
            raise UnreadError("a product of matrices")
        return gold.shape == answer.shape and all(map(match, gold.flat(), answer.flat()))
    parts = _parts(answer) if isinstance(answer, Row | Span) else None
    return gold.cols == 1 and parts is not None and len(parts) == gold.rows and all(map(match, gold.flat(), parts))


def _parts(node: Any) -> Sequence[Any] | None:
    """Return the parts of what may be a list or a pair, in their order."""
    parts: Sequence[Any] | None = None
    if isinstance(node, Items | Braces | Row | sympy.Tuple):
        parts = node.args
    if isinstance(node, Span) and node.args[2] == node.args[3] == sympy.true:
        parts = node.args[:2]
    return parts


def _same_sets(gold: Any, answer: Any) -> bool:
    if isinstance(gold, Span) and isinstance(answer, Span) and not (_names(gold) == _names(answer) == set()):
        return gold.args[2:] == answer.args[2:] and all(map(match, gold.args[:2], answer.args[:2]))
    expected, given = _parts(gold), _parts(answer)
    if expected is not None and given is not None:
        return _same_parts(gold, answer, expected, given)
    if bool(gold == answer):
        return True
    # One of the two is no pair, so the other is none either.
    return (_is_region(gold) or _is_region(answer)) and _same_regions(gold, answer)


def _same_parts(gold: Any, answer: Any, expected: Sequence[Any], given: Sequence[Any]) -> bool:
    pairs = isinstance(gold, Row | Span), isinstance(answer, Row | Span)
    if (isinstance(gold, Braces) and pairs[1]) or (isinstance(answer, Braces) and pairs[0]):
        return False
    labels = {part.lhs for part in expected if isinstance(part, sympy.Eq)}
    labelled = len(labels) == len(expected) > 1 and not any(map(_is_relation, given))
    if pairs[0] or labelled:
        return len(expected) == len(given) and all(map(match, expected, given))
    return all(any(match(one, other) for other in given) for one in expected) and all(
        any(match(one, other) for one in expected) for other in given
    )


# --- relations --------------------------------------------------------------------------------------------------------


def _same_relations(gold: Any, answer: Any) -> bool:
    if isinstance(gold, Either | Both) or isinstance(answer, Either | Both):
        if type(gold) is type(answer):
            return _each(gold.args, answer.args, _same_relations)
        return _is_bounds(gold) and _is_bounds(answer) and _same_regions(gold, answer)
    expected, given = _chain(gold), _chain(answer)
    if expected is None or given is None:
        return False
    return _each(expected, given, _same_relation)


def _each(first: Sequence[Any], second: Sequence[Any], same: Callable[[Any, Any], bool]) -> bool:
    return len(first) == len(second) and all(any(same(one, other) for other in second) for one in first)


def _chain(node: Any) -> Sequence[Any] | None:
    """Return the relations of a chain; of an equation with steps in between the first side and the last, none where they differ."""
    steps = _steps(node)
    if len(steps) > 1 and all(isinstance(step, sympy.Eq) for step in steps):
        result = _result(node)
        return None if result is None else (sympy.Eq(steps[0].lhs, result, evaluate=False),)
    return steps


def _same_relation(gold: Any, answer: Any) -> bool:
    sides = (gold.lhs, gold.rhs, answer.lhs, answer.rhs)
    if not all(isinstance(side, sympy.Expr) for side in sides):
        return type(gold) is type(answer) and bool(gold.lhs == answer.lhs) and match(gold.rhs, answer.rhs)
    if not _names(gold):
        return type(gold) is type(answer) and match(gold.lhs, answer.lhs) and match(gold.rhs, answer.rhs)
    (kind, expected), (other, given) = map(_below_zero, (gold, answer))
    if kind is not other or _names(gold) != _names(answer):
        return False
    ratio = _ratio(expected, given)
    return ratio is not None and (kind in (sympy.Eq, sympy.Ne) or ratio > 0)


def _below_zero(relation: Any) -> tuple[type, Any]:
    """Return a relation as one of a difference and zero: equal, unequal, less, or at most."""
    kinds = {sympy.StrictGreaterThan: sympy.StrictLessThan, sympy.GreaterThan: sympy.LessThan}
    kind = type(relation)
    first, second = (relation.rhs, relation.lhs) if kind in kinds else (relation.lhs, relation.rhs)
    difference = sympy.Add(first, sympy.Mul(-1, second, evaluate=False), evaluate=False)
    if kind is sympy.Eq and _has_small_quotient(difference):
        difference = sympy.fraction(sympy.together(difference))[0]  # y = 1/x is xy = 1
    return kinds.get(kind, kind), difference


def _has_small_quotient(node: Any) -> bool:
    """Whether an expression has a variable in a denominator, and only powers that can be multiplied out."""
    powers = [part for part in nodes(node) if isinstance(part, sympy.Pow)]
    return any(_names(power.base) and power.exp.could_extract_minus_sign() for power in powers) and all(
        isinstance(power.exp, sympy.Rational) and abs(power.exp) <= 20 for power in powers
    )


def _ratio(first: Any, second: Any) -> Any | None:
    """Return the number that one expression is a multiple of the other by; none where there is none but zero."""
    ratio: Any = None
    compared = 0
    for seed in _POINTS:
        at = Valuation(_DIGITS, seed)
        try:
            values = at.of(first, loose=True), at.of(second, loose=True)
        except UndefinedError:
            continue
        if not values[0] or not values[1]:
            continue
        if all(isinstance(value, Fraction) for value in values):
            quotient = values[0] / values[1]
        else:
            quotient = at.inexact(values[0]) / at.inexact(values[1])
        if ratio is None:
            ratio = quotient
        elif abs(quotient - ratio) > (
            0 if isinstance(quotient, Fraction) and isinstance(ratio, Fraction) else abs(ratio) * 10.0**-80
        ):
            return None
        compared += 1
    if compared < 2 or (hasattr(ratio, "imag") and ratio.imag):
        return None
    return ratio


# --- regions of the number line ---------------------------------------------------------------------------------------

_Interval = tuple[Any, bool, Any, bool]
"""Lower end, whether it belongs to the interval, upper end, whether it does."""


def _is_region(node: Any) -> bool:
    r"""Whether a gold answer is intervals for certain: `(1,5)` may be a point, `[1,5]` and `(1,\infty)` are none."""
    if isinstance(node, Span):
        return not (node.args[2] == node.args[3] == sympy.true) or any(map(_infinity, node.args[:2]))
    return isinstance(node, Joined | Common | Without) or node is sympy.S.Reals


def _is_bounds(node: Any) -> bool:
    """Whether it is one variable between numbers (`1 < x < 5`), so that its region can be told; `x^2 < 4` is not solved."""
    relations = _relations(node)
    sides = [side for relation in relations for side in (relation.lhs, relation.rhs)]
    variables = {side for side in sides if isinstance(side, sympy.Symbol)}
    return len(variables) == 1 and all(
        side in variables or (isinstance(side, sympy.Expr | Form) and not _names(side)) for side in sides
    )


def _relations(node: Any) -> list[Any]:
    if isinstance(node, Either | Both):
        return [relation for part in node.args for relation in (_relations(part) if _is_relation(part) else [])]
    return list(_steps(node))


def _same_regions(gold: Any, answer: Any) -> bool:
    try:
        expected, given = _region(gold), _region(answer)
    except _NoRegionError:
        return False
    return len(expected) == len(given) and all(
        first[1] == second[1]
        and first[3] == second[3]
        and _same_end(first[0], second[0])
        and _same_end(first[2], second[2])
        for first, second in zip(expected, given, strict=True)
    )


class _NoRegionError(ValueError):
    """Not a part of the number line that can be told."""


@cache
def _ends() -> Any:
    return Valuation(_DIGITS).context


def _same_end(first: Any, second: Any) -> bool:
    return bool(
        first == second
        or (
            abs(first) != _ends().inf != abs(second) and abs(first - second) <= max(abs(first), abs(second)) * 10.0**-60
        )
    )


def _region(node: Any) -> list[_Interval]:
    """Return the intervals of a region, apart and in their order.

    Raises:
        _NoRegionError: It is none.
    """
    infinity = _ends().inf
    node = _single(node)
    if node is sympy.S.Reals:
        return [(-infinity, False, infinity, False)]
    if node is sympy.S.EmptySet:
        return []
    if isinstance(node, Span):
        left, right, open_left, open_right = node.args
        return _apart([(_end(left), not open_left, _end(right), not open_right)])
    if isinstance(node, Braces):
        return _apart([(_end(part), True, _end(part), True) for part in node.args])
    if isinstance(node, Joined | Either):
        return _apart([interval for part in node.args for interval in _region(part)])
    if isinstance(node, Common | Both):
        first, *others = map(_region, node.args)
        for other in others:
            first = _overlap(first, other)
        return first
    if isinstance(node, Without):
        first, second = map(_region, node.args)
        return _overlap(first, _rest(second))
    if isinstance(node, And):
        first, *others = map(_region, _steps(node))
        for other in others:
            first = _overlap(first, other)
        return first
    if isinstance(node, Relational):
        return _bound(node)
    if isinstance(node, sympy.Expr):
        return [(_end(node), True, _end(node), True)]
    raise _NoRegionError


def _bound(relation: Any) -> list[_Interval]:
    infinity = _ends().inf
    kind, left, right = type(relation), relation.lhs, relation.rhs
    if not isinstance(left, sympy.Symbol):
        swapped = {
            sympy.StrictLessThan: sympy.StrictGreaterThan,
            sympy.LessThan: sympy.GreaterThan,
            sympy.StrictGreaterThan: sympy.StrictLessThan,
            sympy.GreaterThan: sympy.LessThan,
        }
        kind, left, right = swapped.get(kind, kind), right, left
    if not isinstance(left, sympy.Symbol):
        raise _NoRegionError
    if kind is sympy.Eq:
        return _region(right)
    end = _end(right)
    if kind is sympy.Ne:
        return [(-infinity, False, end, False), (end, False, infinity, False)]
    included = kind in (sympy.LessThan, sympy.GreaterThan)
    if kind in (sympy.StrictLessThan, sympy.LessThan):
        return [(-infinity, False, end, included)]
    return [(end, included, infinity, False)]


def _end(node: Any) -> Any:
    if _infinity(node):
        return _ends().inf if _infinity(node) == "+" else -_ends().inf
    if not isinstance(node, sympy.Expr) or _names(node):
        raise _NoRegionError
    at = Valuation(_DIGITS)
    value = at.inexact(at.of(node))
    if not isinstance(value, at.context.mpf):
        raise _NoRegionError
    return value


def _apart(intervals: list[_Interval]) -> list[_Interval]:
    """Join intervals that touch."""
    joined: list[_Interval] = []
    for lower, with_lower, upper, with_upper in sorted(intervals, key=lambda interval: (interval[0], not interval[1])):
        if lower > upper or (lower == upper and not (with_lower and with_upper)):
            continue
        if joined and (lower < joined[-1][2] or (lower == joined[-1][2] and (with_lower or joined[-1][3]))):
            last = joined[-1]
            end = max((last[2], last[3]), (upper, with_upper))
            joined[-1] = (last[0], last[1], *end)
        else:
            joined.append((lower, with_lower, upper, with_upper))
    return joined


def _overlap(first: list[_Interval], second: list[_Interval]) -> list[_Interval]:
    common = []
    for lower, with_lower, upper, with_upper in first:
        for other_lower, with_other_lower, other_upper, with_other_upper in second:
            start = max((lower, not with_lower), (other_lower, not with_other_lower))
            end = min((upper, with_upper), (other_upper, with_other_upper))
            common.append((start[0], not start[1], *end))
    return _apart(common)


def _rest(intervals: list[_Interval]) -> list[_Interval]:
    """Return what is left of the number line."""
    rest, start = [], (-_ends().inf, False)
    for lower, with_lower, upper, with_upper in intervals:
        rest.append((*start, lower, not with_lower))
        start = (upper, not with_upper)
    rest.append((*start, _ends().inf, False))
    return _apart(rest)
