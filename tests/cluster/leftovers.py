"""What a session of tests has left on a cluster, and its removal."""

import json
from typing import Any

from mlflow import MlflowClient
from session import TRAIN_JOBS, Session

from ngrpo.tracking.cluster_parent_run import PIPELINE_RUN
from ngrpo_kfp.pipelines.kubeflow.client import OVER, every, existing_experiment


def left(session: Session) -> list[str]:
    """Name what is there of a session: runs, schedules, versions of the pipeline, jobs, pods, objects, model, MLflow's runs."""
    return [
        *(f"run {run.run_id} ({run.state})" for run in _runs(session)),
        *(f"schedule {schedule.display_name}" for schedule in _schedules(session)),
        *(f"version {version.display_name}" for version in _versions(session)),
        *(f"TrainJob {job['metadata']['name']}" for job in session.train_jobs()),
        *(f"pod {pod.metadata.name}" for pod in session.own_pods()),
        *(f"object {key}" for key in session.objects.list()),
        *(f"model {name}" for name in _models(session)),
        *(f"MLflow run {run}" for run in _tracked(session)),
    ]


def remove(session: Session) -> None:
    """Remove all of that. Runs that are still active are ended first. MLflow keeps what it deletes until `mlflow gc`."""
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
    for name in _models(session):
        MlflowClient().delete_registered_model(name)
    for tracked in _tracked(session):
        MlflowClient().delete_run(tracked)
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


def _models(session: Session) -> list[str]:
    """Return the name of the session's registered model, if it is there."""
    return [model.name for model in MlflowClient().search_registered_models(f"name = '{session.model}'")]


def _tracked(session: Session) -> list[str]:
    """Return the ids of MLflow's runs of the session's runs and of their stages."""
    tracking = MlflowClient()
    experiments = [experiment.experiment_id for experiment in tracking.search_experiments()]
    found = []
    for run in sorted(session.own_runs):
        for parent in tracking.search_runs(experiments, f"tags.`{PIPELINE_RUN}` = '{run}'"):
            children = tracking.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
            found += [each.info.run_id for each in (*children, parent)]
    return found
