"""How often an evaluation that stops early decides as the full one would, and how many samples it saves.

It has no peer: it prints the tables of docs/watch.md.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from tests.evaluation_simulation import Setting, simulated

REPETITIONS = 1000
GAINS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.1)
SIZES = ((100, 4), (100, 8), (200, 4), (200, 8), (200, 16), (400, 8), (400, 16), (30, 32))
OTHERS = (
    ("pass@4", 200, 16, {"statistic": "pass@4"}),
    ("hard: mean of 3 %", 200, 16, {"difficulty": (0.15, 4.85)}),
    ("easy: mean of 90 %", 200, 16, {"difficulty": (1.8, 0.2)}),
    ("min_gain of 2 points", 200, 16, {"min_gain": 0.02}),
    ("models that differ much", 200, 16, {"own_way": 2.0}),
)


def run() -> list[dict]:
    """Print agreement and savings."""
    console = Console(width=130)
    rows = [(f"{problems} problems, {samples} samples", problems, samples, {}) for problems, samples in SIZES]
    rows += [
        (f"{name}; {problems}, {samples}", problems, samples, options) for name, problems, samples, options in OTHERS
    ]
    table = Table(
        "simulated", *(f"gain {100 * gain:g}" for gain in GAINS), title="agreement, % / samples saved, % (promoted, %)"
    )
    lowest = 1.0
    for name, problems, samples, options in rows:
        found = [simulated(Setting(problems, samples, gain, **options), REPETITIONS) for gain in GAINS]
        lowest = min(lowest, *(each.agreement for each in found))
        table.add_row(
            name,
            *(f"{100 * each.agreement:.1f} / {100 * each.saved:.0f} ({100 * each.promoted:.0f})" for each in found),
        )
    console.print(table)
    console.print(f"lowest agreement: {100 * lowest:.1f} % of {REPETITIONS} simulations")
    return []
