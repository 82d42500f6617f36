"""What the report says of the evaluation: the headline, a table and a pass@k curve for each benchmark, and the promotion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from ngrpo.config import RunConfig
from ngrpo.contracts.evaluation import Evaluation
from ngrpo.evaluation.protocol import difference
from ngrpo.evaluation.statistics import (
    Floats,
    best_at_k,
    bootstrap_intervals,
    mean_at_n,
    paired_difference,
    pass_at_k,
)
from ngrpo.report.figures import Curve, line_chart

STYLES = {"base": "base", "warm_start": "first", "trained": "second", "champion": "third"}
"""CSS class of each model's line, in the order of the models."""

Counts = NDArray[np.int64]
"""Correct samples of each problem."""

Result = Mapping[str, Any]
"""`ngrpo.contracts.evaluation.Result`, whose statistics are looked up by name here."""


@dataclass(frozen=True)
class Estimate:
    """A number as it is printed, with its interval where it has one."""

    value: str
    interval: str | None = None


@dataclass(frozen=True)
class Row:
    """A line of a results table: a statistic of every model, and what training changed."""

    name: str
    estimates: list[Estimate]
    difference: Estimate


@dataclass(frozen=True)
class BenchmarkView:
    """One benchmark."""

    name: str
    problems: int
    samples: int
    models: list[str]
    """Which models were measured on it: keys of `STYLES`."""
    rows: list[Row]
    curve: Markup
    champion: str | None
    """Why the champion was left out; none where it was not, or where there was no champion."""
    stopped: str | None = None
    """That the evaluation stopped early, and what that saved; none where it did not."""


def benchmark_views(
    evaluation: Evaluation, config: RunConfig, champion: Evaluation | None = None
) -> list[BenchmarkView]:
    """Return every benchmark, the one that decides on promotion first.

    Args:
        evaluation: `evaluation.json` of the stage `benchmark_evaluation`.
        config: Configuration of the run.
        champion: The same of the champion that the trained model met, if there was one.
    """
    models = evaluation["models"]
    views = []
    for name in sorted(models["trained"], key=lambda name: (name != config.promotion.benchmark, name)):
        theirs, left_out = _champion(name, evaluation, champion)
        results = {model: of[name] for model, of in models.items()}
        views.append(
            _benchmark_view(name, results if theirs is None else results | {"champion": theirs}, config, left_out)
        )
    return views


def headline(benchmarks: list[BenchmarkView], config: RunConfig) -> str:
    """Return the result in one sentence, without a verdict."""
    main = benchmarks[0]
    row = main.rows[0]
    before, after = (row.estimates[main.models.index(model)].value for model in ("warm_start", "trained"))
    return (
        f"mean@{main.samples} on {config.title(main.name)}: {before} → {after} %, "
        f"a difference of {row.difference.value} points ({100 * config.evaluation.confidence:g} % interval {row.difference.interval})"
    )


def _champion(name: str, evaluation: Evaluation, champion: Evaluation | None) -> tuple[Result | None, str | None]:
    """Return the champion's result on a benchmark if it was measured alike; if not, why not."""
    if champion is None:
        return None, None
    if name not in champion["models"]["trained"]:
        return None, "was not measured on it"
    ours, theirs = (of.get("protocols", {}).get("trained", {}).get(name) for of in (evaluation, champion))
    differs = difference(ours, theirs)
    return (
        (champion["models"]["trained"][name], None) if differs is None else (None, f"was not measured alike: {differs}")
    )


