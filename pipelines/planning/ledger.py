"""Costs of a run, savings by its cache hits, and the expected costs of a similar run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ngrpo.config import RunConfig
from ngrpo.config.costs import CostsConfig
from ngrpo.ledger.devices import hardware, visible_gpus
from ngrpo.ledger.prices import digits, duration, figures, in_words, money, price_of_a_point
from ngrpo.ledger.shapes import Expected, expected, shape
from ngrpo.ledger.spending import Cost, recorded_cost, together
from ngrpo.sizing.durations import Duration
from ngrpo.sizing.durations import duration as duration_of
from ngrpo.sizing.model_shape import model_shape
from ngrpo.sizing.stages import answers
from ngrpo.storage.state import DamagedStateError
from ngrpo_kfp.pipelines.planning.nodes import Plan

if TYPE_CHECKING:
    from ngrpo.evaluation.gains import Gain
    from ngrpo.storage.objects import ObjectStore

_TRAINING = "ngrpo_training"
_MINUTE = 60.0


def costs_of(plan: Plan, objects: ObjectStore) -> dict[str, Cost | None]:
    """Return the spending on each node's result, whenever it was made; none if unknown, as for results of earlier versions.

    Nodes that take the result of another node are left out. A damaged record is logged and ignored, because it only informs.

    Args:
        plan: The plan of a run that is done.
        objects: The artifact store.

    Raises:
        StoreError: The store cannot be reached.
    """
    return {node.name: recorded_cost(objects, node.stage, node.key) for node in plan if node.same_as is None}


def costs_summary(
    plan: Plan, costs: Mapping[str, Cost | None], prices: CostsConfig, gain: Gain | None
) -> dict[str, Any]:
    """Return `costs` of `summary.json`.

    Args:
        plan: The plan of the run.
        costs: See `costs_of`.
        prices: Prices.
        gain: Gain of training on the benchmark of the promotion, if the run has one training and one evaluation.
    """
    spent = [cost for name, cost in costs.items() if cost is not None and not plan[name].cached]
    saved = [cost for name, cost in costs.items() if cost is not None and plan[name].cached]
    summary: dict[str, Any] = {
        "currency": prices.currency,
        "spent": figures(together(spent), prices) | {"in_words": in_words(together(spent), prices)},
        "saved": figures(together(saved), prices) | {"in_words": in_words(together(saved), prices)} if saved else None,
        "unknown": [name for name, cost in costs.items() if cost is None],
        "stages": {
            name: figures(cost, prices) | {"tries": cost.tries, "saved": plan[name].cached}
            for name, cost in costs.items()
            if cost is not None
        },
    }
    training = _of_training(plan, costs)
    if gain is not None and training is not None:
        said = price_of_a_point(training, prices, gain.points, (gain.low, gain.high))
        summary["point_gained"] = {"benchmark": gain.benchmark, "in_words": said}
    return summary


def _of_training(plan: Plan, costs: Mapping[str, Cost | None]) -> Cost | None:
    """Return the spending between the model that training started from and the trained one; none if unknown."""
    if _TRAINING not in plan.nodes:
        return None
    index = plan[_TRAINING].inputs.get("neighbor_index")
    parts = [costs.get(_TRAINING), *([] if index is None else [costs.get(index.worker.name)])]
    known = [part for part in parts if part is not None]
    return together(known) if len(known) == len(parts) else None


def costs_lines(costs: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines on costs for the terminal after a run; `costs` is that of `summary.json`."""
    yield f"cost      {costs['spent']['in_words']}"
    if costs["saved"] is not None:
        yield f"cached    saved {costs['saved']['in_words']}"
    if "point_gained" in costs:
        point = costs["point_gained"]
        yield f"a point   of {point['benchmark']} cost {point['in_words']}"


def cost_metrics(costs: Mapping[str, Any]) -> dict[str, float]:
    """Return a run's costs as metrics of its MLflow run; `costs` is that of `summary.json`."""
    values = {f"cost/{name}": value for name, value in costs["spent"].items() if name != "in_words"}
    saved = {f"cost/saved/{name}": value for name, value in (costs["saved"] or {}).items() if name != "in_words"}
    return values | saved


def expectations(
    plan: Plan, config: RunConfig, objects: ObjectStore, *, here: bool = True
) -> dict[str, Expected | Duration | None]:
    """Return what each node that has to run is expected to take.

    The estimate comes from earlier results of the same shape, or else from sizing, which may know only the number of tokens to generate;
    None if neither has one.

    Args:
        plan: The plan.
        config: Configuration of the run.
        objects: The artifact store.
        here: Whether the run is on this machine: then only results from the same hardware count.

    Raises:
        StoreError: The store cannot be reached.
    """
    visible = visible_gpus() if here else []
    found: dict[str, Expected | Duration | None] = {}
    for node in plan.to_run:
        machine = hardware(visible[: config.needs(node.stage).gpus]) if here else None
        try:
            found[node.name] = expected(objects, node.stage, shape(node.stage, node.config), machine)
        except DamagedStateError as error:
            print(f"ignored: {error}", file=sys.stderr)
            found[node.name] = None
    model = model_shape(config.model.source) if None in found.values() else None
    if model is not None:
        generated = answers(config, model)
        found |= {
            name: duration_of(config, plan[name].stage, model, generated)
            for name, known in found.items()
            if known is None
        }
    return found


def expectations_table(expected: Mapping[str, Expected | Duration | None], prices: CostsConfig) -> Table:
    """Return the table of expected costs of a run. A node without an estimate is shown as unknown, and the total is then incomplete."""
    priced = prices.gpu_hour is not None or prices.cpu_hour is not None
    table = Table(title="What it will take", caption_justify="left")
    table.add_column("stage", overflow="fold")
    for column in ("time", "GPU-h", *([prices.currency] if priced else [])):
        table.add_column(column, justify="right")
    table.add_column("by", overflow="fold")
    unknown = ["unknown"] * (3 if priced else 2)
    for name, each in expected.items():
        if isinstance(each, Expected):
            results = f"{each.results} result{'s' * (each.results > 1)} on {each.hardware}"
            table.add_row(name, *_cells(each.cost, prices, priced), results)
        elif each is not None and each.seconds is not None:
            about = f"about {duration(each.seconds)}" if each.seconds >= _MINUTE else "below 1 min"
            # Only stages without GPUs have such estimates.
            table.add_row(name, about, "-", *unknown[2:], f"an estimate: {each.basis}")
        else:
            todo = f"; it {each.basis}" if each is not None and each.basis else ""
            table.add_row(name, *unknown, f"no earlier result of this shape{todo}")
    known = [each.cost for each in expected.values() if isinstance(each, Expected)]
    if len(expected) > 1:
        table.add_section()
        missing = len(expected) - len(known)
        cells = _cells(together(known), prices, priced) if known else unknown
        without = f"without the {missing} that have no earlier result" if missing and known else ""
        table.add_row("together", *cells, without)
    return table


def _cells(cost: Cost, prices: CostsConfig, priced: bool) -> list[str]:
    price = money(cost, prices)
    cells = [duration(cost.seconds), digits(cost.gpu_hours) if cost.gpu_seconds else "-"]
    return [*cells, "-" if price is None else f"{price:,.2f}"] if priced else cells
