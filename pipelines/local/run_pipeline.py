"""One run of the pipeline on this machine, from the plan to the report."""

from __future__ import annotations

import importlib
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ngrpo.checking.examination import require_possible
from ngrpo.config import RunConfig
from ngrpo.config.costs import CostsConfig
from ngrpo.contracts.evaluation import EVALUATION, Evaluation, read_evaluation
from ngrpo.contracts.promotion import PROMOTION, Promotion, read_promotion
from ngrpo.environment import PRICES, environment
from ngrpo.errors import ConfigError
from ngrpo.report.phases import PREPARING, messages, phase
from ngrpo.stages.keys import mentions_kept
from ngrpo.storage.manifest import Reference
from ngrpo.storage.state import write_state
from ngrpo_kfp.pipelines.local.announcing import announce_decisions, failure_announced, warn_of_missing
from ngrpo_kfp.pipelines.local.parent_run import pipeline_run
from ngrpo_kfp.pipelines.local.services import Services, services
from ngrpo_kfp.pipelines.local.store_ahead import embeds_store
from ngrpo_kfp.pipelines.local.tracking_ahead import tracking_ahead
from ngrpo_kfp.pipelines.local.workspace import Workspace
from ngrpo_kfp.pipelines.planning.base_model import from_champion
from ngrpo_kfp.pipelines.planning.content import read_contents
from ngrpo_kfp.pipelines.planning.early_stop import against_champion
from ngrpo_kfp.pipelines.planning.final_metrics import final_metrics
from ngrpo_kfp.pipelines.planning.labelled_lines import print_labelled
from ngrpo_kfp.pipelines.planning.ledger import (
    cost_metrics,
    costs_lines,
    costs_of,
    costs_summary,
    expectations,
    expectations_table,
)
from ngrpo_kfp.pipelines.planning.needs import require_fit, require_gpus, show_amounts, show_needs
from ngrpo_kfp.pipelines.planning.nodes import Plan, of_stage
from ngrpo_kfp.pipelines.planning.plan import make_plan, plan_for_programs, plan_record, read_code
from ngrpo_kfp.pipelines.planning.signatures import require_key, require_verified_base
from ngrpo_kfp.pipelines.planning.summary import places, plan_table, results_table, summarize
from ngrpo_kfp.pipelines.planning.user_imports import require_imports

if TYPE_CHECKING:
    from ngrpo.evaluation.gains import Gain
    from ngrpo.storage.artifacts import ArtifactStore
    from ngrpo_kfp.pipelines.local.runner import Runner

_CURE = "run the preset again"


def run(
    config: RunConfig,
    workspace: Workspace,
    console: Console,
    *,
    base: str | None = None,
    rerun: str | None = None,
    runner: Callable[[], Runner] | None = None,
) -> Path:
    """Run the pipeline and return the directory of the run.

    Args:
        config: Configuration of the run.
        workspace: Where everything is kept.
        console: Where progress and results are shown.
        base: `champion` to start from the champion in place of the configuration's base model.
        rerun: A node, or a stage with one node only, to run again although the store has its result.
        runner: See `run_stages`.

    Raises:
        NGRPOError: A problem that the user can fix, or of a service or stage.
        Interrupted: The run was told to stop.
    """
    began = time.monotonic()
    if base is None:
        require_possible(config)
    require_key(config)
    importing = tracking_ahead("ngrpo.tracking.mlflow_runs")
    with workspace.lock(), phase(console, PREPARING) as prepared, services(workspace) as around:
        store = around.artifact_store(workspace)
        config = _based(config, base, around)
        if rerun is not None:
            before = _plan(config, workspace, None)
            workspace.set_rerun_token(before.find(rerun).base_key, secrets.token_hex(8))
        from ngrpo_kfp.pipelines.local.reporting import last_run_of

        name = workspace.run_name(config.preset)
        with mentions_kept(workspace.mentions):
            plan = _plan(config, workspace, store, name)
        require_gpus(config, plan)
        importing.join()
        require_imports(config, plan.stages_to_run)
        directory = workspace.new_run(name)
        write_state(directory / "config.json", config.model_dump(mode="json"))
        write_state(directory / "plan.json", plan_record(plan))
        # They take seconds to import; after the plan that would be a silent pause.
        for module in ("reporting", "runner"):
            importlib.import_module(f"ngrpo_kfp.pipelines.local.{module}")
        prepared.end()
        console.print(plan_table(plan, config))
        _show_expectations(plan, config, store, console)
        last = last_run_of(directory, config.preset, workspace)
        warn_of_missing(config, console)
        with failure_announced(config, directory.name):
            promotions = _run_plan(plan, config, around, store, directory, console, began, runner, last)
        workspace.set_latest(directory)
    announce_decisions(config, promotions, directory.name)
    return directory


