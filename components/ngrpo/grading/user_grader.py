"""The user's grader: a function `grade(response, answer)`, which is trusted and runs in the stage's own process."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from ngrpo.config.code import UserCode
from ngrpo.errors import UserCodeError
from ngrpo.user_code.loading import load, place, said


class UserGrader:
    """Calls the user's function."""

    def __init__(self, reference: UserCode):
        """Import the function.

        Raises:
            UserCodeError: It cannot be imported.
        """
        self._reference = reference
        self._grade = load(reference, Path(_folder().name))

    def scores(self, items: Sequence[tuple[str, str | list[str]]]) -> list[float]:
        """Return the score of each response, from 0 to 1.

        Args:
            items: For each response its whole text, and the gold answer or the list of accepted ones.

        Raises:
            UserCodeError: The function raised an error, or returned neither true or false nor a number from 0 to 1.
        """
        return [self._score(response, answer) for response, answer in items]

    def _score(self, response: str, answer: str | list[str]) -> float:
        # A copy of the list, so that a function that modifies its arguments changes nothing else.
        given = answer if isinstance(answer, str) else list(answer)
        named = f"function {self._reference.function!r}, called with a response of {len(response):,} characters and the answer {answer!r}"
        try:
            score = self._grade(response, given)
        except KeyboardInterrupt:
            raise
        except (
            BaseException
        ) as error:  # a function of the user's can raise whatever Python can; `math_verify` has one for a time-out
            raise UserCodeError(f"{named}: {place(error, self._reference)}{said(error)}") from error
        value = score.item() if type(score).__module__ == "numpy" else score
        if not isinstance(value, bool | int | float) or math.isnan(value) or not 0 <= value <= 1:
            raise UserCodeError(f"{named}: it returned {score!r:.100}; return true, false or a number from 0 to 1")
        return float(value)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Folder of the user's files, kept until the process ends, because the function may import from them when it is called."""
    return tempfile.TemporaryDirectory(prefix="ngrpo-graders-")
