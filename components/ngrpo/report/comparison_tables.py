"""A comparison as tables of a terminal, which hold at 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ngrpo.report.comparison_result import BenchmarkComparison, Comparison, Difference, Fact, Interval
from ngrpo.report.results import signed
from ngrpo.report.run_facts import OF_SAMPLES, OF_TRAINING, FactOf
from ngrpo.report.wording import ESTIMATORS

MISSING = "–"
"""What stands for a number that a run does not have."""

_ACROSS = 4
"""Columns of arms or measures beside each other."""


def comparison_table(comparison: Comparison) -> Group:
    """Return the tables of a comparison: the primary measure, each benchmark, what both solve, facts, and the notes below them."""
    parts = [_primary(comparison)]
    for name, benchmark in comparison.benchmarks.items():
        parts += _measures(name, benchmark)
        parts += _changes(comparison, name)
        parts += _published(comparison, name)
    parts += _solved(comparison)
    for name, benchmark in comparison.benchmarks.items():
        parts += _facts(f"Samples of {name}", OF_SAMPLES, benchmark.facts)
    parts += _facts("Training", OF_TRAINING, comparison.facts)
    lines = [*comparison.notes, ESTIMATORS]
    return Group(*parts, *(Text(line) for line in lines))


def over(difference: Difference) -> str:
    """Say over what an interval is."""
    return f"problems, {len(difference.seeds)} seeds" if len(difference.seeds) > 1 else "problems alone"


def rounded_p(value: float) -> str:
    """Return a p-value as it is printed."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def interval_text(interval: Interval) -> str:
    """Return the ends of an interval of differences."""
    return f"{signed(interval[0], '.2f')} to {signed(interval[1], '.2f')}"


def fact_text(fact: Fact | None, kind: FactOf) -> str:
    """Return a fact as it is printed: a mean over the seeds that have it; a dash where none has."""
    value = None if fact is None else fact.value
    return MISSING if value is None else format(kind.scale * value, kind.form)


def _primary(comparison: Comparison) -> Table:
    benchmark, measure = comparison.benchmarks[comparison.benchmark], comparison.measure
    level = f"{comparison.confidence:.0%}"
    table = _table(
        f"{measure} on {comparison.benchmark}, against {comparison.baseline}",
        f"Points; {level} intervals over problems, and over seeds where both arms have several. "
        "p is adjusted for the number of arms (Holm). "
        f"Equivalent: within {comparison.margin:g} points.",
    )
    table.add_column("arm", overflow="fold")
    for column in ("seeds", "%", "difference", f"{level} interval", "p"):
        table.add_column(column, justify="right")
    table.add_column("")
    for arm, seeds in comparison.seeds.items():
        if arm not in benchmark.arms:
            table.add_row(escape(arm), "0", MISSING, MISSING, MISSING, MISSING, "failed")
            continue
        value = f"{benchmark.arms[arm][measure].value:.2f}"
        if arm == comparison.baseline:
            table.add_row(escape(arm), str(len(seeds)), value, "", "", "", "baseline")
            continue
        difference = benchmark.differences[arm][measure]
        table.add_row(
            escape(arm),
            str(len(seeds)),
            value,
            signed(difference.value, ".2f"),
            interval_text(difference.interval),
            rounded_p(difference.holm_p),
            difference.verdict,
        )
    return table


def _measures(name: str, benchmark: BenchmarkComparison) -> Iterator[Table]:
    caption = f"Percent; {benchmark.problems:,} problems, {benchmark.samples} samples each, means over seeds."
    for start in range(0, len(benchmark.measures), _ACROSS + 1):
        measures = benchmark.measures[start : start + _ACROSS + 1]
        table = _table(escape(name), caption)
        table.add_column("", overflow="fold")
        for measure in measures:
            table.add_column(measure, justify="right")
        for model, values in benchmark.references.items():
            table.add_row(model.replace("_", " "), *(f"{values[measure]:.2f}" for measure in measures), style="dim")
        for arm, of in benchmark.arms.items():
            table.add_row(escape(arm), *(f"{of[measure].value:.2f}" for measure in measures))
        yield table


