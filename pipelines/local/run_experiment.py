"""An experiment on this machine, from the plan to the comparison."""

from __future__ import annotations

import importlib
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from ngrpo.checking.examination import require_possible
from ngrpo.errors import ConfigError
from ngrpo.notifications.events import Event
from ngrpo.notifications.webhooks import announce
from ngrpo.report.phases import PREPARING, messages, phase
from ngrpo.report.remaining import Remaining
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.manifest import Reference
from ngrpo_kfp.pipelines.local.announcing import RunError, failure_announced, warn_of_missing
from ngrpo_kfp.pipelines.local.experiment_comparison import ComparedArms, Outcome, node_summaries
from ngrpo_kfp.pipelines.local.experiment_records import ExperimentRecords, ExperimentSummary
from ngrpo_kfp.pipelines.local.experiment_tracking import TrackedExperiment, experiment_runs
from ngrpo_kfp.pipelines.local.runner import in_processes
from ngrpo_kfp.pipelines.local.services import services
from ngrpo_kfp.pipelines.local.stage_forks import can_fork, forked_stages
from ngrpo_kfp.pipelines.local.stage_records import read_record
from ngrpo_kfp.pipelines.local.workspace import Workspace, written
from ngrpo_kfp.pipelines.planning.content import reader
from ngrpo_kfp.pipelines.planning.experiment import ArmRun, Experiment, experiment_pipeline
from ngrpo_kfp.pipelines.planning.experiment_plan import (
    ExperimentPlan,
    experiment_for_programs,
    planned_experiment,
    show_experiment,
)
from ngrpo_kfp.pipelines.planning.needs import require_fit, require_gpus
from ngrpo_kfp.pipelines.planning.nodes import History, Plan
from ngrpo_kfp.pipelines.planning.plan import make_plan, plan_record
from ngrpo_kfp.pipelines.planning.signatures import require_key, require_verified_base
from ngrpo_kfp.pipelines.planning.user_imports import require_imports

if TYPE_CHECKING:
    from ngrpo_kfp.pipelines.local.runner import Runner


class ExperimentError(RunError):
    """Runs of an experiment failed; the message has one line for each."""


def run(
    experiment: Experiment,
    workspace: Workspace,
    console: Console,
    *,
    rerun: str | None = None,
    runner: Callable[[], Runner] | None = None,
) -> None:
    """Run the missing parts of an experiment, seed by seed, and compare its arms.

    A failed run does not stop the others. If a failed stage is shared, it is not tried again, and the runs that need it fail too.

    Args:
        experiment: The experiment.
        workspace: Where everything is kept.
        console: Where progress and results are shown.
        rerun: An arm to run again although the store has its results; results that it shares with other arms are kept.
        runner: See `run_stages`.

    Raises:
        ExperimentError: Runs failed; the others are still compared.
        NGRPOError: A problem that the user can fix, or of a service; nothing more was run.
        Interrupted: The experiment was told to stop.
    """
    began = time.monotonic()
    experiment.require(lambda arm, config: require_possible(config))
    experiment.require(lambda arm, config: require_key(config))
    # Imported only now: it takes seconds, and is needed after the store is up and the plan is made.
    threading.Thread(target=importlib.import_module, args=("ngrpo.tracking.mlflow_runs",), daemon=True).start()
    records = ExperimentRecords.of(workspace, experiment.name)
    with workspace.lock(), phase(console, PREPARING) as prepared, services(workspace) as around:
        experiment.require(lambda arm, config: require_verified_base(config, around.store_uri))
        store = around.artifact_store(workspace)
        if rerun is not None:
            token = secrets.token_hex(8)
            for node in _planned(experiment, workspace, None, History()).first_of(rerun):
                workspace.set_rerun_token(node.base_key, token)
        took = records.seconds()
        planned = _planned(experiment, workspace, store, records.history(took))

        def check(arm: str, config: Any) -> None:
            part = planned.of_arm(arm)
            require_gpus(config, part)
            require_imports(config, part.stages_to_run)

        experiment.require(check)
        directory = records.begin(plan_record(planned.plan))
        prepared.end()
        show_experiment(planned, console, took)
        warn_of_missing(experiment.baseline, console)
        with (
            failure_announced(experiment.baseline, f"{directory.name}-{experiment.name}"),
            experiment_runs(experiment, around, f"{directory.name}-{experiment.name}") as tracked,
        ):
            with _forks(planned.plan, directory, runner):
                outcome = _run_all(planned, directory, tracked, console, runner or in_processes)
            seconds = records.seconds()
            console.print("comparing the arms")
            with phase(console, "comparing the arms") as shown:
                compared = ComparedArms(planned, outcome, store, shown)
                problems = [f"{run}: {why}" for run, why in outcome.failed.items()]
                files: list[Path] = []
                try:
                    files = compared.compare(records.directory, console)
                except ConfigError as error:
                    problems += str(error).splitlines()
                arms_and_seeds = [run for run in planned.nodes if run.arm not in planned.merged]
                summary = _summary(planned, outcome, seconds, {"tracking_uri": around.tracking_uri})
                summary["mlflow"]["run_id"] = tracked.parent().run_id
                ran = {node.key for node in planned.plan if not node.cached}
                summary["stage_seconds"] = round(sum(spent for key, spent in seconds.items() if key in ran), 3)
                summary["wall_seconds"] = round(time.monotonic() - began, 3)
                files.append(records.write_summary(summary))
                tracked.finish(compared.metrics, frozenset(run.arm for run in outcome.failed), tuple(files))
            _show_places(files, summary, console)
            if problems:
                raise ExperimentError("\n".join(problems), _brief(experiment.name, outcome, len(arms_and_seeds)))
    announce(
        experiment.baseline.notifications,
        Event(
            "finished",
            f"{directory.name}-{experiment.name}",
            None,
            None,
            f"experiment {experiment.name}: its {len(arms_and_seeds)} runs are done and compared",
            {"benchmark": experiment.file.benchmark, "seconds": summary["wall_seconds"]},
        ),
    )


