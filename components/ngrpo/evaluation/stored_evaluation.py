"""`evaluation.json`: what the stage `benchmark_evaluation` says of its models, checked whenever it is read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, FiniteFloat
from typing_extensions import TypedDict  # pydantic refuses the one of `typing` before Python 3.12

from ngrpo.config import EvaluationConfig
from ngrpo.evaluation.benchmark import AnswerKey, Benchmark
from ngrpo.storage.state import parse_state

MODEL = "trained"
"""The model of an evaluation that a version of the registry is."""

Interval = Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]
_Count = Annotated[int, Field(ge=0)]


class _Result(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    mean: FiniteFloat
    mean_ci: Interval
    pass_at_k: dict[str, FiniteFloat]
    n_problems: _Count
    n_samples: Annotated[int, Field(ge=1)]
    per_problem: Annotated[dict[str, _Count], Field(min_length=1)]
    per_problem_maj: Annotated[dict[str, FiniteFloat], Field(min_length=1)]


def _consistent(result: _Result) -> _Result:
    if max(result["per_problem"].values()) > result["n_samples"]:
        raise ValueError("a problem has more correct samples than samples")
    if result["per_problem"].keys() != result["per_problem_maj"].keys():
        raise ValueError("per_problem and per_problem_maj are of different problems")
    return result


Result = Annotated[_Result, AfterValidator(_consistent)]
"""What promotion, model card and report rely on of what `ngrpo.evaluation.results.benchmark_result` returns."""

Protocol = dict[str, Any]
"""What `ngrpo.evaluation.protocol.benchmark_protocol` returns."""


class Models(TypedDict):
    """Result by benchmark of each model; `base` is missing where the warm start is the base model."""

    base: NotRequired[dict[str, Result]]
    warm_start: dict[str, Result]
    trained: dict[str, Result]


class Answers(TypedDict):
    """Gold answer by problem id, and whether these are letters of options."""

    answers: Annotated[dict[str, str], Field(min_length=1)]
    by_letter: bool


class Statistics(TypedDict):
    """By which settings results follow from graded samples (see `EvaluationConfig`), and the seed of the bootstrap."""

    pass_at: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)]
    bootstrap_draws: Annotated[int, Field(ge=1, le=10**6)]
    seed: _Count


class Evaluation(TypedDict):
    """The file. What is not required is missing in those of earlier versions: then the models cannot be graded again."""

    models: Models
    protocols: NotRequired[dict[str, dict[str, Protocol]]]
    weights: NotRequired[dict[str, str]]
    answers: NotRequired[dict[str, Answers]]
    statistics: NotRequired[Statistics]


def parse_evaluation(data: bytes, *, where: object, cure: str) -> Evaluation:
    """Return an evaluation that was stored.

    Args:
        data: Content of an `evaluation.json`.
        where: Path or address, for the error.
        cure: What to do about damage, for the error.

    Raises:
        DamagedStateError: It is none, or holds numbers that are not finite or contradict each other.
    """
    return parse_state(data, Evaluation, where=where, cure=cure)


def answers_of(benchmarks: Sequence[Benchmark]) -> dict[str, Answers]:
    """Return the gold answers of benchmarks, so that samples can be graded again without the data set."""
    return {
        benchmark.name: {
            "answers": dict(zip(benchmark.ids, benchmark.answers, strict=True)),
            "by_letter": benchmark.by_letter,
        }
        for benchmark in benchmarks
    }


def answer_key(answers: Answers) -> AnswerKey:
    """Return gold answers as `ngrpo.evaluation.samples.graded` takes them."""
    return AnswerKey(list(answers["answers"]), list(answers["answers"].values()), answers["by_letter"])


def statistics_of(config: EvaluationConfig, seed: int) -> Statistics:
    """Return by which settings results follow from graded samples."""
    return {
        "pass_at": list(config.pass_at),
        "confidence": config.confidence,
        "bootstrap_draws": config.bootstrap_draws,
        "seed": seed,
    }


def protocol_of(evaluation: Evaluation, model: str, benchmark: str) -> Mapping[str, Any] | None:
    """Return how a model was measured on a benchmark; none where the evaluation does not say."""
    return evaluation.get("protocols", {}).get(model, {}).get(benchmark)
