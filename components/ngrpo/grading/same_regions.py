"""Whether two answers are the same part of the number line: intervals, unions, bounds of a variable."""

from __future__ import annotations

from functools import cache
from typing import Any

import sympy
from latex2sympy2_extended.logic import And
from sympy.core.relational import Relational

from ngrpo.grading.expressions import Both, Braces, Common, Either, Form, Joined, Span, Without
from ngrpo.grading.kinds import is_relation, sign_of_infinity, single, steps_of, variables
from ngrpo.grading.same_values import DIGITS
from ngrpo.grading.values import Valuation

_Interval = tuple[Any, bool, Any, bool]
"""Lower end, whether it belongs to the interval, upper end, whether it does."""

_SWAPPED: dict[type, type] = {
    sympy.StrictLessThan: sympy.StrictGreaterThan,
    sympy.LessThan: sympy.GreaterThan,
    sympy.StrictGreaterThan: sympy.StrictLessThan,
    sympy.GreaterThan: sympy.LessThan,
}
"""The relation with its sides swapped."""


def is_region(node: Any) -> bool:
    r"""Whether a gold answer certainly consists of intervals: `(1,5)` may be a point, `[1,5]` and `(1,\infty)` may not."""
    if isinstance(node, Span):
        return not (node.args[2] == node.args[3] == sympy.true) or any(map(sign_of_infinity, node.args[:2]))
    return isinstance(node, Joined | Common | Without) or node is sympy.S.Reals


def is_bounds(node: Any) -> bool:
    """Whether it bounds one variable by numbers (`1 < x < 5`), so that its region is known; `x^2 < 4` is not solved."""
    relations = _relations(node)
    sides = [_letter(side) for relation in relations for side in (relation.lhs, relation.rhs)]
    letters = {side for side in sides if isinstance(side, sympy.Symbol)}
    return len(letters) == 1 and all(
        side in letters or (isinstance(side, sympy.Expr | Form) and not variables(side)) for side in sides
    )


def _letter(side: Any) -> Any:
    """Return the variable of a side that is one, or its absolute value; the side otherwise."""
    return side.args[0] if isinstance(side, sympy.Abs) else side


def _relations(node: Any) -> list[Any]:
    if isinstance(node, Either | Both):
        return [relation for part in node.args for relation in (_relations(part) if is_relation(part) else [])]
    return list(steps_of(node))


def same_regions(gold: Any, answer: Any) -> bool:
    """Whether two answers describe the same intervals, however they are written."""
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
    """Not a known part of the number line."""


@cache
def _ends() -> Any:
    return Valuation(DIGITS).context


def _same_end(first: Any, second: Any) -> bool:
    return bool(
        first == second
        or (
            abs(first) != _ends().inf != abs(second) and abs(first - second) <= max(abs(first), abs(second)) * 10.0**-60
        )
    )


def _region(node: Any) -> list[_Interval]:
    """Return the disjoint intervals of a region, in order.

    Raises:
        _NoRegionError: It is no region.
    """
    infinity = _ends().inf
    node = single(node)
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
        first, *others = map(_region, steps_of(node))
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
    if not isinstance(_letter(left), sympy.Symbol):
        kind, left, right = _SWAPPED.get(kind, kind), right, left
    if not isinstance(_letter(left), sympy.Symbol):
        raise _NoRegionError
    if isinstance(left, sympy.Abs):
        negative = sympy.Mul(-1, right, evaluate=False)
        above = _bound(kind(left.args[0], right, evaluate=False))
        below = _bound(_SWAPPED.get(kind, kind)(left.args[0], negative, evaluate=False))
        outside = kind in (sympy.Eq, sympy.StrictGreaterThan, sympy.GreaterThan)
        return _apart([*above, *below]) if outside else _overlap(above, below)
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
    if sign_of_infinity(node):
        return _ends().inf if sign_of_infinity(node) == "+" else -_ends().inf
    if not isinstance(node, sympy.Expr) or variables(node):
        raise _NoRegionError
    at = Valuation(DIGITS)
    value = at.inexact(at.of(node))
    if not isinstance(value, at.context.mpf):
        raise _NoRegionError
    return value


def _apart(intervals: list[_Interval]) -> list[_Interval]:
    """Merge intervals that overlap or touch."""
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
    """Return the complement in the number line."""
    rest, start = [], (-_ends().inf, False)
    for lower, with_lower, upper, with_upper in intervals:
        rest.append((*start, lower, not with_lower))
        start = (upper, not with_upper)
    rest.append((*start, _ends().inf, False))
    return _apart(rest)
