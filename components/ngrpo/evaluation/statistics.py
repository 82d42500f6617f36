"""Statistics of sampled answers: mean@n, unbiased pass@k, best@k, maj@n, bootstrap intervals and a paired test over problems.

Problems are drawn from a population; the samples of one problem are not independent of each other. So intervals come
from resampling whole problems (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_BLOCK = 2**22
"""Numbers held in memory at a time while resampling."""


def mean_at_n(correct: ArrayLike, n: int) -> Floats:
    """Return mean@n of each problem: the share of its n samples that are correct.

    Args:
        correct: Number of correct samples of each problem, `[problems]`.
        n: Samples of each problem.

    Returns:
        float64 `[problems]`; its mean is mean@n of the benchmark.

    Raises:
        ValueError: A count is not within 0 to n.
    """
    return _counts(correct, n) / n


def pass_at_k(correct: ArrayLike, n: int, k: int) -> Floats:
    """Return the unbiased estimate of pass@k of each problem: `1 - C(n-c, k) / C(n, k)`.

    That is the chance that k of the n samples, drawn without replacement, hold a correct one (Chen et al., Evaluating Large
    Language Models Trained on Code, 2021, equation 1). Computed as `1 - prod_{i=n-c+1}^{n} (1 - k/i)`, which neither overflows
    nor cancels.

    Args:
        correct: c, number of correct samples of each problem, `[problems]`.
        n: Samples of each problem.
        k: Samples drawn, 1 to n.

    Returns:
        float64 `[problems]`; its mean is pass@k of the benchmark.

    Raises:
        ValueError: k is not within 1 to n, or a count not within 0 to n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k={k} must be within 1 and n={n}: pass@k needs at least k samples")
    # The product over the c largest i, for every c at once. Where fewer than k samples are wrong it contains 1 - k/k = 0.
    all_wrong = np.concatenate([[1.0], np.cumprod(1.0 - k / np.arange(n, 0, -1))])
    return 1.0 - all_wrong[_counts(correct, n)]


def best_at_k(correct: ArrayLike, n: int, k: int) -> Floats:
    """Return best@k of each problem: `1 - (1 - c/n)^k`, the chance that k samples drawn *with* replacement hold a correct one.

    That is what verl's bootstrap estimates, and what is published as pass@k of N-GRPO. It uses the observed share c/n in place of
    the true one, so it is biased: below `pass_at_k` for every 1 < k <= n, and below 1 at k = n wherever a sample is wrong. Numbers of
    the two estimators must not be compared with each other.

    Args:
        correct: c, number of correct samples of each problem, `[problems]`.
        n: Samples of each problem.
        k: Samples drawn, at least 1; it may be more than n.

    Returns:
        float64 `[problems]`; its mean is best@k of the benchmark.

    Raises:
        ValueError: k is less than 1, or a count not within 0 to n.
    """
    if k < 1:
        raise ValueError(f"k={k} must be at least 1: best@k draws k samples")
    best: Floats = 1.0 - (1.0 - _counts(correct, n) / n) ** k
    return best


def bootstrap_intervals(values: ArrayLike, *, confidence: float, draws: int, seed: int) -> Floats:
    """Return percentile bootstrap intervals of the means of several statistics over the same problems.

    Each draw resamples problems with replacement, the same ones for all statistics. Memory does not grow with `draws` times
    the number of problems.

    Args:
        values: Statistics of each problem, `[problems, statistics]`.
        confidence: Level of the intervals, for example 0.95.
        draws: Bootstrap draws.
        seed: Seed of the draws.

    Returns:
        Low and high ends, float64 `[statistics, 2]`.

    Raises:
        ValueError: There is no problem, or the values have another shape.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or len(table) == 0:
        raise ValueError(f"values of shape {table.shape}: expected [problems, statistics] with at least one problem")
    problems = len(table)
    random = np.random.default_rng(seed)
    means = np.empty((draws, table.shape[1]))
    block = max(1, _BLOCK // problems)
    for start in range(0, draws, block):
        size = min(block, draws - start)
        drawn = random.integers(problems, size=(size, problems))
        # Count how often each problem was drawn, then take one matrix product for all statistics.
        drawn += np.arange(size)[:, None] * problems
        weights = np.bincount(drawn.ravel(), minlength=size * problems).reshape(size, problems)
        means[start : start + size] = weights @ table / problems
    tail = (1.0 - confidence) / 2.0
    limits: Floats = np.quantile(means, [tail, 1.0 - tail], axis=0).T
    return limits


def bootstrap_interval(values: ArrayLike, *, confidence: float, draws: int, seed: int) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of one statistic over problems.

    Args:
        values: The statistic of each problem, `[problems]`.
        confidence: Level of the interval.
        draws: Bootstrap draws.
        seed: Seed of the draws.

    Raises:
        ValueError: There is no problem.
    """
    column = np.asarray(values, dtype=np.float64).reshape(-1, 1)
    ((low, high),) = bootstrap_intervals(column, confidence=confidence, draws=draws, seed=seed)
    return float(low), float(high)


