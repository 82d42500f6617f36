"""Submitted runs on a cluster: find them, their tasks and jobs, and cancel them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kfp import Client
from kfp.dsl import PIPELINE_JOB_ID_PLACEHOLDER
from rich.console import Console
from rich.markup import escape

from ngrpo.errors import ClusterError, ConfigError
from ngrpo.stages.declarations import DECLARED
from ngrpo_kfp.components.serving.kubernetes_objects import KubernetesError
from ngrpo_kfp.pipelines.kubeflow.client import connect, existing_experiment, explained, namespace
from ngrpo_kfp.pipelines.kubeflow.kubernetes_api import TRAINER, WORKFLOWS, Kubernetes
from ngrpo_kfp.pipelines.kubeflow.pods import RUN_LABEL
from ngrpo_kfp.pipelines.kubeflow.scheduling.runs_of_the_day import cancel_with_related
from ngrpo_kfp.pipelines.kubeflow.submission import pipeline_of, recorded_config
from ngrpo_kfp.pipelines.planning.nodes import node_of_task, stage_of

_NEWEST_FIRST = "created_at desc"


def find_run(client: Client, run_id: str | None) -> Any:
    """Return a run, a `V2beta1Run`.

    Args:
        client: Client of Kubeflow Pipelines.
        run_id: Its id; None for the newest.

    Raises:
        ClusterError: There is no such run, or the cluster cannot be reached.
    """
    if run_id is None:
        experiment = existing_experiment(client)
        if experiment is not None:
            with explained("runs"):
                found = client.list_runs(experiment_id=experiment, sort_by=_NEWEST_FIRST, page_size=1).runs
            run_id = found[0].run_id if found else None
        if run_id is None:
            raise ClusterError("there is no run yet: `ngrpo submit` starts one")
    with explained(f"run {run_id}"):
        return client.get_run(run_id)


def tasks_of(client: Client, run_id: str) -> dict[str, Mapping[str, Any]]:
    """Return the tasks of a run's pipeline by the name of their node: `root.dag.tasks` of the pipeline specification.

    If the pipeline has an exit task, the other tasks are in a DAG within the root, and the exit task is not returned.
    """
    spec = pipeline_of(client, run_id)
    tasks = spec["root"]["dag"]["tasks"]
    for task in tasks.values():
        component = spec["components"][task["componentRef"]["name"]]
        if "dag" in component:
            tasks = component["dag"]["tasks"]
    return {node_of_task(name, task["taskInfo"]["name"]): task for name, task in tasks.items()}


def may_be_a_job(node: str) -> bool:
    """Whether the stage of a node, given by name, can run on several machines as a TrainJob."""
    stage = DECLARED.get(stage_of(node))
    return stage is not None and stage.parallel


def key_of(task: Mapping[str, Any], run_id: str) -> str | None:
    """Return the key of the result of a run's task; None for a task without a key."""
    parameter = task["inputs"]["parameters"].get("key")
    if parameter is None:
        return None
    return str(parameter["runtimeValue"]["constant"]).replace(PIPELINE_JOB_ID_PLACEHOLDER, run_id)


def cancel(run_id: str, console: Console) -> None:
    """Cancel a run, and with a scheduled run its run of the day. Results that its stages published are kept.

    Args:
        run_id: The run.
        console: Where progress is printed.

    Raises:
        ClusterError: There is no such run, it has ended, or the cluster cannot be reached.
    """
    client = connect()
    for ended in cancel_with_related(client, run_id):
        console.print(f"run  {ended} is being cancelled: Kubeflow deletes its pods", soft_wrap=True)
        try:
            for name in _jobs_of(client, ended):
                console.print(f"job  TrainJob {name} {_delete_job(name, ended)}", soft_wrap=True)
        except ConfigError as error:
            console.print(escape(f"job  not looked for: {error}"), soft_wrap=True)


def _jobs_of(client: Client, run_id: str) -> list[str]:
    """Return the names of the TrainJobs that a run may have created."""
    if recorded_config(client, run_id).cluster.nodes == 1:
        return []
    tasks = tasks_of(client, run_id)
    return [f"ngrpo-{key_of(task, run_id)}" for node, task in tasks.items() if may_be_a_job(node)]


def _delete_job(name: str, run_id: str) -> str:
    """Delete a TrainJob of a run, because its step may be killed before it can; returns what happened to it."""
    path = f"{TRAINER}/namespaces/{namespace()}/trainjobs/{name}"
    try:
        kubernetes = Kubernetes()
        job = kubernetes.get(path)
        if job is None:
            return "is not there"
        owner = _run_of(kubernetes, job)
        if owner not in (None, run_id):
            return f"belongs to run {owner} and goes on"
        return "is deleted" if kubernetes.delete(path) else "is not there"
    except KubernetesError as error:
        return f"goes with the run's Workflow, an hour after its end, or by `kubectl -n {namespace()} delete trainjob {name}` ({error})"


def _run_of(kubernetes: Kubernetes, job: Mapping[str, Any]) -> str | None:
    """Return the run whose Workflow owns a job; None if that is not known."""
    for owner in job["metadata"].get("ownerReferences", ()):
        if owner["kind"] == "Workflow":
            workflow = kubernetes.get(f"{WORKFLOWS}/namespaces/{namespace()}/workflows/{owner['name']}")
            return (workflow["metadata"].get("labels") or {}).get(RUN_LABEL) if workflow is not None else None
    return None
