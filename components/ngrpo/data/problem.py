"""One problem, whatever source it comes from."""

from __future__ import annotations

from dataclasses import dataclass

from ngrpo.config.grading import Gold


@dataclass(frozen=True)
class Problem:
    r"""A problem with a checkable answer.

    Attributes:
        id: Stable name, unique within its source.
        problem: What is asked, without any instruction on how to answer.
        answer: The final answer, as it would stand inside \boxed{}, or the list of those that are accepted.
        solution: A worked solution that ends in \boxed{answer}; none where the source has none.
    """

    id: str
    problem: str
    answer: Gold
    solution: str | None = None


def box(answer: str) -> str:
    r"""Return `\boxed{answer}`."""
    return rf"\boxed{{{answer}}}"
