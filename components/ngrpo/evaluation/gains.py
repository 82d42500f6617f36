"""Gain of training on a benchmark, with its interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ngrpo.config import EvaluationConfig
from ngrpo.contracts.evaluation import Evaluation
from ngrpo.evaluation.statistics import mean_at_n, paired_difference


@dataclass(frozen=True)
class Gain:
    """Mean of the trained model minus that of the model it started from, in percentage points, paired by problem, with its interval."""

    benchmark: str
    points: float
    low: float
    high: float


def gain_of(evaluation: Evaluation, benchmark: str, settings: EvaluationConfig, seed: int) -> Gain:
    """Return the gain of training on a benchmark.

    Args:
        evaluation: `evaluation.json` of the stage `benchmark_evaluation`.
        benchmark: Name of one of its benchmarks.
        settings: Confidence and draws of the interval.
        seed: Seed of the draws.
    """
    trained, start = (evaluation["models"][model][benchmark] for model in ("trained", "warm_start"))
    # Problems in the order of evaluation.json, so that the same seed draws the same interval.
    # The two may differ in their number of samples: an evaluation may stop early.
    after, before = (
        mean_at_n(np.array([result["per_problem"][problem] for problem in trained["per_problem"]]), result["n_samples"])
        for result in (trained, start)
    )
    mean, low, high = paired_difference(
        after, before, confidence=settings.confidence, draws=settings.bootstrap_draws, seed=seed
    )
    return Gain(benchmark, 100 * mean, 100 * low, 100 * high)
