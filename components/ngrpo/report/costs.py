"""What the model card says of costs."""

from __future__ import annotations

from collections.abc import Mapping

from ngrpo.config import EvaluationConfig
from ngrpo.config.costs import CostsConfig
from ngrpo.contracts.evaluation import Evaluation
from ngrpo.evaluation.gains import gain_of
from ngrpo.ledger.prices import in_words, price_of_a_point
from ngrpo.ledger.spending import recorded_cost, together
from ngrpo.storage.objects import ObjectStore

_OF_TRAINING = ("ngrpo_training", "neighbor_index")
"""Stages that lie between the model that training started from and the trained one."""


def cost_lines(
    store: str | None,
    keys: Mapping[str, str],
    prices: CostsConfig,
    evaluation: Evaluation,
    *,
    benchmark: str,
    seed: int,
) -> list[str]:
    """Return what the results behind a model took, a line each, and what a point gained cost; what is not known is named.

    Args:
        store: `s3://bucket/prefix` of the artifacts; none where there is no store, and nothing is known.
        keys: Key of each result, by its stage.
        prices: Prices.
        evaluation: `evaluation.json`.
        benchmark: The benchmark of the gain.
        seed: Seed of the gain's interval.

    Raises:
        StoreError: The store cannot be reached.
    """
    if store is None:
        return []
    objects = ObjectStore(store)
    costs = {stage: recorded_cost(objects, stage, key) for stage, key in keys.items()}
    lines = [
        f"- {stage}: {'not recorded' if cost is None else in_words(cost, prices)}" for stage, cost in costs.items()
    ]
    training = [costs[stage] for stage in _OF_TRAINING if stage in costs]
    known = [cost for cost in training if cost is not None]
    if known and len(known) == len(training):
        statistics = evaluation.get("statistics")
        settings = (
            EvaluationConfig()
            if statistics is None
            else EvaluationConfig(confidence=statistics["confidence"], bootstrap_draws=statistics["bootstrap_draws"])
        )
        gain = gain_of(evaluation, benchmark, settings, seed)
        said = price_of_a_point(together(known), prices, gain.points, (gain.low, gain.high))
        lines.append(f"- a point gained by training on {benchmark}: {said}")
    return lines
