"""A comparison of arms as one HTML page that needs nothing else, neither network nor scripts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ngrpo.report.comparison_result import BenchmarkComparison, Comparison, Line
from ngrpo.report.comparison_tables import fact_text, here, interval_text, over, rounded_p
from ngrpo.report.figures import Curve, interval_chart, line_chart, line_sample
from ngrpo.report.results import signed
from ngrpo.report.run_facts import CURVES, OF_SAMPLES, OF_TRAINING
from ngrpo.report.wording import printable

STYLES = 10
"""Styles of lines in the style sheet: arms beyond them begin again with the first."""


@dataclass(frozen=True)
class _Panel:
    title: str
    figure: Markup


def comparison_page(comparison: Comparison) -> str:
    """Return the page. Names of arms and benchmarks are untrusted: the template escapes them, and the page forbids scripts and requests."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"signed": signed, "p": rounded_p, "interval": interval_text, "over": over}
    styles = {arm: f"arm{number % STYLES}" for number, arm in enumerate(comparison.seeds)}
    page = environment.get_template("comparison.html.j2").render(
        comparison=comparison,
        primary=comparison.benchmarks[comparison.benchmark],
        legend={arm: line_sample(style) for arm, style in styles.items() if arm not in comparison.failed_whole},
        intervals=_intervals(comparison),
        pass_curves=[
            _Panel(
                name,
                _chart(
                    benchmark.pass_curves,
                    styles,
                    f"pass@k of the arms on {name}",
                    "k",
                    width=500,
                    height=270,
                ),
            )
            for name, benchmark in comparison.benchmarks.items()
        ],
        curves=[
            _Panel(kind.title, _chart(comparison.curves[metric], styles, kind.title, "step", percent=kind.scale == 100))
            for metric, kind in CURVES.items()
            if metric in comparison.curves
        ],
        not_logged=[kind.title for metric, kind in CURVES.items() if metric not in comparison.curves],
        of_samples=OF_SAMPLES,
        of_training=OF_TRAINING,
        fact_text=fact_text,
        published={name: _published(comparison, name, of) for name, of in comparison.benchmarks.items()},
    )
    return printable(page)


def _intervals(comparison: Comparison) -> list[_Panel]:
    panels = []
    for name, benchmark in comparison.benchmarks.items():
        measure = comparison.measure if comparison.measure in benchmark.measures else benchmark.measures[0]
        rows = [(arm, of[measure].value, of[measure].interval) for arm, of in benchmark.differences.items()]
        if rows:
            title = f"{measure} on {name}: arm less {comparison.baseline}, points"
            label = f"Differences of the arms from {comparison.baseline} in {measure} on {name}"
            figure = interval_chart(rows, label=label, x_label="points", margin=comparison.margin)
            panels.append(_Panel(title, figure))
    return panels


def _chart(lines: Mapping[str, Line], styles: Mapping[str, str], label: str, x_label: str, **settings: Any) -> Markup:
    curves = [
        Curve(styles[arm], line.x, line.mean, list(zip(line.low, line.high, strict=True)) if len(lines) <= 4 else None)
        for arm, line in lines.items()
    ]
    return line_chart(curves, label=label, x_label=x_label, **settings)


def _published(
    comparison: Comparison, name: str, benchmark: BenchmarkComparison
) -> list[tuple[str, str, float, float | None]]:
    return [
        (arm, measure, value, here(benchmark, arm, measure))
        for arm, of in comparison.published.items()
        for measure, value in of.get(name, {}).items()
    ]
