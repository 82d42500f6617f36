r"""Spellings of an answer: rules on its letters that bring it to the one spelling that math-verify reads as a person would.

A rule is here only if no two different answers become equal by it; what the rules leave alone, math-verify reads or refuses.
- Unicode: digits of any script, full-width and styled characters, signs, `½`, `x²`. Not read: `⑤`, subscripts, roots of unclear
  extent (`√2x`), a dash between two numbers (a range, or a difference), marks that change the order of reading.
- An answer that there is nothing (`no solution`, `none`, `DNE`, `\varnothing`, `\{\}`) is the empty set: the question says what
  there is none of. `real` may be said, since real numbers are meant where nothing else is. Any other condition makes another claim
  ("no integer solutions", "no unique solution"), and `0`, `undefined` and `\{\emptyset\}` are no such answer.
- Numbers as people write them: `10\,000`, `1 1/2`, `3{:}00`, `2^\frac{1}{2}`; intervals as in ISO 80000-2: `[1,2[` is `[1,2)`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

_SIGNS = {
    "∞": r"\infty ",
    "∄": r"\nexists ",
    "∪": r"\cup ",
    "∈": r"\in ",
    "°": r"^\circ ",
    "‐": "-",
    "‑": "-",
    "٫": ".",
    "٬": ",",
    "،": ",",
    "٪": r"\%",
}
_OTHER_SYMBOLS = re.compile("DOUBLE-STRUCK|SCRIPT|FRAKTUR|BLACK-LETTER")
"""Letters in these styles mean something of their own (ℝ, ℜ, 𝒫)."""

_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_GAP = r"(?:\\[, ]|[ ~\u00a0\u2009\u202f])"
_ARGUMENT = r"\s*(?:\{[^{}]*\}|\d)"


def _raised(run: re.Match[str]) -> str:
    return f"^{{{run[0].translate(_RAISED)}}}"


def _without_gaps(number: re.Match[str]) -> str:
    return re.sub(_GAP, "", number[0])


def _improper(mixed: re.Match[str]) -> str:
    whole, part, parts = map(int, mixed.groups())
    return rf"\frac{{{whole * parts + part}}}{{{parts}}}"


_Rule = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]

_UNICODE_RULES: tuple[_Rule, ...] = (
    (re.compile("[\u200b-\u200f\u2060\ufeff]"), ""),  # no width, and no meaning between digits
    (re.compile(r"[⁰¹²³⁴-⁹⁺⁻]++(?!√)"), _raised),
    (re.compile(r"(^|[(\[{,=<>≤≥])(\s*)[–—‒]"), r"\1\2-"),
    (re.compile(r"(?<!\d)(\d+)⁄(\d+)"), r"\\frac{\1}{\2}"),
    (re.compile(r"(?<![⁰¹²³⁴-⁹])√\s*(\d+(?:\.\d+)?|[A-Za-zπ]|\([^()]*\))(?![\w.^({\[!]|,\d)"), r"\\sqrt{\1}"),
)
_RULES: tuple[_Rule, ...] = (
    (re.compile(r"\\varnothing|(?:\\left\s*)?\\\{\s*(?:\\right\s*)?\\\}"), r"\\emptyset "),
    (re.compile(r"(?<=\d)\{([.:])\}(?=\d)"), r"\1"),
    (re.compile(rf"(?<![\d.,])[1-9]\d{{0,2}}(?:{_GAP}\d{{3}})+(?!\d)"), _without_gaps),
    (re.compile(r"^([+-]?\d+)\s+(\d+)/(\d+)$"), r"\1\\frac{\2}{\3}"),
    (re.compile(rf"\^\s*(\\[dtc]?frac{_ARGUMENT}{_ARGUMENT})"), r"^{\1}"),
    # math-verify takes the whole number off a mixed percentage.
    (re.compile(r"(?<![\d.])(\d{1,9})\s*\\[dtc]?frac\{(\d{1,9})\}\{(\d{1,9})\}(?=\s*\\?%)"), _improper),
)

_PLAIN_INTERVAL = re.compile(r"\s*(?:\\left\s*)?([\[\]])([^\[\](),]+,[^\[\](),]+?)(?:\\right\s*)?([\[\]])\s*")

_TYPESETTING = re.compile(r"\\(?:text|math|mbox)[a-z]*\s*(?=\{)|\\?[ ~]|\s|[{}]")
_NO_SOLUTION = re.compile(
    r"(?:(?:there (?:is|are|exists?)|(?:(?:the |this )?(?:equation|system) )?has) )?no (?:real )?(?:solutions?|roots?)(?: exists?)?"
    r"|none|dne|(?:(?:the|a) )?(?:(?:real )?solutions? )?(?:does not|doesn't|do not|don't) exist|(?:the )?empty set|\\nexists"
)

_BRACED = re.compile(r"(?:\\left\s*)?\\\{(?=[^,]*,)(?!\s*(?:\\left\s*)?\(|.*(?:[:|]|\\mid)).*\\\}", re.DOTALL)
"""A set of several elements; of tuples, or in set-builder notation, it is math-verify's to read."""

