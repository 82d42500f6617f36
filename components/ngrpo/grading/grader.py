r"""Grading: whether the answer of a response equals the gold answer.

A `GradingConfig` tells where the answer is and how it is compared; by default it is the content of the last balanced \boxed{} after
`</think>`, compared by value. Equal texts and plain numbers are decided here. All other answers are rewritten by
`ngrpo.grading.answer_forms` and compared by `ngrpo.grading.comparison` in isolated processes with a time limit, where regular expressions
run too. The same rules grade benchmarks and give the rewards of training.
"""

from __future__ import annotations

import atexit
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from types import TracebackType
from typing import Self

from ngrpo.config.grading import Gold, GradingConfig
from ngrpo.grading import countdown
from ngrpo.grading.answer_forms import canonical, several_numbers
from ngrpo.grading.extraction import after_thought, answers_in, extract_answer, last
from ngrpo.grading.pool import GradingPool, Request, Response
from ngrpo.grading.several import given_answers, gives_all, too_many
from ngrpo.grading.user_grader import UserGrader
from ngrpo.grading.worker import COUNTDOWN

__all__ = ["Grade", "Grader", "extract_answer", "gold_answers", "gold_parses", "gold_usable", "grade_letter"]

_LETTER = re.compile("[A-Z]")

_PLAIN_NUMBER = re.compile(r"[+-]?(?=[0-9])0*+(?:[0-9]{0,15}|[0-9]{0,9}\.[0-9]{1,6}0*+)")
"""Numbers that are compared here, with any padding of zeros; longer ones may be rounded values."""

_LONGEST_ANSWER = 4096
"""Characters. Real answers have a few hundred at most, and the parser's time grows faster than their length."""


@dataclass(frozen=True)
class Grade:
    """The verdict on one response.

    Attributes:
        correct: Whether the answer equals the gold answer.
        extracted: The answer; None if the response has none, which is not correct, and no error.
        error: Why no verdict was reached (`correct` is then false): too long, not parsed, out of time.
        score: The score from the user's grader, from 0 to 1; None from any other grader.
    """

    correct: bool
    extracted: str | None
    error: str | None
    score: float | None = None

    @property
    def reward(self) -> float:
        """The reward in training."""
        return float(self.correct) if self.score is None else self.score


def grade_letter(text: str, gold: str) -> Grade:
    """Grade an answer to a multiple-choice question: the letter in the last line `Answer: X` after the thought, compared exactly.

    Args:
        text: The response.
        gold: Letter of the right option.
    """
    letter = last(answers_in("letter", text))
    return Grade(letter == gold, letter, None)


