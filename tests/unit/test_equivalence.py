"""A deployment is kept only if endpoint and stage are shown to be equivalent."""

import itertools

import numpy as np
import pytest

from ngrpo.evaluation.equivalence import equivalent
from ngrpo.evaluation.statistics import paired_difference

N = 8


def evaluation(protocol: str = "same", **benchmarks: list[int]):
    results = {
        name: {
            "n_samples": N,
            "per_problem": {f"p{place}": count for place, count in enumerate(counts)},
            "per_problem_maj": {f"p{place}": 0.0 for place in range(len(counts))},
        }
        for name, counts in benchmarks.items()
    }
    parts = ("problems", "revision", "prompts", "sampling", "grader")
    protocols = {name: dict.fromkeys(parts, protocol) for name in benchmarks}
    return {"models": {"trained": results}, "protocols": {"trained": protocols}}


def decided(stage, endpoint, margin: float = 5.0):
    return equivalent(stage, endpoint, margin=margin, confidence=0.95, seed=0)


COUNTS = [place % (N + 1) for place in range(60)]


def test_equal_answers_are_equal_whatever_the_margin():
    verdict = decided(evaluation(a=COUNTS), evaluation(a=COUNTS), margin=1e-6)
    assert verdict.decision == "kept"
    assert [(each.value, each.low, each.high) for each in verdict.differences] == [(0.0, 0.0, 0.0)]


def test_a_worse_and_a_better_endpoint_are_refused():
    for change in (-2, 2):
        other = [min(max(count + change, 0), N) for count in COUNTS]
        verdict = decided(evaluation(a=COUNTS), evaluation(a=other))
        assert verdict.decision == "refused"
        assert "make sure that the server computes as the stage does" in verdict.reason


def test_too_few_samples_show_nothing():
    other = [count + (-1) ** place for place, count in enumerate([4] * 6)]
    verdict = decided(evaluation(a=[4] * 6), evaluation(a=other))
    (each,) = verdict.differences
    assert each.low < 0 < each.high
    assert verdict.decision == "refused"
    assert "too few samples to decide: raise evaluation.samples, or deployment.margin" in verdict.reason
    assert decided(evaluation(a=[4] * 6), evaluation(a=other), margin=20.0).decision == "kept"


def test_the_interval_is_that_of_the_paired_difference():
    other = [min(count + place % 2, N) for place, count in enumerate(COUNTS)]
    (each,) = decided(evaluation(a=COUNTS), evaluation(a=other)).differences
    ours, theirs = ({f"p{place}": 100 * count / N for place, count in enumerate(counts)} for counts in (COUNTS, other))
    ids = sorted(ours)
    wanted = paired_difference(
        np.array([theirs[name] for name in ids]),
        np.array([ours[name] for name in ids]),
        confidence=0.95,
        draws=10_000,
        seed=0,
    )
    assert (each.value, each.low, each.high) == wanted


def test_every_benchmark_counts():
    stage = evaluation(a=COUNTS, b=COUNTS)
    worse = [max(count - 3, 0) for count in COUNTS]
    assert "on b the endpoint is" in decided(stage, evaluation(a=COUNTS, b=worse)).reason
    assert "was not evaluated on b" in decided(stage, evaluation(a=COUNTS)).reason


def test_what_was_measured_otherwise_is_not_compared():
    verdict = decided(evaluation(a=COUNTS), evaluation("other", a=COUNTS))
    assert verdict.decision == "refused"
    assert "differ in their" in verdict.reason
    assert verdict.differences == ()
    assert "have different problems" in decided(evaluation(a=COUNTS), evaluation(a=COUNTS[:-1])).reason


@pytest.mark.long
def test_equal_models_are_kept_and_others_are_not():
    """By simulation, of 200 problems and 32 samples: equal models pass, and such as lost 8 points do not."""
    generator = np.random.default_rng(0)
    kept = {0.0: 0, 0.08: 0}
    for loss, _ in itertools.product(kept, range(100)):
        p = generator.beta(1, 1, 200)
        first = generator.binomial(N, p).tolist()
        second = generator.binomial(N, np.clip(p - loss, 0, 1)).tolist()
        kept[loss] += decided(evaluation(a=first), evaluation(a=second)).decision == "kept"
    print(kept)
    assert kept[0.0] >= 90
    assert kept[0.08] <= 5
