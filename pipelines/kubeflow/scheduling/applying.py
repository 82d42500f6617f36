"""`ngrpo schedule apply`: change the schedules of a cluster to those of a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kfp import Client
from rich.console import Console

from ngrpo.errors import ClusterError, ConfigError, NGRPOError
from ngrpo_kfp.pipelines.kubeflow import preflight
from ngrpo_kfp.pipelines.kubeflow.client import connect, experiment_id, explained
from ngrpo_kfp.pipelines.kubeflow.images import Images
from ngrpo_kfp.pipelines.kubeflow.scheduling.compilation import compile_scheduled_run
from ngrpo_kfp.pipelines.kubeflow.scheduling.differences import Change, differences, show
from ngrpo_kfp.pipelines.kubeflow.scheduling.recurring_runs import (
    ENABLED,
    going_run,
    make,
    remove,
    schedules_on,
    substitute,
    version_of,
)
from ngrpo_kfp.pipelines.kubeflow.scheduling.schedule_file import WantedSchedules
from ngrpo_kfp.pipelines.kubeflow.scheduling.schedules import compare_clocks

_DONE = {"add": "added", "change": "changed", "remove": "removed"}


def apply(
    path: Path,
    wanted: WantedSchedules,
    images: Images,
    console: Console,
    *,
    dry_run: bool,
    prune: bool,
    agreed: Callable[[], bool],
) -> None:
    """Show how the schedules of a file differ from those on a cluster, and change the cluster's accordingly.

    Args:
        path: The file.
        wanted: The schedules in it.
        images: Where the images of the stages are looked up.
        console: Where the differences and what was done are shown.
        dry_run: Only show the differences.
        prune: Remove schedules of the file's owner that are not in the file.
        agreed: Asks for confirmation before anything is changed.

    Raises:
        ConfigError: Runs of a schedule would be refused; the cluster was not contacted.
        ClusterError: The API cannot be used, or schedules could not be applied, with a line for each; the others were applied.
    """
    texts = _compiled(path, wanted, images)
    for name, benchmarks in wanted.left_out.items():
        told = ", ".join(benchmarks)
        console.print(f"left out  {name}: {told}: gated, and cluster.secrets gives no HF_TOKEN", soft_wrap=True)
    client = connect()
    changes = differences(client, wanted, texts, schedules_on(client), prune=prune)
    show(changes, console)
    refused = [f"{change.name}: {change.why}" for change in changes if change.kind == "refuse"]
    todo = [change for change in changes if change.kind in _DONE]
    if todo and not dry_run and agreed():
        compare_clocks(client, console)
        for change in todo:
            try:
                _make_so(client, change, images, console)
            except NGRPOError as error:
                refused.append(f"{change.name}: not {_DONE[change.kind]}: {error}")
            else:
                console.print(f"schedule  {change.name} {_DONE[change.kind]}", soft_wrap=True)
    if refused:
        raise ClusterError("\n".join(f"{path.name}: {line}" for line in refused))


def _compiled(path: Path, wanted: WantedSchedules, images: Images) -> dict[str, str]:
    """Return the compiled pipeline of each schedule.

    Raises:
        ConfigError: Runs of a schedule would be refused: a line for each reason.
    """
    texts: dict[str, str] = {}
    problems: list[str] = []
    for each in wanted.schedules:
        try:
            texts[each.name] = compile_scheduled_run(each.config, images, each.wishes)
        except ConfigError as error:
            problems += [f"{path.name}: schedules.{each.name}: {line}" for line in str(error).splitlines()]
    if problems:
        raise ConfigError("\n".join(problems))
    return texts


def _make_so(client: Client, change: Change, images: Images, console: Console) -> None:
    """Apply the file's definition of a schedule to the cluster."""
    old, wanted = change.found, change.wanted
    if wanted is None:
        with explained(f"schedule {change.name}"):
            remove(client, old)
        return
    if old is not None and old.status == ENABLED and _names(change) == ["enabled"]:
        with explained(f"schedule {change.name}"):
            client.disable_recurring_run(old.recurring_run_id)
        return
    preflight.require(wanted.config, images, console)
    version = version_of(client, change.version, change.text)
    account = wanted.config.cluster.service_account
    if old is None:
        make(client, experiment_id(client), wanted.name, wanted.timing, version, account, enabled=wanted.enabled)
        return
    going = going_run(client, old)
    substitute(client, old, wanted.timing, version, account, enabled=wanted.enabled)
    if going is not None:
        console.print(f"run  {going} of the old schedule goes on, and the new one does not wait for it", soft_wrap=True)


def _names(change: Change) -> Sequence[str]:
    return [name for name, _, _ in change.fields]
