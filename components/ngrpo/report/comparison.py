"""The comparison of arms with a baseline: what can be compared, the results on each benchmark, learning curves, notes and files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ngrpo.config.costs import CostsConfig
from ngrpo.contracts.layout import write_json
from ngrpo.errors import ConfigError
from ngrpo.evaluation.gate import Measured, obstacle
from ngrpo.evaluation.paired_arms import SIGN_FLIP_SEEDS
from ngrpo.ledger.prices import in_words
from ngrpo.ledger.spending import together
from ngrpo.report.benchmark_comparison import CONFIDENCE, Published, compare_benchmark, facts_by_seed, measure_name
from ngrpo.report.compared_runs import Arm, ComparedRun
from ngrpo.report.comparison_page import comparison_page
from ngrpo.report.comparison_result import (
    BenchmarkComparison,
    Comparison,
    Line,
)
from ngrpo.report.comparison_tables import comparison_table
from ngrpo.report.run_facts import CURVES, OF_TRAINING, history_of, logged, training_facts

__all__ = ["Arm", "ComparedRun", "Comparison", "compare", "comparison_table", "write_comparison"]

JSON = "comparison.json"
PAGE = "comparison.html"

_MOST_POINTS = 300


def compare(
    arms: Sequence[Arm],
    *,
    baseline: str,
    benchmark: str | None,
    measure: str,
    margin: float,
    published: Published | None = None,
    prices: CostsConfig | None = None,
) -> Comparison:
    """Compare the trained models of arms with those of a baseline.

    Args:
        arms: The arms, in the order in which they are shown.
        baseline: Name of the arm that the others are compared with.
        benchmark: Benchmark of the primary comparison; none for the first, by name, that all runs have.
        measure: Its measure: `mean`, `maj`, `pass@K` or `best@K`.
        margin: Within how many points arms count as equivalent; to be fixed before anything has run.
        published: What publications say, in percent, by arm or `base`, benchmark and measure.
        prices: Prices of what the results took; none leaves them without a price.

    Raises:
        ConfigError: Arms have one name, the baseline has no result, the measure or benchmark cannot be, or two runs were not measured
            alike.
        StoreError: The log of a training is damaged.
    """
    _check_arms(arms, baseline, margin)
    measured = [arm for arm in arms if arm.runs]
    names = _benchmarks(measured, benchmark)
    reference = next(arm for arm in measured if arm.name == baseline)
    _require_comparable(measured, reference, names)
    primary = names[0] if benchmark is None else benchmark
    comparisons = {
        name: compare_benchmark(measured, reference, name, measure, margin, published or {}) for name in names
    }
    histories = {arm.name: {seed: history_of(run) for seed, run in arm.by_seed.items()} for arm in measured}
    return Comparison(
        baseline=baseline,
        benchmark=primary,
        measure=measure_name(measure, comparisons[primary].samples),
        margin=margin,
        confidence=CONFIDENCE,
        seeds={arm.name: list(arm.by_seed) for arm in arms},
        failed={arm.name: dict(arm.failed) for arm in arms if arm.failed},
        benchmarks=comparisons,
        facts={
            arm.name: facts_by_seed(
                OF_TRAINING,
                {seed: training_facts(run, histories[arm.name][seed]) for seed, run in arm.by_seed.items()},
            )
            for arm in measured
        },
        curves=_curves(histories),
        published=published or {},
        notes=[*_notes(arms, reference, comparisons), *_costs(measured, prices or CostsConfig())],
    )


def _costs(arms: Sequence[Arm], prices: CostsConfig) -> Iterator[str]:
    """Yield what the results of all arms took together; those that runs share count once."""
    took = {result: cost for arm in arms for run in arm.runs for result, cost in run.took.items()}
    known = [cost for cost in took.values() if cost is not None]
    if known:
        unknown = f"; {len(took) - len(known)} of {len(took)} are not recorded" if len(known) < len(took) else ""
        yield f"What the results behind these arms took, each counted once: {in_words(together(known), prices)}{unknown}."


def write_comparison(comparison: Comparison, directory: Path) -> None:
    """Write `comparison.json` and `comparison.html`, which needs nothing else, neither network nor scripts.

    Args:
        comparison: The comparison.
        directory: Where to; it is made if need be.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / JSON, _tree(comparison))
    (directory / PAGE).write_text(comparison_page(comparison), encoding="utf-8")


def _check_arms(arms: Sequence[Arm], baseline: str, margin: float) -> None:
    names = [arm.name for arm in arms]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"comparison: two arms are called {twice[0]!r}: give each a name of its own")
    if baseline not in names:
        raise ConfigError(f"comparison: baseline {baseline!r} is not an arm: choose one of {', '.join(names)}")
    if not (math.isfinite(margin) and margin > 0):
        raise ConfigError(f"comparison: margin of equivalence {margin:g}: it must be a positive number of points")
    for arm in arms:
        seeds = [run.seed for run in arm.runs]
        for seed in seeds:
            if seeds.count(seed) > 1:
                raise ConfigError(f"comparison: arm {arm.name} has two runs with seed {seed}: leave one out")
    if not next(arm for arm in arms if arm.name == baseline).runs:
        raise ConfigError(
            f"comparison: no run of the baseline {baseline} has an evaluation: run it to its end, or choose another baseline"
        )