def _brief(name: str, outcome: Outcome, runs: int) -> str:
    """Return which runs failed, without details that must not leave the machine."""
    failed = f"{len(outcome.failed)} of {runs} runs failed: {', '.join(map(str, outcome.failed))}"
    return f"experiment {name}: {failed if outcome.failed else 'its runs cannot be compared'}; the log says why"


def _forks(plan: Plan, directory: Path, runner: Callable[[], Runner] | None) -> AbstractContextManager[None]:
    """Let all runs fork their stages from one process, so that libraries are imported once per experiment."""
    if runner is not None or not plan.to_run or not can_fork():
        return nullcontext()
    return forked_stages(plan.stages_to_run, directory / "kfp.log")


def show_plan(experiment: Experiment, workspace: Workspace, console: Console, *, as_json: bool = False) -> None:
    """Show what an experiment would run, which arms share it, and what it needs.

    Args:
        experiment: The experiment.
        workspace: Where everything is kept.
        console: Where it is shown.
        as_json: Print JSON for programs (`experiment_for_programs`).

    Raises:
        ConfigError: A stage needs more GPU memory than it asks for.
        StoreError: The object store cannot be reached.
    """
    records = ExperimentRecords.of(workspace, experiment.name)
    with phase(messages(console, as_json=as_json), PREPARING), services(workspace) as around:
        took = records.seconds()
        planned = _planned(experiment, workspace, around.artifact_store(workspace), records.history(took))
    if as_json:
        console.print_json(data=experiment_for_programs(planned, took), indent=1)
    else:
        show_experiment(planned, console, took)
    experiment.require(lambda arm, config: require_fit(config, planned.of_arm(arm)))


def report(experiment: Experiment, workspace: Workspace, console: Console, *, as_json: bool = False) -> Path:
    """Compare the arms of an experiment by the results that exist, and return the path of the page.

    Args:
        experiment: The experiment.
        workspace: Where everything is kept.
        console: Where the comparison is shown.
        as_json: Print `comparison.json` in place of the tables.

    Raises:
        ConfigError: No run has finished, or the runs cannot be compared.
        StoreError: A result is gone, or the object store cannot be reached.
    """
    records = ExperimentRecords.of(workspace, experiment.name)
    with phase(messages(console, as_json=as_json), PREPARING) as prepared, services(workspace) as around:
        store = around.artifact_store(workspace)
        planned = _planned(experiment, workspace, store, History())
        prepared.end()
        return compare_finished(planned, store, records, console, as_json=as_json)


def compare_finished(
    planned: ExperimentPlan,
    store: ArtifactStore,
    records: ExperimentRecords,
    console: Console,
    *,
    as_json: bool = False,
) -> Path:
    """Compare the arms by the results that a plan found in the store; see `report`."""
    outcome = Outcome(made={}, failed=_failed_last_time(planned, records))
    name, said = planned.experiment.name, messages(console, as_json=as_json)
    with phase(said, "comparing the arms") as shown:
        compared = ComparedArms(planned, outcome, store, shown)
        if not compared.evaluations:
            raise ConfigError(f"experiment {name}: no run has finished: run it first (ngrpo experiment run {name})")
        for note in planned.notes:
            said.print(escape(note), soft_wrap=True)
        with written(records.directory):
            records.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        page = compared.compare(records.directory, console, as_json=as_json)[-1]
    said.print(f"report  {page}", soft_wrap=True, markup=False)
    return page


def _planned(
    experiment: Experiment, workspace: Workspace, store: ArtifactStore | None, history: History
) -> ExperimentPlan:
    runs = experiment.by_seed
    plan = make_plan(
        experiment.baseline,
        run="",
        store=store,
        rerun_tokens=workspace.rerun_tokens(),
        history=history,
        pipeline=experiment_pipeline(experiment, runs),
        contents={},
        read=reader(workspace.digests),
    )
    return planned_experiment(experiment, runs, plan)


