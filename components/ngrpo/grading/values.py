r"""The value of an expression: a rational number if possible, otherwise a floating-point number with the requested number of digits.

The tree is evaluated here, node by node, and a node without a rule in `_RULES` has no value. So the rules are an allow-list between the
parser and the comparison, and the algebra system compiles and evaluates nothing: its own numerical evaluation turns sums into source
code and runs it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from typing import Any

import mpmath
import sympy
from sympy.core.function import AppliedUndef

Number = Any
"""`Fraction` if the value is rational and known exactly, else `mpf` or `mpc` of the valuation's context."""

_BITS = 2**16
"""Largest size of an exact number in bits. A larger one is not rounded but refused (`TooLargeError`)."""

_EXPONENT = 2**60
"""Largest size in bits of a number that is rounded to a floating-point number, as the exponent of two."""

_TERMS = 10_000
"""Most terms of a finite sum or product, which is computed term by term."""

_LIMIT_DIGITS = 30
"""Digits of an infinite sum, product or integral, whose limit is computed numerically."""


class UndefinedError(ArithmeticError):
    """The expression has no finite value: a division by zero, the logarithm of zero, infinity."""


class TooLargeError(ArithmeticError):
    """The value has more digits than are compared."""


class UnreadError(ValueError):
    """The expression has a part that cannot be compared, or the text is no expression."""


class Calculus(sympy.Expr):
    """A sum, product or integral that the algebra system does not evaluate: term, variable, first and last value."""

    @property
    def free_symbols(self) -> set[sympy.Basic]:
        """Variables, except the one that it runs over."""
        term, variable, first, last = self.args
        found: set[sympy.Basic] = (term.free_symbols - {variable}) | first.free_symbols | last.free_symbols
        return found


class Sum(Calculus):
    """A sum."""


class Product(Calculus):
    """A product."""


class Integral(Calculus):
    """A definite integral."""


class Based(sympy.Expr):
    """The digits of a number and its base, as written: equal only to the same digits in the same base."""


@cache
def _context(digits: int) -> Any:
    context = mpmath.ctx_mp.MPContext()
    context.dps = digits
    return context


