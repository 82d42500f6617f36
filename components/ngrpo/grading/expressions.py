r"""Parse LaTeX into an unevaluated expression, with an allow-list of characters, names and kinds of node.

The grammar is that of `latex2sympy2_extended`. Sets, intervals, sums and integrals become nodes of this module, which the algebra system
has no rules for and therefore never evaluates. What the parser would evaluate itself (limits, eigenvectors, ...) is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate, chain
from typing import Any

import sympy
import sympy.tensor.tensor  # sympy imports it for its first sum, when the grading process may no longer read files
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
from latex2sympy2_extended.logic import And
from latex2sympy2_extended.math_normalization import NormalizationConfig, normalize_latex
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational
from sympy.logic.boolalg import BooleanAtom

from ngrpo.grading.grammar import parser
from ngrpo.grading.values import _RULES, Based, Integral, Product, Sum, UnreadError

_CHARACTERS = re.compile("[ -~\t\n\u0370-\u03ff×÷·±∓≤≥≠∅∖∩∪∈]*")
"""Allowed characters. Control characters and unusual line breaks are not among them: code needs them, answers do not."""

_NAME = re.compile(r"\\?[A-Za-z\u0370-\u03ff](?:[A-Za-z0-9\u0370-\u03ff]|[_\\ ,]|\{[A-Za-z0-9_,+ \\-]*\})*")
_LONGEST_NAME = 100

_DEEPEST = 20
"""Brackets within brackets. Answers of real problems have four at most, and the parser's time grows with every further one."""

_NORMALISED = NormalizationConfig(malformed_operators=True, nits=True, boxed="none")
_LITERAL = re.compile(r"\d{1,2}:[0-5]\d(?::[0-5]\d)?|\d{1,2}/\d{1,2}/(?:\d\d){1,2}|\d{4}-\d\d-\d\d")
"""A time or a date, which must not be read as a quotient or a difference."""

_BASED = re.compile(
    r"\(?(?<![\w.])(\d+(?:\.\d+)?|(?=[A-Fa-f]*\d)[\dA-Fa-f]+|[A-F]{2,})\)?\s*_\s*(?:\{\s*(?:\\text\s*\{\s*)?(\d+)\s*\}?\s*\}|(\d))"
)
"""A number with its base. Digits above nine are recognized beside others (`2E_{16}`, `AB_{12}`); `A_{16}` is a variable."""

_FACTORIALS = re.compile(r"!\s*!")
_UNPRINTED = re.compile(r"\\(?:[hv]?phantom|[hv]space)(?![A-Za-z])")
_RATIO = re.compile(r"\d{1,9}(?::\d{1,9}){2,}")
_CONDITION = re.compile(r"(?:\\left)?\\\{\s*\(?[A-Za-z][^{}=<>|]*?(?::|\|(?=[^|]*$)|\\mid(?![A-Za-z]))")
"""The beginning of a set given by a condition, where the colon is not a division."""

_FAMILY = re.compile(r"([^;{}]*(?:\{[^;]*\}[^;{}]*)?),\s*([A-Za-z]\s*\\in\s*\\mathbb\{[NZQR]\})", re.DOTALL)
r"""An expression for every number of a kind: `\pi k, k \in \mathbb{Z}`."""

_DOTS = re.compile(r"\\(?:[lc]|vd|dd)?dots(?![A-Za-z])|\.{3}")
_LIST_DOTS = re.compile(rf"(?<=,)\s*(?:{_DOTS.pattern})\s*(?=$|,|\\\}}|\\right|\))")
_SIGNS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])|[±∓]")
_LARGE_LETTER = re.compile(r"\\(?:math(?:bb|cal|rm)|text|operatorname|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+|[A-Z]")
_ORDER = re.compile(r"[<>]|\\(?:leq?|geq?|neq?|lt|gt|in)(?![A-Za-z])|[≤≥≠∈]")
_OR = re.compile(r",?\s*(?:\\text\s*\{\s*or\s*\}|(?<![A-Za-z\\])or(?![A-Za-z])|\\lor(?![A-Za-z])|\\vee(?![A-Za-z]))")
_AND = re.compile(
    r",?\s*(?:\\text\s*\{\s*and\s*\}|(?<![A-Za-z\\])and(?![A-Za-z])|\\land(?![A-Za-z])|\\wedge(?![A-Za-z]))"
)
_EQUALS = re.compile(r"(?<![\\<!>])=")

