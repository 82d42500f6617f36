"""How often the watch sounds a false alarm in 50 looks, and how soon it notices that a champion has become worse.

It has no peer: it prints the tables of docs/watch.md.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from tests.evaluation_simulation import Watched, alarms

REPETITIONS, LOOKS = 1000, 50
AT = (1, 2, 5, 10, 20, 50)
SIZES = ((100, 8, 4), (200, 16, 2), (200, 16, 4), (400, 16, 4), (500, 32, 4), (30, 32, 8))
OTHERS = (
    ("margin 0", {"margin": 0.0}),
    ("margin 0, lucky champions", {"margin": 0.0, "lucky": True}),
    ("lucky champions", {"lucky": True}),
    ("mean of 3 %", {"difficulty": (0.15, 4.85)}),
    ("mean of 90 %", {"difficulty": (1.8, 0.2)}),
    ("true drop of the margin", {"drop": 0.01}),
)


def run() -> list[dict]:
    """Print false alarms and power."""
    console = Console(width=120)
    false = Table(
        "watched", *(f"{look} looks" for look in AT), title="false alarms until then, % (at most 5 are asked for)"
    )
    for problems, samples, each in SIZES:
        _add(false, f"{problems} problems, {samples} + {each} samples", Watched(problems, samples, each))
    for name, options in OTHERS:
        _add(false, f"{name}; 200, 16 + 4", Watched(**options))
    console.print(false)
    power = Table("watched", "drop", *(f"{look} looks" for look in AT), title="alarms until then, %")
    for problems, samples, each in SIZES:
        for drop in (0.02, 0.05, 0.1):
            name = f"{problems} problems, {samples} + {each} samples"
            _add(power, name, Watched(problems, samples, each, drop=drop), f"{100 * drop:g} points")
    _add(power, "worse from look 11 on; 200, 16 + 4", Watched(drop=0.05, since=10), "5 points")
    console.print(power)
    return []


def _add(table: Table, name: str, watched: Watched, *more: str) -> None:
    shares = alarms(watched, LOOKS, REPETITIONS)
    table.add_row(name, *more, *(f"{100 * shares[look - 1]:.1f}" for look in AT))