class Valuation:
    """Evaluates expressions at one point, with a fixed number of digits.

    Attributes:
        approximate: Whether a limit was computed numerically, so that fewer digits are correct.
    """

    def __init__(self, digits: int, seed: object = 0, whole: bool = False, bound: Mapping[str, Number] | None = None):
        """Choose a point.

        Args:
            digits: Decimal digits of floating-point numbers.
            seed: Seed of the values of variables; equal names and seeds give equal values, and a negative seed some negative ones.
            whole: Variables are whole numbers.
            bound: Values of variables that a sum, a product or an integral runs over.
        """
        self.context = _context(digits)
        self.approximate = False
        self._digits, self._seed, self._whole = digits, seed, whole
        self._bound = dict(bound or {})
        self._loose = False  # whether a number that is too large may be rounded, which is not allowed for constants

    def of(self, node: Any, loose: bool = False) -> Number:
        """Return the value of an expression.

        Args:
            node: The expression.
            loose: Whether a number that is too large is rounded, because values at a variable's point need not be exact.

        Raises:
            UndefinedError: It has no value.
            TooLargeError: The value has too many digits.
            UnreadError: A part of it has no rule.
        """
        self._loose = loose
        try:
            return self._of(node)
        except (ZeroDivisionError, mpmath.libmp.ComplexResult) as error:
            raise UndefinedError(str(error)) from error
        except (OverflowError, MemoryError) as error:
            raise TooLargeError(str(error)) from error

    def _of(self, node: Any) -> Number:
        for kind in type(node).__mro__:
            if kind in _RULES:
                return _RULES[kind](self, node)
        raise UnreadError(f"{type(node).__name__} is not compared")

    def inexact(self, value: Number) -> Number:
        """Return a value as a floating-point number."""
        if isinstance(value, Fraction):
            return self.context.mpf(value.numerator) / value.denominator
        return value

    def variable(self, name: str) -> Number:
        """Return the value of a variable at this point; `i` is the imaginary unit unless a sum or the like runs over it."""
        if name in self._bound:
            return self._bound[name]
        if name == "i":
            return self.context.mpc(0, 1)
        draw = random.Random(f"{name} {self._seed}")
        if self._whole:
            return Fraction(draw.randrange(2, 40))
        sign = draw.choice((-1, 1)) if str(self._seed).startswith("-") else 1
        return sign * Fraction(draw.randrange(101, 997), draw.randrange(101, 499))

    def _symbol(self, node: Any) -> Number:
        return self.variable(node.name)

    def _unknown(self, node: Any) -> Number:
        """Return the value of an unknown function, which depends on its name and the values of its arguments."""
        values = [self._of(argument) for argument in node.args]
        return self.variable(f"{node.func.__name__}({values})")

    def _add(self, node: Any) -> Number:
        return self._total([self._of(part) for part in node.args])

    def _total(self, parts: list[Number]) -> Number:
        exact = sum((part for part in parts if isinstance(part, Fraction)), Fraction(0))
        self._within(exact)
        rest = [part for part in parts if not isinstance(part, Fraction)]
        return self.context.fsum([*rest, self.inexact(exact)]) if rest else exact

    def _multiply(self, node: Any) -> Number:
        return self._times([self._of(part) for part in node.args])

    def _times(self, parts: list[Number]) -> Number:
        exact, rest = Fraction(1), []
        for part in parts:
            if isinstance(part, Fraction):
                exact *= part
                self._within(exact)
            else:
                rest.append(part)
        if not rest or not exact:
            return exact
        value = self.inexact(exact)
        for part in rest:
            value *= part
        return value

    def _within(self, exact: Fraction) -> None:
        if max(exact.numerator.bit_length(), exact.denominator.bit_length()) > 4 * _BITS:
            raise TooLargeError("a number has too many digits")

    def _power(self, node: Any) -> Number:
        return self.raised(self._of(node.args[0]), self._of(node.args[1]))

    def raised(self, base: Number, exponent: Number) -> Number:
        """Return a power. Odd roots of negative numbers are real, as at school."""
        if not base:
            if isinstance(exponent, Fraction) and exponent > 0:
                return Fraction(0)
            if exponent == 0:
                return Fraction(1)
            raise UndefinedError("a power of zero")
        if isinstance(base, Fraction) and isinstance(exponent, Fraction):
            exact = self._exact_power(base, exponent)
            if exact is not None:
                return exact
        odd = isinstance(exponent, Fraction) and exponent.denominator % 2 == 1
        base_, exponent_ = self.inexact(base), self.inexact(exponent)
        size = abs(exponent_) * (1 + abs(self.context.log(abs(base_), 2)))
        if size > _EXPONENT:
            raise TooLargeError("a power has too many digits")
        if odd and isinstance(base_, self.context.mpf) and base_ < 0:
            value = self.context.power(-base_, exponent_)
            return -value if exponent.numerator % 2 else value
        return self.context.power(base_, exponent_)

    def _exact_power(self, base: Fraction, exponent: Fraction) -> Fraction | None:
        """Return a rational power; None if it is not rational, or so large that it is rounded."""
        if abs(base) == 1 and exponent.denominator == 1:
            return base if exponent.numerator % 2 else Fraction(1)
        if exponent.denominator != 1:
            root = _root(base, exponent.denominator)
            if root is None:
                return None
            base = root
        bits = abs(exponent.numerator) * max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits <= _BITS or base == 1:
            return base**exponent.numerator
        if self._loose:
            return None
        raise TooLargeError("a power has too many digits")

    def _exponential(self, node: Any) -> Number:
        value = self._of(node.args[0])
        if value == 0:
            return Fraction(1)
        if abs(value) > _EXPONENT:
            raise TooLargeError("an exponential has too many digits")
        return self.context.exp(self.inexact(value))

    def _logarithm(self, node: Any) -> Number:
        values = [self._of(argument) for argument in node.args]
        value, base = (*values, None)[:2]
        if value == 0 or base in (0, 1):
            raise UndefinedError("the logarithm of zero")
        if value == 1:
            return Fraction(0)
        if base is None:
            return self.context.log(self.inexact(value))
        quotient = self.context.log(self.inexact(value)) / self.context.log(self.inexact(base))
        if isinstance(value, Fraction) and isinstance(base, Fraction) and not self.context.im(quotient):
            nearest = Fraction(int(self.context.nint(self.context.re(quotient))))
            if abs(nearest) < _BITS and abs(quotient - int(nearest)) < 1e-20 and base ** int(nearest) == value:
                return nearest
        return quotient

    def _absolute(self, node: Any) -> Number:
        return abs(self._of(node.args[0]))

    def _floor(self, node: Any) -> Number:
        value = self._of(node.args[0])
        return Fraction(math.floor(value)) if isinstance(value, Fraction) else self.context.floor(value)

    def _ceiling(self, node: Any) -> Number:
        value = self._of(node.args[0])
        return Fraction(math.ceil(value)) if isinstance(value, Fraction) else self.context.ceil(value)

    def _modulo(self, node: Any) -> Number:
        value, modulus = (self._of(argument) for argument in node.args)
        if isinstance(value, Fraction) and isinstance(modulus, Fraction):
            return value % modulus
        value, modulus = self.inexact(value), self.inexact(modulus)
        return value - modulus * self.context.floor(value / modulus)

    def _factorial(self, node: Any) -> Number:
        value = self._of(node.args[0])
        if isinstance(value, Fraction) and value.denominator == 1:
            if value < 0:
                raise UndefinedError("the factorial of a negative number")
            if value > 3000:
                raise TooLargeError("a factorial has too many digits")
            return Fraction(math.factorial(value.numerator))
        if abs(value) > 10**6:
            raise TooLargeError("a factorial has too many digits")
        return self.context.gamma(self.inexact(value) + 1)

    def _gamma(self, node: Any) -> Number:
        value = self._of(node.args[0])
        if abs(value) > 10**6:
            raise TooLargeError("a factorial has too many digits")
        return self.context.gamma(self.inexact(value))

    def _binomial(self, node: Any) -> Number:
        upper, lower = (self._of(argument) for argument in node.args)
        if all(isinstance(value, Fraction) and value.denominator == 1 for value in (upper, lower)) and upper >= 0:
            n, k = int(upper), int(lower)
            if k < 0 or k > n:
                return Fraction(0)
            if min(k, n - k) * n.bit_length() > _BITS:
                raise TooLargeError("a binomial coefficient has too many digits")
            return Fraction(math.comb(n, k))
        if max(abs(upper), abs(lower)) > 10**6:
            raise TooLargeError("a binomial coefficient has too many digits")
        return self.context.binomial(self.inexact(upper), self.inexact(lower))

    def _extreme(self, choose: Callable[..., Number], node: Any) -> Number:
        values = [self._of(argument) for argument in node.args]
        if any(isinstance(value, self.context.mpc) for value in values):
            raise UndefinedError("complex numbers have no order")
        return choose(values, key=self.inexact)

    def _sum(self, node: Any) -> Number:
        return self._repeated(node, self._total, "nsum")

    def _product(self, node: Any) -> Number:
        return self._repeated(node, self._times, "nprod")

    def _repeated(self, node: Any, combine: Callable[[list[Number]], Number], limit: str) -> Number:
        term, variable, first, last = node.args
        start = self._of(first)
        if not isinstance(start, Fraction) or start.denominator != 1:
            raise UndefinedError("a sum from a number that is not whole")
        if last is sympy.S.Infinity:
            return self._limit(term, variable, limit, [int(start), mpmath.inf])
        end = self._of(last)
        if not isinstance(end, Fraction) or end.denominator != 1:
            raise UndefinedError("a sum to a number that is not whole")
        if end - start > _TERMS:
            raise TooLargeError("a sum has too many terms")
        outer, values = self._bound, []
        try:
            for number in range(int(start), int(end) + 1):
                self._bound = outer | {variable.name: Fraction(number)}
                values.append(self._of(term))
        finally:
            self._bound = outer
        return combine(values)

    def _integral(self, node: Any) -> Number:
        term, variable, first, last = node.args
        ends = [
            end * self.context.inf if (end := _infinite(part)) else self.inexact(self._of(part))
            for part in (first, last)
        ]
        return self._limit(term, variable, "quad", ends)

    def _limit(self, term: Any, variable: Any, method: str, ends: list[Any]) -> Number:
        inner = Valuation(_LIMIT_DIGITS, self._seed, self._whole)

        def value(at: Any) -> Any:
            whole = method != "quad"
            inner._bound = self._bound | {variable.name: Fraction(int(at)) if whole else at}
            return inner.inexact(inner.of(term, loose=True))

        self.approximate = True
        result = getattr(inner.context, method)(value, [inner.context.convert(end) for end in ends])
        return self.context.convert(result)


