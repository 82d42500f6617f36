"""What the report shows of failures: the problems that the trained model gets wrong most often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ngrpo.config import FilesSource, HubSource, RunConfig, Source
from ngrpo.contracts.evaluation import Evaluation
from ngrpo.evaluation.benchmark import Benchmark, gold_text, read_benchmarks
from ngrpo.report.rollouts import shorten

_PROBLEMS = 4


@dataclass(frozen=True)
class Failure:
    """A problem, how often each model solves it, and one wrong response of the trained model.

    Attributes:
        problem: Id of the problem.
        prompt: Its text.
        gold: Its answer.
        samples: Responses of each model.
        before: Correct ones before training.
        after: Correct ones of the trained model.
        answer: The trained model's most frequent wrong answer; None if it is not an answer at all.
        frequency: How often it gave it.
        text: The first response with that answer.
        truncated: Whether that response was cut off at the token limit.
    """

    problem: str
    prompt: str
    gold: str
    samples: int
    before: int
    samples_before: int
    after: int
    answer: str | None
    frequency: int
    text: str
    truncated: bool


@dataclass(frozen=True)
class FailureGallery:
    """The failures on one benchmark; `failures` is none where its text may not be published."""

    benchmark: str
    wrong: int
    """Problems with at least one wrong response."""
    failures: list[Failure] | None


def is_confidential(source: Source, name: str = "") -> bool:
    """Say whether the text of a data set may not be published: GPQA asks that its problems stay out of what crawlers read."""
    return "gpqa" in name.lower() or (isinstance(source, HubSource | FilesSource) and "gpqa" in source.location.lower())


def failure_galleries(
    evaluation: Evaluation, samples: Path, benchmarks: Path, config: RunConfig
) -> list[FailureGallery]:
    """Return the failures on each benchmark, the one that decides on promotion first.

    Args:
        evaluation: `evaluation.json` of the stage `benchmark_evaluation`.
        samples: Its directory `samples/trained`.
        benchmarks: Directory `benchmarks` of the stage `prepare_data`.
        config: Configuration of the run.

    Raises:
        DataError: A benchmark is damaged.
    """
    galleries = []
    main = config.promotion.benchmark
    for benchmark in sorted(
        read_benchmarks(benchmarks, config.benchmark_gradings), key=lambda benchmark: benchmark.name != main
    ):
        before, after = (evaluation["models"][model][benchmark.name] for model in ("warm_start", "trained"))
        wrong = [problem for problem in benchmark.ids if after["per_problem"][problem] < after["n_samples"]]
        failures = None
        if not is_confidential(config.data.benchmarks[benchmark.name], benchmark.name):
            worst = sorted(wrong, key=lambda problem: after["per_problem"][problem])[:_PROBLEMS]
            responses = _wrong_responses(samples / f"{benchmark.name}.parquet", worst)
            failures = [_failure(benchmark, problem, before, after, responses[problem]) for problem in worst]
        galleries.append(FailureGallery(benchmark.name, len(wrong), failures))
    return galleries


def _wrong_responses(table: Path, problems: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the wrong responses to some problems, by problem and in the order of their sample ids."""
    rows = pq.read_table(
        table,
        columns=["problem_id", "sample_id", "extracted", "finish_reason", "text"],
        filters=pc.field("problem_id").isin(pa.array(problems, pa.string())) & ~pc.field("correct"),
    ).sort_by("sample_id")
    responses: dict[str, list[dict[str, Any]]] = {problem: [] for problem in problems}
    for row in rows.to_pylist():
        responses[row["problem_id"]].append(row)
    return responses


def _failure(
    benchmark: Benchmark,
    problem: str,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    responses: list[dict[str, Any]],
) -> Failure:
    index = benchmark.ids.index(problem)
    ((answer, frequency),) = Counter(response["extracted"] for response in responses).most_common(1)
    shown = next(response for response in responses if response["extracted"] == answer)
    return Failure(
        problem=problem,
        prompt=shorten("\n\n".join(turn["content"] for turn in benchmark.prompts[index])),
        gold=shorten(gold_text(benchmark.answers[index], benchmark.grading)),
        samples=after["n_samples"],
        before=before["per_problem"][problem],
        samples_before=before["n_samples"],
        after=after["per_problem"][problem],
        answer=None if answer is None else shorten(answer),
        frequency=frequency,
        text=shorten(shown["text"]),
        truncated=shown["finish_reason"] == "length",
    )