class Grader:
    """Grades responses by the rules of this module.

    Its processes start with the first answer that needs them, serve all further calls, and end with `close`. It is thread-safe.
    """

    def __init__(self, workers: int = 2, timeout_seconds: float = 5.0, grading: GradingConfig | None = None):
        """Set up the grader; nothing is started yet.

        Args:
            workers: Number of processes that compare answers.
            timeout_seconds: Wall-clock limit of one answer.
            grading: How answers are found and compared, unless a call says otherwise; None for the default of `GradingConfig`.
        """
        self._pool = GradingPool(workers, timeout_seconds)
        self._grading = grading or GradingConfig()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        self._pool.close()

    def grade(self, items: Sequence[tuple[str, Gold]], grading: GradingConfig | None = None) -> list[Grade]:
        """Grade responses.

        Args:
            items: For each response its text and the gold answer, or a list of accepted ones.
            grading: How answers are found and compared in this call; None for the grader's own setting.

        Returns:
            The grades, in the order of the items.

        Raises:
            UserCodeError: The user's grader cannot be used, raised an error, or returned an invalid score.
        """
        grading = grading or self._grading
        found = self._found([text for text, _ in items], grading)
        golds = [[gold.strip()] if isinstance(gold, str) else [each.strip() for each in gold] for _, gold in items]
        if grading.accepted == "all":
            given = [given_answers(answers, len(gold)) for (answers, _), gold in zip(found, golds, strict=True)]
        else:
            given = [[last(answers) or ""] for answers, _ in found]
        shown = [", ".join(answers) or None for answers in given]
        if grading.compare.of_user:
            scores = UserGrader(grading.compare).scores(items)
            return [Grade(score >= 0.5, answer, None, score) for score, answer in zip(scores, shown, strict=True)]
        pairs = [
            (answer, each)
            for answers, gold in zip(given, golds, strict=True)
            if not too_many(answers, gold)
            for answer in answers
            for each in gold
        ]
        verdicts = self._verdicts(dict.fromkeys(pairs), grading.compare.function)
        grades = []
        for answers, gold, answer, (_, unread) in zip(given, golds, shown, found, strict=True):
            correct = (gives_all if grading.accepted == "all" else _gives_any)(answers, gold, verdicts)
            compared = (verdicts[one, each][1] for one in answers for each in gold if (one, each) in verdicts)
            error = None if correct else next((error for error in (unread, *compared) if error is not None), None)
            grades.append(Grade(correct, answer, error))
        return grades

    def extract(self, texts: Sequence[str]) -> list[str | None]:
        """Return the last answer of each response; None for a response without an answer."""
        return [last(answers) for answers, _ in self._found(texts, self._grading)]

    def _found(self, texts: Sequence[str], grading: GradingConfig) -> list[tuple[list[str], str | None]]:
        """Return the answers in each response, and why they cannot be read."""
        if grading.pattern is None:
            return [(answers_in(grading.response, text), None) for text in texts]
        return _matches(self._pool, grading.pattern, texts)

    def _verdicts(self, pairs: Iterable[tuple[str, str]], function: str) -> dict[tuple[str, str], Response]:
        """Return the verdict on each pair of an answer and a gold answer."""
        verdicts: dict[tuple[str, str], Response] = {}
        hard: dict[tuple[str, str], Request] = {}
        for pair in pairs:
            if function == "countdown":
                hard[pair] = (COUNTDOWN, pair[1], pair[0])
                continue
            verdict: Response | None = (pair[0] == pair[1] != "", None) if function == "exact" else _decide(*pair)
            if verdict is None:
                answer, gold = map(canonical, pair)
                verdict = _decide(answer, gold) or _decide_by_form(answer, gold)
            if verdict is None:
                hard[pair] = (gold, answer)
            else:
                verdicts[pair] = verdict
        return verdicts | dict(zip(hard, self._pool.run(list(hard.values())), strict=True))


def gold_answers(texts: Sequence[str], grading: GradingConfig) -> list[tuple[list[str], str | None]]:
    """Return all gold answers in each text of a column, in the form given by `grading.gold`, and why they cannot be read, if so."""
    if grading.gold_pattern is not None:
        return _matches(_gold_pool(), grading.gold_pattern, texts)
    return [(answers_in(grading.gold, text), None) for text in texts]


def gold_usable(gold: Gold, grading: GradingConfig) -> bool:
    """Whether answers can be compared with a gold answer, or with each of a list: it is a letter, or can be parsed."""
    golds = [gold] if isinstance(gold, str) else gold
    if grading.response == "letter":
        return all(_LETTER.fullmatch(each) for each in golds)
    if grading.compare.function == "countdown":
        return all(countdown.read(each) is not None for each in golds)
    return grading.compare.function != "math" or all(map(gold_parses, golds))


def gold_parses(gold: str) -> bool:
    """Whether a gold answer can be parsed, so that equal answers in other forms are recognized."""
    gold = gold.strip()
    if _PLAIN_NUMBER.fullmatch(gold):
        return True
    if not gold or len(gold) > _LONGEST_ANSWER:
        return False
    ((parses, _error),) = _gold_pool().run([(canonical(gold), None)])
    return parses


def _matches(pool: GradingPool, pattern: str, texts: Sequence[str]) -> list[tuple[list[str], str | None]]:
    afterwards = [after_thought(text) for text in texts]
    distinct = list(dict.fromkeys(afterwards))
    found = {
        text: ([text[start:end].strip() for start, end in spans], error)
        for text, (spans, error) in zip(distinct, pool.search(pattern, distinct), strict=True)
    }
    return [found[text] for text in afterwards]


def _gives_any(answers: Sequence[str], golds: Sequence[str], verdicts: Mapping[tuple[str, str], Response]) -> bool:
    return any(verdicts[answer, gold][0] for answer in answers for gold in golds)


@cache
def _gold_pool() -> GradingPool:
    """The process of `gold_parses`, reused for the next gold answer."""
    pool = GradingPool(workers=1, timeout_seconds=5.0)
    atexit.register(pool.close)
    return pool


def _decide(answer: str, gold: str) -> Response | None:
    """Return the verdict if it needs neither canonical spellings nor a process; otherwise None."""
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
    """Return the verdict on two canonical answers if the parser would read one as a product that it is not; otherwise None."""
    for name, text in (("gold answer", gold), ("answer", answer)):
        if several_numbers(text):
            return False, f"the {name} is several numbers with nothing between them"
    return None
