"""What a run says of itself: the table of its plan, the table of its results, and `summary.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from ngrpo.config import RunConfig
from ngrpo.contracts.evaluation import Evaluation
from ngrpo.contracts.promotion import Promotion
from ngrpo_kfp.pipelines.planning.nodes import Plan

_RESULT_FIELDS = ("mean", "mean_ci", "pass_at_k", "n_problems", "n_samples")


def summarize(
    config: RunConfig,
    plan: Plan,
    records: Mapping[str, Mapping[str, Any]],
    *,
    evaluation: Evaluation,
    promotion: Promotion,
    tracking: Mapping[str, str],
    wall_seconds: float,
) -> dict[str, Any]:
    """Return the contents of `summary.json`.

    Args:
        config: Configuration of the run.
        plan: The plan that was run.
        records: Record of each stage that ran (`run_stages`).
        evaluation: `evaluation.json` of the stage `benchmark_evaluation`.
        promotion: `promotion.json` of the stage `model_promotion`.
        tracking: `tracking_uri` of MLflow and `run_id` of this run there.
        wall_seconds: Seconds since the run began.
    """
    benchmark = config.promotion.benchmark
    return {
        "preset": config.preset,
        "seed": config.seed,
        "wall_seconds": round(wall_seconds, 3),
        "stages": {stage.name: _stage_summary(stage.name, plan, records) for stage in plan},
        "evaluation": {
            model: {field: results[benchmark][field] for field in _RESULT_FIELDS}
            for model, results in evaluation["models"].items()
        },
        "promotion": {field: promotion[field] for field in ("decision", "model", "version", "alias")},
        "mlflow": dict(tracking),
    }


def _stage_summary(name: str, plan: Plan, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    planned = plan[name]
    if planned.reference is not None:
        return {
            "seconds": 0.0,
            "peak_memory_bytes": 0,
            "cached": True,
            "key": planned.key,
            "artifact": planned.reference.uri,
        }
    record = records[name]
    return {field: record[field] for field in ("seconds", "peak_memory_bytes", "cached", "key", "artifact")}


def plan_table(plan: Plan) -> Table:
    """Return the table of a plan: for each stage whether it runs, and why."""
    table = Table(title="Plan")
    for column in ("stage", "key", ""):
        table.add_column(column)
    table.add_column("why", overflow="fold")
    for stage in plan:
        state = "[green]cached" if stage.cached else "[yellow]to run"
        table.add_row(stage.name, stage.key[:12], state, escape("; ".join(stage.reasons)))
    return table


def results_table(evaluation: Evaluation, titles: Mapping[str, str] | None = None) -> Table:
    """Return the table of all benchmarks in percent: every model, and what the trained one gained over the one it started from.

    Args:
        evaluation: `evaluation.json` of the stage `benchmark_evaluation`.
        titles: How benchmarks are called that are not called by their name.
    """
    models = evaluation["models"]
    # Without a warm start, base model and warm start are one (see `benchmark_evaluation`).
    names = {"warm_start": "warm start" if "base" in models else "base model"}
    table = Table(title="Results (%, with the interval of the mean)")
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
        for k, value in trained["pass_at_k"].items():
            table.add_row(
                "",
                f"pass@{k}",
                *(_percent(result["pass_at_k"][k]) for result in results),
                f"{100 * (value - start['pass_at_k'][k]):+.1f}",
            )
    return table


def places(report: Path, summary: Mapping[str, Any], promotion: Promotion) -> str:
    """Return the three places to look after a run: report, MLflow, model registry.

    Args:
        report: The report that was written.
        summary: `summary.json` of the run.
        promotion: `promotion.json` of the stage `model_promotion`.
    """
    tracking = summary["mlflow"]
    served = tracking["tracking_uri"] if tracking["tracking_uri"].startswith("http") else "`make ui` serves it"
    version = promotion["version"] if promotion["alias"] == "champion" else promotion["champion_version"]
    champion = f"models:/{promotion['model']}@champion is " + ("not set" if version is None else f"version {version}")
    return (
        f"report    {report}\n"
        f"MLflow    run {tracking['run_id']} ({served})\n"
        f"champion  {escape(champion)}; this model: {promotion['decision']}, {escape(promotion['reason'])}"
    )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"
