"""Final metrics of a run in MLflow, so that runs can be compared without opening their stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ngrpo.contracts.evaluation import Evaluation
from ngrpo.contracts.promotion import Promotion

if TYPE_CHECKING:
    from ngrpo.evaluation.gains import Gain


def final_metrics(
    evaluations: Mapping[str, Evaluation], gains: Mapping[str, Gain], promotions: Mapping[str, Promotion]
) -> dict[str, float]:
    """Return the numbers by name: means of the trained model, the gain of training in points, and the decision.

    Args:
        evaluations: By node; with several nodes, the node's name precedes its benchmarks.
        gains: By benchmark, if there is one evaluation.
        promotions: By node.
    """
    values: dict[str, float] = {}
    for node, evaluation in evaluations.items():
        before = "" if len(evaluations) == 1 else f"{node}/"
        for name, result in evaluation["models"]["trained"].items():
            values[f"final/{before}{name}/mean"] = result["mean"]
            for k, value in result["pass_at_k"].items():
                values[f"final/{before}{name}/pass_at_{k}"] = value
    for name, gain in gains.items():
        values |= {f"gain/{name}": gain.points, f"gain/{name}/low": gain.low, f"gain/{name}/high": gain.high}
    for node, promotion in promotions.items():
        before = "" if len(promotions) == 1 else f"{node}/"
        values[f"{before}promoted"] = float(promotion["decision"] == "promoted")
    return values
