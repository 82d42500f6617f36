"""What the report says of the evaluation: the headline, a table and a pass@k curve for each benchmark, and the promotion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from ngrpo.config import RunConfig
from ngrpo.evaluation.figures import Curve, line_chart
from ngrpo.evaluation.protocol import difference
from ngrpo.evaluation.statistics import Floats, bootstrap_intervals, mean_at_n, paired_difference, pass_at_k

MODELS = ("warm_start", "trained")

Counts = NDArray[np.int64]
"""Correct samples of each problem."""


@dataclass(frozen=True)
class Estimate:
    """A number as it is printed, with its interval where it has one."""

    value: str
    interval: str | None = None


@dataclass(frozen=True)
class Row:
    """A line of a results table: a statistic of the model before training, after it, and after minus before."""

    name: str
    before: Estimate
    after: Estimate
    difference: Estimate


@dataclass(frozen=True)
class BenchmarkView:
    """One benchmark."""

    name: str
    problems: int
    samples: int
    rows: list[Row]
    curve: Markup
    champion: str | None
    """Why the champion has no curve; none where it has one, or where there was no champion."""


def benchmark_views(
    evaluation: Mapping[str, Any], config: RunConfig, champion: Mapping[str, Any] | None = None
) -> list[BenchmarkView]:
    """Return every benchmark, the one that decides on promotion first.

    Args:
        evaluation: `evaluation.json` of the stage `benchmark_evaluation`.
        config: Configuration of the run.
        champion: The same of the champion that the trained model met, if there was one.
    """
    before, after = (evaluation["models"][model] for model in MODELS)
    names = sorted(before, key=lambda name: (name != config.promotion.benchmark, name))
    return [
        _benchmark_view(name, before[name], after[name], config, *_champion(name, evaluation, champion))
        for name in names
    ]


def headline(benchmarks: list[BenchmarkView], config: RunConfig) -> str:
    """Return the result in one sentence, without a verdict."""
    main = benchmarks[0]
    row = main.rows[0]
    return (
        f"{row.name} on {main.name}: {row.before.value} → {row.after.value} %, "
        f"a difference of {row.difference.value} points ({100 * config.evaluation.confidence:g} % interval {row.difference.interval})"
    )


def _champion(
    name: str, evaluation: Mapping[str, Any], champion: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any] | None, str | None]:
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


def _benchmark_view(
    name: str,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    config: RunConfig,
    champion: Mapping[str, Any] | None,
    left_out: str | None,
) -> BenchmarkView:
    n = before["n_samples"]
    # In the order in which the intervals of evaluation.json were drawn, so that table and curve show the same ends.
    problems = list(before["per_problem"])
    counts = [np.array([result["per_problem"][problem] for problem in problems]) for result in (before, after)]
    rows = [
        _mean_row(before, after, counts, config),
        *([_string_match_row(before, after, problems, config)] if "string_match" in before else []),
        _majority_row(before, after, problems, config),
        *(_pass_row(int(k), before, after, counts, config) for k in before["pass_at_k"]),
        _plain_row("mean response, tokens", before["mean_tokens"], after["mean_tokens"], ".1f"),
        _plain_row(
            "cut off at the token limit, %", 100 * before["truncated_rate"], 100 * after["truncated_rate"], ".1f"
        ),
        _plain_row("without an answer, %", 100 * before["ungraded_rate"], 100 * after["ungraded_rate"], ".1f"),
        _plain_row(
            "different answers among samples, %",
            100 * before["distinct_answers"],
            100 * after["distinct_answers"],
            ".1f",
        ),
        _plain_row("grader errors", before["grader_errors"], after["grader_errors"], "d"),
    ]
    if champion is not None:
        counts.append(np.array([champion["per_problem"][problem] for problem in problems]))
    return BenchmarkView(name, len(problems), n, rows, _curve(name, counts, n, config), left_out)


def _mean_row(before: Mapping[str, Any], after: Mapping[str, Any], counts: list[Counts], config: RunConfig) -> Row:
    n = before["n_samples"]
    first, second = (_estimate(result["mean"], result["mean_ci"]) for result in (before, after))
    return Row(f"mean@{n}", first, second, _difference([mean_at_n(count, n) for count in counts], config))


def _majority_row(before: Mapping[str, Any], after: Mapping[str, Any], problems: list[str], config: RunConfig) -> Row:
    first, second = (_estimate(result["maj"], result["maj_ci"]) for result in (before, after))
    values = [np.array([result["per_problem_maj"][problem] for problem in problems]) for result in (before, after)]
    return Row(f"maj@{before['n_samples']}", first, second, _difference(values, config))


def _string_match_row(
    before: Mapping[str, Any], after: Mapping[str, Any], problems: list[str], config: RunConfig
) -> Row:
    n = before["n_samples"]
    first, second = (_estimate(result["string_match"], result["string_match_ci"]) for result in (before, after))
    matches = [
        np.array([result["per_problem_string_match"][problem] for problem in problems]) for result in (before, after)
    ]
    return Row(
        f"mean@{n} by string match", first, second, _difference([mean_at_n(match, n) for match in matches], config)
    )


def _pass_row(
    k: int, before: Mapping[str, Any], after: Mapping[str, Any], counts: list[Counts], config: RunConfig
) -> Row:
    n = before["n_samples"]
    first, second = (
        _estimate(result["pass_at_k"][str(k)], result["pass_at_k_ci"][str(k)]) for result in (before, after)
    )
    return Row(f"pass@{k}", first, second, _difference([pass_at_k(count, n, k) for count in counts], config))


def _plain_row(name: str, before: float, after: float, form: str) -> Row:
    first, second = (Estimate(format(value, form)) for value in (before, after))
    return Row(name, first, second, Estimate(signed(after - before, form)))


def _estimate(value: float, interval: tuple[float, float]) -> Estimate:
    low, high = interval
    return Estimate(f"{100 * value:.1f}", f"{100 * low:.1f} to {100 * high:.1f}")


def _difference(per_problem: list[Floats], config: RunConfig) -> Estimate:
    before, after = per_problem
    settings = config.evaluation
    mean, low, high = paired_difference(
        after, before, confidence=settings.confidence, draws=settings.bootstrap_draws, seed=config.seed
    )
    return Estimate(signed(100 * mean), f"{signed(100 * low)} to {signed(100 * high)}")


def _curve(name: str, counts: list[Counts], n: int, config: RunConfig) -> Markup:
    curves = []
    settings = config.evaluation
    for style, count in zip(("first", "second", "third"), counts, strict=False):
        values = np.stack([pass_at_k(count, n, k) for k in range(1, n + 1)], axis=1)
        band = bootstrap_intervals(
            values, confidence=settings.confidence, draws=settings.bootstrap_draws, seed=config.seed
        )
        ends = [(low, high) for low, high in band.tolist()]
        curves.append(Curve(style, range(1, n + 1), values.mean(axis=0).tolist(), ends))
    label = f"pass@k on {name} before and after training" + (", and of the champion" if len(counts) == 3 else "")
    return line_chart(curves, label=label, x_label="k", percent=True, width=500, height=270)


def signed(value: float, form: str = ".1f") -> str:
    """Return a number with its sign, as it is printed; what rounds to zero has none."""
    text = format(value, "+" + form)
    return text.replace("-", "−") if float(text) else text[1:]
