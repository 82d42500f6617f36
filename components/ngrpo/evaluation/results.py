"""Statistics of a model on a benchmark, computed from its table of graded samples."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ngrpo.config import EvaluationConfig
from ngrpo.contracts.evaluation import Result
from ngrpo.evaluation.diversity import distinct_answers
from ngrpo.evaluation.statistics import best_at_k, bootstrap_intervals, maj_at_n, mean_at_n, pass_at_k


def benchmark_result(samples: pa.Table, config: EvaluationConfig, seed: int) -> Result:
    """Return the statistics of one model on one benchmark.

    Args:
        samples: Table of `ngrpo.evaluation.verdicts.SAMPLES`, `config.samples` rows per problem.
        config: Settings of the statistics.
        seed: Seed of the bootstrap.

    Returns:
        `mean`, `maj` (maj@n), `pass_at_k` (unbiased) and `best_at_k` (`1 - (1 - c/n)^k`) by k, each with its interval (`_ci`),
        `n_problems`, `n_samples` (per problem), `mean_tokens`, `truncated_rate`, `ungraded_rate` (no answer), `grader_errors`,
        `distinct_answers` (over samples, by problem), `per_problem` (correct samples by problem id) and `per_problem_maj`; where the
        table has it, `string_match` (mean@n by string match) with its interval and `per_problem_string_match`. Rates and statistics
        are fractions.

    Raises:
        ValueError: A problem has another number of rows.
    """
    by_problem = samples.group_by("problem_id", use_threads=False).aggregate(
        [("correct", "sum"), ("correct", "count"), ("correct", "list"), ("extracted", "list"), ("string_match", "sum")]
    )
    counts = by_problem["correct_sum"].to_numpy()
    n = config.samples
    answers = by_problem["extracted_list"].to_pylist()
    if set(by_problem["correct_count"].to_pylist()) != {n}:
        raise ValueError(f"the table does not hold {n} samples of every problem")
    votes = zip(answers, by_problem["correct_list"].to_pylist(), strict=True)
    majority = np.array([maj_at_n(given, correct) for given, correct in votes])
    # Every column uses the same draws, so adding a column changes no interval.
    columns = [mean_at_n(counts, n), majority]
    columns += [estimate(counts, n, k) for estimate in (pass_at_k, best_at_k) for k in config.pass_at]
    matched = samples["string_match"].null_count == 0
    if matched:
        matches = by_problem["string_match_sum"].to_numpy()
        columns.append(mean_at_n(matches, n))
    values = np.stack(columns, axis=1)
    means = values.mean(axis=0).tolist()
    intervals = bootstrap_intervals(
        values, confidence=config.confidence, draws=config.bootstrap_draws, seed=seed
    ).tolist()
    names = [str(k) for k in config.pass_at]
    passed, best = slice(2, 2 + len(names)), slice(2 + len(names), 2 + 2 * len(names))
    problems = by_problem["problem_id"].to_pylist()
    result: Result = {
        "mean": means[0],
        "mean_ci": intervals[0],
        "maj": means[1],
        "maj_ci": intervals[1],
        "pass_at_k": dict(zip(names, means[passed], strict=True)),
        "pass_at_k_ci": dict(zip(names, intervals[passed], strict=True)),
        "best_at_k": dict(zip(names, means[best], strict=True)),
        "best_at_k_ci": dict(zip(names, intervals[best], strict=True)),
        "n_problems": len(counts),
        "n_samples": n,
        "mean_tokens": pc.mean(samples["tokens"]).as_py(),
        "truncated_rate": pc.mean(pc.equal(samples["finish_reason"], "length")).as_py(),
        "ungraded_rate": samples["extracted"].null_count / samples.num_rows,
        "grader_errors": samples.num_rows - samples["grader_error"].null_count,
        "distinct_answers": distinct_answers(answers),
        "per_problem": dict(zip(problems, counts.tolist(), strict=True)),
        "per_problem_maj": dict(zip(problems, majority.tolist(), strict=True)),
    }
    if matched:
        result["string_match"] = means[-1]
        result["string_match_ci"] = intervals[-1]
        result["per_problem_string_match"] = dict(zip(problems, matches.tolist(), strict=True))
    return result


def flat_metrics(result: Result, prefix: str) -> dict[str, float]:
    """Return the numbers of a result by name, for `metrics.json`."""
    values = {name: value for name, value in result.items() if isinstance(value, int | float)}
    values |= {f"pass_at_{k}": value for k, value in result["pass_at_k"].items()}
    values |= {f"best_at_{k}": value for k, value in result["best_at_k"].items()}
    return {f"{prefix}/{name}": value for name, value in values.items()}