def _infinite(node: Any) -> int:
    return {sympy.S.Infinity: 1, sympy.S.NegativeInfinity: -1}.get(node, 0)


def _root(base: Fraction, degree: int) -> Fraction | None:
    """Return the root of a number if it is rational; for a negative number only of odd degree."""
    if degree > 64 or (base < 0 and degree % 2 == 0):
        return None
    parts = []
    for part in (abs(base.numerator), base.denominator):
        low, exact = sympy.integer_nthroot(part, degree)
        if not exact:
            return None
        parts.append(int(low))
    return Fraction(-parts[0] if base < 0 else parts[0], parts[1])


def decimal(node: Any) -> Fraction:
    """Return the decimal fraction, of at most 90 places, from which the parser read a floating-point number."""
    scaled = mpmath.libmp.to_rational(node._mpf_)
    return Fraction(round(Fraction(*map(int, scaled)) * 10**90), 10**90)


def _rational(_valuation: Valuation, node: Any) -> Fraction:
    return Fraction(int(node.p), int(node.q))


def _undefined(_valuation: Valuation, node: Any) -> Number:
    raise UndefinedError("nan or zoo" if node in (sympy.S.NaN, sympy.S.ComplexInfinity) else "infinity")


def _function(name: str) -> Callable[[Valuation, Any], Number]:
    def rule(valuation: Valuation, node: Any) -> Number:
        value = valuation.inexact(valuation._of(node.args[0]))
        if abs(value) > 2.0**1000:  # the period would be needed to as many digits
            raise TooLargeError("an angle has too many digits")
        return getattr(valuation.context, name)(value)

    return rule


