import re
from itertools import pairwise

import pytest

from ngrpo.report.figures import Curve, interval_chart, line_chart, ticks


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


def test_intervals_stand_on_one_axis_with_zero_and_the_margin_around_it():
    rows = [("ngrpo", 2.0, (1.0, 3.0)), ("k1", -1.0, (-4.0, 2.0))]
    chart = interval_chart(rows, label="x", x_label="points", margin=1.0)
    zero = float(re.search(r'class="axis" d="M([\d.]+) ', chart)[1])
    ((x, width),) = [
        tuple(map(float, found)) for found in re.findall(r'class="gain" x="([\d.]+)" y="0" width="([\d.]+)"', chart)
    ]
    point = width / 2
    assert x + point == pytest.approx(zero, abs=0.2)
    centres = [float(each) for each in re.findall(r'cx="([\d.]+)"', chart)]
    assert centres == pytest.approx([zero + 2 * point, zero - point], abs=0.3)
    ends = [tuple(map(float, found)) for found in re.findall(r'class="whisker" d="M([\d.]+) [\d.]+H([\d.]+)"', chart)]
    assert ends[1] == pytest.approx((zero - 4 * point, zero + 2 * point), abs=0.5)
    assert "ngrpo: +2.00, +1.00 to +3.00" in chart


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_an_interval_without_width_is_drawn(value):
    assert "nan" not in interval_chart([("k1", value, (value, value))], label="x", x_label="points", margin=1.0)