def _run_all(
    planned: ExperimentPlan,
    directory: Path,
    tracked: TrackedExperiment,
    console: Console,
    runner: Callable[[], Runner] | None,
) -> Outcome:
    """Run what has to run, one run (an arm with a seed) after another."""
    made = {node.key: node.reference for node in planned.plan if node.reference is not None}
    failed: dict[ArmRun, str] = {}
    culprits: dict[ArmRun, str] = {}
    why: dict[str, str] = {}
    runs = [run for run in planned.nodes if run.arm not in planned.merged and not planned.is_cached(run)]
    remaining = Remaining()
    for number, run in enumerate(runs, 1):
        part = planned.plan.part(planned.nodes[run], made)
        hopeless = next((node for node in part.to_run if node.key in why), None)
        if hopeless is not None:
            failed[run], culprits[run] = (
                f"not started, because it shares a stage that failed: {why[hopeless.key]}",
                hopeless.key,
            )
            continue
        console.print(f"[bold]{run}[/bold]  {number} of {len(runs)}{remaining.words(number - 1, len(runs))}")
        problem = _run_one(part, run, directory, tracked, console, runner, made)
        if problem is not None:
            culprit, said = problem
            failed[run], culprits[run] = said, part[culprit].key
            why[part[culprit].key] = said
            console.print(f"[red]{run} failed[/red]; the others go on", soft_wrap=True)
    return Outcome(made, failed, culprits)


def _run_one(
    part: Plan,
    run: ArmRun,
    directory: Path,
    tracked: TrackedExperiment,
    console: Console,
    runner: Callable[[], Runner] | None,
    made: dict[str, Reference],
) -> tuple[str, str] | None:
    """Run one arm with one seed, and add its results to `made`. Return the failed node and the reason; None if nothing failed."""
    from ngrpo_kfp.pipelines.local.runner import StageError, first_failure, run_stages

    if not part.to_run:
        return None
    place = directory / run.name
    with written(place):
        place.mkdir(mode=0o700)
    tracked.announce(run.arm, place)
    try:
        run_stages(part, place, console, runner)
    except StageError as error:
        tracked.require_open()
        records = {node.name: read_record(place, node.name) for node in part.to_run}
        made |= _made(records)
        culprit = first_failure(records)
        assert culprit is not None
        return culprit, str(error)
    made |= _made({node.name: read_record(place, node.name) for node in part.to_run})
    return None


def _made(records: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Reference]:
    return {
        record["key"]: Reference(uri=record["artifact"], key=record["key"], digest=record["digest"])
        for record in records.values()
        if record is not None and "artifact" in record and "error" not in record
    }


def _failed_last_time(planned: ExperimentPlan, records: ExperimentRecords) -> dict[ArmRun, str]:
    """Return why runs failed the last time the experiment was run, except where a failed stage has changed or succeeded since."""
    summary = records.summary()
    if summary is None:
        return {}
    failed = {}
    for run, names in planned.nodes.items():
        before = summary["arms"].get(run.arm, {}).get(str(run.seed))
        nodes = {planned.plan[name].key: planned.plan[name] for name in names}
        if before is not None and "failed" in before:
            culprit = nodes.get(before.get("failed_key", ""))
            if culprit is not None and not culprit.cached:
                failed[run] = before["failed"]
    return failed


def _show_places(files: Sequence[Path], summary: ExperimentSummary, console: Console) -> None:
    """Print where the results are, and how long the experiment took with and without its stages."""
    for file in files:
        console.print(f"{file.stem:<12}{file}", soft_wrap=True)
    uri = summary["mlflow"]["tracking_uri"]
    served = uri if uri.startswith("http") else "`ngrpo ui` serves it"
    console.print(f"{'MLflow':<12}run {summary['mlflow']['run_id']} ({served})", soft_wrap=True)
    wall, stages = summary["wall_seconds"], summary["stage_seconds"]
    console.print(f"{wall:.1f} s, of which stages {stages:.1f} s")


def _summary(
    planned: ExperimentPlan, outcome: Outcome, seconds: Mapping[str, float], mlflow: dict[str, str]
) -> ExperimentSummary:
    experiment = planned.experiment
    file = experiment.file
    arms: dict[str, Any] = {arm: {} for arm in planned.arms}
    for run in planned.nodes:
        if run.arm in planned.merged:
            continue
        of_run: dict[str, Any] = {"nodes": node_summaries(planned, run, outcome, seconds)}
        if run in outcome.failed:
            of_run |= {"failed": outcome.failed[run], "failed_key": outcome.failed_keys[run]}
        arms[run.arm][str(run.seed)] = of_run
    return {
        "experiment": experiment.name,
        "preset": experiment.baseline.preset,
        "baseline": file.baseline,
        "benchmark": file.benchmark,
        "measure": file.measure,
        "equivalence": file.equivalence,
        "seeds": list(file.seeds),
        "merged": dict(planned.merged),
        "arms": arms,
        "wall_seconds": 0.0,
        "stage_seconds": 0.0,
        "mlflow": mlflow,
    }