def paired_difference(
    a: ArrayLike, b: ArrayLike, *, confidence: float, draws: int, seed: int
) -> tuple[float, float, float]:
    """Compare two models on the same problems: the mean of `a - b` and its percentile bootstrap interval.

    Resampling pairs keeps what the two models share, the difficulty of the problem, out of the interval.

    Args:
        a: A statistic of each problem under one model, `[problems]`.
        b: The same statistic of the same problems, in the same order, under the other.
        confidence: Level of the interval.
        draws: Bootstrap draws.
        seed: Seed of the draws.

    Returns:
        Mean difference, low end, high end.

    Raises:
        ValueError: The two differ in length, or there is no problem.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"{first.shape} values against {second.shape}: a paired comparison needs the same problems")
    difference = first - second
    low, high = bootstrap_interval(difference, confidence=confidence, draws=draws, seed=seed)
    return float(difference.mean()), low, high


def sign_flip_p_value(difference: ArrayLike, *, draws: int, seed: int) -> float:
    """Return the one-sided p-value of a paired sign-flip permutation test: the probability of so large a mean by chance alone.

    If two models do not differ, each problem's difference is as likely to have the other sign. If few enough problems differ, all sign
    patterns are counted and the p-value is exact; otherwise `draws` random ones are, plus the observed one
    (Phipson and Smyth, Permutation P-values Should Never Be Zero, 2010), so that the p-value is never too small.

    Args:
        difference: Difference of each problem, `[problems]`; positive if the first model is better.
        draws: Number of random patterns, and the largest number of patterns that are all counted.
        seed: Seed of the patterns.

    Returns:
        Within 0 (exclusive) to 1.
    """
    values = np.asarray(difference, dtype=np.float64)
    values = values[values != 0]
    observed = values.sum()
    # Sums that are equal in exact arithmetic may differ in their last digits, and count as equal.
    threshold = observed - 1e-9 * max(1.0, float(np.abs(values).sum()))
    if 2 ** len(values) <= draws:
        sums = np.zeros(1)
        for value in np.abs(values):
            sums = np.concatenate([sums + value, sums - value])
        return float((sums >= threshold).mean())
    random = np.random.default_rng(seed)
    reached = 0
    block = max(1, _BLOCK // len(values))
    for start in range(0, draws, block):
        size = min(block, draws - start)
        signs = 2.0 * random.integers(2, size=(size, len(values)), dtype=np.int8) - 1.0
        reached += int((signs @ values >= threshold).sum())
    return (reached + 1) / (draws + 1)


def maj_at_n(answers: Sequence[str | None], correct: Sequence[bool]) -> float:
    """Return maj@n of one problem: the chance that the most frequent of its n answers is correct.

    Correct answers equal the gold answer and so each other, however they are written: they count as one answer. Wrong
    answers are distinguished by their text, and samples without an answer do not vote. Ties are broken at random, which is why
    the result may lie between 0 and 1.

    Args:
        answers: The extracted answer of each sample, None for a sample without one.
        correct: The verdict on each sample.

    Raises:
        ValueError: The two differ in length, or there is no sample.
    """
    if not answers:
        raise ValueError("no samples: maj@n needs at least one")
    wrong = Counter(answer for answer, right in zip(answers, correct, strict=True) if answer is not None and not right)
    right = sum(correct)
    most = max(wrong.values(), default=0)
    if right != most:
        return float(right > most)
    return 1.0 / (1 + sum(count == most for count in wrong.values())) if most else 0.0


def _counts(correct: ArrayLike, n: int) -> NDArray[np.int64]:
    counts = np.asarray(correct, dtype=np.int64)
    if counts.size and not (counts.min() >= 0 and counts.max() <= n):
        raise ValueError(f"counts from {counts.min()} to {counts.max()} do not fit n={n} samples")
    return counts
