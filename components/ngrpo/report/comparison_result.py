"""What a comparison of arms came to: the content of `comparison.json`. Rates are in percent, differences in points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Interval = tuple[float, float]

VERDICTS = ("better", "worse", "equivalent", "undecided")


@dataclass(frozen=True)
class Value:
    """A measure of one arm.

    Attributes:
        value: Mean over problems and seeds.
        interval: Its interval over problems, and over seeds where there are several.
        by_seed: Mean over problems with each seed.
    """

    value: float
    interval: Interval
    by_seed: dict[int, float]


@dataclass(frozen=True)
class Difference:
    """An arm less the baseline, or a trained model less the one that its training started from.

    Attributes:
        seeds: The seeds that both have and that were paired; empty where they share none, and means over seeds were paired by problem.
        value: Mean difference.
        interval: Its interval over problems, and over seeds where there are several.
        p_value: Two-sided p-value of "no difference".
        holm_p: The same, adjusted for the number of arms that are compared with the baseline by this measure; not adjusted for what
            training changed.
        equivalence_p: p-value of the test that the arms are at least the margin apart.
        seed_interval: Interval of the paired t-test over seeds, for these problems alone; none with one seed.
        seed_p: Its p-value; none with one seed.
        sign_flip_p: p-value of the sign-flip test over seeds; none with fewer than eight.
        verdict: One of `VERDICTS`.
    """

    seeds: list[int]
    value: float
    interval: Interval
    p_value: float
    holm_p: float
    equivalence_p: float
    seed_interval: Interval | None
    seed_p: float | None
    sign_flip_p: float | None
    verdict: str


@dataclass(frozen=True)
class SolvedBy:
    """Problems that an arm and the baseline solve with at least one sample: mean count over the seeds that both have."""

    arm_only: float
    baseline_only: float
    both: float
    neither: float


@dataclass(frozen=True)
class Fact:
    """A number of an arm by seed; a seed that has no such number is missing."""

    by_seed: dict[int, float]

    @property
    def value(self) -> float | None:
        """Mean over the seeds that have it; none where none has."""
        return sum(self.by_seed.values()) / len(self.by_seed) if self.by_seed else None


@dataclass(frozen=True)
class Line:
    """A curve of an arm: mean over seeds, and the lowest and the highest seed or the ends of an interval."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: list[int]


@dataclass(frozen=True)
class BenchmarkComparison:
    """All arms on one benchmark.

    Attributes:
        problems: Number of problems.
        samples: Samples of each.
        measures: Names of the measures, such as `mean@16`, `pass@4`, `best@4`.
        references: Of the models that are not arms, `base` and `warm_start`, each measure; means over the runs of the baseline.
        arms: Of each arm each measure.
        differences: Of each arm but the baseline each measure.
        changes: Of each arm each measure: the trained model less the one that its training started from, seed by seed. Arms with a
            run that did not measure that model are missing.
        solved: Of each arm but the baseline, what it and the baseline solve; none where they share no seed.
        pass_curves: pass@k, unbiased, for every k, of each arm.
        facts: Of each arm, what its responses are like, by the names of `ngrpo.report.run_facts.OF_SAMPLES`.
    """

    problems: int
    samples: int
    measures: list[str]
    references: dict[str, dict[str, float]]
    arms: dict[str, dict[str, Value]]
    differences: dict[str, dict[str, Difference]]
    changes: dict[str, dict[str, Difference]]
    solved: dict[str, SolvedBy | None]
    pass_curves: dict[str, Line]
    facts: dict[str, dict[str, Fact]]


@dataclass(frozen=True)
class Comparison:
    """Arms against a baseline.

    Attributes:
        baseline: Name of the baseline.
        benchmark: Benchmark of the primary comparison.
        measure: Its measure, as in `BenchmarkComparison.measures`.
        margin: Within how many points arms count as equivalent.
        confidence: Level of the intervals.
        seeds: Seeds of each arm that have a result.
        failed: Why others have none, by arm and seed.
        benchmarks: By name.
        facts: Of each arm, how its training went, by the names of `ngrpo.report.run_facts.OF_TRAINING`.
        curves: Learning curves by metric and arm.
        published: What publications say, in percent, by arm, benchmark and measure.
        notes: What a reader has to know, in sentences.
        layout: Number of the form of the file.
    """

    baseline: str
    benchmark: str
    measure: str
    margin: float
    confidence: float
    seeds: dict[str, list[int]]
    failed: dict[str, dict[int, str]]
    benchmarks: dict[str, BenchmarkComparison]
    facts: dict[str, dict[str, Fact]]
    curves: dict[str, dict[str, Line]]
    published: Mapping[str, Mapping[str, Mapping[str, float]]]
    notes: list[str]
    layout: int = 1

    @property
    def failed_whole(self) -> list[str]:
        """The arms without any result."""
        return [arm for arm, seeds in self.seeds.items() if not seeds]
