"""Alternate ways of doing the same thing, and report the median ratio with its interval and its spread."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OUTPUT = Path("outputs/bench")


def alternate(
    ours: Callable[[], Any], peer: Callable[[], Any], rounds: int, before: Callable[[], Any] = lambda: None
) -> tuple[list[float], list[float]]:
    """Run both in turn, after one uncounted round; return the seconds of each. What is to be done before each is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for kept, function in zip(times, (ours, peer), strict=True):
            before()
            started = time.perf_counter()
            function()
            if turn:
                kept.append(time.perf_counter() - started)
    return times


@dataclass(frozen=True)
class Times:
    """What the rounds of one way of doing something took: by the clock, and of all its threads on the processors."""

    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)


def rotate(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Times]:
    """Run several ways in turn, each round beginning with the next one, after one uncounted round; return the times of each."""
    names = list(ways)
    times = {name: Times() for name in names}
    for turn in range(rounds + 1):
        for place in range(len(names)):
            name = names[(turn + place) % len(names)]
            started, used = time.perf_counter(), time.process_time()
            ways[name]()
            if turn:
                times[name].seconds.append(time.perf_counter() - started)
                times[name].processor_seconds.append(time.process_time() - used)
    return times


def median_interval(values: Sequence[float], confidence: float = 0.95, draws: int = 10_000) -> tuple[float, float]:
    """Return the percentile interval of the median, from bootstrap draws of the rounds; the same values give the same interval."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(draws))
    outside = round((1 - confidence) / 2 * (draws - 1))
    return medians[outside], medians[-1 - outside]


def report(
    name: str, ours: list[float], peer: list[float], *, unit: str, scale: float, **details: Any
) -> dict[str, Any]:
    """Write `outputs/bench/<name>.json` and return its content.

    Args:
        name: Name of the benchmark.
        ours: Seconds of each round.
        peer: Seconds of each round of the peer, measured in turn with ours.
        unit: Unit of the figures.
        scale: Figure for one second.
        **details: What else a reader should know: what the peer is, sizes.
    """
    ratios = sorted(first / second for first, second in zip(ours, peer, strict=True))
    result = {
        "name": name,
        "ours": round(statistics.median(ours) * scale, 4),
        "peer": round(statistics.median(peer) * scale, 4),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_interval": [round(bound, 4) for bound in median_interval(ratios)],
        "ratio_spread": [round(ratios[0], 4), round(ratios[-1], 4)],
        "rounds": len(ratios),
        "unit": unit,
        "command": f"make bench ARGS={name}",
        **details,
    }
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result
