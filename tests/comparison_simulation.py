"""Differences of two arms drawn from what their comparison assumes, and how often it is right."""

import functools
from dataclasses import dataclass

import numpy as np

from ngrpo.evaluation.paired_arms import paired_arms

_DRAWS = 200
"""Bootstrap draws inside the comparison: the t-distributions around them leave little that more would change."""


@dataclass(frozen=True)
class Design:
    """Seeds and problems, and the standard deviations of their effects; that of what is left of each pair is 1."""

    seeds: int
    problems: int
    of_seeds: float
    of_problems: float
    delta: float = 0.0

    def __str__(self) -> str:
        return f"{self.seeds} seeds, {self.problems} problems, sd {self.of_seeds:g} of seeds and {self.of_problems:g} of problems"


@dataclass(frozen=True)
class Simulated:
    """How often the interval held the true difference, how often it excluded 0, and the p-values of "no difference"."""

    coverage: float
    power: float
    p_values: np.ndarray
    equivalent: float


@functools.cache
def simulated(design: Design, repetitions: int, margin: float = 1.0) -> Simulated:
    """Compare two arms `repetitions` times."""
    random = np.random.default_rng(12)
    covered, excluded, equivalent, p_values = 0, 0, 0, np.empty(repetitions)
    for number in range(repetitions):
        table = (
            design.delta
            + random.normal(0.0, design.of_seeds, (design.seeds, 1))
            + random.normal(0.0, design.of_problems, (1, design.problems))
            + random.normal(0.0, 1.0, (design.seeds, design.problems))
        )
        found = paired_arms(table, margin=margin, confidence=0.95, draws=_DRAWS, seed=number)
        low, high = found.interval
        covered += low <= design.delta <= high
        excluded += not low <= 0.0 <= high
        equivalent += found.equivalence_p < 0.05
        p_values[number] = found.p_value
    return Simulated(covered / repetitions, excluded / repetitions, p_values, equivalent / repetitions)
