"""`evaluation.json` of the stage `benchmark_evaluation`: how good each model is on each benchmark, and how it was measured."""

from __future__ import annotations

from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,  # pydantic refuses the one of `typing` before Python 3.12
)

from pydantic import AfterValidator, ConfigDict, Field, FiniteFloat, with_config
from typing_extensions import TypedDict

from ngrpo.contracts.layout import parse_layout, read_bytes, write_json

EVALUATION = "evaluation.json"

Interval = Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]
_Count = Annotated[int, Field(ge=0)]


class Stopped(TypedDict):
    """That there are fewer samples than were planned: generating stopped once the gate's verdict was settled (`curtailment`).

    `planned_samples` of each problem were planned; the verdict is another than theirs with probability `error` at most.
    """

    planned_samples: Annotated[int, Field(ge=2)]
    error: Annotated[float, Field(gt=0.0, lt=0.5)]


@with_config(ConfigDict(extra="allow"))
class Result(TypedDict):
    """One model on one benchmark, as `ngrpo.evaluation.results.benchmark_result` says; rates and statistics are fractions.

    `pass_at_k` is the unbiased estimate and `best_at_k` is `1 - (1 - c/n)^k` (`ngrpo.evaluation.statistics`).

    What is not required, and what is not declared here, is missing in evaluations of earlier versions of the library.
    """

    mean: FiniteFloat
    mean_ci: Interval
    pass_at_k: dict[str, FiniteFloat]
    n_problems: _Count
    n_samples: Annotated[int, Field(ge=1)]
    per_problem: Annotated[dict[str, _Count], Field(min_length=1)]
    per_problem_maj: Annotated[dict[str, FiniteFloat], Field(min_length=1)]
    maj: NotRequired[FiniteFloat]
    maj_ci: NotRequired[Interval]
    pass_at_k_ci: NotRequired[dict[str, Interval]]
    best_at_k: NotRequired[dict[str, FiniteFloat]]
    best_at_k_ci: NotRequired[dict[str, Interval]]
    mean_tokens: NotRequired[FiniteFloat]
    truncated_rate: NotRequired[FiniteFloat]
    ungraded_rate: NotRequired[FiniteFloat]
    grader_errors: NotRequired[_Count]
    distinct_answers: NotRequired[FiniteFloat]
    string_match: NotRequired[FiniteFloat]
    string_match_ci: NotRequired[Interval]
    per_problem_string_match: NotRequired[dict[str, _Count]]
    stopped: NotRequired[Stopped]


def _consistent(result: Result) -> Result:
    if max(result["per_problem"].values()) > result["n_samples"]:
        raise ValueError("a problem has more correct samples than samples")
    if result["per_problem"].keys() != result["per_problem_maj"].keys():
        raise ValueError("per_problem and per_problem_maj are of different problems")
    if "stopped" in result and result["stopped"]["planned_samples"] <= result["n_samples"]:
        raise ValueError("it stopped early, but has all samples that were planned")
    return result


def _complete(models: dict[str, dict[str, Result]]) -> dict[str, dict[str, Result]]:
    for name in ("warm_start", "trained"):
        if name not in models:
            raise ValueError(f"the model {name} is missing")
    return models


Protocol = dict[str, Any]
"""What `ngrpo.evaluation.protocol.benchmark_protocol` returns."""

Models = Annotated[
    dict[str, dict[str, Annotated[Result, AfterValidator(_consistent)]]],
    AfterValidator(_complete),
]
"""Result by benchmark of `base`, `warm_start` and `trained`; `base` is missing where the warm start is the base model."""


class Answers(TypedDict):
    """Gold answer by problem id, or the list of those that are accepted, and how responses are graded (`ngrpo.config.grading`).

    `by_letter` says whether answers are letters of options, for versions of the library that know no `grading`.
    """

    answers: Annotated[dict[str, str | Annotated[list[str], Field(min_length=1)]], Field(min_length=1)]
    by_letter: bool
    grading: NotRequired[dict[str, Any]]


class Statistics(TypedDict):
    """By which settings results follow from graded samples (see `EvaluationConfig`), and the seed of the bootstrap."""

    pass_at: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)]
    bootstrap_draws: Annotated[int, Field(ge=1, le=10**6)]
    seed: _Count


class EarlyStop(TypedDict):
    """How an evaluation that may stop early ended: against which model the gate's verdict was sought, and what it is.

    `verdict` is `open` where all samples were needed, or the two were not measured alike. `planned` samples were planned for the trained
    model on the benchmarks of the gate, and `saved` of them were not generated.
    """

    against: str
    verdict: Literal["promoted", "kept", "open"]
    planned: _Count
    saved: _Count


class Evaluation(TypedDict):
    """The file. The registry keeps those of champions of earlier versions of the library, in which what is not required is missing.

    Without `protocols`, `answers` and `statistics` the models cannot be graded again.
    """

    layout: NotRequired[Literal[1]]
    models: Models
    protocols: NotRequired[dict[str, dict[str, Protocol]]]
    weights: NotRequired[dict[str, str]]
    answers: NotRequired[dict[str, Answers]]
    statistics: NotRequired[Statistics]
    early_stop: NotRequired[EarlyStop]


def parse_evaluation(data: bytes, *, where: object, cure: str) -> Evaluation:
    """Return an evaluation that was stored.

    Args:
        data: Content of an `evaluation.json`.
        where: Path or address, for the error.
        cure: What to do about damage, for the error.

    Raises:
        DamagedStateError: It is none, is of another layout, or holds numbers that are not finite or contradict each other.
    """
    return parse_layout(data, Evaluation, where=where, cure=cure, earlier=True)


def read_evaluation(path: Path, cure: str) -> Evaluation:
    """Return the evaluation in a file; see `parse_evaluation`.

    Raises:
        StoreError: The file cannot be read, is damaged or of another layout.
    """
    return parse_evaluation(read_bytes(path, cure), where=path, cure=cure)


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write an evaluation."""
    write_json(path, evaluation)
