r"""Spellings of an answer: rules on its letters that bring it to the one spelling that math-verify reads as a person would.

A rule is here only if no two different answers become equal by it. What it leaves alone math-verify reads or refuses:
- Unicode: digits of any script, full-width and styled characters, signs, `½`, `x²`. Not read: `⑤`, subscripts, roots of
  ambiguous extent (`√2x`), a dash between two numbers (a range or a difference), marks that change the order of reading.
- An answer that there is nothing (`no solution`, `none`, `DNE`, `\varnothing`, `\{\}`) is the empty set: the question says what there
  is none of. `real` may be said, since the real numbers are meant where nothing else is. Any other condition makes another claim
  ("no integer solutions", "no unique solution"), and `0`, `undefined` and `\{\emptyset\}` are no such answer.
- Numbers as people write them: `10\,000`, `1 1/2`, `3{:}00`, `2^\frac{1}{2}`; intervals as in ISO 80000-2: `[1,2[` is `[1,2)`.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

NOTHING = r"\emptyset"
"""The spelling of an answer that there is nothing."""

_SIGNS = {
    "∞": r"\infty ",
    "∅": r"\emptyset ",
    "∄": r"\nexists ",
    "∪": r"\cup ",
    "∩": r"\cap ",
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
_SUPERSCRIPT = re.compile(r"(?<=[\w)\]}])[⁰¹²³⁴-⁹⁺⁻]++(?!√)")
_UNICODE_RULES = (
    (re.compile("[\u200b-\u200f\u2060\ufeff]"), ""),  # characters that have no width and no meaning between digits
    (re.compile(r"(^|[(\[{,=<>≤≥])(\s*)[–—‒]"), r"\1\2-"),
    (re.compile(r"(\d+)⁄(\d+)"), r"\\frac{\1}{\2}"),
    (re.compile(r"√\s*(\d+(?:\.\d+)?|[A-Za-zπ]|\([^()]*\))(?![\w.^({\[!]|,\d)"), r"\\sqrt{\1}"),
)

_GAP = r"(?:\\[, ]|[ ~\u00a0\u2009\u202f])"
_ARGUMENT = r"\s*(?:\{[^{}]*\}|\d)"
_RULES = (
    (re.compile(r"\\varnothing(?![A-Za-z])|(?:\\left\s*)?\\\{\s*(?:\\right\s*)?\\\}"), r"\\emptyset "),
    (re.compile(r"(?<=\d)\{([.:])\}(?=\d)"), r"\1"),
    (re.compile(rf"(?<![\d.,])[1-9]\d{{0,2}}(?:{_GAP}\d{{3}})+(?!\d)"), lambda number: re.sub(_GAP, "", number[0])),
    (re.compile(r"^([+-]?\d+)\s+(\d+)/(\d+)$"), r"\1\\frac{\2}{\3}"),
    (re.compile(rf"\^\s*(\\[dtc]?frac{_ARGUMENT}{_ARGUMENT})"), r"^{\1}"),
)

_CLOSED = re.compile(r"\s*(?:\\left\s*)?([\[\]])([^\[\](),]+,[^\[\](),]+?)(?:\\right\s*)?([\[\]])\s*")

_TYPESETTING = re.compile(r"\\(?:text|math|mbox)[a-z]*\s*(?=\{)|\\?[ ~]|\s|[{}]")
_NO_SOLUTION = re.compile(
    r"(?:(?:there (?:is|are|exists?)|(?:(?:the |this )?(?:equation|system) )?has) )?no (?:real )?(?:solutions?|roots?)(?: exists?)?"
    r"|none|dne|(?:(?:the|a) )?(?:(?:real )?solutions? )?(?:does not|doesn't|do not|don't) exist|(?:the )?empty set|\\nexists"
)

_BRACED = re.compile(r"(?:\\left\s*)?\\\{(?!\s*(?:\\left\s*)?\(|.*(?:[:|]|\\mid)).*,.*\\\}", re.DOTALL)
"""A set of more than one element; of tuples or in set-builder notation it is math-verify's to read."""

_PARENTHESISED = re.compile(r"(?:\\left\s*)?\(.*,.*\)", re.DOTALL)
_NUMBERS = re.compile(r"[+-]?[\d.]+(?:(?:\s|~|\\[ ,;:!])+[\d.]+)+")


def canonical(text: str) -> str:
    """Return an answer in the spelling that math-verify reads; the answer itself where no rule applies."""
    if not text.isascii():
        text = "".join(map(_character, text))
        text = _SUPERSCRIPT.sub(lambda run: f"^{{{run[0].translate(_RAISED)}}}", text)
        for pattern, replacement in _UNICODE_RULES:
            text = pattern.sub(replacement, text)
    for rule, spelling in _RULES:
        text = rule.sub(spelling, text)
    words = " ".join(_TYPESETTING.sub(" ", text).split()).rstrip(" .").lower()
    if _NO_SOLUTION.fullmatch(words):
        return NOTHING
    return r"\cup".join(map(_usual_brackets, text.split(r"\cup"))).strip()


def without_currency(answer: str, gold: str) -> tuple[str, str]:
    r"""Remove currency signs, as math-verify does with `\$` and with units: they may be left out, but not be different ones."""
    signs, expected = _currencies(answer), _currencies(gold)
    if signs and expected and signs != expected:
        return answer, gold
    remove = dict.fromkeys(map(ord, (signs | expected) - {"$"}))
    return answer.translate(remove).strip(), gold.translate(remove).strip()


def set_for_tuple(answer: str, gold: str) -> bool:
    r"""Whether one is a set in braces and the other a tuple or an open interval, which math-verify takes for the same."""
    return any(_BRACED.fullmatch(a) and _PARENTHESISED.fullmatch(b) for a, b in ((answer, gold), (gold, answer)))


def several_numbers(text: str) -> bool:
    """Whether it is numbers with nothing between them, which math-verify adds or multiplies."""
    return _NUMBERS.fullmatch(text) is not None


@lru_cache(maxsize=4096)
def _character(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    tag, _, codes = unicodedata.decomposition(character).partition(" ")
    plain = "".join(chr(int(code, 16)) for code in codes.split())
    if tag in ("<wide>", "<small>") and plain != "\\":
        return f"\\{plain}" if plain in "{}%$&#_" else plain
    if tag == "<font>" and not _OTHER_SYMBOLS.search(unicodedata.name(character)):
        return plain
    if tag == "<fraction>" and not plain.endswith("⁄"):
        return r"\frac{{{}}}{{{}}}".format(*plain.split("⁄"))
    return character


def _usual_brackets(interval: str) -> str:
    """Turn the reversed brackets of an interval; not two before finite ends, since `(1,2)` may be a point and `]1,2[` is none."""
    match = _CLOSED.fullmatch(interval)
    if match is None:
        return interval
    left, ends, right = match.groups()
    if (left, right) == ("]", "[") and r"\infty" not in ends:
        return interval
    return f"{left.replace(']', '(')}{ends}{right.replace('[', ')')}"


def _currencies(text: str) -> set[str]:
    signs = {character for character in text if unicodedata.category(character) == "Sc" and character not in "$¢"}
    return signs | {"$"} if r"\$" in text else signs