def show_plan(
    config: RunConfig, workspace: Workspace, console: Console, *, base: str | None = None, as_json: bool = False
) -> None:
    """Show what a run would do, and why; see `run`. A workspace that does not exist is not created.

    Args:
        config: Configuration of the run.
        workspace: Where everything is kept.
        console: Where it is shown.
        base: As for `run`.
        as_json: Print JSON for programs (`plan_for_programs`).

    Raises:
        ConfigError: A cheap check fails, or a stage needs more GPU memory than it requests.
        StoreError: The object store cannot be reached.
    """
    if base is None:
        require_possible(config)
    if embeds_store() and not workspace.exists() and base is None and not _needs_registry(config):
        plan = _plan(config, workspace, None, buckets=False)
        _show(plan, config, None, console, as_json=as_json)
    else:
        with phase(messages(console, as_json=as_json), PREPARING) as prepared, ExitStack() as stack:
            stack.enter_context(workspace.private())
            stack.enter_context(mentions_kept(workspace.mentions))
            read_code(config)  # while the store starts
            around = stack.enter_context(services(workspace, stopped=False))
            config = _based(config, base, around)
            store = around.artifact_store(workspace)
            plan = _plan(config, workspace, store)
            prepared.end()
            _show(plan, config, store, console, as_json=as_json)
    if not as_json:
        show_amounts(config, plan, console)
    require_fit(config, plan)


def dry_run(config: RunConfig, workspace: Workspace, console: Console, *, base: str | None = None) -> None:
    """Show what a run would do and what it needs; see `run`. Nothing is started; only a store that the environment names is queried.

    Raises:
        ConfigError: A cheap check fails.
        StoreError: The object store that the environment names cannot be reached.
    """
    if base is None:
        require_possible(config)
    if embeds_store():
        if base is not None:
            raise ConfigError(
                f"--base {base}: only MLflow knows the champion, and --dry-run starts nothing: use `ngrpo plan`"
            )
        plan = _plan(config, workspace, None, buckets=False)
    else:
        with phase(console, PREPARING), services(workspace) as around:
            config = _based(config, base, around)
            plan = _plan(config, workspace, around.artifact_store(workspace))
    console.print(plan_table(plan, config))
    show_needs(config, plan, console)


def _needs_registry(config: RunConfig) -> bool:
    early = config.evaluation.early_stop
    return config.model.source.kind == "registered" or (early is not None and early.opponent == "champion")


def _show(plan: Plan, config: RunConfig, store: ArtifactStore | None, console: Console, *, as_json: bool) -> None:
    if as_json:
        console.print_json(data=plan_for_programs(plan), indent=1)
        return
    console.print(plan_table(plan, config))
    if store is not None:
        _show_expectations(plan, config, store, console)


def _based(config: RunConfig, base: str | None, around: Services) -> RunConfig:
    based = against_champion(config if base is None else from_champion(config))
    require_verified_base(based, around.store_uri)
    return based


