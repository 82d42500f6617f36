"""Check the rows of every source (all rows of the user's files, the first ones of others), and that gold answers can be graded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ngrpo.checking.findings import Examination, Finding
from ngrpo.checking.light_imports import USED_BY_FEW_GENERATORS, put_off
from ngrpo.checking.places import sources
from ngrpo.config import FilesSource, RunConfig, Source
from ngrpo.config.grading import Gold
from ngrpo.data.problem import Problem
from ngrpo.data.problems import first_problems
from ngrpo.grading.grader import gold_usable

_ROWS = 5
"""Rows to generate or fetch from a source."""
_ROWS_OF_FILES = 20_000
"""Rows to read from the user's files, which takes about a second."""
HEAD = 100
"""Rows whose gold answers and prompts are checked, which is slower."""
_SHOWN = 60
_WORDS = 12
"""An answer with more words is taken for a whole solution."""

_ANSWER_ALONE = (
    "name a column that holds only the answer (answer_column), or set how to find the answer in it (grading.gold)"
)


def read_samples(config: RunConfig, examination: Examination) -> dict[str, list[Problem]]:
    """Return problems of each readable source, by setting: all of the user's files, the first ones of others. Errors become findings."""
    put_off(USED_BY_FEW_GENERATORS)
    samples: dict[str, list[Problem]] = {}
    for subject, source in sources(config).items():
        with examination.catch(subject):
            samples[subject] = first_problems(source, _rows_of(source))
    return samples


def _rows_of(source: Source) -> int:
    if not isinstance(source, FilesSource):
        return _ROWS
    # Regular expressions are matched in a separate process, which is slower.
    return _ROWS_OF_FILES if source.grading.gold_pattern is None else HEAD


def check_samples(config: RunConfig, samples: Mapping[str, Sequence[Problem]]) -> Iterator[Finding]:
    """Check that problems have text and answers that can be graded."""
    for subject, source in sources(config).items():
        if subject in samples:
            yield from _check(subject, source, samples[subject])


def in_words(gold: Gold) -> str:
    """Return a gold answer, or the list of accepted answers, as short text."""
    return short(gold if isinstance(gold, str) else ", ".join(gold))


def short(text: str) -> str:
    """Return the beginning of a text as one line."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"


def _check(subject: str, source: Source, problems: Sequence[Problem]) -> Iterator[Finding]:
    rows = _of(problems)
    whole = [problem for problem in problems if problem.problem and problem.answer]
    lacking = next((problem for problem in problems if not problem.problem or not problem.answer), None)
    if lacking is not None:
        fatal = not whole or subject.startswith("data.benchmarks.")
        found = f"{len(problems) - len(whole)} {rows} have no text or no answer, for example {lacking.id}"
        yield Finding(
            "error" if fatal else "warning", subject, found, "correct them" if fatal else "they will be dropped"
        )
        if fatal:
            return
    worked = [problem for problem in whole if _is_worked(problem.answer, source)]
    if worked:
        yield Finding(
            "error" if len(worked) == len(whole) else "warning",
            subject,
            f"the gold answer of {len(worked)} {rows} is more than an answer, for example {_shown(worked[0])}",
            _ANSWER_ALONE,
        )
        return
    head = whole[:HEAD]
    unread = [problem for problem in head if not gold_usable(problem.answer, source.grading)]
    if unread:
        yield Finding(
            "error" if len(unread) == len(head) else "warning",
            subject,
            f"the gold answer of {len(unread)} {_of(head)} cannot be read, for example {_shown(unread[0])}",
            _ANSWER_ALONE,
        )
    elif subject == "data.warm_start" and all(problem.solution is None for problem in problems):
        yield Finding("error", subject, f"none {rows} has a solution", "name its column (solution_column)")
    elif lacking is None:
        yield Finding("ok", subject, f"{short(whole[0].problem)!r}: the gold answer is {in_words(whole[0].answer)!r}")


def _of(problems: Sequence[Problem]) -> str:
    return f"of {len(problems)} rows" if len(problems) > 1 else "of 1 row"


def _shown(problem: Problem) -> str:
    return f"{in_words(problem.answer)!r} ({problem.id})"


def _is_worked(gold: Gold, source: Source) -> bool:
    """Return whether a gold answer for comparison as mathematics looks like a whole solution."""
    if source.grading.compare.function != "math":
        return False
    answers = [gold] if isinstance(gold, str) else gold
    return any("####" in each or r"\boxed{" in each or len(each.split()) > _WORDS for each in answers)
