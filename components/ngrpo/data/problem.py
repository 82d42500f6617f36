"""One problem, whatever source it comes from."""

from __future__ import annotations

from dataclasses import dataclass

from ngrpo.config.grading import Gold

SET, WEIGHT = "training_set", "training_set_weight"
"""Columns of the training problems where there are several sets: the set of a problem, and the weight of the set."""


@dataclass(frozen=True)
class Problem:
    r"""A problem with a checkable answer.

    Attributes:
        id: Stable name, unique within its source.
        problem: What is asked, without any instruction on how to answer.
        answer: The final answer, as it would stand inside \boxed{}, or the list of those that are accepted.
        solution: A worked solution that ends in \boxed{answer}; none where the source has none.
        before: The turns of a chat before the problem, each as role and content.
    """

    id: str
    problem: str
    answer: Gold
    solution: str | None = None
    before: tuple[tuple[str, str], ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """What the user says in the whole chat, the problem first."""
        return (self.problem, *(content for role, content in self.before if role == "user"))


def box(answer: str) -> str:
    r"""Return `\boxed{answer}`."""
    return rf"\boxed{{{answer}}}"
