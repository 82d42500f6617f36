"""Costs of the results of a run on a cluster, from the records of its pods."""

from __future__ import annotations

from collections.abc import Iterator

from ngrpo.errors import NGRPOError, StoreError
from ngrpo.ledger.prices import in_words
from ngrpo.ledger.spending import Cost, records_of, together, total
from ngrpo_kfp.pipelines.kubeflow.runs.facts import RunFacts
from ngrpo_kfp.pipelines.kubeflow.submission import recorded_config
from ngrpo_kfp.pipelines.kubeflow.submitted_runs import key_of
from ngrpo_kfp.pipelines.planning.nodes import stage_of


def cost_lines(facts: RunFacts) -> Iterator[str]:
    """Yield the costs of each node of a run so far, over all its tries, and the total; nothing if none are recorded.

    What cannot be read is added to `facts.notes`.

    Args:
        facts: The run.
    """
    costs = {node: cost for node in facts.tasks if (cost := _spent(facts, node)) is not None}
    if not costs:
        return
    try:
        prices = recorded_config(facts.client, facts.run_id).costs
    except NGRPOError as error:
        facts.notes.append(f"prices are not known: {error}")
        return
    for node, cost in costs.items():
        tries = f" in {cost.tries} tries" if cost.tries > 1 else ""
        yield f"cost  {node}: {in_words(cost, prices)}{tries}"
    if len(costs) > 1:
        yield f"cost  together: {in_words(together(costs.values()), prices)}"


def _spent(facts: RunFacts, node: str) -> Cost | None:
    key = key_of(facts.tasks[node], facts.run_id)
    if key is None or facts.objects is None:
        return None
    try:
        records = records_of(facts.objects, stage_of(node), key)
    except StoreError as error:
        facts.notes.append(f"what {node} took is not known: {error}")
        return None
    # Other runs may have tried to make the same result.
    own = [record for record in records if record.run == facts.run_id]
    return total(own) if own else None
