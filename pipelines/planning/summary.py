"""Output of a run: the table of its plan, the table of its results, and `summary.json`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from ngrpo.checking.decoding_time import check_decoding_time
from ngrpo.checking.exploration import check_exploration
from ngrpo.config import RunConfig
from ngrpo.config.mixing import FUSED_STRATEGIES
from ngrpo.contracts.evaluation import Evaluation, Result
from ngrpo.contracts.promotion import Promotion
from ngrpo.report.wording import ESTIMATORS
from ngrpo_kfp.pipelines.planning.nodes import Plan, PlannedStage

_RESULT_FIELDS = ("mean", "mean_ci", "pass_at_k", "best_at_k", "n_problems", "n_samples")


def summarize(
    config: RunConfig,
    plan: Plan,
    records: Mapping[str, Mapping[str, Any]],
    *,
    evaluations: Mapping[str, Evaluation],
    promotions: Mapping[str, Promotion],
    tracking: Mapping[str, str],
    wall_seconds: float,
) -> dict[str, Any]:
    """Return the contents of `summary.json`.

    Args:
        config: Configuration of the run.
        plan: The plan that was run.
        records: Record of each node that ran (`run_stages`).
        evaluations: By node of the stage `benchmark_evaluation`, its `evaluation.json`.
        promotions: By node of the stage `model_promotion`, its `promotion.json`.
        tracking: `tracking_uri` of MLflow and `run_id` of this run there.
        wall_seconds: Seconds since the run began.
    """
    benchmark = config.promotion.benchmark
    return {
        "preset": config.preset,
        "seed": config.seed,
        "wall_seconds": round(wall_seconds, 3),
        "stages": {node.name: _node_summary(node, records) for node in plan},
        **_one_or_by_node("evaluation", {node: _means(each, benchmark) for node, each in evaluations.items()}),
        **_one_or_by_node("promotion", {node: _decision(each) for node, each in promotions.items()}),
        "mlflow": dict(tracking),
    }


def _one_or_by_node(what: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a single value under its name; several values, or none, by node under the plural."""
    return {what: next(iter(values.values()))} if len(values) == 1 else {f"{what}s": dict(values)}


def _means(evaluation: Mapping[str, Any], benchmark: str) -> dict[str, Any]:
    return {
        model: {field: results[benchmark][field] for field in _RESULT_FIELDS if field in results[benchmark]}
        for model, results in evaluation["models"].items()
    }


def _decision(promotion: Mapping[str, Any]) -> dict[str, Any]:
    return {field: promotion[field] for field in ("decision", "model", "version", "alias")}


