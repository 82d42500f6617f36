"""The gate of promotion at its limits: differences that are equal on every problem have no variance, so their bounds are exact."""

import pytest

from ngrpo.config import PromotionConfig
from ngrpo.evaluation.gate import Measured, compare

PROBLEMS, SAMPLES = 10, 8
PARTS = {
    "problems": "problems or gold answers",
    "revision": "data revision",
    "prompts": "prompts",
    "sampling": "sampling settings",
    "grader": "graders",
}
PROTOCOL = dict.fromkeys(PARTS, "same")


def result(counts: list[int]) -> dict:
    return {
        "n_samples": SAMPLES,
        "per_problem": {f"p{number}": count for number, count in enumerate(counts)},
        "per_problem_maj": {f"p{number}": float(count > SAMPLES / 2) for number, count in enumerate(counts)},
    }


def measured(name: str, **counts: int | list[int]) -> Measured:
    """A model with so many correct answers, of each problem or of every one."""
    lists = {name: [of] * PROBLEMS if isinstance(of, int) else of for name, of in counts.items()}
    return Measured(name, {name: result(of) for name, of in lists.items()}, dict.fromkeys(lists, PROTOCOL))


def verdict(candidate: Measured, opponent: Measured, **gate) -> dict:
    return compare(PromotionConfig(benchmark="sums", **gate), candidate, opponent, seed=1)


def test_a_loss_up_to_what_is_tolerated_is_tolerated():
    candidate, opponent = measured("new", sums=6, words=3), measured("old", sums=4, words=4)  # 12.5 points less
    assert verdict(candidate, opponent, tolerated_regression={"words": 12.5})["decision"] == "promoted"
    refused = verdict(candidate, opponent, tolerated_regression={"words": 12.4})
    assert refused["decision"] == "kept"
    assert "on words it may have lost up to 12.50 points, more than the 12.40 tolerated" in refused["reason"]
    assert verdict(candidate, opponent)["decision"] == "promoted", "on benchmarks that are not listed any loss is"


def test_a_gain_must_exceed_what_is_asked_for():
    candidate, opponent = measured("new", sums=5), measured("old", sums=4)  # 12.5 points more
    assert verdict(candidate, opponent, min_gain=12.5)["decision"] == "kept"
    promoted = verdict(candidate, opponent, min_gain=12.4)
    assert (promoted["decision"], promoted["comparison"]["interval"]) == ("promoted", [12.5, 12.5])
    assert verdict(opponent, candidate, min_gain=12.4)["decision"] == "kept", "the other way round it is a loss"


@pytest.mark.parametrize("benchmark", ["sums", "words"])
@pytest.mark.parametrize("part", PARTS)
def test_on_no_benchmark_of_the_gate_are_models_compared_that_were_not_measured_alike(benchmark, part):
    candidate, opponent = measured("new", sums=8, words=8), measured("old", sums=1, words=1)
    protocols = {**opponent.protocols, benchmark: PROTOCOL | {part: "other"}}
    decision = verdict(candidate, Measured("old", opponent.results, protocols), tolerated_regression={"words": 50.0})
    assert (decision["decision"], decision["comparison"]) == ("kept", None)
    assert f"on {benchmark} differ in their {PARTS[part]}" in decision["reason"]


@pytest.mark.parametrize("benchmark", ["sums", "words"])
def test_a_benchmark_that_the_opponent_lacks_or_that_has_other_problems_is_not_compared(benchmark):
    tolerated = {"words": 50.0}
    candidate = measured("new", sums=8, words=8)
    other = measured("old", **{name: 1 for name in ("sums", "words") if name != benchmark})
    decision = verdict(candidate, other, tolerated_regression=tolerated)
    assert (decision["decision"], decision["comparison"]) == ("kept", None)
    assert f"old was not evaluated on {benchmark}" in decision["reason"]
    fewer = measured("old", **{"sums": 1, "words": 1, benchmark: [1] * (PROBLEMS - 1)})
    decision = verdict(candidate, fewer, tolerated_regression=tolerated)
    assert (decision["decision"], decision["comparison"]) == ("kept", None)
    assert f"on {benchmark} have different problems" in decision["reason"]


def test_the_order_of_the_problems_does_not_decide():
    """Not even by the draws of the bootstrap; samples are many, so that these would show."""

    def of(name: str, counts: list[int], step: int = 1) -> Measured:
        names = [f"p{number}" for number in range(len(counts))]
        per_problem = dict(list(zip(names, counts, strict=True))[::step])
        return Measured(name, {"sums": {"n_samples": 1000, "per_problem": per_problem}}, {"sums": PROTOCOL})

    counts = [number**2 % 1001 for number in range(40)]
    opponent = of("old", [300] * 40)
    forwards, backwards = (verdict(of("new", counts, step), opponent) for step in (1, -1))
    assert forwards == backwards
    low, high = forwards["comparison"]["interval"]
    assert low < forwards["comparison"]["gain"] < high


def test_the_confidence_is_that_of_one_bound():
    # Better on three problems of forty: 4.6 % of the draws hold none of them, more than 2.5 % and less than 5 %.
    counts = [5, 5, 5] + [4] * 37
    candidate, opponent = measured("new", sums=counts), measured("old", sums=[4] * 40)
    assert verdict(candidate, opponent, confidence=0.95)["decision"] == "promoted"
    assert verdict(candidate, opponent, confidence=0.975)["decision"] == "kept"
