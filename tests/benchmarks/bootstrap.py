"""What the statistics of a large benchmark cost: 500 problems of 32 samples, every k, 10,000 draws, against SciPy's bootstrap."""

from __future__ import annotations

import numpy as np
from scipy import stats
from tests.benchmarks.measure import alternate, report

from ngrpo.evaluation.statistics import Floats, bootstrap_intervals, mean_at_n, pass_at_k

PROBLEMS, SAMPLES, DRAWS, ROUNDS = 500, 32, 10_000, 3


def run() -> list[dict]:
    """Measure mean@n and pass@k of every k with their intervals."""
    random = np.random.default_rng(0)
    counts = random.binomial(SAMPLES, random.beta(0.8, 1.2, size=PROBLEMS))
    ours, peer = alternate(lambda: _ours(counts), lambda: _scipy(_table(counts)), ROUNDS)
    return [
        report(
            "bootstrap",
            ours,
            peer,
            unit="s",
            scale=1,
            peer_is="scipy.stats.bootstrap",
            problems=PROBLEMS,
            samples=SAMPLES,
            draws=DRAWS,
        )
    ]


def _table(counts: np.ndarray) -> Floats:
    return np.stack(
        [mean_at_n(counts, SAMPLES), *(pass_at_k(counts, SAMPLES, k) for k in range(1, SAMPLES + 1))], axis=1
    )


def _ours(counts: np.ndarray) -> Floats:
    return bootstrap_intervals(_table(counts), confidence=0.95, draws=DRAWS, seed=0)


def _scipy(table: Floats) -> None:
    settings = {"n_resamples": DRAWS, "batch": 100, "method": "percentile", "confidence_level": 0.95}
    stats.bootstrap((table,), np.mean, axis=0, paired=True, rng=np.random.default_rng(0), **settings)