_PARENTHESISED = re.compile(r"(?:\\left\s*)?\((?=[^,]*,).*\)", re.DOTALL)
_UNIT = re.compile(r"\\(?:text|math|mbox|circ|%)|%|\d\s*[A-Za-z]")
_NUMBERS = re.compile(r"[+-]?[\d.]+(?:(?:\s|~|\\[ ,;:!])+[\d.]+)+")


def canonical(answer: str) -> str:
    """Return an answer in the spelling that math-verify reads; the answer itself where no rule applies."""
    text = answer
    if not text.isascii():
        text = "".join(map(_character, text))
        for rule, spelling in _UNICODE_RULES:
            text = rule.sub(spelling, text)
    for rule, spelling in _RULES:
        text = rule.sub(spelling, text)
    words = " ".join(_TYPESETTING.sub(" ", text).split()).rstrip(" .").lower()
    if _NO_SOLUTION.fullmatch(words):
        return r"\emptyset"
    return r"\cup".join(map(_usual_brackets, text.split(r"\cup"))).strip()


def without_currency(answer: str, gold: str) -> tuple[str, str]:
    r"""Remove currency signs, as math-verify does with `\$`: they may be left out, but there may be no other unit in their place."""
    signs, expected = _currencies(answer), _currencies(gold)
    removable = "".join((signs | expected) - {"$"})
    other = (signs and expected) or _UNIT.search(gold if signs else answer)
    if not removable or (signs != expected and other):
        return answer, gold
    sign = re.compile(rf"(?<!\d)[{removable}]|[{removable}](?!\s*\d)")  # 1€50 is not 150
    return sign.sub("", answer).strip(), sign.sub("", gold).strip()


def set_for_tuple(answer: str, gold: str) -> bool:
    """Whether one is a set in braces and the other a tuple or an open interval, which math-verify takes for the same."""
    return any(_BRACED.fullmatch(a) and _PARENTHESISED.fullmatch(b) for a, b in ((answer, gold), (gold, answer)))


def several_numbers(answer: str) -> bool:
    """Whether it is numbers with nothing between them, which math-verify adds or multiplies."""
    return _NUMBERS.fullmatch(answer) is not None


@lru_cache(maxsize=4096)
def _character(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    kind, _, codes = unicodedata.decomposition(character).partition(" ")
    plain = "".join(chr(int(code, 16)) for code in codes.split())
    if kind in ("<wide>", "<small>") and plain != "\\":
        return f"\\{plain}" if plain in "{}%$&#_" else plain
    if kind == "<font>" and not _OTHER_SYMBOLS.search(unicodedata.name(character)):
        return plain
    if kind == "<fraction>" and not plain.endswith("⁄"):
        return r"\frac{{{}}}{{{}}}".format(*plain.split("⁄"))
    return character


def _usual_brackets(interval: str) -> str:
    """Turn the reversed brackets of an interval; not both before finite ends, since `(1,2)` may be a point and `]1,2[` is none."""
    match = _PLAIN_INTERVAL.fullmatch(interval)
    if match is None:
        return interval
    left, ends, right = match.groups()
    if (left, right) == ("]", "[") and r"\infty" not in ends:
        return interval
    return f"{left.replace(']', '(')}{ends}{right.replace('[', ')')}"


def _currencies(text: str) -> set[str]:
    signs = {character for character in text if unicodedata.category(character) == "Sc" and character not in "$¢"}
    return signs | {"$"} if r"\$" in text else signs
