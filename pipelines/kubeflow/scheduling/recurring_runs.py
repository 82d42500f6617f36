"""Schedules as Kubeflow's recurring runs: find, create, replace and delete them.

Kubeflow cannot change a recurring run, so a new one is created to replace it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import kfp_server_api
from kfp import Client

from ngrpo.errors import ClusterError
from ngrpo.stages.keys import digest
from ngrpo_kfp.pipelines.kubeflow.client import OVER, every, existing_experiment, explained
from ngrpo_kfp.pipelines.kubeflow.scheduling.timing import Timing
from ngrpo_kfp.pipelines.kubeflow.submission import package
from ngrpo_kfp.pipelines.post_training import NAME

ENABLED = kfp_server_api.V2beta1RecurringRunStatus.ENABLED


def schedules_on(client: Client) -> list[Any]:
    """Return ngrpo's schedules on a cluster, `V2beta1RecurringRun`s.

    Raises:
        ClusterError: The API refuses or cannot be reached.
    """
    experiment = existing_experiment(client)
    if experiment is None:
        return []
    with explained("schedules"):
        return list(every(client.list_recurring_runs, "recurring_runs", experiment_id=experiment))


def find(client: Client, name: str) -> Any:
    """Return the schedule with a name; None if there is none."""
    return next((schedule for schedule in schedules_on(client) if schedule.display_name == name), None)


def require(client: Client, name: str) -> Any:
    """Return the schedule with a name.

    Raises:
        ClusterError: There is none.
    """
    found = find(client, name)
    if found is None:
        raise ClusterError(f"there is no schedule {name!r}: `ngrpo schedule list` lists them")
    return found


def make(
    client: Client,
    experiment: str,
    name: str,
    timing: Timing,
    version: tuple[str, str],
    service_account: str | None,
    *,
    enabled: bool = True,
) -> Any:
    """Create a schedule and return it.

    Args:
        client: Client of Kubeflow Pipelines.
        experiment: Id of the experiment of its runs.
        name: Its name.
        timing: When it runs.
        version: Ids of the pipeline and of its version (`version_of`).
        service_account: Account of the pods of its runs.
        enabled: Whether it runs, or is paused.

    Raises:
        ClusterError: It was not created, or the outcome is unknown.
    """
    pipeline_id, version_id = version
    with explained(f"schedule {name}"):
        return client.create_recurring_run(
            experiment,
            name,
            description=timing.description or None,
            cron_expression=timing.cron,
            max_concurrency=timing.max_concurrency,
            no_catchup=not timing.catch_up,
            pipeline_id=pipeline_id,
            version_id=version_id,
            enabled=enabled,
            service_account=service_account,
        )


def substitute(
    client: Client, old: Any, timing: Timing, version: tuple[str, str], service_account: str | None, *, enabled: bool
) -> Any:
    """Replace a schedule by a new one, and return that.

    The new one is created first, paused, so that there is always one schedule, and never two active ones.

    Args:
        client: Client of Kubeflow Pipelines.
        old: The old schedule.
        timing: When the new one runs.
        version: Ids of the pipeline and of its version.
        service_account: Account of the pods of its runs.
        enabled: Whether the new one runs, or is paused.

    Raises:
        ClusterError: It failed. The old schedule is unchanged, unless the message says that it is gone.
    """
    name = old.display_name
    new = make(client, old.experiment_id, name, timing, version, service_account, enabled=False)
    put_in_place(client, old, new)
    if enabled:
        with explained(f"schedule {name} was replaced, but is paused: `ngrpo schedule resume {name}`"):
            client.enable_recurring_run(new.recurring_run_id)
    return new


def put_in_place(client: Client, old: Any, new: Any) -> None:
    """Delete the old schedule. If that fails, delete the new one, so that nothing has changed."""
    name = old.display_name
    try:
        with explained(f"schedule {name}"):
            remove(client, old)
    except ClusterError:
        with explained(f"schedule {name}: there are two now; delete {new.recurring_run_id} in Kubeflow's UI"):
            remove(client, new)
        raise


def remove(client: Client, schedule: Any) -> None:
    """Delete a schedule but not its active runs, which it owns in Kubernetes (KFP 2.16 and later have an option for that)."""
    client.recurring_runs.recurring_run_service_delete_recurring_run(
        schedule.recurring_run_id, propagation_policy="ORPHAN"
    )


def version_name(preset: str, text: str) -> str:
    """Return the name of the version of a compiled pipeline: equal texts have equal names."""
    return f"{preset}-{digest(text)[:12]}"


def version_of(client: Client, name: str, text: str, pipeline_name: str = NAME) -> tuple[str, str]:
    """Return the ids of a pipeline and its version, which is uploaded if there is none with that name.

    Args:
        client: Client of Kubeflow Pipelines.
        name: Name of the version (`version_name`).
        text: The compiled pipeline.
        pipeline_name: Name of the pipeline.

    Raises:
        ClusterError: The API refuses or cannot be reached.
    """
    with explained(f"pipeline {pipeline_name}"):
        # `Client.get_pipeline_id` passes no namespace, and a multi-user Kubeflow then searches in none.
        namespace = client.get_user_namespace() or None
        found = client.list_pipelines(namespace=namespace, filter=_equals("name", pipeline_name)).pipelines
        if found:
            pipeline = found[0].pipeline_id
        else:
            made = client.api_models.V2beta1Pipeline(
                display_name=pipeline_name, name=pipeline_name, namespace=namespace
            )
            pipeline = client.pipelines.pipeline_service_create_pipeline(pipeline=made).pipeline_id
        known = client.list_pipeline_versions(pipeline, filter=_equals("display_name", name))
        if known.pipeline_versions:
            return pipeline, known.pipeline_versions[0].pipeline_version_id
        with package(text) as path:
            return pipeline, client.upload_pipeline_version(str(path), name, pipeline_id=pipeline).pipeline_version_id


def version_used(schedule: Any) -> tuple[str, str]:
    """Return the ids of a schedule's pipeline and its version."""
    used = schedule.pipeline_version_reference
    return used.pipeline_id, used.pipeline_version_id


def spec_used(client: Client, schedule: Any) -> Mapping[str, Any]:
    """Return the pipeline that a schedule runs, in Kubeflow's intermediate representation.

    Raises:
        ClusterError: The API refuses or cannot be reached.
    """
    with explained(f"schedule {schedule.display_name}"):
        spec: Mapping[str, Any] = client.get_pipeline_version(*version_used(schedule)).pipeline_spec
    found: Mapping[str, Any] = spec.get("pipeline_spec", spec)
    return found


def going_run(client: Client, schedule: Any) -> str | None:
    """Return the active run of a schedule; None if there is none."""
    with explained(f"runs of schedule {schedule.display_name}"):
        newest = client.list_runs(
            experiment_id=schedule.experiment_id,
            filter=_equals("recurring_run_id", schedule.recurring_run_id),
            sort_by="created_at desc",
            page_size=1,
        ).runs
    return str(newest[0].run_id) if newest and newest[0].state not in OVER else None


def _equals(key: str, value: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "stringValue": value}]})
