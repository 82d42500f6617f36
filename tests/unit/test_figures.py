import re
from itertools import pairwise

import pytest

from ngrpo.report.figures import Curve, line_chart, ticks


@pytest.mark.parametrize(
    ("low", "high", "whole"),
    [(0.0, 1.0, False), (0.31, 0.34, False), (5.0, 5.0, False), (0.0, 0.0, False), (-3e-7, 2e-6, False), (1.0, 16.0, True),
     (1.0, 2.0, True), (0.0, 12345.0, True), (0.694, 0.971, False)],
)  # fmt: skip
def test_ticks_are_few_even_and_cover_the_values(low, high, whole):
    found = ticks(low, high, 4, whole=whole)
    assert found[0] <= low <= high <= found[-1]
    assert 2 <= len(found) <= 7
    steps = [after - before for before, after in pairwise(found)]
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert not whole or all(tick == int(tick) for tick in found)


def test_a_chart_puts_values_where_they_belong():
    chart = line_chart([Curve("second", [0, 5, 10], [0.0, 1.0, 0.5])], label="x", x_label="step", width=100, height=100)
    points = [tuple(map(float, point)) for point in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart)]
    (x0, bottom), (x1, top), (x2, middle) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert middle == pytest.approx((bottom + top) / 2, abs=0.11)
    assert 0 < top < bottom < 100
