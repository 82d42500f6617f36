"""What the report says first: how the model compares with the champion, and with the last run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ngrpo.config import RunConfig
from ngrpo.contracts.evaluation import Evaluation, Result
from ngrpo.contracts.promotion import Promotion
from ngrpo.evaluation.protocol import difference
from ngrpo.evaluation.statistics import Floats, mean_at_n, paired_difference
from ngrpo.report.results import signed


@dataclass(frozen=True)
class LastRun:
    """The run of a preset before another one: its name and its evaluation."""

    name: str
    evaluation: Evaluation


def against_champion(promotion: Promotion) -> str:
    """Return how the model compares with the champion that it met."""
    version, compared = promotion["champion_version"], promotion["comparison"]
    if version is None:
        return "there was none"
    if compared is None:
        return f"version {version}; not compared: {promotion['reason']}"
    low, high = compared["interval"]
    return (
        f"{signed(compared['gain'])} points of {compared['statistic']} against version {version} on {compared['benchmark']} "
        f"({100 * (2 * compared['confidence'] - 1):g} % interval {signed(low)} to {signed(high)})"
    )


def against_last_run(last: LastRun, evaluation: Evaluation, config: RunConfig) -> str:
    """Return how the trained model compares with that of the last run, on the benchmark of the promotion.

    Args:
        last: The last run.
        evaluation: `evaluation.json` of this run.
        config: Configuration of this run.
    """
    name, settings = config.promotion.benchmark, config.evaluation
    theirs = last.evaluation["models"]["trained"].get(name)
    if theirs is None:
        return f"{last.name} was not measured on {config.title(name)}"
    differs = difference(
        *(of.get("protocols", {}).get("trained", {}).get(name) for of in (evaluation, last.evaluation))
    )
    ours = evaluation["models"]["trained"][name]
    if differs is not None or ours["per_problem"].keys() != theirs["per_problem"].keys():
        return f"{last.name} was not measured alike: {differs or 'problems or gold answers'}"
    mean, low, high = paired_difference(
        _means(ours, ours),
        _means(theirs, ours),
        confidence=settings.confidence,
        draws=settings.bootstrap_draws,
        seed=config.seed,
    )
    return (
        f"{signed(100 * mean)} points on {config.title(name)} ({100 * settings.confidence:g} % interval {signed(100 * low)} to "
        f"{signed(100 * high)}) against {last.name}"
    )


def _means(result: Result, order: Result) -> Floats:
    """Return the share of correct samples of each problem, in the order of another result."""
    counts = np.array([result["per_problem"][problem] for problem in order["per_problem"]])
    return mean_at_n(counts, result["n_samples"])