def _node_summary(node: PlannedStage, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    if node.reference is None and node.same_as is None:
        record = records[node.name]
        return {field: record[field] for field in ("seconds", "peak_memory_bytes", "cached", "key", "artifact")}
    artifact = records[node.worker.name]["artifact"] if node.reference is None else node.reference.uri
    return {"seconds": 0.0, "peak_memory_bytes": 0, "cached": True, "key": node.key, "artifact": artifact}


def plan_table(plan: Plan, config: RunConfig) -> Table:
    """Return the table of a plan: whether each node runs, and why; below it chat settings, notes on slow rollouts, and warnings."""
    below = [
        *_chat_lines(config),
        *_rollout_lines(config),
        *(
            f"warning: {finding.line}"
            for check in (check_decoding_time, check_exploration)
            for finding in check(config)
        ),
    ]
    table = Table(title="Plan", caption=escape("\n".join(below)) or None, caption_justify="left")
    for column in ("stage", "key", ""):
        table.add_column(column)
    table.add_column("why", overflow="fold")
    for node in plan:
        state = "[green]cached" if node.cached else "[yellow]to run" if node.same_as is None else "[green]shared"
        table.add_row(node.name, node.key[:12], state, escape("; ".join(node.reasons)))
    return table


def _chat_lines(config: RunConfig) -> Iterator[str]:
    chat = config.model
    if chat.chat_template is not None:
        yield f"chat template: {len(chat.chat_template)} characters, in place of the model's"
    if chat.generation_prompt:
        # As JSON, so that a line break at its end is seen.
        yield f"generation prompt: the chat template's, then {json.dumps(chat.generation_prompt, ensure_ascii=False)}"
    if chat.end_of_turn:
        yield f"end of turn: the model's ends, and {', '.join(json.dumps(token, ensure_ascii=False) for token in chat.end_of_turn)}"
    if config.data.system_prompt:
        yield f"system prompt: {json.dumps(config.data.system_prompt, ensure_ascii=False)}"


def _rollout_lines(config: RunConfig) -> Iterator[str]:
    unknown = config.mixing.without_kernels
    on_gpu = config.rollout.engine == "vllm" and config.needs("ngrpo_training").gpus > 0
    if on_gpu and unknown is not None:
        known = " and ".join(FUSED_STRATEGIES)
        yield (
            f"rollouts: steps with {unknown} take the slower path through torch; {known} have GPU kernels, with label=anchor and "
            "weights=softmax"
        )


def results_table(evaluation: Evaluation, titles: Mapping[str, str] | None = None, node: str | None = None) -> Table:
    """Return the table of all benchmarks in percent: every model, and the gain of the trained one over the one it started from.

    Args:
        evaluation: `evaluation.json` of the stage `benchmark_evaluation`.
        titles: Titles of benchmarks that are not shown by their name.
        node: Node of the results, if there are several.
    """
    models = evaluation["models"]
    place = {model: number for number, model in enumerate(models)}
    # Without a warm start, base model and warm start are one (see `benchmark_evaluation`).
    names = {"warm_start": "warm start" if "base" in models else "base model"}
    whose = "" if node is None else f" of {node}"
    table = Table(
        title=f"Results{whose} (%, with the interval of the mean)", caption=ESTIMATORS, caption_justify="left"
    )
    table.add_column("benchmark")
    table.add_column("")
    for model in models:
        table.add_column(names.get(model, model), justify="right")
    table.add_column("gain", justify="right")
    for benchmark, trained in models["trained"].items():
        results = [of[benchmark] for of in models.values()]
        start = models["warm_start"][benchmark]
        table.add_row(
            escape((titles or {}).get(benchmark, benchmark)),
            f"mean@{trained['n_samples']}",
            *(
                f"{_percent(result['mean'])}  [{_percent(result['mean_ci'][0])}, {_percent(result['mean_ci'][1])}]"
                for result in results
            ),
            f"{100 * (trained['mean'] - start['mean']):+.1f}",
        )
        for estimator, each in _solved_within(results):
            table.add_row(
                "",
                estimator,
                *map(_percent, each),
                f"{100 * (each[place['trained']] - each[place['warm_start']]):+.1f}",
            )
    return table


def _solved_within(results: Sequence[Result]) -> Iterator[tuple[str, list[float]]]:
    """Yield pass@k and best@k by name, with the value of each result. Both are the mean for k = 1; earlier versions stored no best@k."""
    last = results[-1]
    for k in last["pass_at_k"]:
        if k != "1":
            yield f"pass@{k}", [result["pass_at_k"][k] for result in results]
    for k in last.get("best_at_k", {}):
        if k != "1":
            yield f"best@{k}", [result["best_at_k"][k] for result in results]


def places(
    report: Path, summary: Mapping[str, Any], promotions: Mapping[str, Promotion], weights: Mapping[str, Path]
) -> Iterator[str]:
    """Yield where the results of a run are, a line each: report, MLflow, model registry and trained weights, with the next commands.

    Args:
        report: The report that was written.
        summary: `summary.json` of the run.
        promotions: By node of the stage `model_promotion`, its `promotion.json`.
        weights: By node of the stage `ngrpo_training`, the directory of its model.
    """
    tracking = summary["mlflow"]
    served = tracking["tracking_uri"] if tracking["tracking_uri"].startswith("http") else "`ngrpo ui` serves it"
    yield f"report    {report}"
    yield f"MLflow    run {tracking['run_id']} ({served})"
    for promotion in promotions.values():
        version = promotion["version"] if promotion["alias"] == "champion" else promotion["champion_version"]
        champion = f"models:/{promotion['model']}@champion is " + (
            "not set" if version is None else f"version {version}"
        )
        yield f"champion  {champion}; this model: {promotion['decision']}, {promotion['reason']}"
    for node, directory in weights.items():
        whose = f" ({node})" if len(weights) > 1 else ""
        yield f"weights   {directory}{whose}"
    yield from _next(promotions)


def _next(promotions: Mapping[str, Promotion]) -> Iterator[str]:
    """Yield the next commands for the models; with several models, each is named by its version."""
    names = [
        promotion["alias"] if len(promotions) == 1 else str(promotion["version"]) for promotion in promotions.values()
    ]
    for name in dict.fromkeys(names):
        for number, command in enumerate((f"chat {name}", f"serve {name}", f"export {name} DIR")):
            yield f"{'' if number else 'next':10}ngrpo {command}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"
