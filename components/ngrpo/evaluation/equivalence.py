"""Whether a served model performs as in its evaluation: a test of equivalence on each benchmark.

A test for a difference is not enough: with few samples it finds none, even if something is wrong. So the burden of proof is reversed, as in
two one-sided tests (Schuirmann, 1987): the two count as equal only if the whole interval of their difference lies within a margin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ngrpo.contracts.evaluation import Evaluation
from ngrpo.evaluation.gate import Measured, obstacle, per_problem
from ngrpo.evaluation.statistics import paired_difference

_DRAWS = 10_000
_MODEL = "trained"


@dataclass(frozen=True)
class Difference:
    """Endpoint minus stage on a benchmark: mean@n in percentage points, with its interval."""

    benchmark: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Equivalence:
    """The decision on a deployment."""

    decision: Literal["kept", "refused"]
    reason: str
    """One sentence."""
    differences: tuple[Difference, ...]


def equivalent(stage: Evaluation, endpoint: Evaluation, *, margin: float, confidence: float, seed: int) -> Equivalence:
    """Decide whether a deployment is kept.

    Args:
        stage: The evaluation that the model was promoted on.
        endpoint: The evaluation of the same model through its endpoint.
        margin: Largest difference that counts as equal, in percentage points.
        confidence: Level of the two-sided intervals, bootstrapped over problems.
        seed: Seed of the bootstrap.

    Returns:
        `kept` if the interval of every benchmark of the stage lies within the margin. `refused` if one does not, or if the two evaluations
        have different protocols.
    """
    promoted = Measured.of(stage, _MODEL, "the stage")
    served = Measured.of(endpoint, _MODEL, "the endpoint")
    for name in promoted.results:
        if name not in served.results:
            return Equivalence(
                "refused", f"the endpoint was not evaluated on {name}; evaluate it with the same preset", ()
            )
        problem = obstacle(name, served, promoted)
        if problem is not None:
            return Equivalence("refused", problem, ())
    differences = tuple(_difference(name, served, promoted, confidence, seed) for name in promoted.results)
    for each in differences:
        if each.low < -margin or each.high > margin:
            differs = each.high < 0 or each.low > 0
            cure = (
                "make sure that the server computes as the stage does (type, version of vLLM, quantization)"
                if differs
                else "too few samples to decide: raise evaluation.samples, or deployment.margin"
            )
            return Equivalence(
                "refused",
                f"on {each.benchmark} the endpoint is {each.value:+.2f} points off the stage, [{each.low:+.2f}, {each.high:+.2f}] at "
                f"{confidence:.0%} confidence, which is not within ±{margin:g}; {cure}",
                differences,
            )
    widest = max(differences, key=lambda each: max(-each.low, each.high))
    return Equivalence(
        "kept",
        f"endpoint and stage are equal within ±{margin:g} points; the widest interval is that of {widest.benchmark}, "
        f"[{widest.low:+.2f}, {widest.high:+.2f}] at {confidence:.0%} confidence",
        differences,
    )


def _difference(name: str, served: Measured, promoted: Measured, confidence: float, seed: int) -> Difference:
    problems = sorted(promoted.results[name]["per_problem"])
    theirs, ours = (100.0 * per_problem("mean", each.results[name], problems) for each in (served, promoted))
    value, low, high = paired_difference(theirs, ours, confidence=confidence, draws=_DRAWS, seed=seed)
    return Difference(name, value, low, high)