_RULES: dict[type, Callable[[Valuation, Any], Number]] = {
    sympy.Rational: _rational,
    sympy.Float: lambda _valuation, node: decimal(node),
    sympy.Symbol: Valuation._symbol,
    AppliedUndef: Valuation._unknown,
    Based: lambda valuation, node: valuation.variable(f"{node.args[0].name} in base {node.args[1].name}"),
    sympy.Add: Valuation._add,
    sympy.Mul: Valuation._multiply,
    sympy.Pow: Valuation._power,
    sympy.exp: Valuation._exponential,
    sympy.log: Valuation._logarithm,
    sympy.Abs: Valuation._absolute,
    sympy.floor: Valuation._floor,
    sympy.ceiling: Valuation._ceiling,
    sympy.Mod: Valuation._modulo,
    sympy.factorial: Valuation._factorial,
    sympy.gamma: Valuation._gamma,
    sympy.binomial: Valuation._binomial,
    sympy.Max: lambda valuation, node: valuation._extreme(max, node),
    sympy.Min: lambda valuation, node: valuation._extreme(min, node),
    sympy.UnevaluatedExpr: lambda valuation, node: valuation._of(node.args[0]),
    type(sympy.S.Pi): lambda valuation, _node: +valuation.context.pi,
    type(sympy.S.Exp1): lambda valuation, _node: +valuation.context.e,
    type(sympy.S.EulerGamma): lambda valuation, _node: +valuation.context.euler,
    type(sympy.S.ImaginaryUnit): lambda valuation, _node: valuation.context.mpc(0, 1),
    type(sympy.S.Infinity): _undefined,
    type(sympy.S.NegativeInfinity): _undefined,
    type(sympy.S.ComplexInfinity): _undefined,
    type(sympy.S.NaN): _undefined,
    Sum: Valuation._sum,
    Product: Valuation._product,
    Integral: Valuation._integral,
    **{
        getattr(sympy, name): _function(name)
        for name in (
            *("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "asec", "acsc"),
            *("sinh", "cosh", "tanh", "asinh", "acosh", "atanh"),
        )
    },
}
"""The rule of each kind of node that has a value."""
