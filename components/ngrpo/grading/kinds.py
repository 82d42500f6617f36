"""The kind of an expression as an answer, and its variables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
from latex2sympy2_extended.logic import And
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from ngrpo.grading.expressions import Both, Braces, Either, Form, Items, Row, Span, nodes
from ngrpo.grading.values import Calculus


def single(node: Any) -> Any:
    """Return the element of a set or list with one element; the node itself otherwise."""
    while isinstance(node, Items | Braces | Row | sympy.Tuple) and len(node.args) == 1:
        if isinstance(node.args[0], Form | sympy.Set) and not (isinstance(node, Braces) and is_point(node.args[0])):
            break
        node = node.args[0]
    return node


def is_point(node: Any) -> bool:
    """Whether it may be a point: elements in parentheses."""
    return isinstance(node, Row) or (isinstance(node, Span) and node.args[2] == node.args[3] == sympy.true)


def is_relation(node: Any) -> bool:
    """Whether it is an equation or inequality, or several of them."""
    return isinstance(node, Relational | And | Either | Both)


def steps_of(node: Any) -> Sequence[Any]:
    """Return the relations of a chain (`1 < x < 5`), or the single relation that it is."""
    return node._unsorted_args if isinstance(node, And) else (node,)


def is_matrix(node: Any) -> bool:
    """Whether it is a matrix, or a product or sum of matrices."""
    return isinstance(node, sympy.MatrixBase | sympy.MatMul | sympy.MatAdd)


def variables(node: Any) -> set[str]:
    """Names of the variables of an expression, and of its unknown functions."""
    bound = {part.args[1].name for part in nodes(node) if isinstance(part, Calculus)}
    found = {part.name for part in nodes(node) if isinstance(part, sympy.Symbol)}
    return (found - bound - {"i"}) | {part.func.__name__ for part in nodes(node) if isinstance(part, AppliedUndef)}


def sign_of_infinity(node: Any) -> str:
    """Return the sign of an infinity; an empty text for anything else."""
    return {sympy.S.Infinity: "+", sympy.S.NegativeInfinity: "-"}.get(node, "")
