"""What the reward says of a right answer and of a wrong one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ngrpo.checking.findings import Finding
from ngrpo.checking.samples import short
from ngrpo.data.problem import Problem, box
from ngrpo.grading.grader import Grader

_WRONG = ("0", "1")


def check_correctness(problems: Sequence[Problem]) -> Iterator[Finding]:
    """Check that the gold answer is rewarded and another one is not.

    Args:
        problems: Of the training.
    """
    subject = "training"
    problem = next((each for each in problems if each.answer), None)
    if problem is None:
        return
    other = next(each for each in (*(each.answer for each in problems), *_WRONG) if each and each != problem.answer)
    with Grader(workers=1) as grader:
        right, wrong = grader.grade([(response(problem.answer), problem.answer), (response(other), problem.answer)])
    if right.error is not None:
        yield Finding(
            "error", subject, f"the gold answer {short(problem.answer)!r} cannot be graded: {right.error}", "correct it"
        )
    elif not right.correct:
        yield Finding(
            "error", subject, f"correctness: the gold answer {short(problem.answer)!r} is graded wrong", "correct it"
        )
    elif wrong.correct:
        yield Finding(
            "warning",
            subject,
            f"correctness: {short(other)!r} is as right as {short(problem.answer)!r}",
            "look at the answers",
        )
    else:
        yield Finding("ok", subject, f"correctness: {short(problem.answer)!r} earns 1, {short(other)!r} earns 0")


def response(answer: str) -> str:
    """Return a response as a model would write it."""
    return f"<think>\nLet me see.\n</think>\n\nThe answer is {box(answer)}."