_NUMBER = re.compile(r"(-?)((?=\d)\d{0,40}(?:\.\d{1,40})?)")
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[()\[\]{},]", re.DOTALL)
_OPENING, _CLOSING = ("(", "[", "{", r"\{"), (")", "]", "}", r"\}")
_BRACKETS = re.compile(r"(\\\{|[(\[])(.*)(\\\}|[)\]])", re.DOTALL)
_OUTSIDE_LISTS = re.compile(
    r"[;|]|\\(?:mid|begin|in|notin|l?brace|langle|cap|setminus|backslash|phantom)(?![A-Za-z])|∩|∪|∈|∖|\\\\"
)
"""Parts that the grammar must parse as a whole, because commas inside them may have another meaning."""

_OPERATORS = {
    "floor",
    "ceil",
    "arsinh",
    "arcosh",
    "artanh",
    "arcsinh",
    "arccosh",
    "arctanh",
    "gcd",
    "lcm",
    "rank",
    "tr",
    "trace",
}


class Form(sympy.Basic):
    """A notation for several elements, whose meaning is not decided yet."""


class Items(Form):
    """Elements separated by commas: a set, or a tuple."""


class Braces(Form):
    """A set in braces."""


class Row(Form):
    """A tuple, in parentheses."""


class Span(Form):
    """Two elements in brackets or parentheses, an interval or a pair: left, right, whether open on the left, and on the right."""


class Ratio(Form):
    """A ratio of three numbers or more, in lowest terms."""


class Joined(Form):
    """A union."""


class Common(Form):
    """An intersection."""


class Without(Form):
    """The difference of two sets."""


class Either(Form):
    """Relations of which one holds."""


class Both(Form):
    """Relations that all hold."""


class _Reader(_Latex2Sympy):
    """The parser, changed to evaluate nothing and to keep the case of letters."""

    def __init__(self) -> None:
        super().__init__(config=ConversionConfig(lowercase_symbols=False))

    def create_parser(self, latex_str: str) -> Any:
        return parser(latex_str, self.MathErrorListener(latex_str))

    def parse_number(self, text: str) -> Any:
        text = text.replace(",", "")
        whole, _, places = text.partition(".")
        if len(text) > 80 or not (whole + places).isdigit():
            return sympy.Rational(text)
        return sympy.Float(text, 100) if places.strip("0") else sympy.Integer(whole or "0")

    def convert_atom(self, atom: Any) -> Any:
        if atom.number_subexpr() and atom.number_subexpr().subexpr():
            base = atom.number_subexpr().subexpr().getText().strip("_{} ")
            return Based(sympy.Symbol(atom.number_subexpr().NUMBER().getText()), sympy.Symbol(base))
        if atom.FUNC_GAMMA():  # an ordinary name, which the parser would read as Euler's constant
            return sympy.Symbol(atom.FUNC_GAMMA().getText().strip("\\ "))
        return super().convert_atom(atom)

    def convert_interval(self, expr: Any) -> Any:
        open_left = expr.L_PAREN() or expr.L_GROUP() or expr.L_PAREN_VISUAL()
        open_right = expr.R_PAREN() or expr.R_GROUP() or expr.R_PAREN_VISUAL()
        ends = [self.convert_expr(end) for end in expr.expr()]
        return Span(*ends, *(sympy.true if side else sympy.false for side in (open_left, open_right)))

    def convert_elements_to_set_or_tuple(self, elements: list[list[Any]]) -> Any:
        if all(len(element) == 1 for element in elements):
            return elements[0][0] if len(elements) == 1 else Items(*(element[0] for element in elements))
        return Items(*elements[0]) if len(elements) == 1 else Items(*(Row(*element) for element in elements))

    def convert_ordered_tuple(self, expr: Any) -> Any:
        elements = [*chain.from_iterable(self.convert_semicolon_elements(expr.semicolon_elements()))]
        return elements[0] if len(elements) == 1 else Row(*elements)

    def convert_finite_set(self, expr: Any) -> Any:
        content = self.convert_semicolon_elements(expr.semicolon_elements())
        return (
            self.convert_elements_to_set_or_tuple(content)
            if expr.BOXED_CMD()
            else Braces(*chain.from_iterable(content))
        )

    def convert_set_minus(self, expr: Any) -> Any:
        if expr.union_expr():
            return self.convert_set_union(expr.union_expr())
        return Without(*map(self.convert_set_minus, expr.minus_expr()))

    def convert_set_union(self, expr: Any) -> Any:
        if expr.intersection_expr():
            return self.convert_set_intersection(expr.intersection_expr())
        return Joined(*map(self.convert_set_union, expr.union_expr()))

    def convert_set_intersection(self, expr: Any) -> Any:
        if expr.set_group():
            return self.convert_set_group(expr.set_group())
        return Common(*map(self.convert_set_intersection, expr.intersection_expr()))

    def convert_set_relation(self, expr: Any) -> Any:
        if expr.NOTIN() or expr.SUBSET() or expr.SUPSET():
            raise UnreadError("a relation of sets")
        return super().convert_set_relation(expr)

    def convert_binom(self, binom: Any) -> Any:
        return sympy.binomial(self.convert_expr(binom.upper), self.convert_expr(binom.lower), evaluate=False)

    def convert_func(self, func: Any) -> Any:
        for call in (func.func_normal_single_arg(), func.func_normal_multi_arg()):
            if call and call.start.text == r"\operatorname" and call.func_operator_name.getText() not in _OPERATORS:
                raise UnreadError(f"the operator {call.func_operator_name.getText()[:20]}")
        return super().convert_func(func)

    def handle_exp(self, func: Any) -> Any:
        exponent = func.supexpr()
        if not exponent:
            return sympy.S.Exp1
        value = self.convert_expr(exponent.expr()) if exponent.expr() else self.convert_atom(exponent.atom())
        return sympy.exp(value, evaluate=False)

    def handle_sum_or_prod(self, func: Any, name: str) -> Any:
        variable, first = map(self.convert_expr, func.subeq().equality().expr())
        above = func.supexpr()
        last = self.convert_expr(above.expr()) if above.expr() else self.convert_atom(above.atom())
        if not isinstance(variable, sympy.Symbol):
            raise UnreadError("a sum over no variable")
        return (Sum if name == "summation" else Product)(self.convert_mp(func.mp()), variable, first, last)

    def handle_integral(self, func: Any) -> Any:
        integral = super().handle_integral(func)
        if len(integral.limits) != 1 or len(integral.limits[0]) != 3:
            raise UnreadError("an indefinite integral")
        return Integral(integral.function, *integral.limits[0])

    def handle_limit(self, func: Any) -> Any:
        raise UnreadError("a limit")

    def handle_gcd_lcm(self, f: str, args: list[Any]) -> Any:
        if not all(isinstance(value, sympy.Integer) for value in args):
            raise UnreadError("a common divisor of what are no whole numbers")
        return sympy.Integer({"gcd": math.gcd, "lcm": math.lcm}[f](*map(int, args)))


