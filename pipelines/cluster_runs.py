"""What becomes of runs on a cluster: their state, the logs of their stages, and their end."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from kfp import Client
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ngrpo.stages.pending_pods import why_pending
from ngrpo.stages.registry import STAGES
from ngrpo_kfp.pipelines.runtime.kubeflow import OVER, ClusterError, connect, existing_experiment, explained
from ngrpo_kfp.pipelines.runtime.kubernetes_api import last_pod, log_lines
from ngrpo_kfp.pipelines.submission import pipeline_of

_NEWEST_FIRST = "created_at desc"


def show_status(run_id: str | None, console: Console) -> None:
    """Show how far a run is.

    Args:
        run_id: The run; none for the newest.
        console: Where it is shown.

    Raises:
        ClusterError: There is no such run, or the cluster cannot be asked.
    """
    client = connect()
    run = _run(client, run_id)
    tasks = pipeline_of(client, run.run_id)["root"]["dag"]["tasks"]
    details = {task.display_name: task for task in (run.run_details.task_details if run.run_details else None) or ()}
    table = Table(title=f"{run.display_name}: {run.state}")
    for column in ("stage", "", "time"):
        table.add_column(column)
    table.add_column("why", overflow="fold")
    # A schedule that starts from the champion has runs of one task, which submits another.
    stages = (
        STAGES
        if any(stage.replace("_", "-") in tasks for stage in STAGES)
        else [name.replace("-", "_") for name in tasks]
    )
    for stage in stages:
        name = stage.replace("_", "-")
        task = details.get(name)
        if name not in tasks:
            table.add_row(stage, "cached")
        elif task is None:
            table.add_row(stage, "waiting")
        else:
            table.add_row(stage, str(task.state).lower(), _duration(task), escape(_reason(task)))
    console.print(table)
    if run.error is not None and run.error.message:
        console.print(escape(run.error.message), soft_wrap=True)
    console.print(f"run  {run.run_id}", soft_wrap=True)


def show_logs(run_id: str | None, stage: str, console: Console) -> None:
    """Print the log of a stage's last pod.

    Kubeflow's API does not tell the names of pods, so that Kubernetes is asked, by the labels of the pod.

    Args:
        run_id: The run; none for the newest.
        stage: Name of the stage.
        console: Where it is printed.

    Raises:
        ClusterError: There is no such run or pod, the pod has not started, or the cluster cannot be asked.
    """
    run = _run(connect(), run_id)
    pod = last_pod(run.run_id, stage)
    reason = why_pending(pod)
    if reason is not None:
        raise ClusterError(f"run {run.run_id}: the pod of {stage} has not started: {reason}")
    for line in log_lines(pod):
        console.out(line, highlight=False)


def cancel(run_id: str, console: Console) -> None:
    """End a run; its pods are deleted, and what its stages have published stays.

    Raises:
        ClusterError: There is no such run, it is over, or the cluster cannot be asked.
    """
    client = connect()
    run = _run(client, run_id)
    if run.state in OVER:
        raise ClusterError(f"run {run_id} is over ({run.state}): there is nothing to cancel")
    with explained(f"run {run_id}"):
        client.terminate_run(run_id)
    console.print(f"run  {run_id} is being cancelled", soft_wrap=True)


def _run(client: Client, run_id: str | None) -> Any:
    if run_id is None:
        experiment = existing_experiment(client)
        if experiment is not None:
            with explained("runs"):
                found = client.list_runs(experiment_id=experiment, sort_by=_NEWEST_FIRST, page_size=1).runs
            run_id = found[0].run_id if found else None
        if run_id is None:
            raise ClusterError("there is no run yet: `ngrpo submit` makes one")
    with explained(f"run {run_id}"):
        return client.get_run(run_id)


def _duration(task: Any) -> str:
    if task.start_time is None or task.start_time.timestamp() <= 0:
        return ""
    running = task.end_time is None or task.end_time.timestamp() <= 0
    end = datetime.now(UTC) if running else task.end_time
    return str(end - task.start_time).partition(".")[0]


def _reason(task: Any) -> str:
    return task.error.message or "" if task.error is not None else ""
