"""How often the comparison of two arms is right: coverage of its intervals, uniformity of its p-values, power at one point.

It has no peer: it prints the tables of docs/compare.md.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from scipy import stats
from tests.comparison_simulation import Design, simulated

REPETITIONS = 1000
SIZES = ((0.0, 0.0), (0.2, 0.0), (0.05, 0.5), (0.3, 0.3), (1.0, 1.0))
"""Standard deviations of seeds and problems; that of what is left of each pair of seed and problem is 1."""
OF_SEEDS, OF_PROBLEMS, LEFT = 0.7, 3.0, {"mean@16": 15.0, "pass@16": 30.0}
"""The same in points, for the power."""


def run() -> list[dict]:
    """Print coverage and power."""
    console = Console(width=110)
    console.print(_coverage())
    null = simulated(Design(5, 30, 0.2, 0.0), REPETITIONS).p_values
    console.print(f"p-values without a difference: Kolmogorov-Smirnov p = {stats.kstest(null, 'uniform').pvalue:.2f}")
    console.print(_power())
    return []


def _coverage() -> Table:
    table = Table("seeds", "problems", *(f"sd {seeds:g}, {problems:g}" for seeds, problems in SIZES))
    for seeds in (2, 3, 5, 10):
        for problems in (30, 200):
            found = (simulated(Design(seeds, problems, *sizes), REPETITIONS).coverage for sizes in SIZES)
            table.add_row(str(seeds), str(problems), *(f"{100 * each:.1f}" for each in found))
    return table


def _power() -> Table:
    table = Table("measure", "problems", "seeds", "power at one point, %", "equivalent within 1 point where equal, %")
    for measure, left in LEFT.items():
        for problems in (200, 1000):
            for seeds in (5, 10, 20):
                design = (seeds, problems, OF_SEEDS / left, OF_PROBLEMS / left)
                apart = simulated(Design(*design, delta=1.0 / left), REPETITIONS // 2)
                equal = simulated(Design(*design), REPETITIONS // 2, margin=1.0 / left)
                table.add_row(
                    measure, str(problems), str(seeds), f"{100 * apart.power:.0f}", f"{100 * equal.equivalent:.0f}"
                )
    return table
