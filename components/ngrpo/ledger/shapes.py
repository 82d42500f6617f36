"""Expected cost of a result, from results of the same shape: the same stage, with equal values of all settings that affect its duration.

An index by shape is kept beside the records: empty objects `spent/shapes/<stage>/<shape>/<name>/<key>` below the artifact store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ngrpo.ledger.spending import Cost, Spent, cost_of, records_of

if TYPE_CHECKING:
    from ngrpo.storage.objects import ObjectStore

_FOLDER = "spent/shapes"
_MOST = 5
"""Number of newest results that an expectation is based on."""
_NO_TIME = frozenset(
    {
        "seed",
        "template_date",
        # optimizer and loss: other numbers, the same work
        "learning_rate",
        "lr_scheduler",
        "warmup_ratio",
        "adam_beta2",
        "weight_decay",
        "max_grad_norm",
        "clip_epsilon",
        "epsilon_high",
        "delta",
        "scale_rewards",
        # promotion
        "model_name",
        "min_gain",
        "tolerated_regression",
        "confidence",
    }
)
"""Names of settings that do not affect how long a stage takes, at any depth. All others are assumed to affect it."""
_FOR_THE_CARD = frozenset({"model", "data", "mixing", "rollout", "training"})
"""Settings that the stage `model_promotion` gets only for the model card."""


@dataclass(frozen=True)
class Expected:
    """Expected cost of a result, from stored results of the same shape."""

    cost: Cost
    """Mean of their costs."""
    results: int
    """Number of these results."""
    hardware: str
    """Hardware that they were produced on, in words."""


def shape(stage: str, config_json: str) -> str:
    """Return the hash of a stage and of its settings that affect how long it takes: 16 hexadecimal digits.

    Args:
        stage: Name of the stage.
        config_json: Its settings as JSON.
    """
    config = json.loads(config_json)
    if stage == "model_promotion":
        config = {name: value for name, value in config.items() if name not in _FOR_THE_CARD}
    text = json.dumps([stage, _deciding(config)], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def remember(objects: ObjectStore, record: Spent) -> None:
    """Add a published result to the index.

    Raises:
        StoreError: The store cannot be reached.
    """
    objects.put_bytes(b"", f"{_FOLDER}/{record.stage}/{record.shape}/{record.name}/{record.key}")


def expected(objects: ObjectStore, stage: str, shape: str, hardware: str | None) -> Expected | None:
    """Return the expected cost of a result, from the newest results of the same shape; None if there are none.

    Args:
        objects: The artifact store.
        stage: Name of the stage.
        shape: See `shape`.
        hardware: Hardware that it will run on, in words (`ngrpo.ledger.devices.hardware`): only results from the same hardware count.
            None takes the hardware of the newest result.

    Raises:
        DamagedStateError: A record cannot be read.
        StoreError: The store cannot be reached.
    """
    found: list[Cost] = []
    seen: set[str] = set()
    for name in sorted(objects.list(f"{_FOLDER}/{stage}/{shape}/"), reverse=True):
        key = name.rpartition("/")[2]
        if key in seen:
            continue
        seen.add(key)
        records = records_of(objects, stage, key)
        cost, made_on = cost_of(records), _made_on(records)
        if cost is None or made_on is None:
            continue
        hardware = hardware or made_on
        if made_on == hardware:
            found.append(cost)
        if len(found) == _MOST:
            break
    return None if not found or hardware is None else Expected(_mean(found), len(found), hardware)


def _made_on(records: list[Spent]) -> str | None:
    """Return the hardware that a result was produced on, with the number of nodes if there were several; None if it is not published."""
    published = [record for record in records if record.outcome == "published"]
    if not published:
        return None
    nodes = 1 + max(record.rank for record in records)
    return published[-1].hardware if nodes == 1 else f"{nodes} nodes with {published[-1].hardware}"


def _mean(costs: list[Cost]) -> Cost:
    number = len(costs)
    told = [cost.joules for cost in costs if cost.joules is not None]
    return Cost(
        seconds=sum(cost.seconds for cost in costs) / number,
        processor_seconds=sum(cost.processor_seconds for cost in costs) / number,
        gpu_seconds=sum(cost.gpu_seconds for cost in costs) / number,
        joules=sum(told) / number if len(told) == number else None,
    )


def _deciding(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {name: _deciding(value) for name, value in tree.items() if name not in _NO_TIME}
    return [_deciding(value) for value in tree] if isinstance(tree, list) else tree
