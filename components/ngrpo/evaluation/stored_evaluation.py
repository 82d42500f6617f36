"""The parts of an evaluation that let its samples be graded again (`ngrpo.contracts.evaluation`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ngrpo.config import EvaluationConfig, validate
from ngrpo.config.grading import BY_LETTER, GradingConfig
from ngrpo.contracts.evaluation import Answers, Evaluation, Statistics
from ngrpo.evaluation.benchmark import AnswerKey, Benchmark

MODEL = "trained"
"""The model of an evaluation that is registered."""


def answers_of(benchmarks: Sequence[Benchmark]) -> dict[str, Answers]:
    """Return the gold answers of benchmarks, so that samples can be graded again without the data set."""
    return {
        benchmark.name: {
            "answers": dict(zip(benchmark.ids, benchmark.answers, strict=True)),
            "by_letter": benchmark.grading.response == "letter",
            "grading": benchmark.grading.of_response.model_dump(mode="json"),
        }
        for benchmark in benchmarks
    }


def answer_key(answers: Answers) -> AnswerKey:
    """Return gold answers in the form that `ngrpo.evaluation.verdicts.graded` takes."""
    return AnswerKey(list(answers["answers"]), list(answers["answers"].values()), grading_of(answers))


def grading_of(answers: Answers) -> GradingConfig:
    """Return how responses are graded; evaluations by earlier versions of this library only have `by_letter`."""
    stored = answers.get("grading")
    if stored is None:
        return BY_LETTER if answers["by_letter"] else GradingConfig()
    return validate(GradingConfig, stored)


def statistics_of(config: EvaluationConfig, seed: int) -> Statistics:
    """Return the settings that turn graded samples into results."""
    return {
        "pass_at": list(config.pass_at),
        "confidence": config.confidence,
        "bootstrap_draws": config.bootstrap_draws,
        "seed": seed,
    }


def protocol_of(evaluation: Evaluation, model: str, benchmark: str) -> Mapping[str, Any] | None:
    """Return how a model was measured on a benchmark; None if the evaluation does not record it."""
    return evaluation.get("protocols", {}).get(model, {}).get(benchmark)
