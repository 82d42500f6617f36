"""The comparison of arms on one benchmark: every measure, over problems and seeds."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ngrpo.contracts.evaluation import Result
from ngrpo.errors import ConfigError
from ngrpo.evaluation.paired_arms import holm, paired_arms, solved_by
from ngrpo.evaluation.statistics import Floats, best_at_k, bootstrap_intervals, mean_at_n, pass_at_k
from ngrpo.report.compared_runs import Arm, ComparedRun
from ngrpo.report.comparison_result import BenchmarkComparison, Difference, Fact, Line, SolvedBy, Value
from ngrpo.report.run_facts import OF_SAMPLES, sample_facts

CONFIDENCE = 0.95
"""Confidence of the intervals; one minus it is the level of the tests."""

_MEASURE = re.compile(r"(mean|maj)|(pass|best)@([1-9][0-9]{0,5})")
_DRAWS = 10_000
_SEED = 0

Published = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Published results in percent, by arm or `base`, benchmark and measure."""
Estimate = Callable[[Result, Sequence[str]], Floats]
"""Computes a measure of each problem as a fraction."""


def compare_benchmark(
    arms: Sequence[Arm], reference: Arm, name: str, primary: str, margin: float, published: Published
) -> BenchmarkComparison:
    """Compare arms on one benchmark.

    Args:
        arms: The arms, each with at least one run.
        reference: The arm that the others are compared with.
        name: The benchmark.
        primary: Measure of the primary comparison.
        margin: Largest difference in percentage points at which arms count as equivalent.
        published: Published results, whose measures are computed too.

    Raises:
        ConfigError: There is no such measure, or K exceeds the number of samples.
    """
    first = reference.runs[0].evaluation["models"]["trained"][name]
    problems, samples = sorted(first["per_problem"]), first["n_samples"]
    said = [measure for of_arm in published.values() for measure in of_arm.get(name, {})]
    measures = _measures(samples, first["pass_at_k"], primary, said)
    values = {arm.name: _percent(arm, "trained", name, problems, measures) for arm in arms}
    others = [arm.name for arm in arms if arm.name != reference.name]
    differences: dict[str, dict[str, Difference]] = {other: {} for other in others}
    for measure in measures:
        paired = {other: _paired(values[other][measure], values[reference.name][measure], margin) for other in others}
        adjusted = holm([each.p_value for each in paired.values()])
        for (other, difference), p_value in zip(paired.items(), adjusted, strict=True):
            differences[other][measure] = _judged(difference, p_value)
    return BenchmarkComparison(
        problems=len(problems),
        samples=samples,
        measures=list(measures),
        references=_references(reference, name, problems, measures),
        arms={arm: {measure: _value(by_seed, margin) for measure, by_seed in of.items()} for arm, of in values.items()},
        differences=differences,
        changes={
            arm.name: _changes(values[arm.name], _percent(arm, "warm_start", name, problems, measures), margin)
            for arm in arms
            if all(_measured(run, "warm_start", name, problems) for run in arm.runs)
        },
        solved={arm.name: _solved(arm, reference, name, problems) for arm in arms if arm is not reference},
        pass_curves={arm.name: _pass_curve(arm, name, problems, samples) for arm in arms},
        facts={
            arm.name: facts_by_seed(OF_SAMPLES, {seed: sample_facts(run, name) for seed, run in arm.by_seed.items()})
            for arm in arms
        },
    )


def facts_by_seed(names: Mapping[str, object], by_seed: Mapping[int, Mapping[str, float]]) -> dict[str, Fact]:
    """Return facts by name, each with its value for every seed that has one."""
    return {name: Fact({seed: facts[name] for seed, facts in by_seed.items() if name in facts}) for name in names}


def measure_name(measure: str, samples: int) -> str:
    """Return the full name of a measure: `mean@16` for `mean` of 16 samples."""
    return measure if "@" in measure else f"{measure}@{samples}"


def _measures(samples: int, asked: Mapping[str, Any], primary: str, published: Sequence[str]) -> dict[str, Estimate]:
    """Return the measures of a benchmark by name: mean@n, maj@n, and pass@k and best@k of every requested k."""
    matched = _MEASURE.fullmatch(primary)
    if matched is None:
        raise ConfigError(f"comparison: measure {primary!r}: choose mean, maj, pass@K or best@K, with a number for K")
    if matched[3] and int(matched[3]) > samples:
        raise ConfigError(f"comparison: measure {primary!r}: K is at most the {samples} samples of a problem")
    pairs = [_MEASURE.fullmatch(each) for each in (primary, *published)]
    ks = {int(k) for k in asked} | {int(each[3]) for each in pairs if each is not None and each[3]} | {samples}
    passed = {f"pass@{k}": _of_counts(pass_at_k, k) for k in sorted(ks) if 1 < k <= samples}
    best = {f"best@{k}": _of_counts(best_at_k, k) for k in sorted(ks) if 1 < k <= samples}
    # With k = 1 both are equal to mean@n, so they are shown only if requested.
    single = {primary: _of_counts(pass_at_k, 1)} if primary in ("pass@1", "best@1") else {}
    return {f"mean@{samples}": _mean, f"maj@{samples}": _maj, **single, **passed, **best}


