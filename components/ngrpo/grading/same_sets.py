"""Whether two matrices, sets, lists or tuples have the same elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sympy

from ngrpo.grading.expressions import Braces, Items, Row, Span
from ngrpo.grading.kinds import is_matrix, is_relation, variables
from ngrpo.grading.same_regions import is_region, same_regions
from ngrpo.grading.values import UnreadError

_Same = Callable[[Any, Any], bool]


def same_matrices(gold: Any, answer: Any, same: _Same) -> bool:
    """Whether an answer is the same matrix, or the same vector in another notation; `same` compares elements."""
    gold = gold.doit()
    if is_matrix(answer):
        answer = answer.doit()
        if not all(isinstance(side, sympy.MatrixBase) for side in (gold, answer)):
            raise UnreadError("a product of matrices")
        return gold.shape == answer.shape and all(map(same, gold.flat(), answer.flat()))
    parts = _parts(answer) if isinstance(answer, Row | Span) else None
    return gold.cols == 1 and parts is not None and len(parts) == gold.rows and all(map(same, gold.flat(), parts))


def _parts(node: Any) -> Sequence[Any] | None:
    """Return the elements of a possible list or pair, in order."""
    parts: Sequence[Any] | None = None
    if isinstance(node, Items | Braces | Row | sympy.Tuple):
        parts = node.args
    if isinstance(node, Span) and node.args[2] == node.args[3] == sympy.true:
        parts = node.args[:2]
    return parts


def same_sets(gold: Any, answer: Any, same: _Same) -> bool:
    """Whether two sets, lists, tuples or intervals are the same; one may be a single number. `same` compares elements."""
    if isinstance(gold, Span) and isinstance(answer, Span) and not (variables(gold) == variables(answer) == set()):
        return gold.args[2:] == answer.args[2:] and all(map(same, gold.args[:2], answer.args[:2]))
    expected, given = _parts(gold), _parts(answer)
    if expected is not None and given is not None:
        return _same_parts(gold, answer, expected, given, same)
    if bool(gold == answer):
        return True
    # One of the two is not a pair, so the other is not one either.
    return (is_region(gold) or is_region(answer)) and same_regions(gold, answer)


def _in_order(parts: Sequence[Any]) -> Sequence[Any]:
    """Return coordinates in the order of their names, if each has one: `y = 2, x = 1` is the pair `(1,2)`."""
    names = [part.lhs.name for part in parts if isinstance(part, sympy.Eq) and isinstance(part.lhs, sympy.Symbol)]
    if len({*names}) < len(parts):
        return parts
    return [part for _, part in sorted(zip(names, parts, strict=True), key=lambda named: named[0])]


def _same_parts(gold: Any, answer: Any, expected: Sequence[Any], given: Sequence[Any], same: _Same) -> bool:
    pairs = isinstance(gold, Row | Span), isinstance(answer, Row | Span)
    if (isinstance(gold, Braces) and pairs[1]) or (isinstance(answer, Braces) and pairs[0]):
        return False
    if pairs[0] or pairs[1]:
        expected, given = map(_in_order, (expected, given))
    labels = {part.lhs for part in expected if isinstance(part, sympy.Eq)}
    labelled = len(labels) == len(expected) > 1 and not any(map(is_relation, given))
    if pairs[0] or labelled:
        return len(expected) == len(given) and all(map(same, expected, given))
    return all(any(same(one, other) for other in given) for one in expected) and all(
        any(same(one, other) for one in expected) for other in given
    )
