"""Drift of a model that is measured repeatedly: whether its answers got worse, with one false alarm rate for the whole series.

The first evaluation drew n samples of each problem; each look draws more, with fresh seeds. As long as the model is the same, the
probability p that a sample of a problem is correct is the same. The problems are the same too, so they add no noise. The samples do:
with M samples of all looks together, the drop d = mean@n - mean@M has the variance (1/n + 1/M) times the mean over
problems of p(1 - p) divided by their number. The first evaluation's noise stays in every look.

d over its variance is a Brownian motion with drift in the time 1/variance, as any such sum is in a group-sequential trial (Jennison and
Turnbull, Group Sequential Methods with Applications to Clinical Trials, 2000, chapter 11). Its time ends at M = infinity, so the
fraction t = M / (n + M) of it has passed at a look, whatever follows: the number of looks need not be known in advance. The false alarm
rate alpha is spent as t grows, as alpha log(1 + (e - 1) t) (Lan and DeMets, Discrete Sequential Boundaries for Clinical Trials, 1983). The
limit of each look is chosen so that this share of Brownian paths exceeds a limit for the first time there; the paths are simulated, with a
fixed seed.

The test is for a drop of more than a margin. A champion was promoted because its evaluation went well, so part of its score was luck, and
losing that part is not the served model's fault. The margin must allow for it (docs/watch.md has figures).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ngrpo.evaluation.statistics import Floats

_PATHS = 400_000
_SEED = 20
_UNSEEN = 0.25
"""Largest variance of a sample. One problem with it is added, for the case that all samples agree."""


@dataclass(frozen=True)
class Drift:
    """Result of a look, as fractions.

    Attributes:
        drop: By how much the first evaluation was better than all looks together.
        low: Lower end of its interval. The lower ends of all looks together hold with probability 1 - alpha, and so do the upper ends.
        high: Its upper end.
        alarm: Whether the drop is more than the margin.
    """

    drop: float
    low: float
    high: float
    alarm: bool


def drifts(
    correct: ArrayLike, samples: int, looks: Sequence[tuple[ArrayLike, int]], *, margin: float, alpha: float
) -> list[Drift]:
    """Return the result of each look, from all samples up to it.

    Args:
        correct: Correct samples of each problem in the first evaluation, `[problems]`.
        samples: Samples of each problem in it.
        looks: For each look, the correct samples of each problem, in the same order, and the number of samples per problem.
        margin: Largest drop that raises no alarm, a fraction.
        alpha: Probability that an alarm is ever raised without a larger drop.

    Raises:
        ValueError: A look has another number of problems.
    """
    first = np.asarray(correct, dtype=np.float64)
    found, so_far, total = [], np.zeros_like(first), 0
    limits = limits_of_looks([size for _, size in looks], samples, alpha)
    for (right, size), limit in zip(looks, limits, strict=True):
        so_far, total = so_far + np.asarray(right, dtype=np.float64), total + size
        drop, deviation = estimate(first, samples, so_far, total)
        low, high = drop - limit * deviation, drop + limit * deviation
        found.append(Drift(float(drop), float(low), float(high), bool(low > margin)))
    return found


def estimate(first: Floats, samples: int, later: Floats, more: int) -> tuple[Floats, Floats]:
    """Return the drop and its standard deviation under the assumption that the model is the same, both `[...]`.

    Args:
        first: Correct samples of each problem in the first evaluation, `[..., problems]`.
        samples: Samples of each problem in it.
        later: Correct samples of each problem in all looks together, `[..., problems]`.
        more: Samples of each problem in all looks together.
    """
    problems, both, right = first.shape[-1], samples + more, first + later
    # Unbiased variance of a sample within its problem, from all samples.
    within = (right * (both - right) / (both * (both - 1))).sum(axis=-1) + _UNSEEN
    deviation = np.sqrt(within * (1 / samples + 1 / more)) / problems
    return (first / samples - later / more).mean(axis=-1), deviation


def limits_of_looks(sizes: Sequence[int], samples: int, alpha: float) -> list[float]:
    """Return how many standard deviations above the margin the drop must be at each look for an alarm.

    Args:
        sizes: Samples of each problem at each look.
        samples: Samples of each problem in the first evaluation.
        alpha: False alarm rate of the series.
    """
    random = np.random.default_rng(_SEED)
    walk = np.zeros(_PATHS)
    limits: list[float] = []
    before = gone = 0.0
    for total in np.cumsum(np.asarray(sizes, dtype=np.float64)):
        time = total / (samples + total)
        walk = walk + random.standard_normal(len(walk)) * np.sqrt(time - before)
        before = time
        score = walk / np.sqrt(time)
        may = int(_spent(time, alpha) * _PATHS - gone)
        limit = np.partition(score, -may - 1)[-may - 1]
        limits.append(float(limit))
        walk = walk[score <= limit]
        gone = _PATHS - len(walk)
    return limits


def _spent(time: float, alpha: float) -> float:
    return float(alpha * np.log1p((np.e - 1) * time))