def _of_counts(estimate: Callable[[Any, int, int], Floats], k: int) -> Estimate:
    return lambda result, problems: estimate(_counts(result, problems), result["n_samples"], k)


def _mean(result: Result, problems: Sequence[str]) -> Floats:
    return mean_at_n(_counts(result, problems), result["n_samples"])


def _maj(result: Result, problems: Sequence[str]) -> Floats:
    return np.array([result["per_problem_maj"][problem] for problem in problems], dtype=np.float64)


def _counts(result: Result, problems: Sequence[str]) -> list[int]:
    return [result["per_problem"][problem] for problem in problems]


def _measured(run: ComparedRun, model: str, benchmark: str, problems: Sequence[str]) -> bool:
    """Whether a run measured this model on these problems."""
    of = run.evaluation["models"].get(model, {})
    return benchmark in of and set(of[benchmark]["per_problem"]) == set(problems)


def _percent(
    arm: Arm, model: str, benchmark: str, problems: Sequence[str], measures: Mapping[str, Estimate]
) -> dict[str, dict[int, Floats]]:
    """Return each measure of a model of an arm by seed: of each problem, in percent."""
    return {
        measure: {
            seed: 100.0 * estimate(run.evaluation["models"][model][benchmark], problems)
            for seed, run in arm.by_seed.items()
        }
        for measure, estimate in measures.items()
    }


def _changes(
    after: Mapping[str, Mapping[int, Floats]], before: Mapping[str, Mapping[int, Floats]], margin: float
) -> dict[str, Difference]:
    paired = {measure: _paired(after[measure], before[measure], margin) for measure in after}
    return {measure: _judged(change, change.p_value) for measure, change in paired.items()}


def _value(by_seed: Mapping[int, Floats], margin: float) -> Value:
    found = paired_arms(list(by_seed.values()), margin=margin, confidence=CONFIDENCE, draws=_DRAWS, seed=_SEED)
    means = {seed: float(values.mean()) for seed, values in by_seed.items()}
    return Value(found.difference, found.interval, means)


def _paired(ours: Mapping[int, Floats], theirs: Mapping[int, Floats], margin: float) -> Difference:
    seeds = sorted(ours.keys() & theirs.keys())
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    if not seeds:
        differences = [np.mean(list(ours.values()), axis=0) - np.mean(list(theirs.values()), axis=0)]
    found = paired_arms(differences, margin=margin, confidence=CONFIDENCE, draws=_DRAWS, seed=_SEED)
    return Difference(
        seeds=seeds,
        value=found.difference,
        interval=found.interval,
        p_value=found.p_value,
        holm_p=found.p_value,
        equivalence_p=found.equivalence_p,
        seed_interval=found.seed_interval,
        seed_p=found.seed_p,
        sign_flip_p=found.sign_flip_p,
        verdict="undecided",
    )


def _judged(difference: Difference, holm_p: float) -> Difference:
    level = 1.0 - CONFIDENCE
    verdict = "undecided"
    if holm_p < level:
        verdict = "better" if difference.value > 0 else "worse"
    elif difference.equivalence_p < level:
        verdict = "equivalent"
    return dataclasses.replace(difference, holm_p=holm_p, verdict=verdict)


def _references(
    reference: Arm, benchmark: str, problems: Sequence[str], measures: Mapping[str, Estimate]
) -> dict[str, dict[str, float]]:
    """Return the measures of the models that training started from."""
    found = {}
    for model in ("base", "warm_start"):
        results = [
            run.evaluation["models"][model][benchmark]
            for run in reference.runs
            if _measured(run, model, benchmark, problems)
        ]
        if results:
            found[model] = {
                measure: float(np.mean([100.0 * estimate(result, problems) for result in results]))
                for measure, estimate in measures.items()
            }
    return found


def _solved(arm: Arm, reference: Arm, benchmark: str, problems: Sequence[str]) -> SolvedBy | None:
    ours, theirs = arm.by_seed, reference.by_seed
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    counts = (
        [_counts(of[seed].evaluation["models"]["trained"][benchmark], problems) for seed in seeds]
        for of in (ours, theirs)
    )
    found = solved_by(*counts)
    return SolvedBy(found.first_only, found.second_only, found.both, found.neither)


def _pass_curve(arm: Arm, benchmark: str, problems: Sequence[str], samples: int) -> Line:
    """Return pass@k for every k, averaged over all seeds, with its bootstrap interval over problems."""
    ks = range(1, samples + 1)
    runs = arm.by_seed
    counts = [_counts(run.evaluation["models"]["trained"][benchmark], problems) for run in runs.values()]
    tables = [np.stack([100.0 * pass_at_k(each, samples, k) for k in ks], axis=1) for each in counts]
    table = np.mean(tables, axis=0)
    ends = bootstrap_intervals(table, confidence=CONFIDENCE, draws=_DRAWS // 10, seed=_SEED)
    return Line(
        [float(k) for k in ks], table.mean(axis=0).tolist(), ends[:, 0].tolist(), ends[:, 1].tolist(), list(runs)
    )
