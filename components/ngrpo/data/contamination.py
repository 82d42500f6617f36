"""Training problems that a benchmark holds too: the same text, or so many words in a row that it is the same problem told again."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ngrpo.data.problem import Problem
from ngrpo.data.screening import fingerprint

_COMMAND = re.compile(r"\\[A-Za-z]+")  # of LaTeX
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Match:
    """The benchmark's problem that a text is like, and whether it is the whole text or a run of words."""

    benchmark: str
    problem: str
    how: str


class BenchmarkProblems:
    """The problems of all benchmarks, to be kept out of training.

    Texts are compared without case, white space and dollar signs, or as words, letters and digits without LaTeX's commands
    and without punctuation. Runs of words that several problems of a benchmark share are phrases of its kind ("where m and n are
    relatively prime positive integers"), not of a problem: they prove nothing and are passed over.
    """

    def __init__(self, words: int):
        """Compare runs of that many words."""
        self._words = words
        self._texts: dict[str, Match] = {}
        self._runs: dict[tuple[str, ...], Match] = {}

    def add(self, benchmark: str, problems: Iterable[Problem]) -> None:
        """Add a benchmark."""
        runs: dict[tuple[str, ...], Match | None] = {}
        for problem in problems:
            self._texts[fingerprint(problem.problem)] = Match(benchmark, problem.id, "text")
            for run in set(self._of(problem.problem)):
                runs[run] = None if run in runs else Match(benchmark, problem.id, f"{self._words} words")
        self._runs |= {run: match for run, match in runs.items() if match is not None}

    def match(self, text: str) -> Match | None:
        """Return the problem that a text is like; none if there is none."""
        same = self._texts.get(fingerprint(text))
        return same or next((self._runs[run] for run in self._of(text) if run in self._runs), None)

    def _of(self, text: str) -> Iterator[tuple[str, ...]]:
        words = _WORD.findall(unicodedata.normalize("NFKC", _COMMAND.sub(" ", text)).casefold())
        return zip(*(words[start:] for start in range(self._words)), strict=False)
