r"""Grading: where the answer of a response is, and whether it equals the gold answer.

The answer is the content of the last balanced \boxed{} after `</think>`. Equal texts and plain numbers are decided here; all
else, in the spelling of `ngrpo.grading.answer_forms`, by `ngrpo.grading.comparison` in isolated processes with a time limit.
The same rules grade benchmarks and give the rewards of training.
Multiple-choice questions are answered by a letter, and that is compared (`grade_letter`).
"""

from __future__ import annotations

import atexit
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from types import TracebackType
from typing import Self

from ngrpo.grading.answer_forms import canonical, several_numbers
from ngrpo.grading.pool import GradingPool, Request, Response

_END_OF_THOUGHT = "</think>"
_BOX = r"\\boxed\s*\{"
_BARE = r"\\boxed\s+(?P<bare>[+-]?\d+(?:[.,]\d+)*(?:/\d+)?|[A-Z](?![A-Za-z])|-?\\[dt]?frac(?:\{[^{}]*\}){2})"
"""A box without braces, of which a person takes the whole number for the content, and TeX the first digit."""

_BRACES = re.compile(
    rf"(?P<box>{_BOX})|{_BARE}|(?P<escaped>\\(?:[{{}}]|\\(?!boxed\s*\{{)))|(?P<open>\{{)|(?P<close>\}})"
)

_LETTER = re.compile(r"^[ \t]*Answer: ([A-Z])[ \t\r]*$", re.MULTILINE)

_PLAIN_NUMBER = re.compile(r"[+-]?(?=[0-9])0*+(?:[0-9]{0,15}|[0-9]{0,9}\.[0-9]{1,6}0*+)")
"""Numbers that are compared here, however many zeros they are padded with; longer ones may be rounded values."""

_LONGEST_ANSWER = 4096
"""Characters. Real answers have a few hundred at most, and the parser's time grows faster than their length."""


@dataclass(frozen=True)
class Grade:
    """The verdict on one response.

    Attributes:
        correct: Whether the answer equals the gold answer.
        extracted: The answer; none where the response has no answer, which is not correct and no error.
        error: Why no verdict could be reached (`correct` is then false): too long, not parsed, out of time.
    """

    correct: bool
    extracted: str | None
    error: str | None


def extract_answer(text: str) -> str | None:
    r"""Return the answer of a response: the content of the last balanced \boxed{} after the last `</think>`.

    A text without `</think>` counts as a whole. Of nested boxes the inner one counts. Escaped braces are characters of the
    answer (a set is written `\{1, 2\}`). A number, a letter or a fraction may stand without braces (`\boxed 2`).
    Takes time proportional to the length of the text.

    Returns:
        The content without surrounding white space; none where there is no such box or it is empty.
    """
    text = text.rpartition(_END_OF_THOUGHT)[2]
    first = re.search(rf"{_BOX}|{_BARE}", text)
    if first is None:
        return None
    answer, latest = "", -1
    opened: list[int | None] = []  # of each open brace, where its content starts if it opens a box
    for match in _BRACES.finditer(text, first.start()):
        if match["box"] is not None:
            opened.append(match.end())
        elif match["bare"] is not None:
            answer, latest = match["bare"], match.start("bare")
        elif match["open"] is not None:
            opened.append(None)
        elif match["close"] is not None and opened:
            start = opened.pop()
            if start is not None and start > latest:
                answer, latest = text[start : match.start()], start
    return answer.strip() or None


def grade_letter(text: str, gold: str) -> Grade:
    """Grade an answer to a multiple-choice question: the letter of the last line after the thought that is `Answer: X`, to the letter.

    Args:
        text: The response.
        gold: Letter of the right option.
    """
    lines = _LETTER.findall(text.rpartition(_END_OF_THOUGHT)[2])
    return Grade(lines[-1] == gold, lines[-1], None) if lines else Grade(False, None, None)


class Grader:
    """Grades responses by the rules of this module.

    Its processes start when the first answer needs them, serve all further calls, and end with `close`. It may be used
    from any thread.
    """

    def __init__(self, workers: int = 2, timeout_seconds: float = 5.0):
        """Set up the grader; nothing is started yet.

        Args:
            workers: Processes that compare.
            timeout_seconds: Wall-clock limit of one answer.
        """
        self._pool = GradingPool(workers, timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        self._pool.close()

    def grade(self, items: Sequence[tuple[str, str]]) -> list[Grade]:
        """Grade responses.

        Args:
            items: For each response its text and the gold answer.

        Returns:
            The grades, in the order of the items.
        """
        pairs = [(extract_answer(text) or "", gold.strip()) for text, gold in items]
        verdicts: dict[tuple[str, str], Response] = {}
        hard: dict[tuple[str, str], Request] = {}
        for pair in dict.fromkeys(pairs):
            verdict = _decide(*pair)
            if verdict is None:
                answer, gold = map(canonical, pair)
                verdict = _decide(answer, gold) or _decide_by_form(answer, gold)
            if verdict is None:
                hard[pair] = (gold, answer)
            else:
                verdicts[pair] = verdict
        verdicts |= zip(hard, self._pool.run(list(hard.values())), strict=True)
        return [Grade(verdicts[pair][0], pair[0] or None, verdicts[pair][1]) for pair in pairs]


def gold_parses(gold: str) -> bool:
    """Whether a gold answer can be read, so that equal answers in other forms will be found."""
    gold = gold.strip()
    if _PLAIN_NUMBER.fullmatch(gold):
        return True
    if not gold or len(gold) > _LONGEST_ANSWER:
        return False
    ((parses, _error),) = _gold_pool().run([(canonical(gold), None)])
    return parses


@cache
def _gold_pool() -> GradingPool:
    """The process of `gold_parses`, kept for the next gold answer."""
    pool = GradingPool(workers=1, timeout_seconds=5.0)
    atexit.register(pool.close)
    return pool


def _decide(answer: str, gold: str) -> Response | None:
    """Return the verdict where neither the form of the answers nor a process is needed for it, else none."""
    if not answer:
        return False, None
    if answer == gold:
        return True, None
    if _PLAIN_NUMBER.fullmatch(answer) and _PLAIN_NUMBER.fullmatch(gold):
        return Decimal(answer) == Decimal(gold), None
    for name, text in (("gold answer", gold), ("answer", answer)):
        if len(text) > _LONGEST_ANSWER:
            return False, f"the {name} has {len(text)} characters, more than {_LONGEST_ANSWER}"
    return None


def _decide_by_form(answer: str, gold: str) -> Response | None:
    """Return the verdict on two canonical answers of which the parser would multiply parts that belong to no product, else none."""
    for name, text in (("gold answer", gold), ("answer", answer)):
        if several_numbers(text):
            return False, f"the {name} is several numbers with nothing between them"
    return None
