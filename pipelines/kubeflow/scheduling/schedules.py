"""Schedules on a cluster: recurring runs of the pipeline in Kubeflow.

A schedule runs one task, which plans, submits the run of the day, and waits for it (`planning_task`). There is one run at a time; times
that pass during a run are caught up by one run right after it (kubeflow/pipelines,
backend/src/crd/controller/scheduledworkflow/util/cron_schedule.go:112).

Schedules made by earlier versions contain every stage and keep working; `replace` turns one into the new kind.
"""

from __future__ import annotations

from dataclasses import replace as changed
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from kfp import Client
from rich.console import Console
from rich.table import Table

from ngrpo.config import RunConfig
from ngrpo.errors import ClusterError, ConfigError
from ngrpo_kfp.pipelines.kubeflow import preflight
from ngrpo_kfp.pipelines.kubeflow.client import connect, experiment_id, explained
from ngrpo_kfp.pipelines.kubeflow.images import Images
from ngrpo_kfp.pipelines.kubeflow.scheduling.compilation import compile_scheduled_run
from ngrpo_kfp.pipelines.kubeflow.scheduling.cron import check_cron
from ngrpo_kfp.pipelines.kubeflow.scheduling.origin import Origin
from ngrpo_kfp.pipelines.kubeflow.scheduling.recurring_runs import (
    ENABLED,
    find,
    going_run,
    make,
    put_in_place,
    remove,
    require,
    schedules_on,
    spec_used,
    substitute,
    version_name,
    version_of,
    version_used,
)
from ngrpo_kfp.pipelines.kubeflow.scheduling.timing import Timing
from ngrpo_kfp.pipelines.kubeflow.scheduling.watch_compilation import compile_watch, is_watch
from ngrpo_kfp.pipelines.kubeflow.scheduling.wishes import Wishes

_CLOCKS_DIFFER = timedelta(minutes=5)
"""Smaller differences of clocks are normal, and do not matter for schedules."""


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
    """Create a schedule.

    Args:
        name: Its name.
        cron: When it runs, in UTC: six fields, seconds first.
        config: Configuration of its runs.
        images: Where the images of the stages are looked up.
        console: Where it is shown.
        base: `champion` for runs that start from the current champion.
        text: Its compiled pipeline; None for runs of the post-training pipeline.

    Raises:
        NGRPOError: The user can fix it; no schedule was created, unless the message says that this is unknown.
    """
    cron = check_cron(cron)
    if text is None:
        text = compile_scheduled_run(config, images, Wishes(base or ""))
    client = connect()
    if find(client, name) is not None:
        raise ClusterError(f"there is a schedule {name!r} already: `ngrpo schedule replace`, or choose another name")
    preflight.require(config, images, console)
    compare_clocks(client, console)
    version = version_of(client, version_name(config.preset, text), text)
    make(client, experiment_id(client), name, Timing(cron), version, config.cluster.service_account)
    console.print(f"schedule  {name} ({cron})", soft_wrap=True)


def replace(
    name: str, cron: str | None, config: RunConfig, images: Images, console: Console, *, base: str | None = None
) -> None:
    """Replace the pipeline or the time of a schedule. A paused schedule stays paused, and one that watches the champion keeps doing so.

    Args:
        name: Name of the schedule.
        cron: When it runs; None to keep the time.
        config: Configuration of its runs.
        images: Where the images of the stages are looked up.
        console: Where it is shown.
        base: As for `create`.

    Raises:
        NGRPOError: The user can fix it; the old schedule is unchanged, unless the message says that it is gone.
    """
    checked = None if cron is None else check_cron(cron)
    client = connect()
    old = require(client, name)
    origin = Origin.of(old)
    if origin is not None:
        raise ClusterError(
            f"schedule {name} comes from {origin.file} of {origin.owner}: change it there, and `ngrpo schedule apply` the file"
        )
    if not is_watch(spec_used(client, old)):
        text = compile_scheduled_run(config, images, Wishes(base or ""))
    elif base is None:
        text = compile_watch(config, images)
    else:
        raise ConfigError(f"--base {base}: schedule {name} watches the champion and starts no runs; leave it out")
    preflight.require(config, images, console)
    going = going_run(client, old)
    version = version_of(client, version_name(config.preset, text), text)
    timing = Timing.of(old) if checked is None else changed(Timing.of(old), cron=checked)
    substitute(client, old, timing, version, config.cluster.service_account, enabled=old.status == ENABLED)
    console.print(f"schedule  {name} replaced ({timing.cron})", soft_wrap=True)
    if going is not None:
        console.print(f"run  {going} of the old schedule goes on, and the new one does not wait for it", soft_wrap=True)


def pause(name: str, console: Console) -> None:
    """Pause a schedule: it starts no runs until it is resumed. An active run goes on."""
    client = connect()
    with explained(f"schedule {name}"):
        client.disable_recurring_run(require(client, name).recurring_run_id)
    console.print(f"schedule  {name} paused", soft_wrap=True)


def resume(name: str, console: Console) -> None:
    """Let a paused schedule start runs again, without catching up on missed times.

    Kubeflow would at once start a run for the last missed time. It counts from a schedule's last run or, if there was none, from its
    creation, so a new schedule replaces the old one. The new one would not wait for a run of the old one, so a schedule with an active
    run is resumed itself.
    """
    client = connect()
    old = require(client, name)
    if old.status == ENABLED:
        console.print(f"schedule  {name} is not paused", soft_wrap=True)
        return
    going = going_run(client, old)
    if going is not None:
        with explained(f"schedule {name}"):
            client.enable_recurring_run(old.recurring_run_id)
        console.print(
            f"schedule  {name} resumed; if a time was missed, one run makes up for it after run {going}, which goes on",
            soft_wrap=True,
        )
        return
    new = make(client, old.experiment_id, name, Timing.of(old), version_used(old), old.service_account)
    put_in_place(client, old, new)
    console.print(f"schedule  {name} resumed", soft_wrap=True)


def delete(name: str, console: Console) -> None:
    """Delete a schedule. Its runs are kept, and an active run goes on."""
    client = connect()
    with explained(f"schedule {name}"):
        remove(client, require(client, name))
    console.print(f"schedule  {name} deleted", soft_wrap=True)


def listed() -> list[dict[str, str | int | bool | None]]:
    """Return the facts of each schedule, with names for programs.

    Raises:
        ClusterError: The API refuses or cannot be reached.
    """
    rows: list[dict[str, str | int | bool | None]] = []
    for schedule in schedules_on(connect()):
        timing, origin = Timing.of(schedule), Origin.of(schedule)
        rows.append(
            {
                "name": schedule.display_name,
                "cron": timing.cron,
                "enabled": schedule.status == ENABLED,
                "since": schedule.created_at.isoformat(),
                "max_concurrency": timing.max_concurrency,
                "catch_up": timing.catch_up,
                "file": None if origin is None else origin.file,
                "owner": None if origin is None else origin.owner,
            }
        )
    return rows


def show(console: Console) -> None:
    """List the schedules."""
    table = Table(title="Schedules")
    for column in ("name", "cron (UTC)", "", "since", "from"):
        table.add_column(column)
    for row in listed():
        table.add_row(
            str(row["name"]),
            str(row["cron"]),
            "enabled" if row["enabled"] else "disabled",
            f"{datetime.fromisoformat(str(row['since'])):%Y-%m-%d %H:%M}",
            "by hand" if row["file"] is None else f"{row['file']} of {row['owner']}",
        )
    console.print(table)


def compare_clocks(client: Client, console: Console) -> None:
    """Print a warning if the cluster's clock, by which schedules run, differs from this machine's."""
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
