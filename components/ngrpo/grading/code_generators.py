"""Replacements for the functions of sympy that generate Python code and run it, so that no generated code is ever run.

Ordinary algebra on an answer reaches these functions, and the generated code contains the names of the answer's symbols. `disarm`
replaces them, in a process that only grades.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import NoReturn

from sympy import Expr, Float, Integer, SympifyError
from sympy.parsing import sympy_parser
from sympy.polys import monomials
from sympy.utilities.lambdify import lambdify

Monomial = tuple[int, ...]

_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,4000}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?=\.?[0-9])[0-9]*\.?[0-9]*(?:[eE][+-]?[0-9]{1,6})?", re.ASCII)


def disarm() -> None:
    """Replace the code generators in all loaded modules, permanently."""
    _replace(sympy_parser.parse_expr, read_number)
    _replace(lambdify, _refuse)
    operations: dict[str, Callable[..., object]] = {
        "mul": monomials.monomial_mul,
        "pow": monomials.monomial_pow,
        "mulpow": _multiply_by_power,
        "ldiv": monomials.monomial_ldiv,
        "div": monomials.monomial_div,
        "lcm": monomials.monomial_lcm,
        "gcd": monomials.monomial_gcd,
    }
    for name, operation in operations.items():
        setattr(monomials.MonomialOps, name, lambda _self, operation=operation: operation)


def read_number(text: str, *_arguments: object, **_options: object) -> Expr:
    """Read a number, in place of `parse_expr`, which evaluates any Python. latex2sympy makes its numbers this way.

    Raises:
        SympifyError: The text is no decimal number.
    """
    if _WHOLE_NUMBER.fullmatch(text):
        return Integer(int(text))
    if _NUMBER.fullmatch(text):
        return Float(text)
    raise SympifyError(text)


def _replace(old: object, new: object) -> None:
    """Replace a function under every name that it has in a loaded module."""
    for module in list(sys.modules.values()):
        for name, value in list(vars(module).items()):
            if value is old:
                setattr(module, name, new)


def _refuse(*_arguments: object, **_options: object) -> NoReturn:
    # The exception that sympy raises, and expects, if an expression has no numeric value.
    raise NotImplementedError("code generation")


def _multiply_by_power(first: Monomial, second: Monomial, power: int) -> Monomial:
    return tuple(a + b * power for a, b in zip(first, second, strict=True))
