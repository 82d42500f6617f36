"""Alternate two ways of doing the same thing, and report the median ratio with its spread."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
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
        "ratio_spread": [round(ratios[0], 4), round(ratios[-1], 4)],
        "unit": unit,
        "command": f"make bench ARGS={name}",
        **details,
    }
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result
