"""The watch's statistic: limits that spend one error rate over any number of looks, and a drop whose noise is that of both samplings."""

import numpy as np
import pytest

from evaluation_simulation import Watched, alarms
from ngrpo.evaluation.drift import drifts, estimate, limits_of_looks

MANY = 10**9


def test_one_look_at_all_there_is_has_the_limit_of_a_single_test():
    assert limits_of_looks([MANY], 1, 0.05)[0] == pytest.approx(1.645, abs=0.01)


def test_limits_of_two_looks_are_those_of_the_published_tables():
    """Pocock-type spending of a one-sided 2.5 %, half the information and all of it: 2.157 and 2.201 (gsDesign, `sfLDPocock`)."""
    first, second = limits_of_looks([16, MANY], 16, 0.025)
    assert first == pytest.approx(2.157, abs=0.02)
    assert second == pytest.approx(2.201, abs=0.02)


def test_the_same_looks_have_the_same_limits_and_more_looks_leave_them_as_they_were():
    limits = limits_of_looks([4] * 12, 16, 0.05)
    assert limits_of_looks([4] * 20, 16, 0.05)[:12] == limits
    assert np.isfinite(limits).all()


def test_the_drop_is_as_uncertain_as_both_samplings_are():
    random = np.random.default_rng(3)
    chance, n, more = random.beta(1.0, 1.0, size=300), 16, 8
    first, later = (random.binomial(size, chance, size=(4000, 300)).astype(float) for size in (n, more))
    drop, deviation = estimate(first, n, later, more)
    assert drop.mean() == pytest.approx(0.0, abs=1e-3)
    assert deviation.mean() == pytest.approx(drop.std(), rel=0.05)


def test_an_alarm_is_a_drop_of_more_than_the_margin():
    first = [12] * 100
    better, same, worse = [(5, 5)], [(3, 4)] * 3, [(2, 4)] * 3
    for looks, alarm in ((better, False), (same, False), (worse, True)):
        found = drifts(first, 16, [([right] * 100, size) for right, size in looks], margin=0.01, alpha=0.05)
        assert [each.alarm for each in found] == [alarm] * len(looks)
        assert all(each.low < each.drop < each.high for each in found)
    (tolerated,) = drifts(first, 16, [([2] * 100, 4)], margin=0.25, alpha=0.05)
    assert tolerated.drop == pytest.approx(0.25)
    assert not tolerated.alarm


def test_where_all_samples_agree_the_drop_is_still_uncertain():
    (found,) = drifts([16] * 5, 16, [([4] * 5, 4)], margin=0.0, alpha=0.05)
    assert found.drop == 0.0
    assert found.low < 0.0 < found.high


def test_false_alarms_and_power():
    """`python -m tests.benchmarks champion_watch` has 50 looks and 1,000 champions of many kinds."""
    assert alarms(Watched(margin=0.0), 20, 300)[-1] <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 300)
    assert alarms(Watched(), 20, 300)[-1] <= 0.02
    assert alarms(Watched(lucky=True), 10, 200)[-1] <= 0.05
    assert alarms(Watched(drop=0.05), 5, 200)[-1] > 0.8
    assert alarms(Watched(drop=0.1), 1, 200)[-1] > 0.95
