r"""Spellings of an answer: rules that rewrite its characters into a spelling that the parser reads as a person would.

A rule is here only if it makes no two different answers equal; what the rules do not change, the parser reads or refuses.
- Unicode: digits of any script, full-width and styled characters, signs, `½`, `x²`. Not read: `⑤`, roots of unclear
  extent (`√2x`), a dash between two numbers (a range, or a difference), marks that change the order of reading.
- An answer that nothing exists (`no solution`, `none`, `DNE`, `\varnothing`, `\{\}`) is the empty set; the question says of what.
  `real` may be added, because real numbers are meant by default. Any other condition is another claim ("no integer solutions",
  "no unique solution"), and `0`, `undefined` and `\{\emptyset\}` are not the empty set.
- What is not printed is not read: `\phantom{5}`, `\hspace{5pt}`.
- Numbers in words: `\text{twenty-one}`, `one half`; the base of a numeral too (`101_{\text{two}}`).
- Numbers as people write them: `10\,000`, `1,000\pi`, `1 1/2`, `3{:}00`, `2^\frac{1}{2}`, `0.\overline{5}`, `1.5e5`; intervals as in
  ISO 80000-2: `[1,2[` is `[1,2)`; upright constants (`\mathrm{e}`), and a full stop at the end.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from ngrpo.grading.number_words import number_in_words
from ngrpo.grading.wrappings import unwrapped

_SIGNS = {
    "∞": r"\infty ",
    "∄": r"\nexists ",
    "∪": r"\cup ",
    "∈": r"\in ",
    **dict.fromkeys("°º˚", r"^\circ "),
    "。": ".",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "∙": r"\cdot ",
    "∕": "/",
    "⩽": r"\le ",
    "⩾": r"\ge ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "…": r"\ldots ",
    "¢": r"\text{ cents}",
    "−": "-",
    "‐": "-",
    "‑": "-",
    "٫": ".",
    "٬": ",",
    "،": ",",
    "٪": r"\%",
    **{letter: rf"\mathbb{{{plain}}} " for letter, plain in zip("ℝℕℤℚℂ", "RNZQC", strict=True)},
}
_OTHER_SYMBOLS = re.compile("DOUBLE-STRUCK|SCRIPT|FRAKTUR|BLACK-LETTER")
"""Letters in these styles have a meaning of their own (ℝ, ℜ, 𝒫)."""

_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_GAP = r"(?:\\[, ]|[ ~\u00a0\u2009\u202f])"
_ARGUMENT = r"\s*(?:\{[^{}]*\}|\d)"


def _raised(run: re.Match[str]) -> str:
    return f"^{{{run[0].translate(_RAISED)}}}"


def _lowered(run: re.Match[str]) -> str:
    return f"_{{{run[0].translate(_LOWERED)}}}"


def _quotient(fraction: re.Match[str]) -> str:
    return rf"\frac{{{fraction[1].translate(_RAISED)}}}{{{fraction[2].translate(_LOWERED)}}}"


def _higher_root(root: re.Match[str]) -> str:
    return rf"\sqrt[{3 if root[1] == '∛' else 4}]{{{root[2]}}}"


def _without_gaps(number: re.Match[str]) -> str:
    return re.sub(_GAP, "", number[0])


def _improper(mixed: re.Match[str]) -> str:
    whole, part, parts = map(int, mixed.groups())
    return rf"\frac{{{whole * parts + part}}}{{{parts}}}"


def _repeating(match: re.Match[str]) -> str:
    whole, once, again = match["whole"] or "0", match["once"], match["again"] or match["digit"]
    denominator = (10 ** len(again) - 1) * 10 ** len(once)
    return rf"\frac{{{int(whole + once + again) - int(whole + once)}}}{{{denominator}}}"


def _upright(constant: re.Match[str]) -> str:
    return f" {constant[1] or constant[2] or 'i'} "


def _base_in_words(base: re.Match[str]) -> str:
    number = number_in_words(base[1])
    return base[0] if number is None else f"_{{{number}}}"


def _double_factorial(match: re.Match[str]) -> str:
    number = int(match[1])
    half = number // 2
    even = rf"2^{{{half}}} \cdot {half}!"
    return rf"(\frac{{{number}!}}{{{even}}})" if number % 2 else f"({even})"


def _binomial(match: re.Match[str]) -> str:
    upper, lower = match[1] or match[3], match[2] or match[4]
    return rf"\binom{{{upper.strip()}}}{{{lower.strip()}}}"


def _going_on(decimal: re.Match[str]) -> str:
    return rf"{decimal[1]}\overline{{{decimal[2] or decimal[3]}}}"


def _primed(name: re.Match[str]) -> str:
    return f"{name[1]}_{{{'prime' * len(name[2])}}}"


def _without_commas(number: re.Match[str]) -> str:
    return number[0].replace(",", "") if _outside_lists(number.string[: number.start()]) else number[0]


def _outside_lists(before: str) -> bool:
    """Whether no parenthesis, bracket or brace of a set is open, inside which a comma separates elements."""
    return all(
        sum(map(before.count, opening)) <= sum(map(before.count, closing))
        for opening, closing in (("([", ")]"), ((r"\{", r"\lbrace"), (r"\}", r"\rbrace")))
    )


_Rule = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]

_UNICODE_RULES: tuple[_Rule, ...] = (
    (re.compile("[\u200b-\u200f\u2060\ufeff]"), ""),  # characters without width, which have no meaning between digits
    (re.compile(r"([⁰¹²³⁴-⁹]+)⁄([₀-₉]+)"), _quotient),
    (re.compile(r"[⁰¹²³⁴-⁹⁺⁻]++(?!√)"), _raised),
    (re.compile(r"(^|[(\[{,=<>≤≥])(\s*)[–—‒]"), r"\1\2-"),
    (re.compile(r"(?<!\d)(\d+)⁄(\d+)"), r"\\frac{\1}{\2}"),
    (re.compile(r"[₀-₉]+"), _lowered),
    (re.compile(r"([∛∜])\s*(\d+|[A-Za-z]|\([^()]*\))(?![\w.^({\[!]|,\d)"), _higher_root),
    (re.compile(r"(?<![⁰¹²³⁴-⁹])√\s*(\d+(?:\.\d+)?|[A-Za-zπ]|\([^()]*\))(?![\w.^({\[!]|,\d)"), r"\\sqrt{\1}"),
)
_DELIMITERS = (r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"), ("$", "$")
_FULL_STOP = re.compile(r"(?<![.\s])(?<!\\right)\s*\.$")

_LINE_END = re.compile(r"(?:\s*\\\\)+$")

_RARE_RULES: tuple[_Rule, ...] = (
    (re.compile(r"\\(?:[hv]?phantom|[hv]space\*?)\s*\{(?:[^{}]|\{[^{}]*\})*\}"), " "),
    (re.compile(r"\\text\s*\{\s*\}"), ""),
    (re.compile(r"(?<![\d.])(\d{1,3})\s*!\s*!(?!\s*!)"), _double_factorial),
    (re.compile(r"(?<=[\w)}\]])\s*\*\*\s*([+-]?\d+(?:\.\d+)?|\([^()]*\)|[A-Za-z])"), r"^{\1}"),
    (re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)"), r" \\times "),
    (re.compile(r"(?<![A-Za-z\\])(?<![A-Za-z] )pi(?![A-Za-z}])"), r"\\pi "),
    (re.compile(r"\\colon(?![A-Za-z])"), ":"),
    (re.compile(r"\\lg(?![A-Za-z])"), r"\\log_{10} "),
    (re.compile(r"\\[dt]?binom\s*(\d)\s*(\d)(?!\d)"), r"\\binom{\1}{\2}"),
    (re.compile(r"(\\sqrt\s*\[\s*(?:\d+|[a-z])\s*\])\s*(\d|[A-Za-z])(?![\d.])"), r"\1{\2}"),
    (re.compile(r"(?<=\d)\s*\\degree(?![A-Za-z])"), r"^\\circ "),
    (re.compile(r"(?<=\d)(\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ))\s*([CF])$"), r"\1\\text{ \2}"),
)
_RARE = re.compile(
    r"!\s*!|\*\*|[xX]\s*10|(?<!\\)pi|\\(?:[hv]?phantom|[hv]space|text\s*\{\s*\}|colon|lg|degree|circ|[dt]?binom|sqrt\s*\[)"
)
"""What the rules above are for, so that one search is enough for most answers."""

_RULES: tuple[_Rule, ...] = (
    (re.compile(r"\\[bB]igg?[lrm]?(?![A-Za-z])|\\mathstrut(?![A-Za-z])"), ""),
    (
        re.compile(r"(?<=[\[(])([^;,()\[\]]+);([^;,()\[\]]+)(?=[\])])"),
        r"\1,\2",
    ),  # [1;2], as written where a comma is the decimal sign
    (re.compile(r"\^\s*-\s*([A-Za-z]|\d+)"), r"^{-\1}"),
    (re.compile(r"(?<=\d)_\s*\{\s*([a-z]+)\s*\}"), _base_in_words),
    (re.compile(r"\\lbrace(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\bigcup(?![A-Za-z])"), r"\\cup "),
    (re.compile(r"\\pounds(?![A-Za-z])"), "£"),
    (re.compile(r"\\(?:text|math)dollar(?![A-Za-z])"), r"\\$"),
    (re.compile(r"\\mathbb\s*([RNZQC])(?![A-Za-z])"), r"\\mathbb{\1}"),
    (re.compile(r"\\backslash(?![A-Za-z])|(?<=\\mathbb\{[RNZQC]\})\s*-\s*(?=\\\{)"), r"\\setminus "),
    (re.compile(r"\\\\\s*\[\d*\.?\d+(?:pt|em|ex|mm|cm)\]"), r"\\\\ "),  # distance of the rows of a matrix
    # A set given by a condition on its elements alone means the same without the braces.
    (
        re.compile(
            r"^\\\{\s*[a-z]\s*(?:\\in\s*\\mathbb\{R\}\s*)?(?:\\mid(?![A-Za-z])|\||:)"
            r"(?=[^|:{}]*(?:[<>]|\\(?:[lg]eq?|neq?)(?![A-Za-z])))([^|:{}]*)\\\}$"
        ),
        r"\1",
    ),
    (re.compile(r"(?<=\d)\s*\\text\s*\{\s*k\s*\}"), r"\\text{ thousand}"),
    (re.compile(r"^(\d+)\s*\\text\s*\{\s*out of\s*\}\s*(\d+)$"), r"\\frac{\1}{\2}"),
    (re.compile(r"(?<=\w)_\s*\{\s*\(?\s*(?:base\s*)?(\d+)\s*\)?\s*\}"), r"_{\1}"),
    (
        re.compile(
            r"^(\d[\dA-F]*)\s*\\text\s*\{\s*\(?\s*(?:in )?base\s*\}\s*(\d+)(?:\s*\)|\s*\\text\s*\{\s*\)\s*\})?$"
        ),
        r"\1_{\2}",
    ),
    (re.compile(r"^([^{}\\]+)\\choose(?![A-Za-z])([^{}\\]+)$|\{([^{}\\]+)\\choose(?![A-Za-z])([^{}\\]+)\}"), _binomial),
    (re.compile(r"(?<=\d)\{,\}(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<![\d.])(\d+)\.\((\d{1,30})\)$"), r"\1.\\overline{\2}"),
    (
        re.compile(
            r"(?<![\d.])(\d{1,30}\.\d{0,30}?)(?:(\d)\2{2,30}|(\d{2,15}?)\3{1,15})\s*(?:\.{3}|\\[lc]?dots(?![A-Za-z]))"
        ),
        _going_on,
    ),
    # `1.5e5` and `1e-05` are floating-point numbers, not multiples of Euler's number; `2e-3` may be a difference.
    (re.compile(r"(?<![\w.}])(\d+\.\d*|\d+(?=[eE](?:\d|[+-]\d\d)))[eE]([+-]?\d{1,3})(?![\w.^])"), r"\1 \\cdot 10^{\2}"),
    (
        re.compile(
            r"\\(?:math|text)(?:rm|it|up)?\s*\{\s*([ei]|\\pi)\s*\}|\\operatorname\s*\{\s*([ei])\s*\}|\\(?:imath|i)(?![A-Za-z])"
        ),
        _upright,
    ),
    (
        re.compile(
            r"(?P<whole>\d*)\.(?P<once>\d*)\\(?:overline|bar|dot)\s*(?:\{\s*(?P<again>\d{1,30})\s*\}|(?P<digit>\d))"
        ),
        _repeating,
    ),
    (re.compile(r"(?<=\d)\{([.,:])\}(?=\d)"), r"\1"),
    (re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])"), _without_commas),
    (
        re.compile(
            r"\\(?:mathrm|text|operatorname)\s*\{\s*(arc(?:sin|cos|tan)|sin|cos|tan|cot|sec|csc|ln|log|exp|gcd|lcm|max|min|det)\s*\}"
            r"(?=\s*[({_^\\\dA-Za-z])"
        ),
        r"\\\1 ",
    ),
    (re.compile(r"([A-Za-z])('+)(?![A-Za-z])"), _primed),
    (re.compile(r"\\varnothing|(?:\\left\s*)?\\\{\s*(?:\\right\s*)?\\\}"), r"\\emptyset "),
    (re.compile(rf"(?<![\d.,])[1-9]\d{{0,2}}(?:{_GAP}\d{{3}})+(?!\d)"), _without_gaps),
    (re.compile(rf"^([+-]?\d+){_GAP}+(\d+)/(\d+)$"), r"\1\\frac{\2}{\3}"),
    (re.compile(r"(?<=\w)_\s*\{\s*\\(?:text|mathrm)\s*\{\s*(?:base\s+)?([a-z]+)\s*\}\s*\}"), _base_in_words),
    (re.compile(r"(?<=\d)\s*\^\s*\{?\s*\\(?:text|mathrm)\s*\{\s*(st|nd|rd|th)\s*\}\s*\}?$"), r"\\text{\1}"),
    (re.compile(r"\\bmod(?![A-Za-z])"), r"\\mod "),
    (re.compile(r"\\langle(?![A-Za-z])(.+?,.+?)\\rangle(?![A-Za-z])"), r"(\1)"),
    (re.compile(rf"\^\s*(\\[dtc]?frac{_ARGUMENT}{_ARGUMENT})"), r"^{\1}"),
    # Before a percent sign too, where the parser would read the whole number as a factor.
    (re.compile(r"(?<![\d.])(\d{1,9})\s*\\[dtc]?frac\{(\d{1,9})\}\{(\d{1,9})\}(?=\s*\\?%)"), _improper),
)

_PLAIN_INTERVAL = re.compile(r"\s*(?:\\left\s*)?([\[\]])([^\[\](),]+,[^\[\](),]+?)(?:\\right\s*)?([\[\]])\s*")

_TYPESETTING = re.compile(r"\\(?:text|math|mbox)[a-z]*\s*(?=\{)|\\?[ ~]|\s|[{}]")
_NO_SOLUTION = re.compile(
    r"(?:(?:there (?:is|are|exists?)|(?:(?:the |this )?(?:equation|system) )?has) )?no (?:real )?(?:solutions?|roots?)(?: exists?)?"
    r"|none|dne|(?:(?:the|a) )?(?:(?:real )?solutions? )?(?:does not|doesn't|do not|don't) exist|(?:the )?empty set|\\nexists"
)

_REAL = re.compile(r"(?:the )?(?:set of )?all (?:the )?(?:reals?|real numbers)")
_UNION = re.compile(r"(?<=[)\]])\s*\\text\s*\{\s*or\s*\}\s*(?=[(\[])")

_NUMBERS = re.compile(r"[+-]?[\d.]+(?:(?:\s|~|\\[ ,;:!])+[\d.]+)+")


def canonical(answer: str) -> str:
    """Return an answer in the spelling that the parser reads; the answer itself if no rule applies."""
    text = answer.replace("\r", " ").replace("\n", " ").strip()
    for opening, closing in _DELIMITERS:
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening + closing):
            text = text[len(opening) : -len(closing)].strip()
    text = unwrapped(text)
    if not text.isascii():
        text = "".join(map(_character, text))
        for rule, spelling in _UNICODE_RULES:
            text = rule.sub(spelling, text)
    text = _LINE_END.sub("", _FULL_STOP.sub("", text))
    for rule, spelling in (*_RARE_RULES, *_RULES) if _RARE.search(text) else _RULES:
        text = rule.sub(spelling, text)
    text = _UNION.sub(r"\\cup ", text) if r"\infty" in text else text
    words = " ".join(_TYPESETTING.sub(" ", text).split()).rstrip(" .").lower()
    if _NO_SOLUTION.fullmatch(words):
        return r"\emptyset"
    if _REAL.fullmatch(words):
        return r"\mathbb{R}"
    if words == "infinity":
        return r"\infty"
    number = number_in_words(words) if words[:1].isalpha() else None
    if number is not None:
        return str(number) if number.denominator == 1 else rf"\frac{{{number.numerator}}}{{{number.denominator}}}"
    return r"\cup".join(map(_usual_brackets, text.split(r"\cup"))).strip()


def several_numbers(answer: str) -> bool:
    """Whether an answer is numbers with nothing between them, which the parser would add or multiply."""
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
    """Replace reversed brackets of an interval; not both at finite ends, since `(1,2)` may be a point and `]1,2[` is not."""
    match = _PLAIN_INTERVAL.fullmatch(interval)
    if match is None:
        return interval
    left, ends, right = match.groups()
    if (left, right) == ("]", "[") and r"\infty" not in ends:
        return interval
    return f"{left.replace(']', '(')}{ends}{right.replace('[', ')')}"
