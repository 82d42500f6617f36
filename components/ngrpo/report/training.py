"""What the report says of training: learning curves, and how the mixed steps behaved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from markupsafe import Markup

from ngrpo.config import RunConfig
from ngrpo.contracts.history import Entry
from ngrpo.report.figures import Curve, histogram, line_chart
from ngrpo.report.neighbors import quoted_examples

_MOST_POINTS = 300

_LOW_COSINE = 0.95
"""Below this the paper counts a mixed embedding as far from its anchor."""

_CURVES = (
    ("reward", "Reward, mean", False),
    ("eval_mean", "Validation, correct answers, %", True),
    ("kl", "KL divergence from the reference", False),
    ("entropy", "Entropy, nats", False),
    ("completions/mean_length", "Response length, tokens", False),
    ("diversity/distinct_answers", "Distinct answers in a group, %", True),
    ("diversity/distinct_4grams", "Distinct 4-grams in a group, %", True),
    ("mixing/gate_rate", "Mixed steps, % of response tokens", True),
    ("mixing/anchor_cosine", "Cosine of mixture and anchor, mean", False),
    ("mismatch/unmixed_mean", "Log-probabilities, engine and trainer: mean difference on unmixed steps", False),
    ("mismatch/unmixed_p99", "Log-probabilities, engine and trainer: 99th percentile on unmixed steps", False),
    ("mismatch/mixed_mean", "Log-probabilities, engine and trainer: mean difference on mixed steps", False),
)


@dataclass(frozen=True)
class Panel:
    """A learning curve.

    Attributes:
        title: What it shows.
        figure: The chart.
        merged: Log entries that each point averages.
        ends: The first and the last point as they are printed.
    """

    title: str
    figure: Markup
    merged: int
    ends: tuple[str, str]


@dataclass(frozen=True)
class MixingView:
    """How the mixed steps behaved; numbers are none where nothing was logged.

    Attributes:
        gate_rate: Mixed share of the response tokens, mean over steps.
        eligible_gate_rate: Mixed share of those response tokens that might have been mixed, mean over steps.
        mixed_steps: Number of mixed steps whose cosine was taken.
        cosine_mean: Mean over training steps of the mean cosine between mixture and anchor.
        cosine_min: Lowest that was logged.
        below: Share of the mixed steps with a cosine below 0.95.
        floor: Cosines below this are counted in the lowest bin.
        histogram: Chart of the cosines.
        neighbors: Tokens, quoted, with their nearest neighbors and their similarities.
    """

    gate_rate: float | None
    eligible_gate_rate: float | None
    mixed_steps: int
    cosine_mean: float | None
    cosine_min: float | None
    below: float | None
    floor: float
    histogram: Markup | None
    neighbors: list[tuple[str, list[tuple[str, float]]]]


def learning_curves(history: Sequence[Entry], config: RunConfig) -> tuple[list[Panel], list[str]]:
    """Return the learning curves of N-GRPO, and the titles of those of which nothing was logged.

    Args:
        history: `log_history.json` of the stage `ngrpo_training`.
        config: Configuration of the run.
    """
    panels, missing = [], []
    rewards = [(f"rewards/{name}/mean", f"Reward {name}, mean", False) for name in config.training.rewards]
    for name, title, percent in (_CURVES[0], *rewards, *_CURVES[1:]):
        if name == "eval_mean" and config.training.selection is None:
            continue
        reference = config.mixing.rate if name == "mixing/gate_rate" else None
        panel = _panel(history, name, title, percent=percent, reference=reference)
        if panel is None:
            missing.append(title)
        else:
            panels.append(panel)
    return panels, missing


def warm_start_curve(history: Sequence[Entry]) -> Panel | None:
    """Return the loss of the warm start, or none if there was none; `history` is its `log_history.json`."""
    return _panel(history, "loss", "Warm start: loss", style="first")


def mixing_view(
    history: Sequence[Entry], cosines: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]
) -> MixingView:
    """Return how the mixed steps behaved.

    Args:
        history: `log_history.json` of the stage `ngrpo_training`.
        cosines: Its `anchor_cosine_histogram.json`.
        examples: Its `example_neighbors.json`.
    """
    rates, of_eligible, means, lowest = (
        _logged(history, f"mixing/{name}")[1]
        for name in ("gate_rate", "eligible_gate_rate", "anchor_cosine", "anchor_cosine_min")
    )
    edges, counts = cosines["edges"], cosines["counts"]
    total = sum(counts)
    below = sum(count for end, count in zip(edges[1:], counts, strict=True) if end <= _LOW_COSINE)
    figure = None
    if total:
        label = "Histogram of the cosine between mixture and anchor"
        figure = histogram(edges, counts, label=label, x_label="cosine of mixture and anchor", mark=_LOW_COSINE)
    return MixingView(
        gate_rate=fmean(rates) if rates else None,
        eligible_gate_rate=fmean(of_eligible) if of_eligible else None,
        mixed_steps=total,
        cosine_mean=fmean(means) if means else None,
        cosine_min=min(lowest, default=None),
        below=below / total if total else None,
        floor=edges[0],
        histogram=figure,
        neighbors=quoted_examples(examples),
    )


def _panel(
    history: Sequence[Entry],
    name: str,
    title: str,
    *,
    percent: bool = False,
    reference: float | None = None,
    style: str = "second",
) -> Panel | None:
    steps, values = _logged(history, name)
    if not values:
        return None
    merged = math.ceil(len(values) / _MOST_POINTS)
    starts = range(0, len(values), merged)
    curve = Curve(
        style,
        [steps[start : start + merged][-1] for start in starts],
        [fmean(values[start : start + merged]) for start in starts],
    )
    figure = line_chart([curve], label=title, x_label="step", percent=percent, reference=reference)
    scale, unit = (100.0, " %") if percent else (1.0, "")
    first, last = (f"{scale * value:.4g}{unit}" for value in (curve.y[0], curve.y[-1]))
    return Panel(title, figure, merged, (first, last))


def _logged(history: Sequence[Entry], name: str) -> tuple[list[float], list[float]]:
    """Return the steps at which a metric was logged as a number, and its values."""
    logged = [
        (step, value)
        for entry in history
        if isinstance(step := entry["step"], int | float)
        and isinstance(value := entry.get(name), int | float)
        and math.isfinite(value)
    ]
    return [step for step, _ in logged], [value for _, value in logged]