@lru_cache(maxsize=1024)
def read(text: str) -> Any:
    """Parse an answer without its units and words.

    Returns:
        The expression: sympy's nodes, not evaluated, and the forms of this module.

    Raises:
        UnreadError: It has a character, a name or a kind of node that is not on the list.
        Exception: Any exception of the parser, for a text that is no formula.
    """
    if not _CHARACTERS.fullmatch(text):
        raise UnreadError("a character that is not read")
    if _depth(text) > _DEEPEST:
        raise UnreadError(f"brackets nested more than {_DEEPEST} deep")
    plain = text.replace(" ", "")
    if _LITERAL.fullmatch(plain):
        return sympy.Symbol(
            "_".join(part.lstrip("0") or "0" for part in re.split("[:/-]", plain)) + f" {plain.count(':')}"
        )
    if _CONDITION.match(text):
        raise UnreadError("a set by a condition")
    if _RATIO.fullmatch(plain):
        parts_ = [int(part) for part in plain.split(":")]
        return Ratio(*(sympy.Integer(part // (math.gcd(*parts_) or 1)) for part in parts_))
    if _ORDER.search(text):
        for word, form in ((_OR, Either), (_AND, Both)):
            parts = _split(text, word)
            if len(parts) > 1:
                return form(*map(read, parts))
    based = _BASED.fullmatch(text.strip())
    if based and (base := int(based[2] or based[3])) > max(
        (int(digit, 16) for digit in based[1] if digit.isalpha()), default=0
    ):
        return Based(sympy.Symbol(based[1].upper()), sympy.Symbol(str(base)))
    if _FACTORIALS.search(text):
        raise UnreadError("a double factorial of what is no small number")
    if _UNPRINTED.search(text):
        raise UnreadError("a part that is not printed")
    normalised = normalize_latex(_LIST_DOTS.sub(" x_{dots} ", text), _NORMALISED)
    try:
        if _DOTS.search(_LIST_DOTS.sub("", text)):
            raise UnreadError("dots")
        expression = _parse(normalised)
    except Exception:
        # The sides before the result may have parts that cannot be parsed (`1 + 2 + \cdots + 9 = 45`); the result may not.
        parts = [] if re.search("[,;]", normalised) else _EQUALS.split(normalised)
        if len(parts) < (2 if _DOTS.search(parts[0]) else 3):
            raise
        expression = _parse(parts[-1])
    _check(expression)
    return expression


def _depth(text: str) -> int:
    """Return how many brackets, matched or not, are open at most."""
    steps = ((char in "([{") - (char in ")]}") for char in text)
    return max(accumulate(steps), default=0)


def _parse(text: str) -> Any:
    if re.fullmatch(r"\s*-?[1-9]\d{0,2}(,\d{3})+(\.\d+)?\s*", text):
        text = text.replace(",", "")
    return _listed(text.strip())


def _listed(text: str) -> Any:
    """Parse what may be a union or a list. It is split here, because the grammar tries every reading and takes ten times as long."""
    number = _NUMBER.fullmatch(text)
    if number:
        value = _Reader().parse_number(number[2])
        return -value if number[1] == "-" else value
    family = _FAMILY.fullmatch(text)
    if family:
        return Items(_listed(family[1].strip()), _Reader().parse(family[2]))
    if _OUTSIDE_LISTS.search(text):
        return _Reader().parse(text)
    sets = _pieces(text, r"\cup")
    if len(sets) > 1:
        return Joined(*map(_listed, sets))
    elements = _pieces(text, ",")
    if len(elements) > 1:
        return Items(*_elements(elements))
    signs = _SIGNS.findall(text)
    brackets = _BRACKETS.fullmatch(text)
    if len(signs) == 1 and not text.startswith(r"\{"):
        return Items(*(_listed(_SIGNS.sub(sign, text)) for sign in ("+-" if signs[0] in (r"\pm", "±") else "-+")))
    inner = _pieces(brackets[2], ",") if brackets else []
    if brackets is None or len(inner) < 2 or (brackets[1] == r"\{") != (brackets[3] == r"\}"):
        return _Reader().parse(text)
    elements_ = _elements(inner)
    if brackets[1] == r"\{":
        return Braces(*elements_)
    if len(elements_) == 2:
        return Span(*elements_, *(sympy.true if side in "()" else sympy.false for side in (brackets[1], brackets[3])))
    if (brackets[1], brackets[3]) != ("(", ")"):
        raise UnreadError("a list in brackets")
    return Row(*elements_)


def _elements(texts: list[str]) -> list[Any]:
    r"""Parse the elements of a list; `\pm 1` is two."""
    elements: list[Any] = []
    for text in texts:
        element = _listed(text.strip())
        elements += element.args if isinstance(element, Items) and r"\pm" in text else [element]
    return elements


def _pieces(text: str, separator: str) -> list[str]:
    """Split at a separator outside brackets; one piece if the brackets do not match."""
    pieces, depth, start = [], 0, 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in _OPENING:
            depth += 1
        elif token in _CLOSING:
            depth -= 1
            if depth < 0:
                return [text]
        elif token == separator and depth == 0:
            pieces.append(text[start : match.start()])
            start = match.end()
    return [*pieces, text[start:]] if depth == 0 else [text]


def _split(text: str, word: re.Pattern[str]) -> list[str]:
    r"""Split at a word outside braces, except those of its own \text{}."""
    parts, start = [], 0
    for match in word.finditer(text):
        before = text[: match.start()]
        if before.count("{") == before.count("}"):
            parts.append(text[start : match.start()])
            start = match.end()
    return [*parts, text[start:]]


def folded(text: str) -> str:
    """Return a formula in lower case, except Greek letters and the names of commands."""
    return _LARGE_LETTER.sub(lambda found: found[0].lower() if len(found[0]) == 1 else found[0], text)


def nodes(expression: Any) -> Iterator[Any]:
    """Yield an expression and all its parts."""
    waiting = [expression]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += node.flat() if isinstance(node, sympy.MatrixBase) else getattr(node, "args", ())


def _check(expression: Any) -> None:
    """Refuse an expression with a name or a kind of node that is not on the list."""
    for node in nodes(expression):
        if not isinstance(node, _ALLOWED):
            raise UnreadError(f"{type(node).__name__[:40]} is not compared")
        name = node.name if isinstance(node, sympy.Symbol) else None
        if isinstance(node, AppliedUndef):
            name = node.func.__name__
        if name is not None and (len(name) > _LONGEST_NAME or not (name.isdigit() or _NAME.fullmatch(name))):
            raise UnreadError("a name that is not read")


_ALLOWED: tuple[type, ...] = (
    *_RULES,
    *(Form, Relational, And, BooleanAtom, sympy.Tuple, sympy.MatrixBase, sympy.MatMul, sympy.MatAdd),
    *map(
        type,
        (sympy.S.Naturals, sympy.S.Integers, sympy.S.Rationals, sympy.S.Reals, sympy.S.Complexes, sympy.S.EmptySet),
    ),
)
