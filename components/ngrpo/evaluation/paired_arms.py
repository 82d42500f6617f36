"""Paired comparison of two arms over problems and over seeds: interval, p-values, equivalence.

`D[s, i]`, the difference of two arms with seed s on problem i, is modelled as `delta + seed_s + problem_i + rest_si`: a crossed design with
random seeds and random problems. An interval over problems alone holds for these two trained models, not for the two methods; one over
seeds alone holds for these problems. The estimate of delta is the mean of all of D, and its distribution combines two parts:

- Over seeds, Student's t with S - 1 degrees of freedom for the means of the seeds (a paired t-test). Its standard error includes `seed_s`
  and `rest_si`.
- Inside it, a bootstrap over problems of the problems' means over seeds, scaled to the variance of `problem_i` alone, because the first
  part already includes `rest_si`. The variance is estimated by the mean squares of the two-way layout (Searle, Casella and McCulloch,
  Variance Components, 1992, chapter 4).

Intervals and p-values come from the mixture of the t-distributions around the bootstrapped means. With one seed there is no first
part, and the result holds for these two models alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit

from ngrpo.evaluation.statistics import Floats, sign_flip_p_value

SIGN_FLIP_SEEDS = 8
"""Fewest seeds for a useful sign-flip test over seeds: its smallest two-sided p-value is 2^(1 - seeds)."""

_MOST_CENTRES = 2000
"""Most bootstrap draws that t-distributions are centred on: these are smooth, so that few draws are enough."""

_BLOCK = 2**22
"""Numbers held at a time while resampling."""


@dataclass(frozen=True)
class Paired:
    """Result of a paired comparison; all numbers are finite.

    Attributes:
        seeds: Seeds that both arms have; with one, everything holds for these two models alone.
        problems: Problems.
        difference: Mean of all differences.
        interval: Ends of the interval of `difference`, over seeds and problems.
        p_value: Two-sided p-value of "no difference", by the same distribution; with one seed by a sign-flip test over problems.
        equivalence_p: p-value of the two one-sided tests of "at least `margin` apart" (Schuirmann 1987), the larger of the two.
        seed_interval: Ends of the interval of the paired t-test over seeds, for these problems alone; none with one seed.
        seed_p: Its two-sided p-value; none with one seed.
        sign_flip_p: Two-sided p-value of the sign-flip test over seeds; none below `SIGN_FLIP_SEEDS`.
    """

    seeds: int
    problems: int
    difference: float
    interval: tuple[float, float]
    p_value: float
    equivalence_p: float
    seed_interval: tuple[float, float] | None
    seed_p: float | None
    sign_flip_p: float | None


def paired_arms(differences: ArrayLike, *, margin: float, confidence: float, draws: int, seed: int) -> Paired:
    """Compare two arms by their differences with each seed on each problem.

    Args:
        differences: `[seeds, problems]`, at least one of each.
        margin: Largest difference at which the arms count as equivalent, in the unit of the differences; positive.
        confidence: Level of the intervals.
        draws: Bootstrap draws, and patterns of a sign-flip test.
        seed: Seed of both.

    Raises:
        ValueError: The differences have another shape, or one of them is not finite.
    """
    table = np.asarray(differences, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape or not np.isfinite(table).all():
        raise ValueError(
            f"differences of shape {table.shape}: expected finite numbers [seeds, problems], at least one of each"
        )
    seeds, problems = table.shape
    tail = (1.0 - confidence) / 2.0
    mean = float(table.mean())
    distribution = _distribution(table, draws, seed)
    low, high = (distribution.quantile(share) for share in (tail, 1.0 - tail))
    above = distribution.below(0.0)
    p_value = min(1.0, 2.0 * min(above, distribution.above(0.0)))
    if seeds == 1:
        p_value = two_sided_sign_flip(table[0], draws=draws, seed=seed)
    over_seeds = None if seeds == 1 else paired_t(table.mean(axis=1), confidence=confidence)
    return Paired(
        seeds=seeds,
        problems=problems,
        difference=mean,
        interval=(low, high),
        p_value=p_value,
        equivalence_p=max(distribution.below(-margin), distribution.above(margin)),
        seed_interval=None if over_seeds is None else over_seeds[0],
        seed_p=None if over_seeds is None else over_seeds[1],
        sign_flip_p=two_sided_sign_flip(table.mean(axis=1), draws=draws, seed=seed)
        if seeds >= SIGN_FLIP_SEEDS
        else None,
    )


def paired_t(differences: ArrayLike, *, confidence: float) -> tuple[tuple[float, float], float]:
    """Return interval and two-sided p-value of Student's paired t-test.

    Args:
        differences: Difference of each pair, `[pairs]`, at least two.
        confidence: Level of the interval.

    Returns:
        Ends of the interval of the mean, and the p-value of a mean of 0. Without any variance the interval is a point, and the p-value 1
        where that is 0, else 0.
    """
    values = np.asarray(differences, dtype=np.float64)
    mean, freedom = float(values.mean()), len(values) - 1
    error = float(_without_rounding(float(values.std(ddof=1)), values) / np.sqrt(len(values)))
    if error == 0.0:
        return (mean, mean), float(mean == 0.0)
    reach = float(stdtrit(freedom, 0.5 + confidence / 2.0)) * error
    return (mean - reach, mean + reach), float(2.0 * stdtr(freedom, -abs(mean) / error))


def two_sided_sign_flip(differences: ArrayLike, *, draws: int, seed: int) -> float:
    """Return the two-sided p-value of `sign_flip_p_value`: twice the smaller of the two one-sided ones, at most 1."""
    values = np.asarray(differences, dtype=np.float64)
    return min(1.0, 2.0 * min(sign_flip_p_value(each, draws=draws, seed=seed) for each in (values, -values)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple comparisons, in the given order (Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979).

    The i-th smallest of m is multiplied by m - i + 1, and none is smaller than one before it.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


@dataclass(frozen=True)
class Solved:
    """How many problems two arms solve with at least one sample, averaged over seeds.

    Attributes:
        first_only: Solved by the first arm alone.
        second_only: Solved by the second arm alone.
        both: Solved by both.
        neither: Solved by neither.
    """

    first_only: float
    second_only: float
    both: float
    neither: float


def solved_by(first: ArrayLike, second: ArrayLike) -> Solved:
    """Count which of two arms solves a problem with at least one sample.

    Args:
        first: Correct samples, `[seeds, problems]`.
        second: The same for the other arm, with the same seeds and problems.
    """
    ours, theirs = np.asarray(first) > 0, np.asarray(second) > 0
    of_seeds = len(ours)
    counts = ((ours & ~theirs), (~ours & theirs), (ours & theirs), (~ours & ~theirs))
    return Solved(*(float(each.sum()) / of_seeds for each in counts))


@dataclass(frozen=True)
class _Mixture:
    """t-distributions of one scale around bootstrapped means."""

    means: Floats
    error: float
    freedom: int

    def below(self, value: float) -> float:
        """Return the probability of at most `value`. Without a t-part it is counted, and never 0 (Phipson and Smyth, 2010)."""
        if self.error == 0.0:
            return float(((self.means <= value).sum() + 1) / (len(self.means) + 1))
        return float(stdtr(self.freedom, (value - self.means) / self.error).mean())

    def above(self, value: float) -> float:
        """Return the probability of at least `value`."""
        return _Mixture(-self.means, self.error, self.freedom).below(-value)

    def quantile(self, share: float) -> float:
        if self.error == 0.0:
            return float(np.quantile(self.means, share))
        # Search a little beyond the outermost means plus the t-quantile, so that rounding cannot put the root outside.
        reach = 1.01 * abs(float(stdtrit(self.freedom, share))) * self.error
        low, high = float(self.means.min()) - reach, float(self.means.max()) + reach
        return float(brentq(lambda value: self.below(value) - share, low, high))


def _distribution(table: Floats, draws: int, seed: int) -> _Mixture:
    seeds = len(table)
    mean = table.mean()
    of_seeds, of_problems = table.mean(axis=1), table.mean(axis=0)
    if seeds == 1:
        return _Mixture(mean + _bootstrap(of_problems - mean, draws, seed), 0.0, 0)
    bootstrapped = _bootstrap(of_problems - mean, min(draws, _MOST_CENTRES), seed)
    error = _without_rounding(float(of_seeds.std(ddof=1)), table) / np.sqrt(seeds)
    return _Mixture(mean + _problems_alone(table) * bootstrapped, float(error), seeds - 1)


def _problems_alone(table: Floats) -> float:
    """Return the factor that scales a bootstrap of the problems' means to the variance of `problem_i` alone."""
    seeds, problems = table.shape
    if problems == 1:
        return 0.0
    of_seeds, of_problems = table.mean(axis=1), table.mean(axis=0)
    between = seeds * of_problems.var(ddof=1)
    rest = table - of_seeds[:, None] - of_problems + table.mean()
    within = (rest**2).sum() / ((seeds - 1) * (problems - 1))
    if between <= within:
        return 0.0
    # A bootstrap divides by the number of problems where an unbiased variance divides by one less.
    return float(np.sqrt((between - within) / between * problems / (problems - 1)))


def _bootstrap(values: Floats, draws: int, seed: int) -> Floats:
    """Return the means of `values`, `[problems]`, under `draws` resamplings."""
    random = np.random.default_rng(seed)
    means = np.empty(draws)
    block = max(1, _BLOCK // len(values))
    for start in range(0, draws, block):
        size = min(block, draws - start)
        means[start : start + size] = values[random.integers(len(values), size=(size, len(values)))].mean(axis=1)
    return means


def _without_rounding(deviation: float, values: Floats) -> float:
    """Return a standard deviation, 0 where only floating-point error separates equal numbers."""
    return 0.0 if deviation <= 1e-12 * max(1.0, float(np.abs(values).max())) else deviation
