"""The first rows of every source of problems, and whether their gold answers can be graded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ngrpo.checking.findings import Examination, Finding, Level
from ngrpo.checking.light_imports import USED_BY_FEW_GENERATORS, put_off
from ngrpo.checking.places import sources
from ngrpo.config import RunConfig, Source
from ngrpo.config.grading import Gold
from ngrpo.data.problem import Problem
from ngrpo.data.problems import first_problems
from ngrpo.grading.grader import gold_usable

ROWS = 5
"""Rows that are looked at, of each source."""
_SHOWN = 60
_WORDS = 12
"""More words than an answer has that can be compared."""

_ANSWER_ALONE = (
    "name the column that holds the answer alone (answer_column), or say how the answer stands in it (grading.gold)"
)


def read_samples(config: RunConfig, examination: Examination) -> dict[str, list[Problem]]:
    """Return the first problems of each source that can be read, by the setting that names it."""
    put_off(USED_BY_FEW_GENERATORS)
    samples: dict[str, list[Problem]] = {}
    for subject, source in sources(config).items():
        with examination.catch(subject):
            samples[subject] = first_problems(source, ROWS)
    return samples


def check_samples(config: RunConfig, samples: Mapping[str, Sequence[Problem]]) -> Iterator[Finding]:
    """Check that problems have texts, and answers that can be graded."""
    for subject, source in sources(config).items():
        if subject in samples:
            yield _check(subject, source, samples[subject])


def in_words(gold: Gold) -> str:
    """Return a gold answer, or those that are accepted, as people read it."""
    return short(gold if isinstance(gold, str) else ", ".join(gold))


def short(text: str) -> str:
    """Return the beginning of a text in one line."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"


def _check(subject: str, source: Source, problems: Sequence[Problem]) -> Finding:
    rows = f"of {len(problems)} rows" if len(problems) > 1 else "of 1 row"
    empty = [problem for problem in problems if not problem.problem or not problem.answer]
    if len(empty) == len(problems) or (empty and subject.startswith("data.benchmarks.")):
        return Finding(
            "error",
            subject,
            f"{len(empty)} {rows} have no text or no answer, {empty[0].id} for example",
            "correct them",
        )
    worked = [problem for problem in problems if _is_worked(problem.answer, source)]
    if worked:
        return Finding(
            "error" if len(worked) == len(problems) else "warning",
            subject,
            f"the gold answer of {len(worked)} {rows} is more than an answer, {in_words(worked[0].answer)!r} for example",
            _ANSWER_ALONE,
        )
    unread = [p for p in problems if p.answer and not gold_usable(p.answer, source.grading)]
    if unread:
        level: Level = "error" if len(unread) == len(problems) else "warning"
        return Finding(
            level,
            subject,
            f"the gold answer of {len(unread)} {rows} cannot be read, {in_words(unread[0].answer)!r} for example",
            _ANSWER_ALONE,
        )
    if subject == "data.warm_start" and all(problem.solution is None for problem in problems):
        return Finding("error", subject, f"none {rows} has a solution", "name its column (solution_column)")
    if empty:
        return Finding("warning", subject, f"{len(empty)} {rows} have no text or no answer", "they will be dropped")
    shown = problems[0]
    return Finding("ok", subject, f"{short(shown.problem)!r}: the gold answer is {in_words(shown.answer)!r}")


def _is_worked(gold: Gold, source: Source) -> bool:
    """Say whether an answer that is to be compared as mathematics is a whole solution."""
    if source.grading.compare.function != "math":
        return False
    answers = [gold] if isinstance(gold, str) else gold
    return any("####" in each or r"\boxed{" in each or len(each.split()) > _WORDS for each in answers)
