"""Schedules on a cluster: the pipeline, run by Kubeflow again and again.

A schedule runs one task, which plans on the day, submits what is left to do, and waits (`planning_task`). One run at
a time: a time that comes while a run goes on is made up for by one run right after it (kubeflow/pipelines,
backend/src/crd/controller/scheduledworkflow/util/cron_schedule.go:112).

Schedules that earlier versions made hold every stage and go on as they are; `replace` turns one into this kind.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import kfp_server_api
from kfp import Client
from rich.console import Console
from rich.table import Table

from ngrpo.config import RunConfig
from ngrpo.stages.keys import digest
from ngrpo_kfp.pipelines.kubeflow.client import (
    OVER,
    ClusterError,
    connect,
    every,
    existing_experiment,
    experiment_id,
    explained,
)
from ngrpo_kfp.pipelines.kubeflow.images import Images
from ngrpo_kfp.pipelines.kubeflow.preflight import require
from ngrpo_kfp.pipelines.kubeflow.scheduling.compilation import compile_scheduled_run
from ngrpo_kfp.pipelines.kubeflow.scheduling.cron import check_cron
from ngrpo_kfp.pipelines.kubeflow.submission import package
from ngrpo_kfp.pipelines.post_training import NAME

_ENABLED = kfp_server_api.V2beta1RecurringRunStatus.ENABLED
_CLOCKS_DIFFER = timedelta(minutes=5)
"""Less is the way of clocks that are set by hand, and no schedule is so exact."""


def create(
    name: str,
    cron: str,
    config: RunConfig,
    images: Images,
    console: Console,
    *,
    base: str | None = None,
    text: str | None = None,
) -> None:
    """Make a schedule.

    Args:
        name: Its name.
        cron: When it runs, in UTC: six fields, seconds first.
        config: Configuration of its runs.
        images: Where the images of the stages are looked up.
        console: Where it is shown.
        base: `champion` for runs that start from the champion of their day.
        text: What it runs, compiled; none for runs of the pipeline.

    Raises:
        NGRPOError: What the user can put right; no schedule was made then, unless the message says that this is not known.
    """
    cron = check_cron(cron)
    text = compile_scheduled_run(config, images, base) if text is None else text
    client = connect()
    if _find(client, name) is not None:
        raise ClusterError(f"there is a schedule {name!r} already: `ngrpo schedule replace`, or choose another name")
    require(config, images, console)
    _compare_clocks(client, console)
    experiment = experiment_id(client)
    _create(client, experiment, name, cron, _version(client, config.preset, text), config.cluster.service_account)
    console.print(f"schedule  {name} ({cron})", soft_wrap=True)


def replace(
    name: str, cron: str | None, config: RunConfig, images: Images, console: Console, *, base: str | None = None
) -> None:
    """Put another pipeline or another time in the place of a schedule; a paused one stays paused.

    Kubeflow cannot change a schedule. The new one is made first, paused, so that there is never none and never two that run.

    Args:
        name: Name of the schedule.
        cron: When it runs; none as before.
        config: Configuration of its runs.
        images: Where the images of the stages are looked up.
        console: Where it is shown.
        base: As of `create`.

    Raises:
        NGRPOError: What the user can put right; the old schedule is as it was, unless the message says that it is gone.
    """
    checked = None if cron is None else check_cron(cron)
    text = compile_scheduled_run(config, images, base)
    client = connect()
    old = _require(client, name)
    require(config, images, console)
    going = _going(client, old)
    version = _version(client, config.preset, text)
    new = _create(
        client, old.experiment_id, name, checked or _cron(old), version, config.cluster.service_account, enabled=False
    )
    _put_in_place(client, old, new)
    if old.status == _ENABLED:
        with explained(f"schedule {name} was replaced, but is paused: `ngrpo schedule resume {name}`"):
            client.enable_recurring_run(new.recurring_run_id)
    console.print(f"schedule  {name} replaced ({_cron(new)})", soft_wrap=True)
    if going is not None:
        console.print(f"run  {going} of the old schedule goes on, and the new one does not wait for it", soft_wrap=True)


def pause(name: str, console: Console) -> None:
    """Let a schedule start no runs until it is resumed; one that runs goes on."""
    client = connect()
    with explained(f"schedule {name}"):
        client.disable_recurring_run(_require(client, name).recurring_run_id)
    console.print(f"schedule  {name} paused", soft_wrap=True)


def resume(name: str, console: Console) -> None:
    """Let a paused schedule start runs again; what it missed is not made up for.

    Kubeflow would start a run at once for the last time that was missed. It counts from a schedule's last run or, if there was none,
    from its creation: so a new schedule takes the place of the old one. It would not wait for a run of the old one, and therefore
    a schedule with a run that goes on is resumed as it is.
    """
    client = connect()
    old = _require(client, name)
    if old.status == _ENABLED:
        console.print(f"schedule  {name} is not paused", soft_wrap=True)
        return
    going = _going(client, old)
    if going is not None:
        with explained(f"schedule {name}"):
            client.enable_recurring_run(old.recurring_run_id)
        console.print(
            f"schedule  {name} resumed; if a time was missed, one run makes up for it after run {going}, which goes on",
            soft_wrap=True,
        )
        return
    used = old.pipeline_version_reference
    version = (used.pipeline_id, used.pipeline_version_id)
    new = _create(client, old.experiment_id, name, _cron(old), version, old.service_account)
    _put_in_place(client, old, new)
    console.print(f"schedule  {name} resumed", soft_wrap=True)


def delete(name: str, console: Console) -> None:
    """Delete a schedule; its runs stay, and one that goes on goes on."""
    client = connect()
    with explained(f"schedule {name}"):
        _delete(client, _require(client, name))
    console.print(f"schedule  {name} deleted", soft_wrap=True)


def show(console: Console) -> None:
    """List the schedules."""
    client = connect()
    table = Table(title="Schedules")
    for column in ("name", "cron", "", "since"):
        table.add_column(column)
    for schedule in _schedules(client):
        table.add_row(
            schedule.display_name,
            _cron(schedule),
            str(schedule.status).lower(),
            f"{schedule.created_at:%Y-%m-%d %H:%M}",
        )
    console.print(table)


def _create(
    client: Client,
    experiment: str,
    name: str,
    cron: str,
    version: tuple[str, str],
    service_account: str | None,
    *,
    enabled: bool = True,
) -> Any:
    pipeline_id, version_id = version
    with explained(f"schedule {name}"):
        return client.create_recurring_run(
            experiment,
            name,
            cron_expression=cron,
            max_concurrency=1,
            no_catchup=True,
            pipeline_id=pipeline_id,
            version_id=version_id,
            enabled=enabled,
            service_account=service_account,
        )


def _put_in_place(client: Client, old: Any, new: Any) -> None:
    """Delete the old schedule. If that fails, delete the new one: then all is as it was."""
    name = old.display_name
    try:
        with explained(f"schedule {name}"):
            _delete(client, old)
    except ClusterError:
        with explained(f"schedule {name}: there are two now; delete {new.recurring_run_id} in Kubeflow's UI"):
            _delete(client, new)
        raise


def _delete(client: Client, schedule: Any) -> None:
    """Delete a schedule and not the runs of it that go on, which belong to it as Kubernetes sees it (from KFP 2.16 on it can be told)."""
    client.recurring_runs.recurring_run_service_delete_recurring_run(
        schedule.recurring_run_id, propagation_policy="ORPHAN"
    )


def _version(client: Client, preset: str, text: str) -> tuple[str, str]:
    """Return pipeline and version of a compiled pipeline; the same text is the same version, uploaded once."""
    name = f"{preset}-{digest(text)[:12]}"
    with explained(f"pipeline {NAME}"):
        # `Client.get_pipeline_id` names no namespace, and where Kubeflow has several it then looks into none of them.
        namespace = client.get_user_namespace() or None
        found = client.list_pipelines(namespace=namespace, filter=_equals("name", NAME)).pipelines
        if found:
            pipeline = found[0].pipeline_id
        else:
            made = client.api_models.V2beta1Pipeline(display_name=NAME, name=NAME, namespace=namespace)
            pipeline = client.pipelines.pipeline_service_create_pipeline(pipeline=made).pipeline_id
        known = client.list_pipeline_versions(pipeline, filter=_equals("display_name", name))
        if known.pipeline_versions:
            return pipeline, known.pipeline_versions[0].pipeline_version_id
        with package(text) as path:
            return pipeline, client.upload_pipeline_version(str(path), name, pipeline_id=pipeline).pipeline_version_id


def _going(client: Client, schedule: Any) -> str | None:
    """Return the run of a schedule that goes on; none if none does."""
    with explained(f"runs of schedule {schedule.display_name}"):
        newest = client.list_runs(
            experiment_id=schedule.experiment_id,
            filter=_equals("recurring_run_id", schedule.recurring_run_id),
            sort_by="created_at desc",
            page_size=1,
        ).runs
    return str(newest[0].run_id) if newest and newest[0].state not in OVER else None


def _compare_clocks(client: Client, console: Console) -> None:
    """Say if the cluster's clock, by which schedules run, is another than ours."""
    with explained("Kubeflow Pipelines"):
        _, _, headers = client._healthz_api.healthz_service_get_healthz_with_http_info()
    if "Date" not in headers:
        return
    ahead = parsedate_to_datetime(headers["Date"]) - datetime.now(UTC)
    if abs(ahead) > _CLOCKS_DIFFER:
        minutes = round(abs(ahead) / timedelta(minutes=1))
        console.print(
            f"clock  the cluster's is {minutes} minutes {'ahead of' if ahead > timedelta() else 'behind'} this machine's, and schedules "
            "run by the cluster's, in UTC: set the one that is wrong",
            soft_wrap=True,
        )


def _equals(key: str, value: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "stringValue": value}]})


def _schedules(client: Client) -> list[Any]:
    experiment = existing_experiment(client)
    if experiment is None:
        return []
    with explained("schedules"):
        return list(every(client.list_recurring_runs, "recurring_runs", experiment_id=experiment))


def _find(client: Client, name: str) -> Any:
    return next((schedule for schedule in _schedules(client) if schedule.display_name == name), None)


def _require(client: Client, name: str) -> Any:
    found = _find(client, name)
    if found is None:
        raise ClusterError(f"there is no schedule {name!r}: `ngrpo schedule list` shows those there are")
    return found


def _cron(schedule: Any) -> str:
    return str(schedule.trigger.cron_schedule.cron)
