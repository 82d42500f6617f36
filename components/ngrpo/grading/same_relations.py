"""Whether two equations or inequalities are equivalent, and the result of an equation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import sympy
from sympy.core.function import AppliedUndef

from ngrpo.grading.expressions import Both, Either, nodes
from ngrpo.grading.kinds import steps_of, variables
from ngrpo.grading.same_regions import is_bounds, same_regions
from ngrpo.grading.same_values import DIGITS, POINTS, places, same_values
from ngrpo.grading.values import UndefinedError, Valuation, decimal

_Same = Callable[[Any, Any], bool]


def is_assignment(node: Any) -> bool:
    """Whether it assigns a value to a name: `x = 5`, `f(x) = x + 1`, `A = B = 5`."""
    steps = steps_of(node)
    return all(isinstance(step, sympy.Eq) for step in steps) and all(
        isinstance(part, sympy.Symbol | AppliedUndef | sympy.Tuple | sympy.Mul | sympy.Pow | sympy.Integer)
        for part in nodes(steps[0].lhs)
    )


def result_of(node: Any) -> Any | None:
    """Return the result of an equation or a chain of equations; None if it is no equation, contradicts itself, or is to be solved."""
    steps = steps_of(node)
    if not all(isinstance(step, sympy.Eq) for step in steps):
        return None
    for step in steps:
        sides = (step.lhs, step.rhs)
        if all(isinstance(side, sympy.Expr) and not variables(side) for side in sides) and not _consistent(*sides):
            return None
    if len(steps) == 1 and isinstance(steps[0].rhs, sympy.Symbol) and not variables(steps[0].lhs):
        return steps[0].lhs
    if any(_is_condition(step) for step in steps):
        return None
    # A name may stand for one number only.
    values = [
        side for step in steps for side in (step.lhs, step.rhs) if isinstance(side, sympy.Expr) and not variables(side)
    ]
    if any(not _consistent(first, second) for first, second in pairwise(values)):
        return None
    return steps[-1].rhs


def _is_condition(equation: Any) -> bool:
    """Whether an equation has no name for its right side on the left, and holds for some numbers only: `x = x^2`, not `A = x^2`."""
    sides = equation.lhs, equation.rhs
    if not all(isinstance(side, sympy.Expr) for side in sides):
        return False
    return set() != variables(sides[0]) <= variables(sides[1]) and not same_values(*sides)


def _consistent(first: Any, second: Any) -> bool:
    r"""Whether two sides of an equation are equal, or one is the other rounded: `25\pi = 78.54`."""
    if same_values(first, second):
        return True
    for short, long in ((first, second), (second, first)):
        if isinstance(short, sympy.Float):
            rounded, at = decimal(short), Valuation(DIGITS)
            value = at.inexact(at.of(long))
            return bool(abs(at.inexact(rounded) - value) * 2 * 10 ** places(rounded) <= 1 + 1e-9)
    return False


def same_relations(gold: Any, answer: Any, same: _Same) -> bool:
    """Whether two relations, chains of relations, or several joined by `and` or `or`, are equivalent.

    Args:
        gold: The relation of the gold answer.
        answer: The other relation.
        same: Compares sides of an equation that are not expressions, such as points.
    """
    if isinstance(gold, Either | Both) or isinstance(answer, Either | Both):
        if type(gold) is type(answer):
            return _each(gold.args, answer.args, lambda one, other: same_relations(one, other, same))
        return is_bounds(gold) and is_bounds(answer) and same_regions(gold, answer)
    expected, given = _chain(gold), _chain(answer)
    if expected is None or given is None:
        return False
    if variables(gold) == variables(answer) and is_bounds(gold) and is_bounds(answer) and same_regions(gold, answer):
        return True
    return _each(expected, given, lambda one, other: _same_relation(one, other, same))


def _each(first: Sequence[Any], second: Sequence[Any], same: _Same) -> bool:
    return len(first) == len(second) and all(any(same(one, other) for other in second) for one in first)


def _chain(node: Any) -> Sequence[Any] | None:
    """Return the relations of a chain. An equation with intermediate steps becomes its first and last side; None if they differ."""
    steps = steps_of(node)
    if len(steps) > 1 and all(isinstance(step, sympy.Eq) for step in steps):
        result = result_of(node)
        return None if result is None else (sympy.Eq(steps[0].lhs, result, evaluate=False),)
    return steps


def _same_relation(gold: Any, answer: Any, same: _Same) -> bool:
    sides = (gold.lhs, gold.rhs, answer.lhs, answer.rhs)
    if not all(isinstance(side, sympy.Expr) for side in sides):
        return type(gold) is type(answer) and bool(gold.lhs == answer.lhs) and same(gold.rhs, answer.rhs)
    if not variables(gold):
        return type(gold) is type(answer) and same(gold.lhs, answer.lhs) and same(gold.rhs, answer.rhs)
    (kind, expected), (other, given) = map(_below_zero, (gold, answer))
    if kind is not other or variables(gold) != variables(answer):
        return False
    ratio = _ratio(expected, given)
    return ratio is not None and (kind in (sympy.Eq, sympy.Ne) or ratio > 0)


def _below_zero(relation: Any) -> tuple[type, Any]:
    """Return a relation as one between a difference and zero: equal, unequal, less, or at most."""
    kinds = {sympy.StrictGreaterThan: sympy.StrictLessThan, sympy.GreaterThan: sympy.LessThan}
    kind = type(relation)
    first, second = (relation.rhs, relation.lhs) if kind in kinds else (relation.lhs, relation.rhs)
    difference = sympy.Add(first, sympy.Mul(-1, second, evaluate=False), evaluate=False)
    if kind is sympy.Eq and _has_small_quotient(difference):
        difference = sympy.fraction(sympy.together(difference))[0]  # y = 1/x is xy = 1
    return kinds.get(kind, kind), difference


def _has_small_quotient(node: Any) -> bool:
    """Whether an expression has a variable in a denominator, and only powers small enough to expand."""
    powers = [part for part in nodes(node) if isinstance(part, sympy.Pow)]
    return any(variables(power.base) and power.exp.could_extract_minus_sign() for power in powers) and all(
        isinstance(power.exp, sympy.Rational) and abs(power.exp) <= 20 for power in powers
    )


def _ratio(first: Any, second: Any) -> Any | None:
    """Return the constant ratio of two expressions; None if there is none, or it is zero."""
    ratio: Any = None
    compared = 0
    for seed in POINTS:
        at = Valuation(DIGITS, seed)
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