def _plan(
    config: RunConfig, workspace: Workspace, store: ArtifactStore | None, run: str = "", *, buckets: bool = True
) -> Plan:
    if config.deployment.after_promotion:
        raise ConfigError(
            "deployment.after_promotion=true: a run on this machine has no cluster to deploy on: set it to false here and serve the "
            "champion with `ngrpo serve`, or run it with `ngrpo submit`"
        )
    return make_plan(
        config,
        run=run,
        store=store,
        rerun_tokens=workspace.rerun_tokens(),
        history=workspace.history(config.preset),
        contents=read_contents(config, workspace.digests, buckets=buckets),
    )


def _run_plan(
    plan: Plan,
    config: RunConfig,
    around: Services,
    store: ArtifactStore,
    directory: Path,
    console: Console,
    began: float,
    runner: Callable[[], Runner] | None,
    last: Mapping[str, str] | None,
) -> list[Promotion]:
    """Run what a plan has to run, write the report, and return the decisions."""
    from ngrpo_kfp.pipelines.local.reporting import build_report
    from ngrpo_kfp.pipelines.local.runner import run_stages

    # Stages that write a model card, or report to MLflow, need the prices to state their costs.
    prices = {PRICES: config.costs.model_dump_json() if config.costs != CostsConfig() else None}
    with pipeline_run(config, around, directory) as opening, ExitStack() as stack:
        with environment(prices):
            records = run_stages(plan, directory, console, runner)
        stack.enter_context(phase(console, "writing the report"))
        tracked = opening.result()
        references = {node.name: node.reference or _reference(records[node.worker.name]) for node in plan}
        evaluations = {
            node: read_evaluation(store.fetch(references[node], only=EVALUATION) / EVALUATION, _CURE)
            for node in of_stage("benchmark_evaluation", references)
        }
        promotions = {
            node: read_promotion(store.fetch(references[node], only=PROMOTION), _CURE)
            for node in of_stage("model_promotion", references)
        }
        summary = summarize(
            config,
            plan,
            records,
            evaluations=evaluations,
            promotions=promotions,
            tracking={"tracking_uri": around.tracking_uri, "run_id": tracked.run_id},
            wall_seconds=time.monotonic() - began,
        )
        gains = _gains(config, evaluations)
        costs = costs_summary(plan, costs_of(plan, store.objects), config.costs, gains.get(config.promotion.benchmark))
        summary["costs"] = costs
        if last is not None:
            summary["last_run"] = dict(last)
        report = directory / "report.html"
        artifacts = build_report(report, summary=summary, config=config, references=references, store=store)
        summary["wall_seconds"] = round(time.monotonic() - began, 3)
        write_state(directory / "summary.json", summary)
        for file in (report, directory / "summary.json"):
            tracked.log_file(file)
        tracked.log_metrics(final_metrics(evaluations, gains, promotions) | cost_metrics(costs))
        tracked.set_tags({f"ngrpo.artifact.{name}": reference.uri for name, reference in references.items()})
        trained = of_stage("ngrpo_training", references)
        tracked.set_tags(
            {f"ngrpo.weights{node.removeprefix('ngrpo_training')}": f"{references[node].uri}model/" for node in trained}
        )
    for name, evaluation in evaluations.items():
        console.print(results_table(evaluation, config.titles, name if len(evaluations) > 1 else None))
    weights = {node: artifacts[node] / "model" for node in trained}
    print_labelled([*costs_lines(costs), *places(report, summary, promotions, weights)], console)
    return list(promotions.values())


def _gains(config: RunConfig, evaluations: Mapping[str, Evaluation]) -> dict[str, Gain]:
    """Return the gain of training on each benchmark; nothing if there are several evaluations."""
    if len(evaluations) != 1:
        return {}
    from ngrpo.evaluation.gains import gain_of

    (evaluation,) = evaluations.values()
    return {name: gain_of(evaluation, name, config.evaluation, config.seed) for name in evaluation["models"]["trained"]}


def _show_expectations(plan: Plan, config: RunConfig, store: ArtifactStore, console: Console) -> None:
    if plan.to_run:
        console.print(expectations_table(expectations(plan, config, store.objects), config.costs))


def _reference(record: dict[str, Any]) -> Reference:
    return Reference(uri=record["artifact"], key=record["key"], digest=record["digest"])