def _benchmark_view(name: str, results: Mapping[str, Result], config: RunConfig, left_out: str | None) -> BenchmarkView:
    trained = results["trained"]
    n = trained["n_samples"]
    # In the order in which the intervals of evaluation.json were drawn, so that table and curve show the same ends.
    problems = list(trained["per_problem"])

    def counts(field: str, result: Result) -> Counts:
        return np.array([result[field][problem] for problem in problems])

    def row(label: str, field: str, values: Callable[[Result], Floats], k: str | None = None) -> Row:
        # Evaluations of earlier versions have no best@k, but what it follows from.
        estimates = [
            Estimate(f"{100 * values(result).mean():.1f}")
            if field == "best_at_k" and field not in result
            else _estimate(result, field, k)
            for result in results.values()
        ]
        return Row(label, estimates, _difference(values(results["warm_start"]), values(trained), config))

    def solved(k: int) -> Callable[[Result], Floats]:
        return lambda result: pass_at_k(counts("per_problem", result), result["n_samples"], k)

    def best(k: int) -> Callable[[Result], Floats]:
        return lambda result: best_at_k(counts("per_problem", result), result["n_samples"], k)

    def plain(label: str, field: str, form: str = ".1f", scale: int = 100) -> Row:
        values = [scale * result[field] for result in results.values()]
        change = scale * (trained[field] - results["warm_start"][field])
        return Row(label, [Estimate(format(value, form)) for value in values], Estimate(signed(change, form)))

    def correct(field: str) -> Callable[[Result], Floats]:
        return lambda result: mean_at_n(counts(field, result), result["n_samples"])

    # Unbiased pass@1 is the mean: one row.
    rows = [row(f"mean@{n} = pass@1", "mean", correct("per_problem"))]
    if "string_match" in trained:
        label = f"mean@{n} by string match"
        rows.append(row(label, "string_match", correct("per_problem_string_match")))
    rows.append(row(f"maj@{n}", "maj", lambda result: counts("per_problem_maj", result).astype(float)))
    rows += [row(f"pass@{k}", "pass_at_k", solved(int(k)), k) for k in trained["pass_at_k"] if int(k) > 1]
    rows += [row(f"best@{k}", "best_at_k", best(int(k)), k) for k in trained["pass_at_k"] if int(k) > 1]
    rows += [
        plain("mean response, tokens", "mean_tokens", scale=1),
        plain("cut off at the token limit, %", "truncated_rate"),
        plain("without an answer, %", "ungraded_rate"),
        plain("different answers among samples, %", "distinct_answers"),
        plain("answers that could not be read", "grader_errors", "d", scale=1),
    ]
    solved_by_model = {model: (counts("per_problem", result), result["n_samples"]) for model, result in results.items()}
    curve = _curve(name, solved_by_model, config)
    return BenchmarkView(name, len(problems), n, list(results), rows, curve, left_out, _stopped(trained, len(problems)))


def _stopped(trained: Result, problems: int) -> str | None:
    """Say that the evaluation of the trained model stopped early, and what that saved; nothing where it did not."""
    if "stopped" not in trained:
        return None
    planned, generated = trained["stopped"]["planned_samples"], trained["n_samples"]
    return (
        f"The trained model has {generated} of {planned} planned samples of each problem, for the verdict of the gate was settled by them: "
        f"{problems * (planned - generated):,} of {problems * planned:,} samples were saved. The other models have all theirs."
    )


def _estimate(result: Result, field: str, k: str | None) -> Estimate:
    """Return a statistic in percent; a dash where a champion of other settings was not asked for it."""
    value, interval = result.get(field), result.get(f"{field}_ci")
    if k is not None and value is not None and interval is not None:
        value, interval = value.get(k), interval.get(k)
    if value is None or interval is None:
        return Estimate("–")
    low, high = interval
    return Estimate(f"{100 * value:.1f}", f"{100 * low:.1f} to {100 * high:.1f}")


def _difference(before: Floats, after: Floats, config: RunConfig) -> Estimate:
    settings = config.evaluation
    mean, low, high = paired_difference(
        after, before, confidence=settings.confidence, draws=settings.bootstrap_draws, seed=config.seed
    )
    return Estimate(signed(100 * mean), f"{signed(100 * low)} to {signed(100 * high)}")


def _curve(name: str, solved: Mapping[str, tuple[Counts, int]], config: RunConfig) -> Markup:
    curves = []
    settings = config.evaluation
    for model, (counts, n) in solved.items():
        values = np.stack([pass_at_k(counts, n, k) for k in range(1, n + 1)], axis=1)
        band = bootstrap_intervals(
            values, confidence=settings.confidence, draws=settings.bootstrap_draws, seed=config.seed
        )
        ends = [(low, high) for low, high in band.tolist()]
        curves.append(Curve(STYLES[model], range(1, n + 1), values.mean(axis=0).tolist(), ends))
    label = f"pass@k on {name} before and after training" + (", and of the champion" if "champion" in solved else "")
    return line_chart(curves, label=label, x_label="k", percent=True, width=420, height=260)


def signed(value: float, form: str = ".1f") -> str:
    """Return a number with its sign, as it is printed; what rounds to zero has none."""
    text = format(value, "+" + form)
    return text.replace("-", "−") if float(text) else text[1:]