def _changes(comparison: Comparison, name: str) -> Iterator[Table]:
    benchmark = comparison.benchmarks[name]
    if not benchmark.changes:
        return
    table = _table(
        f"{escape(name)}: what training changed",
        f"Points, from the model that training started from; {comparison.confidence:.0%} intervals over problems, and over seeds where "
        "there are several. p is not adjusted.",
    )
    table.add_column("arm", overflow="fold")
    for column in ("measure", "change", f"{comparison.confidence:.0%} interval", "p"):
        table.add_column(column, justify="right")
    for arm, of in benchmark.changes.items():
        for number, measure in enumerate(shown_changes(comparison, name)):
            change = of[measure]
            table.add_row(
                "" if number else escape(arm),
                measure,
                signed(change.value, ".2f"),
                interval_text(change.interval),
                rounded_p(change.p_value),
            )
    yield table


def shown_changes(comparison: Comparison, name: str) -> list[str]:
    """Return the measures of a benchmark whose change is shown: the mean, and that of the primary comparison where it has it."""
    measures = comparison.benchmarks[name].measures
    return list(dict.fromkeys([measures[0], *([comparison.measure] if comparison.measure in measures else [])]))


def _published(comparison: Comparison, name: str) -> Iterator[Table]:
    benchmark = comparison.benchmarks[name]
    rows = [
        (arm, measure, value) for arm, of in comparison.published.items() for measure, value in of.get(name, {}).items()
    ]
    if not rows:
        return
    table = _table(f"{escape(name)}: published", "best@k is never to be compared with pass@k.")
    table.add_column("arm", overflow="fold")
    table.add_column("measure")
    table.add_column("published, %", justify="right")
    table.add_column("here, %", justify="right")
    for arm, measure, value in rows:
        found = here(benchmark, arm, measure)
        table.add_row(escape(arm), escape(measure), f"{value:.2f}", MISSING if found is None else f"{found:.2f}")
    yield table


def here(benchmark: BenchmarkComparison, arm: str, measure: str) -> float | None:
    """Return our number beside a published one; none where it was not measured with as many samples, or not at all."""
    measure = measure if "@" in measure else f"{measure}@{benchmark.samples}"
    if arm in benchmark.arms and measure in benchmark.arms[arm]:
        return benchmark.arms[arm][measure].value
    return benchmark.references.get(arm, {}).get(measure)


def _solved(comparison: Comparison) -> Iterator[Table]:
    if not any(benchmark.solved for benchmark in comparison.benchmarks.values()):
        return  # there is the baseline alone
    table = _table("Solved with at least one sample", "Problems, means over the seeds that both arms have.")
    table.add_column("benchmark", overflow="fold")
    table.add_column("arm", overflow="fold")
    for column in ("arm alone", "baseline alone", "both", "none"):
        table.add_column(column, justify="right")
    for name, benchmark in comparison.benchmarks.items():
        for arm, solved in benchmark.solved.items():
            counts = (
                [MISSING] * 4
                if solved is None
                else [f"{each:g}" if each == int(each) else f"{each:.1f}" for each in
                      (solved.arm_only, solved.baseline_only, solved.both, solved.neither)]
            )  # fmt: skip
            table.add_row(escape(name), escape(arm), *counts)
    yield table


def _facts(title: str, kinds: Mapping[str, FactOf], facts: Mapping[str, Mapping[str, Fact]]) -> Iterator[Table]:
    arms = list(facts)
    for start in range(0, len(arms), _ACROSS):
        table = _table(escape(title), "Means over seeds; – is not known.")
        table.add_column("", overflow="fold")
        for arm in arms[start : start + _ACROSS]:
            table.add_column(escape(arm), justify="right", overflow="fold")
        for name, kind in kinds.items():
            table.add_row(kind.title, *(fact_text(facts[arm].get(name), kind) for arm in arms[start : start + _ACROSS]))
        yield table


def _table(title: str, caption: str) -> Table:
    return Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
