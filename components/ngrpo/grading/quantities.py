r"""Words beside a number: they scale it (`million`), bound it (`or more`), name its unit (`cm`), or have a meaning not known here.

An answer is split into numbers and the words beside them. Formulas are not parsed here, but in `ngrpo.grading.expressions`. Nothing is
dropped: unknown words must be the same on both sides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from ngrpo.grading.units import CURRENCIES, Unit, is_unit_word, read_unit


@dataclass(frozen=True)
class Quantity:
    """A number and the meaning of the words beside it.

    Attributes:
        number: LaTeX.
        factor: Product of the words that scale it.
        unit: What it counts or measures.
        bound: `>=`, `<=`, `>`, `<` or `~`; empty if the number itself is meant.
        words: The unknown words.
    """

    number: str
    factor: Fraction
    unit: Unit
    bound: str
    words: str


_SCALES = {
    "hundred": Fraction(100),
    "thousand": Fraction(1000),
    "million": Fraction(10**6),
    "billion": Fraction(10**9),
    "trillion": Fraction(10**12),
    "dozen": Fraction(12),
    "half": Fraction(1, 2),
    "halve": Fraction(1, 2),
    "third": Fraction(1, 3),
    "quarter": Fraction(1, 4),
    "fourth": Fraction(1, 4),
    "fifth": Fraction(1, 5),
    "sixth": Fraction(1, 6),
    "seventh": Fraction(1, 7),
    "eighth": Fraction(1, 8),
    "ninth": Fraction(1, 9),
    "tenth": Fraction(1, 10),
    "twelfth": Fraction(1, 12),
    "hundredth": Fraction(1, 100),
    "thousandth": Fraction(1, 1000),
    "millionth": Fraction(1, 10**6),
}
_BOUNDS = (
    (
        r"(?:or|and) (?:more|greater|above|over|larger|higher|up|older)|at least|no (?:less|fewer) than|(?:a )?minimum(?: of)?",
        ">=",
    ),
    (
        r"(?:or|and) (?:less|fewer|below|under|smaller|lower|younger)|at most|no more than|up to|(?:a )?maximum(?: of)?",
        "<=",
    ),
    (r"(?:more|greater|larger|higher) than|over|above", ">"),
    (r"(?:less|fewer|smaller|lower) than|under|below", "<"),
    (r"about|approximately|approx|around|roughly|nearly|almost|circa", "~"),
)
_BOUND_WORDS = set(re.findall("[a-z]+", " ".join(pattern for pattern, _ in _BOUNDS))) - {"a", "of", "or", "and", "no"}
_NEGATIVE = {"negative", "minus"}
_CONNECTIVES = {"and", "or"}
_FUNCTIONS = {"sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "sqrt", "pi", "inf", "infinity", "frac", "exp"}

_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|normal|sf|tt)?|mathrm|mathsf|mathit|mbox|hbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_SPACE = re.compile(r"(?:\\[ ,;:!]|\\q?quad(?![A-Za-z])|[~\s])+")
_NUMBER_IN_TEXT = re.compile(r"(?<![\^\d.,/{A-Za-z-])-?\d+(?:[.,/]\d+)*(?:\s+\d+/\d+)?")
_BARE = re.compile(r"(?<![\\A-Za-z_^{])[A-Za-z]+(?:(?:\.?\s+|\s*/\s*|-)[A-Za-z]+)*(?:\^\{?-?\d\}?)?")
_TO_UNIT = re.compile(r"(\^\s*\{?\s*[+-]?\d\s*\}?)?\s*(/|\\cdot|\\times)?")
_DEGREE = re.compile(r"\s*\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![A-Za-z]))$")
_PRIME = re.compile(r"(?<=\d)\s*'$")
_DOUBLE_PRIME = re.compile(r"(?<=\d)\s*(?:''|\")$")
_PERCENT = re.compile(r"\s*\\?%$")
_SIGN = rf"(?:\\?\$|[{''.join(CURRENCIES)}])"
_MONEY_BEFORE = re.compile(rf"^((?:[^=]*=)?\s*[+-]?)\s*({_SIGN})\s*(?=[\d.\\])")
_MONEY_AFTER = re.compile(rf"(?<=[\d}})])\s*({_SIGN})$")
_NAMED = re.compile(
    rf"^(?!.*(?<![a-z])(?:not|never|wrong|incorrect|false|isn't)(?![a-z]))\s*(?:{_TEXT.pattern}\s*)+=", re.IGNORECASE
)
_QUOTIENT = re.compile(rf"\\[dt]?frac\s*\{{\s*{_TEXT.pattern}\s*\}}\s*\{{\s*{_TEXT.pattern}\s*\}}")
_ANGLE = re.compile(r"(\d+(?:\.\d+)?)\s*\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![A-Za-z]))")
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_HALF_OF_DAY = re.compile(r"(?<![A-Za-z])([ap])\.\s?m(?![A-Za-z])\.?", re.IGNORECASE)
_MONEY_IN_TEXT = re.compile(rf"(\\(?:text|mathrm|mbox)\s*\{{)\s*(\\\$|[{''.join(CURRENCIES)}])")
_EDGES = re.compile(r"^[\s,;]+|[\s,;]+$")


def same_text(gold: str, answer: str) -> bool:
    r"""Whether two answers are the same words, with or without \text{}, ignoring case.

    In a possible formula case counts: `2X` is not `2x`. A single letter may name an option.
    """
    first = _plain(gold)
    if first is None or first != _plain(answer):
        return False
    is_words = len(first) == 1 or re.search("[a-z]{3}", first) or any(map(_TEXT.search, (gold, answer)))
    return bool(is_words) or _SPACE.sub("", _TEXT.sub(r"\1", gold)) == _SPACE.sub("", _TEXT.sub(r"\1", answer))


_CHOICE = re.compile(
    r"(?:\\(?:text|math)(?:bf|rm)?\s*\{\s*)+\(([A-F])\)\s*((?:\}|\\[ ,;:!]|\\q?quad(?![A-Za-z])|~|\s)*)(?=[^\s}])(.+)",
    re.DOTALL,
)


def chosen(answer: str) -> tuple[str, str] | None:
    r"""Return the letter and the text of a written-out option, `\textbf{(B)}\ 24`; None for anything else."""
    found = _CHOICE.fullmatch(answer)
    if found is None or found[2].count("}") == 0 or found[3].count("{") != found[3].count("}"):
        return None
    return found[1], found[3]


def is_text(answer: str) -> bool:
    """Whether an answer consists of words that name no number, so that only the same words equal it."""
    text = _plain(answer)
    if text is None or not text[0].isalpha():
        return False
    if len(text) == 1:
        return _TEXT.search(answer) is not None
    words = re.findall("[a-z]+", text)
    unknown = [word for word in words if not _known(word) and word not in _CONNECTIVES | _FUNCTIONS]
    if _TEXT.search(answer):
        return any(len(word) > 1 for word in unknown)
    return any(
        len(word) > 3 or (len(word) > 2 and len(words) + len(re.findall(r"\d+", text)) > 1) for word in unknown
    ) and (" " in text or len(words) == 1)


def quantities(answer: str) -> tuple[Quantity, ...]:
    """Split an answer into numbers and the words beside each; an answer without numbers is one quantity."""
    answer = _MONEY_IN_TEXT.sub(r"\2\1", answer)
    text = _NAMED.sub("", _mark_words(_HALF_OF_DAY.sub(r"\1m", _QUOTIENT.sub(r"\\text{\1/\2}", answer))))
    if _TRIGONOMETRY.search(text):
        text = _ANGLE.sub(r"(\1 \\cdot \\frac{\\pi}{180})", text)
    pieces: list[tuple[str, str]] = []
    number, position = "", 0
    for match in _TEXT.finditer(text):
        if not _at_top(text, match.start()):
            continue
        number += text[position : match.start()]
        position = match.end()
        words = _SPACE.sub(" ", re.sub(r"\\(?:cdot|times)(?![A-Za-z])", " ", match[1])).strip(" ,;.").lower()
        quotient = re.search(r"[\d})]\s*(/)\s*$", number)
        if quotient and is_unit_word(words):
            number, words = number[: quotient.start(1)], f"/ {words}"
        if not words or set(words.split()) <= _CONNECTIVES:
            number += match[0] if words else " "
            continue
        power = re.match(r"\s*(\^\s*\{?\s*[+-]?\d\s*\}?)", text[position:])
        if power and is_unit_word(re.split(r"[\s/]", words)[-1]):
            words += re.sub(r"\s", "", power[1])
            position += power.end()
        joined = _SPACE.sub(" ", number).strip()
        if pieces and joined in ("", "/", r"\cdot", r"\times"):
            pieces[-1] = (pieces[-1][0], f"{pieces[-1][1]} {'/' if joined == '/' else ''} {words}")
        else:
            pieces.append((number, words))
        number = ""
    rest = text[position:]
    number += rest
    if pieces and not _tidy(pieces[0][0]) and (len(pieces) > 1 or _tidy(number)):
        # Words before the first number.
        first = pieces.pop(0)[1]
        if not pieces:
            pieces, number = [(number, "")], ""
        value, words = pieces[0]
        if first in _NEGATIVE:
            pieces[0] = (f"-{_tidy(value)}", words)
        else:
            pieces[0] = (value, f"{first} {words}")
    if _tidy(number) or not pieces:
        pieces.append((number, ""))
    parts = tuple(_quantity(*piece) for piece in pieces)
    first_unit = parts[0].unit
    plain = all((part.factor, part.unit, part.bound, part.words) == (Fraction(1), first_unit, "", "") for part in parts)
    if len(parts) > 1 and plain and first_unit:
        return (Quantity(", ".join(part.number for part in parts), Fraction(1), first_unit, "", ""),)
    return parts


def _quantity(number: str, words: str) -> Quantity:
    number = _tidy(number)
    signs = []
    if number.startswith("$") and number.endswith("$") and len(number) > 2:
        number = number[1:-1].strip()
    for sign, name in ((_DEGREE, "degree"), (_PERCENT, "percent"), (_DOUBLE_PRIME, "doubleprime"), (_PRIME, "prime")):
        if sign.search(number):
            number = sign.sub("", number)
            signs.append(name)
    money = _MONEY_BEFORE.search(number)
    if money:
        number = money[1] + number[money.end() :]
        signs.append(_currency(money[2]))
    money = _MONEY_AFTER.search(number)
    if money:
        number = number[: money.start()]
        signs.append(_currency(money[1]))
    bound, factor = "", Fraction(1)
    words = re.sub(
        "(?:different|distinct|possible) (?=[a-z])", "", re.sub("ordered (?:pair|triple)s?", "orderedpair", words)
    )
    words = re.sub(
        r"\b(?:exactly|only|and)\b(?=\s*$)|^\s*(?:exactly|only|and)\b",
        "",
        re.sub(r"\s+", " ", words.replace(".", "").replace("per cent", "percent")),
    )
    for pattern, meaning in _BOUNDS:
        found = re.search(rf"(?<![a-z])(?:{pattern})(?![a-z])", words)
        if found:
            bound, words = meaning, words[: found.start()] + " " + words[found.end() :]
            break
    tokens = signs + re.findall(r"[a-z]+|/|\^\{?[+-]?\d+\}?|[^\s]", words)
    unscaled = []
    for token in tokens:
        scale = _SCALES.get(token) or _SCALES.get(token.removesuffix("s"))
        if scale is None:
            unscaled.append(token)
        else:
            factor *= scale
    unit, others = read_unit(unscaled)
    return Quantity(_tidy(number), factor, unit, bound, " ".join(others))


def _currency(sign: str) -> str:
    return CURRENCIES.get(sign, "dollar")


def _tidy(number: str) -> str:
    r"""Remove spaces and commas around a number, including `\,` and the like."""
    previous = ""
    while number != previous:
        previous = number
        number = _EDGES.sub("", number)
        number = re.sub(r"^(?:\\[ ,;:!]|~|\\q?quad(?![A-Za-z]))|(?<!\\)(?:\\[ ,;:!]|\\$|~|\\q?quad)$", "", number)
    return number


def _known(word: str) -> bool:
    return word in _SCALES or word.removesuffix("s") in _SCALES or word in _BOUND_WORDS or is_unit_word(word)


def _plain(answer: str) -> str | None:
    r"""Return an answer made of words, without \text{}; None if it has characters of a formula."""
    text = _SPACE.sub(" ", _TEXT.sub(r"\1", answer)).strip(" .").lower()
    if not text or not re.search("[a-z]", text) or re.search(r"[\\^_{}=<>+*|$]", text):
        return None
    letter = re.fullmatch(r"(?:(?:option|choice|answer)(?: is)? ?:? ?)?\(?([a-z])\)", text) or re.fullmatch(
        r"(?:option|choice|answer)(?: is)? ?:? ?([a-z])", text
    )
    return letter[1] if letter else re.sub("^(?:an?|the) (?=[a-z]{3})", "", text).replace("'", "").replace('"', "")


def _at_top(text: str, position: int) -> bool:
    before = re.sub(r"\\[{}]", "", text[:position])
    return all(before.count(opening) <= before.count(closing) for opening, closing in ("{}", "()"))


def _mark_words(answer: str) -> str:
    r"""Put words beside a number into \text{}, and take numbers out of it."""
    text = _TEXT.sub(lambda match: _numbers_out(match) if re.search(r"\d", match[1]) else match[0], answer)
    parts, position = [], 0
    inside = [match.span() for match in _TEXT.finditer(text)]
    for match in _BARE.finditer(text):
        if any(start <= match.start() < end for start, end in inside) or not _beside_number(text, match):
            continue
        parts += [text[position : match.start()], rf"\text{{ {re.sub(r'[{}]', '', match[0])} }}"]
        position = match.end()
    return "".join([*parts, text[position:]])


def _numbers_out(match: re.Match[str]) -> str:
    parts, position = [], 0
    for number in _NUMBER_IN_TEXT.finditer(match[1]):
        parts += [rf"\text{{{match[1][position : number.start()]}}}", number[0]]
        position = number.end()
    return "".join([*parts, rf"\text{{{match[1][position:]}}}"]).replace(r"\text{}", "")


def _beside_number(text: str, match: re.Match[str]) -> bool:
    """Whether bare letters are known words beside a number, and not a product of variables."""
    words = re.findall("[a-z]+", re.sub(r"\^.*", "", match[0].lower()))
    if not all(_known(word) or word in _CONNECTIVES | _NEGATIVE or word in ("a", "of", "than", "no") for word in words):
        return False
    if set(words) <= _CONNECTIVES:
        return False
    before, after = text[: match.start()], text[match.end() :]
    if not before.strip():
        return words[0] in _BOUND_WORDS | _NEGATIVE | {"no", "exactly"} and after[:1].isspace()
    if not re.search(r"[\d})%$]\s*$", before):
        return False
    if len(words) == 1 and len(words[0]) == 1:
        return words[0] in "mgshl" and before[-1].isspace() and not after.strip()
    return re.match(r"\s*(?:$|[,.;]|\d|\\text|\\\$)", after) is not None
