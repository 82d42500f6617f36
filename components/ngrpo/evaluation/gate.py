"""The promotion gate: decides whether a model is shown to be better than another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from ngrpo.config import PromotionConfig
from ngrpo.contracts.evaluation import Evaluation, Result
from ngrpo.contracts.promotion import Comparison, Evidence, Verdict
from ngrpo.evaluation.curtailment import Counts, error_of_a_look, foresee
from ngrpo.evaluation.protocol import difference
from ngrpo.evaluation.statistics import Floats, mean_at_n, paired_difference, pass_at_k, sign_flip_p_value

_DRAWS = 10_000
_TO_THE_END = (
    "evaluate to the end: run again without evaluation.early_stop, and only the samples that are missing are generated"
)


@dataclass(frozen=True)
class Measured:
    """A model and how it was measured.

    Attributes:
        name: Name of the model in a sentence.
        results: Result by benchmark (`benchmark_result`).
        protocols: Protocol by benchmark (`benchmark_protocol`).
    """

    name: str
    results: Mapping[str, Result]
    protocols: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, evaluation: Evaluation, model: str, name: str) -> Measured:
        """Return one model of an `evaluation.json`."""
        return cls(name, evaluation["models"][model], evaluation.get("protocols", {}).get(model, {}))


def compare(config: PromotionConfig, candidate: Measured, opponent: Measured, seed: int) -> Verdict:
    """Apply the gate to two models.

    The candidate is promoted when the one-sided lower bound of its gain, the paired difference of the statistic in points of
    percent under a bootstrap over problems, exceeds `min_gain`, and on no benchmark of `tolerated_regression` the lower bound of
    its difference is below the tolerance. Equalling `min_gain` is not enough: for two models that differ on a single problem the
    bound is 0, because many draws do not contain that problem. Models that were measured under different protocols are never promoted.

    For a model whose evaluation stopped early, the bounds are predictions of those that all its samples would give. It is promoted only
    if they settle the verdict (`ngrpo.evaluation.curtailment`), whichever opponent the evaluation was stopped for.

    Args:
        config: Settings of the gate.
        candidate: The model to be promoted.
        opponent: The model that it must beat.
        seed: Seed of bootstrap and permutation test.

    Returns:
        `decision`, `reason` and `comparison`, which is None if the two could not be compared.
    """
    names = dict.fromkeys([config.benchmark, *config.tolerated_regression])
    for name in names:
        problem = obstacle(name, candidate, opponent)
        if problem is not None:
            return kept(problem)
    stopped = [name for name in names if _has_stopped(name, candidate, opponent)]
    if stopped and config.statistic == "maj":
        return kept(
            f"an evaluation on {stopped[0]} stopped early, and maj@n of all samples cannot be predicted; {_TO_THE_END}"
        )
    compared = {name: _comparison(config, name, candidate, opponent, seed) for name in names}
    comparisons = {name: entry for name, (entry, _) in compared.items()}
    first = comparisons[config.benchmark]
    low = first["interval"][0]
    regressions = {name: comparisons[name] for name in config.tolerated_regression}
    gained, lost = low > config.min_gain, _lost(regressions)
    reason = (
        f"{first['statistic']} on {config.benchmark} is {first['candidate']:.2f} against {opponent.name}'s "
        f"{first['champion']:.2f}; at {config.confidence:.0%} confidence the gain is above {low:+.2f} points, "
        f"{'more' if gained else 'not more'} than the {config.min_gain:+.2f} asked for"
    )
    for name, entry in lost.items():
        reason += f"; on {name} it may have lost up to {-entry['interval'][0]:.2f} points, more than the {entry['tolerated']:.2f} tolerated"
    evidence = {**first, "min_gain": config.min_gain, "against": opponent.name, "regressions": regressions}
    decision: Literal["promoted", "kept"] = "promoted" if gained and not lost else "kept"
    if stopped:
        of_gain, losses = compared[config.benchmark][1], {name: compared[name][1] for name in regressions}
        sides = [of_gain(config.min_gain) if of_gain else _side(passed=gained)]
        sides += [
            side(-regressions[name]["tolerated"]) if side else _side(passed=name not in lost)
            for name, side in losses.items()
        ]
        evidence["settled"] = min(sides) < 0 or min(sides) > 0
        few = "; ".join(
            f"{comparisons[name]['n_samples']} of {comparisons[name]['planned_samples']} samples of each problem of {name}"
            for name in stopped
        )
        if evidence["settled"]:
            reason += f", as predicted from {few}, which settle the verdict"
        else:
            decision = "kept"
            reason += f", as predicted from {few}; that is not settled: {_TO_THE_END}"
    return {"decision": decision, "reason": reason, "comparison": cast(Evidence, evidence)}


def kept(reason: str) -> Verdict:
    """Return the decision on a candidate that could not be compared: it is not promoted."""
    return {"decision": "kept", "reason": reason, "comparison": None}


def obstacle(name: str, candidate: Measured, opponent: Measured) -> str | None:
    """Return why two models cannot be compared on a benchmark, and what to do; None if they can."""
    cure = "evaluate both alike: run the pipeline that made it with these settings, then this one again"
    if name not in opponent.results:
        return f"{opponent.name} was not evaluated on {name}; {cure}"
    problem = difference(candidate.protocols.get(name), opponent.protocols.get(name))
    if problem is not None:
        return f"the evaluations of {opponent.name} and of {candidate.name} on {name} differ in their {problem}; {cure}"
    # Compare the ids too, in case a protocol fails to tell two sets of problems apart.
    if set(candidate.results[name]["per_problem"]) != set(opponent.results[name]["per_problem"]):
        return f"the evaluations of {opponent.name} and of {candidate.name} on {name} have different problems; {cure}"
    return None


def _side(*, passed: bool) -> float:
    return 1.0 if passed else -1.0


def _lost(regressions: Mapping[str, Comparison]) -> dict[str, Comparison]:
    return {name: entry for name, entry in regressions.items() if entry["interval"][0] < -entry["tolerated"]}


def _has_stopped(name: str, *models: Measured) -> bool:
    return any("stopped" in model.results[name] for model in models)


def _comparison(
    config: PromotionConfig, name: str, candidate: Measured, opponent: Measured, seed: int
) -> tuple[Comparison, Callable[[float], float] | None]:
    """Compare two models on a benchmark; also return a function that predicts the outcome for all samples.

    The function takes a threshold in percentage points and returns 1 if the bound of all samples will be above it, -1 if not, and 0 if that
    is still open. It is None if both models have all their samples.
    """
    problems = sorted(candidate.results[name]["per_problem"])
    n = candidate.results[name]["n_samples"]
    ours, theirs = (
        100.0 * per_problem(config.statistic, model.results[name], problems) for model in (candidate, opponent)
    )
    # The lower end of a two-sided interval of level 2c - 1 is that of a one-sided one of level c.
    gain, low, high = paired_difference(ours, theirs, confidence=2 * config.confidence - 1, draws=_DRAWS, seed=seed)
    comparison: Comparison = {
        "benchmark": name,
        "statistic": config.statistic if config.statistic.startswith("pass") else f"{config.statistic}@{n}",
        "candidate": float(ours.mean()),
        "champion": float(theirs.mean()),
        "gain": gain,
        "interval": [low, high],
        "p_value": sign_flip_p_value(ours - theirs, draws=_DRAWS, seed=seed),
        "confidence": config.confidence,
        "n_problems": len(problems),
        "n_samples": n,
    }
    if name in config.tolerated_regression:
        comparison["tolerated"] = config.tolerated_regression[name]
    if not _has_stopped(name, candidate, opponent):
        return comparison, None
    ours_of, theirs_of = (_counts(model.results[name], problems) for model in (candidate, opponent))
    foreseen = foresee(config.statistic, ours_of, theirs_of, low / 100.0, confidence=config.confidence)
    bound = 100.0 * float(foreseen.bound)
    narrower = (bound - gain) / (low - gain) if low < gain else 1.0
    comparison["interval"] = [bound, gain + narrower * (high - gain)]
    comparison["planned_samples"] = ours_of.planned
    error = max(model.results[name]["stopped"]["error"] for model in (candidate, opponent) if _has_stopped(name, model))
    share = error_of_a_look(error, ours_of, theirs_of, config.statistic, 1 + len(config.tolerated_regression))
    return comparison, lambda threshold: float(foreseen.side(threshold / 100.0, share))


def _counts(result: Result, problems: list[str]) -> Counts:
    planned = result["stopped"]["planned_samples"] if "stopped" in result else result["n_samples"]
    return Counts([result["per_problem"][problem] for problem in problems], result["n_samples"], planned)


def per_problem(statistic: str, result: Result, problems: list[str]) -> Floats:
    """Return a statistic of each problem as a fraction.

    Args:
        statistic: `mean`, `maj` or `pass@K`, as in `promotion.statistic`.
        result: Result on a benchmark (`benchmark_result`).
        problems: Ids of the problems, in the order of the result.
    """
    if statistic == "maj":
        return np.array([result["per_problem_maj"][problem] for problem in problems])
    counts = np.array([result["per_problem"][problem] for problem in problems])
    if statistic == "mean":
        return mean_at_n(counts, result["n_samples"])
    return pass_at_k(counts, result["n_samples"], int(statistic.removeprefix("pass@")))