def _benchmarks(arms: Sequence[Arm], wanted: str | None) -> list[str]:
    """Return the benchmarks that every run has."""
    of_runs = [set(run.evaluation["models"]["trained"]) for arm in arms for run in arm.runs]
    common = sorted(set.intersection(*of_runs))
    if not common:
        raise ConfigError("comparison: no benchmark was measured in all runs: evaluate them alike")
    if wanted is not None and wanted not in common:
        raise ConfigError(
            f"comparison: benchmark {wanted!r} was not measured in all runs: choose one of {', '.join(common)}"
        )
    return common


def _require_comparable(arms: Sequence[Arm], reference: Arm, benchmarks: Sequence[str]) -> None:
    """Refuse runs that were not measured alike, by the function by which promotion does. Mixing in samples belongs to the arm."""
    first = reference.runs[0]
    standard = _without_mixing(Measured.of(first.evaluation, "trained", _run_name(reference, first)))
    for arm in arms:
        for run in arm.runs:
            for name in benchmarks:
                measured = _without_mixing(Measured.of(run.evaluation, "trained", _run_name(arm, run)))
                problem = obstacle(name, measured, standard)
                if problem is not None:
                    raise ConfigError(f"comparison: {problem}")
                if "stopped" in run.evaluation["models"]["trained"][name]:
                    raise ConfigError(
                        f"comparison: the evaluation of {_run_name(arm, run)} on {name} stopped early, once the verdict of the gate was "
                        "settled: run it again without evaluation.early_stop, which generates the samples that are missing"
                    )


def _without_mixing(measured: Measured) -> Measured:
    protocols = {
        name: {**protocol, "sampling": {**protocol.get("sampling", {}), "mixing": None}}
        for name, protocol in measured.protocols.items()
    }
    return dataclasses.replace(measured, protocols=protocols)


def _mixing(arm: Arm, benchmark: str) -> object:
    """Return the mixing that samples of an arm were drawn with; None without."""
    protocols = Measured.of(arm.runs[0].evaluation, "trained", arm.name).protocols
    return protocols.get(benchmark, {}).get("sampling", {}).get("mixing")


def _run_name(arm: Arm, run: ComparedRun) -> str:
    return f"{arm.name} with seed {run.seed}"


def _curves(histories: Mapping[str, Mapping[int, Sequence[Any]]]) -> dict[str, dict[str, Line]]:
    curves: dict[str, dict[str, Line]] = {}
    for metric in CURVES:
        for arm, of_seeds in histories.items():
            line = _curve({seed: logged(history, metric) for seed, history in of_seeds.items()})
            if line is not None:
                curves.setdefault(metric, {})[arm] = line
    return curves


def _curve(by_seed: Mapping[int, tuple[list[float], list[float]]]) -> Line | None:
    """Return the mean over seeds at the steps that all seeds with any have, with the lowest and the highest seed."""
    known = {seed: dict(zip(*points, strict=True)) for seed, points in by_seed.items() if points[0]}
    if not known:
        return None
    steps = sorted(set.intersection(*(set(points) for points in known.values())))
    if not steps:
        return None
    merged = math.ceil(len(steps) / _MOST_POINTS)
    table = np.array([[points[step] for step in steps] for points in known.values()])
    starts = range(0, len(steps), merged)
    smooth = np.stack([table[:, start : start + merged].mean(axis=1) for start in starts], axis=1)
    return Line(
        [steps[start : start + merged][-1] for start in starts],
        smooth.mean(axis=0).tolist(),
        smooth.min(axis=0).tolist(),
        smooth.max(axis=0).tolist(),
        list(known),
    )


def _notes(arms: Sequence[Arm], reference: Arm, comparisons: Mapping[str, BenchmarkComparison]) -> list[str]:
    notes = []
    for arm in arms:
        for seed, reason in sorted(arm.failed.items()):
            rest = f"its other {len(arm.runs)} count" if arm.runs else "it has no other run and is left out"
            notes.append(f"{arm.name} failed with seed {seed} ({reason}); {rest}.")
    for arm in arms:
        if arm is reference or not arm.runs:
            continue
        if any(_mixing(arm, name) != _mixing(reference, name) for name in comparisons):
            notes.append(
                f"The samples of {arm.name} were drawn with other mixing (evaluation.mixing) than those of {reference.name}: their "
                "difference is that of the models and of this."
            )
        shared = sorted(arm.by_seed.keys() & reference.by_seed.keys())
        if not shared:
            notes.append(
                f"{arm.name} and {reference.name} share no seed: their means over seeds were paired by problem, and intervals are over "
                "problems alone."
            )
        elif len(shared) == 1:
            notes.append(
                f"{arm.name} and {reference.name} share one seed: intervals are over problems alone and say nothing of another training "
                "run."
            )
        elif len(shared) < max(len(arm.runs), len(reference.runs)):
            notes.append(
                f"{arm.name} is paired with {reference.name} by seeds {', '.join(map(str, shared))}, which both have."
            )
    notes += [
        f"{name} has one problem: the results hold for that problem alone."
        for name, each in comparisons.items()
        if each.problems == 1
    ]
    if all(
        len(arm.by_seed.keys() & reference.by_seed.keys()) < SIGN_FLIP_SEEDS for arm in arms if arm is not reference
    ):
        notes.append(f"No sign-flip test over seeds: it needs {SIGN_FLIP_SEEDS} seeds that two arms share.")
    measured = {name for arm in arms for run in arm.runs for name in run.evaluation["models"]["trained"]}
    left = sorted(measured - comparisons.keys())
    if left:
        notes.append(f"Left out, for not all runs measured them: {', '.join(left)}.")
    return notes


def _tree(comparison: Comparison) -> dict[str, Any]:
    return dataclasses.asdict(comparison)
