r"""Whether an answer equals the gold answer: words and units are compared first, then values, by the kind of the gold answer.

Numbers and expressions are compared in `ngrpo.grading.same_values`, matrices, sets and tuples in `same_sets`, equations and inequalities in
`same_relations`, intervals and bounds in `same_regions`. Words and units count (`ngrpo.grading.quantities`).
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import sympy

from ngrpo.grading.expressions import Both, Form, Items, Span, folded, nodes, read
from ngrpo.grading.kinds import is_matrix, is_relation, single
from ngrpo.grading.quantities import Quantity, chosen, is_text, quantities, same_text
from ngrpo.grading.same_regions import is_bounds, is_region, same_regions
from ngrpo.grading.same_relations import is_assignment, result_of, same_relations
from ngrpo.grading.same_sets import same_matrices, same_sets
from ngrpo.grading.same_values import same_values
from ngrpo.grading.units import PERCENT, units_agree
from ngrpo.grading.values import TooLargeError, UndefinedError, UnreadError, decimal

_LETTER = re.compile(r"(?:\\text(?:bf)?\s*\{)?\s*\(?[A-F]\)?\s*\}?")
"""The letter of an option, without the option's text."""

_FRACTION = re.compile(r"([+-]?)(?:\\[dt]?frac\{|(?=\d+/))(\d{1,20})(?:\}\{|/)(\d{1,20})(?:(?<=\d)\}|(?<=\d))")
"""A fraction of whole numbers, for which no parser is needed."""


def respond(gold: str, answer: str | None) -> tuple[bool, str | None]:
    """Handle one request: judge an answer or, without an answer, check whether the gold answer can be parsed."""
    try:
        if answer is None:
            return _parses(gold), None
        return judge(gold, answer)
    except UndefinedError as error:
        return False, f"the gold answer has no value: {error}"[:200]
    except Exception as error:  # the parser raises exceptions of any kind, and no answer may end the run
        return False, _describe(error)


def judge(gold: str, answer: str) -> tuple[bool, str | None]:
    """Return whether an answer equals the gold answer, and why they could not be compared, if so."""
    if same_text(gold, answer):
        return True, None
    option = chosen(gold) or chosen(answer)
    if option is not None and not (chosen(gold) and chosen(answer)):
        letter, text = option
        other = answer if chosen(gold) else gold
        if _LETTER.fullmatch(other):
            return same_text(letter, other), None
        return judge(text, other) if chosen(gold) else judge(other, text)
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
    """Compare two quantities. For a percentage its number or its value is right; a whole number may stand for a percentage."""
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
    """Parse both. Case is ignored (`3r^2` equals `3R^2`), unless one of them has a letter in both cases, as in `R^2 - r^2`."""
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


def match(gold: Any, answer: Any) -> bool:
    """Whether two expressions are the same answer; the gold answer's form decides."""
    gold, answer = single(gold), single(answer)
    if isinstance(answer, Items) and all(is_relation(part) and not isinstance(part, sympy.Eq) for part in answer.args):
        answer = Both(*answer.args)  # x > 2, x < 5
    if is_relation(gold) and is_relation(answer):
        return same_relations(gold, answer, match)
    if is_relation(answer):
        result = result_of(answer)
        if result is not None:
            return match(gold, result)
        # A pair that is compared with bounds is an interval.
        return (is_region(gold) or isinstance(gold, Span)) and is_bounds(answer) and same_regions(gold, answer)
    if is_relation(gold):
        result = result_of(gold) if is_assignment(gold) else None
        if result is not None:
            return match(result, answer)
        return isinstance(answer, Form | sympy.Set) and is_bounds(gold) and same_regions(gold, answer)
    if is_matrix(gold):
        return same_matrices(gold, answer, match)
    if isinstance(gold, Form | sympy.Set) or isinstance(answer, Form | sympy.Set):
        return same_sets(gold, answer, match)
    if isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr):
        try:
            return same_values(gold, answer)
        except TooLargeError:
            if gold == answer:  # 9^{9^9}
                return True
            raise
    return bool(gold == answer)
