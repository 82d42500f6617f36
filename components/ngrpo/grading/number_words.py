"""Numbers in English words: `five`, `twenty-one`, `two hundred and five`, `one half`, `minus two thirds`."""

from __future__ import annotations

from fractions import Fraction

_BELOW_TWENTY = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_SMALL = {word: number for number, word in enumerate(_BELOW_TWENTY)}
_TENS = {
    word: 10 * number
    for number, word in enumerate(
        ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"), start=2
    )
}
_LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = {
    word: number
    for number, word in enumerate(
        ["half", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth"],
        start=2,
    )
} | {"quarter": 4, "hundredth": 100, "thousandth": 1000}
_LONGEST = 120


def number_in_words(text: str) -> Fraction | None:
    """Return the number that a text spells out; None for any other text, or one with more than a number.

    An ordinal (`third`) is no number; `one third` and `half` are. `a` means one before `half`, `hundred`, `dozen` and the like.

    Args:
        text: The text in lower case.
    """
    if len(text) > _LONGEST:
        return None
    words = text.replace("-", " ").split()
    sign = 1
    if words and words[0] in ("minus", "negative"):
        sign, words = -1, words[1:]
    if not words:
        return None
    if "and" in words[1:]:  # two and a half
        place = len(words) - 1 - words[::-1].index("and")
        units, rest = _whole(words[:place]), number_in_words(" ".join(words[place + 1 :]))
        if units is not None and rest is not None and 0 < rest < 1:
            return sign * (units + rest)
    part = words[-1].removesuffix("s") if words[-1] != "halves" else "half"
    if part in _PARTS:
        if words == ["half"]:
            return Fraction(sign, 2)
        count = 1 if words[:-1] in (["a"], ["an"]) else _whole(words[:-1])
        return None if not count else sign * Fraction(count, _PARTS[part])
    if part == "dozen":
        count = 1 if words[:-1] in ([], ["a"]) else _whole(words[:-1])
        return None if count is None else Fraction(sign * 12 * count)
    if words[0] == "a" and len(words) > 1 and words[1] in (*_LARGE, "hundred"):
        words[0] = "one"
    whole = _whole(words)
    return None if whole is None else Fraction(sign * whole)


def _whole(words: list[str]) -> int | None:
    """Return a whole number; groups of words before each power of a thousand come largest first."""
    total, group, largest = 0, 0, 10**15
    last = ""
    for word in words:
        if word in _SMALL:
            if last in _SMALL or (last in _TENS and not 0 < _SMALL[word] < 10) or (last and word == "zero"):
                return None
            group += _SMALL[word]
        elif word in _TENS:
            if last in _SMALL or last in _TENS:
                return None
            group += _TENS[word]
        elif word == "hundred":
            if last not in _SMALL or not 0 < group < 100:
                return None
            group *= 100
        elif word in _LARGE:
            if not group or last == "and" or _LARGE[word] >= largest:
                return None
            largest = _LARGE[word]
            total, group = total + group * largest, 0
        elif word != "and" or last not in ("hundred", *_LARGE):
            return None
        last = word
    return None if not last or last == "and" else total + group
