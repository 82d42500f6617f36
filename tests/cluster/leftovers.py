"""What a session of tests has left on a cluster, and its removal."""

import json
from typing import Any

from session import TRAIN_JOBS, Session

from ngrpo_kfp.pipelines.runtime.kubeflow import OVER, every, existing_experiment


def left(session: Session) -> list[str]:
    """Name what is there of a session: runs, schedules, versions of the pipeline, jobs, pods, objects, the registered model."""
    return [
        *(f"run {run.run_id} ({run.state})" for run in _runs(session)),
        *(f"schedule {schedule.display_name}" for schedule in _schedules(session)),
        *(f"version {version.display_name}" for version in _versions(session)),
        *(f"TrainJob {job['metadata']['name']}" for job in session.train_jobs()),
        *(f"pod {pod.metadata.name}" for pod in session.own_pods()),
        *(f"object {key}" for key in session.objects.list()),
        *([f"model {session.model}"] if _model_exists(session) else []),
    ]


def remove(session: Session) -> None:
    """Remove all of that. Runs that are still active are ended first. What MLflow has recorded of the runs stays."""
    kubeflow = session.kubeflow
    for schedule in _schedules(session):
        kubeflow.delete_recurring_run(schedule.recurring_run_id)
    for run in _runs(session):
        if run.state not in OVER and run.state != "CANCELING":
            kubeflow.terminate_run(run.run_id)
    session.until("the end of all runs", lambda: all(run.state in OVER for run in _runs(session)), minutes=10)
    for run in _runs(session):
        kubeflow.delete_run(run.run_id)
    for version in _versions(session):
        kubeflow.delete_pipeline_version(version.pipeline_id, version.pipeline_version_id)
    for job in session.train_jobs():
        session.custom.delete_namespaced_custom_object(
            *TRAIN_JOBS, session.place.namespace, "trainjobs", job["metadata"]["name"]
        )
    # Kubeflow deletes a run's Workflow with it, and Kubernetes the pods after that.
    session.until("the end of all pods", lambda: not session.own_pods(), minutes=10)
    if _model_exists(session):
        from mlflow import MlflowClient

        MlflowClient().delete_registered_model(session.model)
    for key in session.objects.list():
        session.objects.delete(key)


def _runs(session: Session) -> list[Any]:
    experiment = existing_experiment(session.kubeflow)
    if experiment is None:
        return []
    found = every(session.kubeflow.list_runs, "runs", experiment_id=experiment)
    return [run for run in found if session.is_own(run.run_id)]


def _schedules(session: Session) -> list[Any]:
    experiment = existing_experiment(session.kubeflow)
    if experiment is None:
        return []
    found = every(session.kubeflow.list_recurring_runs, "recurring_runs", experiment_id=experiment)
    return [schedule for schedule in found if schedule.display_name.startswith(session.mark)]


def _versions(session: Session) -> list[Any]:
    kubeflow = session.kubeflow
    return [
        version
        for pipeline in every(kubeflow.list_pipelines, "pipelines", namespace=kubeflow.get_user_namespace())
        for version in every(kubeflow.list_pipeline_versions, "pipeline_versions", pipeline_id=pipeline.pipeline_id)
        if session.mark in json.dumps(version.pipeline_spec)
    ]


def _model_exists(session: Session) -> bool:
    from mlflow import MlflowClient
    from mlflow.exceptions import RestException

    try:
        MlflowClient().get_registered_model(session.model)
    except RestException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True
