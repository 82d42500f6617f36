"""Stochastic curtailment: whether the samples so far settle the verdict that the gate would give on all planned samples.

An evaluation plans n samples of every problem and generates them in rounds: after each, every problem has the same number m of them. The
samples of a problem are exchangeable, so given the results of all n, the first m are a random subset. The per-problem value of the gate's
statistic, mean@m or the unbiased pass@K of m samples, is a U-statistic: over random subsets its expectation is the value of all n samples
(Hoeffding, A Class of Statistics with Asymptotically Normal Distribution, 1948). So the gain of m samples minus that of all n has mean
zero given the latter, whatever the problems' difficulties are: no prior is needed. Its variance is a sum over problems, each estimated by
the jackknife (Efron and Stein, The Jackknife Estimate of Variance, 1981) times 1 - m/n, the correction for a finite population.

The gate compares a bootstrap bound of the gain, which depends on the variance of the differences over problems too. With m samples that
variance is larger by the mean of the variances above; subtracting this mean predicts the final variance, and with it the final bound.

The verdict is settled once the predicted bound is more than z standard deviations away from the gate's threshold, where z is the normal
quantile of `error` divided among all looks and all bounds of the gate. By the union bound, the verdict at any such look is that of all
samples with probability 1 - `error`, whenever one chooses to stop. That is stochastic curtailment (Lan, Simon and Halperin, Stochastically
Curtailed Tests in Long-Term Clinical Trials, 1982) with the looks of a group-sequential trial.
If the values of only a few problems can still change, z is the quantile of Student's t with the degrees of freedom of the variance estimate
(Satterthwaite, An Approximate Distribution of Estimates of Variance Components, 1946). Both are approximations;
`python -m tests.benchmarks early_stopping` measures their error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from ngrpo.evaluation.statistics import Floats, mean_at_n, pass_at_k

_LEAST_SPREAD = 0.05
"""Smallest share of the variance over problems that may remain once the noise of the samples is subtracted."""


@dataclass(frozen=True)
class Counts:
    """The samples of one model on a benchmark.

    Attributes:
        correct: Correct samples of each problem, `[..., problems]`.
        generated: Samples of each problem, m.
        planned: Samples of each problem that were planned, n.
    """

    correct: ArrayLike
    generated: int
    planned: int

    @property
    def complete(self) -> bool:
        """Whether all planned samples are there."""
        return self.generated == self.planned


def looks(planned: int, statistic: str) -> list[int]:
    """Return the numbers of samples per problem at which the verdict may be found settled: 2, 3, 4, 6, 8, 12 and so on.

    Args:
        planned: Planned samples per problem.
        statistic: `mean`, or `pass@K`, whose variance takes at least K + 1 samples to estimate. `maj` has no looks, because maj@n of fewer
            samples is another quantity.
    """
    if statistic == "maj":
        return []
    powers = [2**exponent for exponent in range(1, planned.bit_length())]
    steps = sorted({*powers, *(3 * power // 2 for power in powers)})
    return [step for step in steps if _drawn(statistic) < step < planned]


def values(statistic: str, correct: ArrayLike, samples: int) -> Floats:
    """Return `mean` or `pass@K` of each problem as a fraction; see `ngrpo.evaluation.statistics`."""
    if statistic == "mean":
        return mean_at_n(correct, samples)
    return pass_at_k(correct, samples, _drawn(statistic))


def error_of_a_look(error: float, ours: Counts, theirs: Counts, statistic: str, bounds: int) -> float:
    """Return the share of `error` for one bound at one look.

    Args:
        error: Probability that the verdict may differ from that of all samples.
        ours: Samples of the candidate.
        theirs: Samples of the opponent; if they are not complete either, every pair of looks gets a share.
        statistic: `mean` or `pass@K`.
        bounds: Number of bounds of the gate.
    """
    chances = bounds
    for counts in (ours, theirs):
        if not counts.complete:
            chances *= max(len(looks(counts.planned, statistic)), 1)
    return error / chances


@dataclass(frozen=True)
class Foreseen:
    """Prediction of the lower bound that all samples will give for a gain, as fractions.

    Attributes:
        bound: The predicted bound, `[...]`.
        deviation: Standard deviation of the final bound around it, `[...]`.
        freedom: Degrees of freedom of that estimate, `[...]`: few if only a few problems can still change.
    """

    bound: Floats
    deviation: Floats
    freedom: Floats

    def side(self, threshold: float, error: float) -> Floats:
        """Return 1 where the bound will be above a threshold, -1 where it will not, and 0 where that is open, `[...]`.

        Args:
            threshold: The gain that the gate requires, a fraction.
            error: Probability that the prediction may be wrong (`error_of_a_look`).
        """
        distance = self.bound - threshold
        settled = np.abs(distance) > _student(NormalDist().inv_cdf(1.0 - error), self.freedom) * self.deviation
        found: Floats = np.where(settled, np.sign(distance), 0.0)
        return found


def foresee(statistic: str, ours: Counts, theirs: Counts, bound: ArrayLike, *, confidence: float) -> Foreseen:
    """Predict the lower bound of the paired gain once both models have all their samples.

    Args:
        statistic: `mean` or `pass@K`.
        ours: Samples of the candidate.
        theirs: Samples of the opponent, on the same problems in the same order.
        bound: One-sided lower bound of the gain with the present samples, by the bootstrap over problems, a fraction, `[...]`.
        confidence: Its level.

    Raises:
        ValueError: A model has too few samples for a prediction (`looks`), or the two have different numbers of problems.
    """
    difference = values(statistic, ours.correct, ours.generated) - values(statistic, theirs.correct, theirs.generated)
    problems = difference.shape[-1]
    mean = difference.mean(axis=-1)
    spread = difference.var(axis=-1)
    pending = _pending(statistic, ours) + _pending(statistic, theirs)
    left = np.maximum(spread - pending.mean(axis=-1), _LEAST_SPREAD * spread)
    # A bootstrap bound moves and scales with the differences.
    foreseen = mean + (np.asarray(bound) - mean) * np.sqrt(left / np.where(spread > 0, spread, 1.0))
    # The bound is about the mean minus z standard errors. The influence of a problem is how a change of its value changes this.
    z = NormalDist().inv_cdf(confidence)
    error = np.sqrt(np.where(left > 0, left, 1.0) * problems)
    influence = 1.0 - z * (difference - mean[..., None]) / error[..., None]
    # Add one problem with the largest variance: if all samples agree, the jackknife alone estimates no variance at all.
    unseen = sum(_most_pending(statistic, counts) for counts in (ours, theirs))
    parts = influence**2 * pending
    variance = parts.sum(axis=-1) + unseen
    freedom = variance**2 / np.maximum((parts**2).sum(axis=-1) + unseen**2, np.finfo(np.float64).tiny)
    return Foreseen(foreseen, np.sqrt(variance) / problems, freedom)


def _student(z: float, freedom: Floats) -> Floats:
    """Convert a normal quantile to that of Student's t of the same level (Cornish and Fisher's expansion, second order)."""
    return z + (z**3 + z) / (4.0 * freedom) + (5.0 * z**5 + 16.0 * z**3 + 3.0 * z) / (96.0 * freedom**2)


def _pending(statistic: str, counts: Counts) -> Floats:
    """Return how much the value of each problem may still change: its variance with m samples, given all n, `[..., problems]`.

    The jackknife leaves out one sample at a time: c of them are correct, and m - c wrong.
    """
    correct, samples = np.asarray(counts.correct), counts.generated
    if counts.complete:
        return np.zeros(correct.shape)
    if samples <= _drawn(statistic):
        raise ValueError(f"{statistic} cannot be predicted from {samples} samples")
    less_right = values(statistic, np.maximum(correct - 1, 0), samples - 1)
    less_wrong = values(statistic, np.minimum(correct, samples - 1), samples - 1)
    squares = correct * (samples - correct) / samples * (less_wrong - less_right) ** 2
    pending: Floats = (samples - 1) / samples * squares * (1.0 - samples / counts.planned)
    return pending


def _most_pending(statistic: str, counts: Counts) -> float:
    """Return the largest value of `_pending` for a problem."""
    every = Counts(np.arange(counts.generated + 1), counts.generated, counts.planned)
    return float(_pending(statistic, every).max())


def _drawn(statistic: str) -> int:
    """Return how many samples a statistic draws: K of `pass@K`, otherwise 1."""
    return int(statistic.partition("@")[2] or 1)


def saved(counts: Sequence[tuple[int, int, int]]) -> tuple[int, int]:
    """Return how many samples were planned, and how many of them were not generated.

    Args:
        counts: For each benchmark the number of problems, and the samples per problem that were planned and generated.
    """
    planned = sum(problems * of_each for problems, of_each, _ in counts)
    generated = sum(problems * of_each for problems, _, of_each in counts)
    return planned, planned - generated
