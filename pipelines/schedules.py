"""Schedules on a cluster: the whole pipeline, run by Kubeflow again and again.

The pipeline of a schedule has every stage in it, for what the store will hold then is not known now. Kubeflow's own cache
answers for stages that it has run before; the key of a stage is one of its parameters, so that what it answers is right. Where
runs start from the champion, not even the keys are known: that pipeline has one task, which submits the run of the day. One
run at a time, and what was missed is not made up for.
"""

from __future__ import annotations

import json
from typing import Any

import kfp_server_api
from kfp import Client
from rich.console import Console
from rich.table import Table

from ngrpo.config import RunConfig
from ngrpo.stages.keys import digest
from ngrpo_kfp.pipelines.cron import check_cron
from ngrpo_kfp.pipelines.post_training import NAME
from ngrpo_kfp.pipelines.preflight import require
from ngrpo_kfp.pipelines.runtime.compilation import compile_champion_run, compile_whole
from ngrpo_kfp.pipelines.runtime.images import Images
from ngrpo_kfp.pipelines.runtime.kubeflow import (
    ClusterError,
    connect,
    every,
    existing_experiment,
    experiment_id,
    explained,
)
from ngrpo_kfp.pipelines.submission import package


def create(
    name: str, cron: str, config: RunConfig, images: Images, console: Console, *, base: str | None = None
) -> None:
    """Make a schedule.

    Args:
        name: Its name.
        cron: When it runs: six fields, seconds first.
        config: Configuration of its runs.
        images: Where the images of the stages are looked up.
        console: Where it is shown.
        base: `champion` for runs that start from the champion of their day.

    Raises:
        NGRPOError: What the user can put right; no schedule was made then, unless the message says that this is not known.
    """
    cron = check_cron(cron)
    text = _compile(config, images, base)
    client = connect()
    if _find(client, name) is not None:
        raise ClusterError(f"there is a schedule {name!r} already: `ngrpo schedule replace`, or choose another name")
    require(config, images, console)
    _create(client, name, cron, config, text, enabled=True)
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
    text = _compile(config, images, base)
    client = connect()
    old = _require(client, name)
    require(config, images, console)
    new = _create(client, name, checked or _cron(old), config, text, enabled=False)
    try:
        with explained(f"schedule {name}"):
            client.delete_recurring_run(old.recurring_run_id)
    except ClusterError:
        with explained(f"schedule {name}: there are two now; delete the paused one, {new.recurring_run_id}"):
            client.delete_recurring_run(new.recurring_run_id)
        raise
    if old.status == kfp_server_api.V2beta1RecurringRunStatus.ENABLED:
        with explained(f"schedule {name} was replaced, but is paused: `ngrpo schedule resume {name}`"):
            client.enable_recurring_run(new.recurring_run_id)
    console.print(f"schedule  {name} replaced ({_cron(new)})", soft_wrap=True)


def pause(name: str, console: Console) -> None:
    """Let a schedule start no runs until it is resumed; one that runs goes on."""
    client = connect()
    with explained(f"schedule {name}"):
        client.disable_recurring_run(_require(client, name).recurring_run_id)
    console.print(f"schedule  {name} paused", soft_wrap=True)


def resume(name: str, console: Console) -> None:
    """Let a paused schedule start runs again; what it missed is not made up for."""
    client = connect()
    with explained(f"schedule {name}"):
        client.enable_recurring_run(_require(client, name).recurring_run_id)
    console.print(f"schedule  {name} resumed", soft_wrap=True)


def delete(name: str, console: Console) -> None:
    """Delete a schedule; its runs stay."""
    client = connect()
    with explained(f"schedule {name}"):
        client.delete_recurring_run(_require(client, name).recurring_run_id)
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


def _compile(config: RunConfig, images: Images, base: str | None) -> str:
    return (compile_whole if base is None else compile_champion_run)(config, images)


def _create(client: Client, name: str, cron: str, config: RunConfig, text: str, *, enabled: bool) -> Any:
    experiment = experiment_id(client)
    pipeline, version = _version(client, config.preset, text)
    with explained(f"schedule {name}"):
        return client.create_recurring_run(
            experiment,
            name,
            cron_expression=cron,
            max_concurrency=1,
            no_catchup=True,
            pipeline_id=pipeline,
            version_id=version,
            enabled=enabled,
            service_account=config.cluster.service_account,
        )


def _version(client: Client, preset: str, text: str) -> tuple[str, str]:
    """Return pipeline and version of a compiled pipeline; the same text is the same version, uploaded once."""
    name = f"{preset}-{digest(text)[:12]}"
    with explained(f"pipeline {NAME}"):
        pipeline = client.get_pipeline_id(NAME)
        if pipeline is None:
            made = client.api_models.V2beta1Pipeline(
                display_name=NAME, name=NAME, namespace=client.get_user_namespace() or None
            )
            pipeline = client.pipelines.pipeline_service_create_pipeline(pipeline=made).pipeline_id
        same_name = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
        known = client.list_pipeline_versions(pipeline, filter=json.dumps({"predicates": [same_name]}))
        if known.pipeline_versions:
            return pipeline, known.pipeline_versions[0].pipeline_version_id
        with package(text) as path:
            return pipeline, client.upload_pipeline_version(str(path), name, pipeline_id=pipeline).pipeline_version_id


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
