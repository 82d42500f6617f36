"""Small charts as inline SVG.

They take their colours from the style sheet of the page they stand in, so they follow its light and dark form, and name each value
under the pointer. Coordinates are CSS pixels, y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 10, 36
_MOST_DOTS = 64


@dataclass(frozen=True)
class Curve:
    """A line of a chart.

    Attributes:
        style: CSS class of the line.
        x: Horizontal places, ascending.
        y: Values.
        band: Of each value the ends of its interval, or none.
    """

    style: str
    x: Sequence[float]
    y: Sequence[float]
    band: Sequence[tuple[float, float]] | None = None


@dataclass(frozen=True)
class Bar:
    """A bar: what it stands for, its length, the text beside it and its CSS class."""

    label: str
    value: float
    text: str
    style: str


@dataclass(frozen=True)
class _Frame:
    """Where the values of a chart lie."""

    width: int
    height: int
    x: tuple[float, float]
    y: tuple[float, float]

    def px(self, value: float) -> float:
        low, high = self.x
        return round(_LEFT + (value - low) / (high - low) * (self.width - _LEFT - _RIGHT), 1)

    def py(self, value: float) -> float:
        low, high = self.y
        return round(self.height - _BOTTOM - (value - low) / (high - low) * (self.height - _TOP - _BOTTOM), 1)


def line_chart(
    curves: Sequence[Curve],
    *,
    label: str,
    x_label: str,
    percent: bool = False,
    reference: float | None = None,
    width: int = 330,
    height: int = 190,
) -> Markup:
    """Draw lines over a whole-numbered axis, such as steps.

    Args:
        curves: The lines; together they have at least one value.
        label: What the chart shows, for those who cannot see it.
        x_label: Name of the horizontal axis.
        percent: Values are fractions, to be shown as percent.
        reference: Value at which to draw a dashed line across, or none.
        width: Width.
        height: Height.

    Returns:
        An `<svg>` element.
    """
    values = [value for curve in curves for value in curve.y]
    values += [end for curve in curves for ends in curve.band or () for end in ends]
    if reference is not None:
        values.append(reference)
    places = [place for curve in curves for place in curve.x]
    y_ticks = ticks(min(values), max(values), 4)
    x_range = (min(places), max(places)) if min(places) < max(places) else (places[0] - 1, places[0] + 1)
    frame = _Frame(width, height, x_range, (y_ticks[0], y_ticks[-1]))
    x_ticks = [tick for tick in ticks(*x_range, 5, whole=True) if x_range[0] <= tick <= x_range[1]]
    scale, unit = (100.0, " %") if percent else (1.0, "")
    parts = [
        _axes(
            frame, [(tick, f"{tick:g}") for tick in x_ticks], [(t, f"{_round(scale * t):g}") for t in y_ticks], x_label
        )
    ]
    if reference is not None:
        y = frame.py(reference)
        parts.append(Markup('<path class="reference" d="M{} {}H{}"/>').format(_LEFT, y, width - _RIGHT))
    for curve in curves:
        points = [(frame.px(x), frame.py(y)) for x, y in zip(curve.x, curve.y, strict=True)]
        if curve.band is not None:
            high = [(frame.px(x), frame.py(ends[1])) for x, ends in zip(curve.x, curve.band, strict=True)]
            low = [(frame.px(x), frame.py(ends[0])) for x, ends in zip(curve.x, curve.band, strict=True)]
            parts.append(Markup('<path class="band {}" d="{}Z"/>').format(curve.style, _path(high + low[::-1])))
        parts.append(Markup('<path class="curve {}" d="{}"/>').format(curve.style, _path(points)))
        if len(points) <= _MOST_DOTS:
            titles = (f"{x:g}: {scale * y:.4g}{unit}" for x, y in zip(curve.x, curve.y, strict=True))
            parts += [
                Markup('<circle class="dot {}" cx="{}" cy="{}" r="2"><title>{}</title></circle>').format(
                    curve.style, *point, title
                )
                for point, title in zip(points, titles, strict=True)
            ]
    return _svg(width, height, label, parts)


def histogram(
    edges: Sequence[float],
    counts: Sequence[int],
    *,
    label: str,
    x_label: str,
    mark: float,
    width: int = 420,
    height: int = 220,
) -> Markup:
    """Draw a histogram with a logarithmic axis of counts, from the first bin that holds something.

    Args:
        edges: Ends of the bins, ascending; one more than there are counts.
        counts: Content of each bin; at least one is not 0.
        label: What the chart shows, for those who cannot see it.
        x_label: Name of the horizontal axis.
        mark: Value at which to draw a dashed line.
        width: Width.
        height: Height.

    Returns:
        An `<svg>` element.
    """
    first = next(index for index, count in enumerate(counts) if count)
    low = min(edges[first], mark - (edges[-1] - mark))
    top = math.ceil(math.log10(max(counts) + 1))
    # A bin with one entry must still be seen: the axis starts below log10(1) = 0.
    frame = _Frame(width, height, (low, edges[-1]), (-0.3, top))
    x_ticks = [(tick, f"{tick:g}") for tick in ticks(low, edges[-1], 6) if low <= tick <= edges[-1]]
    parts = [_axes(frame, x_ticks, [(power, f"{10**power:,}") for power in range(top + 1)], x_label)]
    for start, end, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if count and start >= low:
            x, y = frame.px(start), frame.py(math.log10(count))
            parts.append(
                Markup(
                    '<rect class="bar second" x="{}" y="{}" width="{}" height="{}"><title>{:g} to {:g}: {:,}</title></rect>'
                ).format(
                    x, y, max(1.0, round(frame.px(end) - x - 1, 1)), round(frame.py(-0.3) - y, 1), start, end, count
                )
            )
    parts.append(Markup('<path class="reference" d="M{} {}V{}"/>').format(frame.px(mark), _TOP, height - _BOTTOM))
    return _svg(width, height, label, parts)


def difference_chart(
    differences: Sequence[float], interval: tuple[float, float, float], *, label: str, x_label: str, width: int = 420
) -> Markup:
    """Draw a paired comparison: a bar for each difference, from the smallest to the largest, under the mean and its interval.

    Args:
        differences: The differences; at least one.
        interval: Mean, low and high end.
        label: What the chart shows, for those who cannot see it.
        x_label: Name of the horizontal axis.
        width: Width.

    Returns:
        An `<svg>` element.
    """
    height = 230
    mean, low, high = interval
    y_ticks = ticks(min(*differences, low, 0.0), max(*differences, high, 0.0), 5)
    frame = _Frame(width, height, (0, len(differences)), (y_ticks[0], y_ticks[-1]))
    parts = [_axes(frame, [], [(tick, f"{tick:g}") for tick in y_ticks], x_label)]
    zero, step = frame.py(0.0), (width - _LEFT - _RIGHT) / len(differences)
    for index, difference in enumerate(sorted(differences)):
        y = frame.py(difference)
        bar = Markup('<rect class="bar {}" x="{}" y="{}" width="{}" height="{}"><title>{:+.1f}</title></rect>')
        style = "second" if difference > 0 else "first"
        size = round(max(step - 1, 0.6 * step), 2), round(abs(y - zero), 1)
        parts.append(bar.format(style, round(_LEFT + index * step, 1), min(y, zero), *size, difference))
    across, top, bottom = width - _LEFT - _RIGHT, frame.py(high), frame.py(low)
    parts.append(
        Markup(
            '<path class="axis" d="M{0} {1}H{2}"/><rect class="gain" x="{0}" y="{3}" width="{4}" height="{5}"/>'
            '<path class="reference" d="M{0} {6}H{2}"/>'
        ).format(_LEFT, zero, width - _RIGHT, top, across, round(max(bottom - top, 1.0), 1), frame.py(mean))
    )
    return _svg(width, height, label, parts)


def interval_chart(
    rows: Sequence[tuple[str, float, tuple[float, float]]], *, label: str, x_label: str, margin: float, width: int = 360
) -> Markup:
    """Draw differences with their intervals, each below its name, over a band of what counts as equivalent.

    Args:
        rows: From top to bottom the name, the difference and the ends of its interval; at least one.
        label: What the chart shows, for those who cannot see it.
        x_label: Name of the horizontal axis.
        margin: The band goes from `-margin` to `margin`.
        width: Width, which fits a phone.

    Returns:
        An `<svg>` element.
    """
    row, side = 36, 18
    height = row * len(rows) + _BOTTOM + 6
    ends = [end for _, value, interval in rows for end in (value, *interval)]
    places = ticks(min(*ends, -margin), max(*ends, margin), 6)
    low, high = places[0], places[-1]

    def at(value: float) -> float:
        return round(side + (value - low) / (high - low) * (width - 2 * side), 1)

    base = height - _BOTTOM
    band = Markup(
        '<rect class="gain" x="{}" y="0" width="{}" height="{}"><title>equivalent: within {:g}</title></rect>'
    )
    parts = [band.format(at(-margin), round(at(margin) - at(-margin), 1), base, margin)]
    for place in places:
        mark = Markup('<path class="grid" d="M{0} 0V{1}"/><text class="middle" x="{0}" y="{2}">{3:g}</text>')
        parts.append(mark.format(at(place), base, base + 15, place))
    parts.append(Markup('<path class="axis" d="M{} 0V{}"/>').format(at(0.0), base))
    for index, (name, value, (start, end)) in enumerate(rows):
        y = index * row + 26
        line = Markup(
            '<text x="2" y="{}">{}</text><path class="whisker" d="M{} {}H{}"/>'
            '<circle class="point" cx="{}" cy="{}" r="4"><title>{}: {:+.2f}, {:+.2f} to {:+.2f}</title></circle>'
        )
        parts.append(line.format(y - 12, name, at(start), y, at(end), at(value), y, name, value, start, end))
    parts.append(Markup('<text class="middle" x="{}" y="{}">{}</text>').format(width / 2, height - 4, x_label))
    return _svg(width, height, label, parts)


def line_sample(style: str) -> Markup:
    """Return a short piece of a line of a chart, for a legend."""
    return Markup(
        '<svg class="sample" viewBox="0 0 34 8" width="34" height="8" aria-hidden="true"><path class="curve {}" d="M1 4H33"/></svg>'
    ).format(style)


def bar_chart(bars: Sequence[Bar], *, label: str, width: int = 440) -> Markup:
    """Draw horizontal bars.

    Args:
        bars: From top to bottom; lengths are not negative.
        label: What the chart shows, for those who cannot see it.
        width: Width.

    Returns:
        An `<svg>` element.
    """
    names, texts, row = 140, 110, 24
    longest = max((bar.value for bar in bars), default=0.0) or 1.0
    parts = []
    for index, bar in enumerate(bars):
        y, length = index * row, round(bar.value / longest * (width - names - texts), 1)
        parts.append(
            Markup(
                '<text class="end" x="{}" y="{}">{}</text><rect class="bar {}" x="{}" y="{}" width="{}" height="14"/>'
                '<text x="{}" y="{}">{}</text>'
            ).format(
                names - 10, y + 16, bar.label, bar.style, names, y + 5, length, names + length + 8, y + 16, bar.text
            )
        )
    return _svg(width, row * len(bars) + 4, label, parts)


def ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    """Return about `count` evenly spaced round numbers, the first at most `low` and the last at least `high`.

    Args:
        low: Smallest value.
        high: Largest value.
        count: Intervals aimed at.
        whole: Whole numbers only.
    """
    span = high - low or abs(high) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / count))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude * count >= span * 0.999)
    if whole:
        step = max(1.0, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if first == last:
        first, last = first - 1, last + 1
    return [_round(index * step) for index in range(first, last + 1)]


def _round(value: float) -> float:
    """Drop what floating point added to a round number."""
    return float(f"{value:.10g}")


def _axes(
    frame: _Frame, x_ticks: Iterable[tuple[float, str]], y_ticks: Iterable[tuple[float, str]], x_label: str
) -> Markup:
    parts = []
    for value, text in y_ticks:
        y = frame.py(value)
        line = Markup('<path class="grid" d="M{} {}H{}"/><text class="end" x="{}" y="{}">{}</text>')
        parts.append(line.format(_LEFT, y, frame.width - _RIGHT, _LEFT - 6, round(y + 3.5, 1), text))
    base = frame.height - _BOTTOM
    for value, text in x_ticks:
        mark = Markup('<text class="middle" x="{}" y="{}">{}</text>')
        parts.append(mark.format(frame.px(value), base + 15, text))
    parts.append(Markup('<path class="axis" d="M{} {}H{}"/>').format(_LEFT, base, frame.width - _RIGHT))
    centre = (_LEFT + frame.width - _RIGHT) / 2
    parts.append(Markup('<text class="middle" x="{}" y="{}">{}</text>').format(centre, frame.height - 4, x_label))
    return Markup("").join(parts)


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def _svg(width: int, height: int, label: str, parts: Sequence[Markup]) -> Markup:
    opening = Markup('<svg viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">')
    return opening.format(width, height, width, height, label) + Markup("").join(parts) + Markup("</svg>")
