r"""Find the answer in a text: in a box, after `####`, between tags, on a line of its own, or the whole text.

Everything here takes time proportional to the length of the text. Regular expressions are in `ngrpo.grading.patterns`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_END_OF_THOUGHT = "</think>"
_BOX = r"\\boxed\s*\{"
_BARE = r"\\boxed\s+(?P<bare>[+-]?\d+(?:[.,]\d+)*(?:/\d+)?|[A-Z](?![A-Za-z])|-?\\[dt]?frac(?:\{[^{}]*\}){2})"
"""A box without braces. Its content is the whole number, as a person reads it; TeX would box only the first digit."""

_BRACES = re.compile(
    rf"(?P<box>{_BOX})|{_BARE}|(?P<escaped>\\(?:[{{}}]|\\(?!boxed\s*\{{)))|(?P<open>\{{)|(?P<close>\}})"
)

_LETTER = re.compile(r"^[ \t]*Answer: ([A-Z])[ \t\r]*$", re.MULTILINE)

_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_HASHES = "####"
_OPEN, _CLOSE = "<answer>", "</answer>"


def extract_answer(text: str) -> str | None:
    r"""Return the answer of a response: the content of the last balanced \boxed{} after the last `</think>`.

    A text without `</think>` counts as a whole. Of nested boxes the inner one counts. Escaped braces are characters of the
    answer (a set is written `\{1, 2\}`). A number, a letter or a fraction may stand without braces (`\boxed 2`).

    Returns:
        The content without surrounding white space; None if there is no such box or it is empty.
    """
    return last(answers_in("boxed", text))


def last(answers: list[str]) -> str | None:
    """Return the last answer, which is the one that counts; None if there is none or it is empty."""
    return answers[-1] or None if answers else None


def answers_in(form: str, text: str) -> list[str]:
    """Return all answers after the last `</think>` of a text, in order, including empty ones.

    Args:
        form: `text`, `boxed`, `####`, `<answer>` or `letter`; see `ngrpo.config.grading.GradingConfig`.
        text: The text.
    """
    return [answer.strip() for answer in _FORMS[form](after_thought(text))]


def after_thought(text: str) -> str:
    """Return the text after the last `</think>`; the whole text if it has none."""
    return text.rpartition(_END_OF_THOUGHT)[2]


def _boxed(text: str) -> list[str]:
    first = re.search(rf"{_BOX}|{_BARE}", text)
    if first is None:
        return []
    answers, latest = [], -1
    opened: list[int | None] = []  # for each open brace, the start of its content if it opens a box
    for match in _BRACES.finditer(text, first.start()):
        if match["box"] is not None:
            opened.append(match.end())
        elif match["bare"] is not None:
            answers.append(match["bare"])
            latest = match.start("bare")
        elif match["open"] is not None:
            opened.append(None)
        elif match["close"] is not None and opened:
            start = opened.pop()
            if start is not None and start > latest:
                answers.append(text[start : match.start()])
                latest = start
    return answers


def _after_hashes(text: str) -> list[str]:
    answers = [line.rpartition(_HASHES)[2].strip() for line in text.split("\n") if _HASHES in line]
    return [answer.replace(",", "") if _THOUSANDS.fullmatch(answer) else answer for answer in answers]


def _between_tags(text: str) -> list[str]:
    before = text.split(_CLOSE)[:-1]
    return [part.rpartition(_OPEN)[2] for part in before if _OPEN in part]


_FORMS: Mapping[str, Callable[[str], list[str]]] = {
    "text": lambda text: [text],
    "boxed": _boxed,
    "####": _after_hashes,
    "<answer>": _between_tags,
    "letter": _LETTER.findall,
}
