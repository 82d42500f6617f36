"""Comparisons over seeds and problems: against scipy's tests, printed digits, and their own promise of coverage."""

from dataclasses import astuple
from itertools import product

import numpy as np
import pytest
from scipy import stats

from comparison_simulation import Design, simulated
from ngrpo.evaluation.paired_arms import SIGN_FLIP_SEEDS, holm, paired_arms, paired_t, solved_by, two_sided_sign_flip

SETTINGS = {"margin": 1.0, "confidence": 0.95, "draws": 400, "seed": 0}
SLEEP = np.array([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
"""Differences of Student's own data (The Probable Error of a Mean, 1908): extra hours of sleep."""


def test_the_paired_t_test_gives_the_digits_printed_for_students_sleep_data():
    (low, high), p_value = paired_t(SLEEP, confidence=0.95)
    assert f"{low:.7f} {high:.7f}" == "0.7001142 2.4598858"
    assert f"{p_value:.6f}" == "0.002833"


@pytest.mark.parametrize("seeds", [2, 3, 7])
def test_the_paired_t_test_is_that_of_scipy(seeds):
    values = np.random.default_rng(seeds).normal(0.4, 1.0, seeds)
    expected = stats.ttest_1samp(values, 0.0)
    interval, p_value = paired_t(values, confidence=0.9)
    np.testing.assert_allclose(interval, expected.confidence_interval(0.9), rtol=1e-9)
    assert p_value == pytest.approx(expected.pvalue, rel=1e-9)


def test_with_one_problem_the_comparison_is_the_t_test_and_the_equivalence_test_two_of_them():
    values = np.random.default_rng(3).normal(0.2, 0.3, 6)
    found = paired_arms(values[:, None], **SETTINGS)
    expected = stats.ttest_1samp(values, 0.0)
    np.testing.assert_allclose(found.interval, expected.confidence_interval(0.95), rtol=1e-6)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-6)
    sides = (
        stats.ttest_1samp(values, -1.0, alternative="greater").pvalue,
        stats.ttest_1samp(values, 1.0, alternative="less").pvalue,
    )
    assert found.equivalence_p == pytest.approx(max(sides), rel=1e-6)
    assert found.seed_interval == pytest.approx(found.interval)


def test_what_problems_add_is_their_own_variance_and_not_that_of_the_samples_once_more():
    """With hardly any variance over seeds the interval is that of the problems: a normal one of their standard error."""
    random = np.random.default_rng(0)
    problems = random.normal(0.0, 1.0, 200)
    table = problems + random.normal(0.0, 0.01, (6, 200))
    low, high = paired_arms(table, **SETTINGS | {"draws": 20_000}).interval
    assert (high - low) / 2 == pytest.approx(1.96 * problems.std(ddof=1) / np.sqrt(200), rel=0.05)
    alone = random.normal(0.0, 1.0, (6, 200))
    found = paired_arms(alone - alone.mean(axis=0), **SETTINGS)  # no problem differs from another
    np.testing.assert_allclose(found.interval, found.seed_interval, atol=1e-9)


def test_one_seed_is_compared_over_problems_alone():
    difference = np.random.default_rng(1).normal(0.5, 1.0, 12)
    found = paired_arms(difference[None], **SETTINGS | {"draws": 5000})
    assert (found.seeds, found.seed_interval, found.seed_p, found.sign_flip_p) == (1, None, None, None)
    sums = [sum(signs * np.abs(difference)) for signs in product((-1, 1), repeat=12)]
    share = np.mean(np.abs(sums) >= abs(difference.sum()) - 1e-9)
    assert found.p_value == pytest.approx(share)
    assert found.interval[0] < difference.mean() < found.interval[1]


def test_seeds_are_flipped_from_eight_on():
    table = np.random.default_rng(2).normal(0.3, 0.5, (SIGN_FLIP_SEEDS, 20))
    assert paired_arms(table[:-1], **SETTINGS).sign_flip_p is None
    means = table.mean(axis=1)
    sums = [sum(signs * means) for signs in product((-1, 1), repeat=SIGN_FLIP_SEEDS)]
    assert paired_arms(table, **SETTINGS).sign_flip_p == pytest.approx(np.mean(np.abs(sums) >= abs(means.sum()) - 1e-9))
    assert two_sided_sign_flip([1.0] * 8, draws=1000, seed=0) == 2 / 256


def test_holm_gives_the_adjusted_p_values_of_the_textbook():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, 0.02, 0.022, 0.09]) == pytest.approx([0.04, 0.06, 0.06, 0.09])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_problems_that_one_arm_alone_solves_are_counted_by_seed():
    first, second = [[1, 0, 3, 0], [0, 0, 3, 2]], [[0, 0, 1, 2], [0, 1, 3, 2]]
    found = solved_by(first, second)
    assert (found.first_only, found.second_only, found.both, found.neither) == (0.5, 1.0, 1.5, 1.0)


@pytest.mark.parametrize(
    ("table", "difference"),
    [(np.zeros((1, 1)), 0.0), (np.zeros((5, 7)), 0.0), (np.full((9, 3), 100 / 3), 100 / 3), (np.full((1, 4), -100.0), -100.0),
     (np.array([[1.0], [2.0]]), 1.5), (np.repeat([[0.0, 100.0]], 3, axis=0), 50.0)],
)  # fmt: skip
def test_without_variance_every_number_is_finite(table, difference):
    found = paired_arms(table, **SETTINGS)
    numbers = [number for number in np.hstack([each for each in astuple(found) if each is not None])]
    assert np.isfinite(numbers).all()
    assert found.difference == pytest.approx(difference)
    assert found.interval[0] <= found.difference + 1e-9
    assert found.difference - 1e-9 <= found.interval[1]
    assert 0 < found.p_value <= 1
    assert 0 < found.equivalence_p <= 1


@pytest.mark.parametrize("table", [np.zeros((0, 3)), np.zeros((3, 0)), np.zeros(3), np.array([[1.0, np.nan]])])
def test_what_is_no_table_of_differences_is_refused(table):
    with pytest.raises(ValueError, match="expected finite numbers"):
        paired_arms(table, **SETTINGS)


SMALL = (Design(5, 30, 0.0, 0.0), Design(5, 30, 0.3, 0.3))


@pytest.mark.parametrize("design", SMALL, ids=str)
def test_intervals_hold_what_they_promise(design):
    """300 draws, so within 4 standard errors of 95 %; `test_coverage_over_designs` has enough for 93 to 97."""
    found = simulated(design, 300)
    print(f"{design}: covered {found.coverage:.1%}")
    assert 0.90 < found.coverage < 0.995


def test_p_values_are_uniform_where_there_is_no_difference():
    """Arms that are one method differ by seeds and samples alone."""
    p_values = simulated(Design(5, 30, 0.2, 0.0), 300).p_values
    test = stats.kstest(p_values, "uniform")
    print(f"Kolmogorov-Smirnov distance {test.statistic:.3f}, p = {test.pvalue:.2f}")
    assert test.pvalue > 0.01


@pytest.mark.long
def test_coverage_over_designs():
    for design in (Design(seeds, problems, *sizes) for seeds in (5, 10) for problems in (30, 200) for sizes in
                   ((0.0, 0.0), (0.2, 0.0), (0.05, 0.5), (0.3, 0.3), (1.0, 1.0))):  # fmt: skip
        found = simulated(design, 1000)
        print(f"{design}: covered {found.coverage:.1%}")
        assert 0.93 < found.coverage < 0.97, design
