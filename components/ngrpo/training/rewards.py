"""Rewards of training: the graders of the benchmarks with TRL's signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ngrpo.config.grading import Gold
from ngrpo.grading.grader import Grader

Turns = Sequence[Mapping[str, str]]


class CorrectnessReward:
    """Reward function for TRL: 1 for a correct answer, 0 for any other; what a grader of the user's gives is the reward as it is."""

    __name__ = "correctness"  # name of the reward in TRL's logs

    def __init__(self, grader: Grader):
        """Reward what `grader` finds correct; the caller closes it."""
        self._grader = grader

    def __call__(
        self,
        prompts: Sequence[Turns],
        completions: Sequence[Turns],
        answer: Sequence[Gold],
        log_metric: Callable[[str, float], None] | None = None,
        **kwargs: Any,
    ) -> list[float]:
        """Grade a rollout batch.

        Args:
            prompts: Not read.
            completions: For each response its turns; the last one is graded.
            answer: For each response the gold answer, or the list of those that are accepted.
            log_metric: TRL's; receives the shares of responses without an answer and of those that could not be graded.
            **kwargs: What else TRL passes; not read.

        Returns:
            The rewards, in the order of the completions.
        """
        texts = [completion[-1]["content"] for completion in completions]
        grades = self._grader.grade(list(zip(texts, answer, strict=True)))
        if log_metric is not None:
            log_metric("grading/no_answer", sum(grade.extracted is None for grade in grades) / len(grades))
            log_metric("grading/error", sum(grade.error is not None for grade in grades) / len(grades))
        return [grade.reward for grade in grades]
