"""A problem, from any source."""

from __future__ import annotations

from dataclasses import dataclass

from ngrpo.config.grading import Gold

SET, WEIGHT = "training_set", "training_set_weight"
"""Columns of the training problems if there are several training sets: the name and the weight of a problem's set."""


@dataclass(frozen=True)
class Problem:
    r"""A problem with a checkable answer.

    Attributes:
        id: Stable id, unique within its source.
        problem: Text of the problem, without instructions on how to answer.
        answer: The final answer, as written inside \boxed{}, or a list of accepted answers.
        solution: Worked solution that ends in \boxed{answer}; None if the source has none.
        before: Turns of a chat before the problem, as pairs of role and content.
    """

    id: str
    problem: str
    answer: Gold
    solution: str | None = None
    before: tuple[tuple[str, str], ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The problem, followed by the user's earlier turns."""
        return (self.problem, *(content for role, content in self.before if role == "user"))


def box(answer: str) -> str:
    r"""Return `\boxed{answer}`."""
    return rf"\boxed{{{answer}}}"
