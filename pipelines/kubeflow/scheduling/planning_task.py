"""The task of a schedule: plan when it starts, submit the run of the day, and wait for its end.

The contents of the store and the champion are known only then. The task waits for the run, so that a schedule with one run at a time
starts no second one.

It submits one run, whatever happens to its pod: the next pod, or the next try in the same pod, joins the submitted run
(`runs_of_the_day`). A pod that is told to stop has about a second on Kubeflow, too short to end anything, and cannot tell a lost node
from a cancelled run. So it then does nothing, and the run of the day goes on; `ngrpo cancel` ends both.

It runs in its own process, because `import kfp.client` fails where `_KFP_RUNTIME` is set, as it is in every kfp component.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from kfp import Client
from rich.console import Console

from ngrpo.config import RunConfig, validate
from ngrpo.environment import addresses_without_users, redacted
from ngrpo.errors import ClusterError, ConfigError, NGRPOError
from ngrpo.stages.supervision import NEVER_AGAIN
from ngrpo.stages.surroundings import ERROR_FILE
from ngrpo.storage.objects import ObjectStore
from ngrpo_kfp.components.serving.kubernetes_objects import KubernetesError
from ngrpo_kfp.pipelines.kubeflow.client import OVER, connect, every, explained
from ngrpo_kfp.pipelines.kubeflow.images import Images
from ngrpo_kfp.pipelines.kubeflow.scheduling.requested import Requested
from ngrpo_kfp.pipelines.kubeflow.scheduling.runs_of_the_day import (
    ENDS,
    is_gone,
    name_of_the_day,
    remember,
    remembered,
    submitted_by,
)
from ngrpo_kfp.pipelines.kubeflow.scheduling.wishes import Wishes
from ngrpo_kfp.pipelines.kubeflow.submission import submit
from ngrpo_kfp.pipelines.kubeflow.unpullable_images import unpullable
from ngrpo_kfp.pipelines.planning.base_model import from_champion
from ngrpo_kfp.pipelines.planning.early_stop import against_champion

_PAUSE_SECONDS = 30.0
_PATIENCE_SECONDS = 3600.0
"""Seconds for which the API may be out of reach. Giving up early would let the schedule start an overlapping run."""


class EndedError(ClusterError):
    """The run of the day did not succeed, is gone, or must not be submitted. Retrying does not help."""


def submit_and_wait(
    config_json: str,
    images: str,
    base: str,
    parent: str,
    *,
    cron: str = "",
    time_zone: str = "",
    seed: str = "",
    pause_seconds: float = _PAUSE_SECONDS,
) -> None:
    """Submit the run of the day, unless an earlier try has, and wait for its end.

    Args:
        config_json: Configuration of the run.
        images: Text of `images.lock`.
        base: `champion` for a run that starts from the champion of the day; empty for the base model of the configuration.
        parent: Id of the run that this task belongs to.
        cron: Times of the schedule in `time_zone`; if none has passed since its last run, nothing is done. Empty if every run is due.
        time_zone: Name of the time zone.
        seed: See `Wishes.seed`.
        pause_seconds: Time between two requests for the run's state.

    Raises:
        EndedError: The run of the day did not succeed, or this run was cancelled.
        NGRPOError: The run cannot be submitted, or the API was out of reach for an hour.
    """
    config = validate(RunConfig, json.loads(config_json))
    _plan_and_wait(config, images, Wishes(base, cron, time_zone, seed), parent, pause_seconds)


def submit_what_is_asked(
    preset: str,
    seed: int,
    overrides: Sequence[str],
    base: str,
    cluster: Mapping[str, Any],
    presets: Mapping[str, Mapping[str, Any]],
    images: str,
    parent: str,
    *,
    pause_seconds: float = _PAUSE_SECONDS,
) -> None:
    """Submit the run that a user requested in Kubeflow's form, unless an earlier try has, and wait for its end.

    Args:
        preset: Name of the preset.
        seed: Seed of the run.
        overrides: Settings that override the preset, `section.field=value`.
        base: As for `submit_and_wait`.
        cluster: The section `cluster`.
        presets: Configurations, by name, of presets that are not in the package.
        images: Text of `images.lock`.
        parent: Id of the run that this task belongs to.
        pause_seconds: Time between two requests for the run's state.

    Raises:
        ConfigError: A parameter is invalid; the cluster was not contacted.
        EndedError: The run did not succeed, or this run was cancelled.
        NGRPOError: The run cannot be submitted, or the API was out of reach for an hour.
    """
    config, left_out = Requested(preset, seed, overrides, base, cluster, presets).config()
    for name in left_out:
        print(f"left out: data.benchmarks.{name}, which is gated: pods have no HF_TOKEN", flush=True)
    _plan_and_wait(config, images, Wishes(base), parent, pause_seconds)


@addresses_without_users()
def _plan_and_wait(config: RunConfig, images: str, wishes: Wishes, parent: str, pause_seconds: float) -> None:
    console = Console(file=sys.stdout, highlight=False)
    client = connect()
    objects = ObjectStore(config.cluster.store)
    run_id = remembered(objects, parent)
    if run_id is not None:
        console.print(f"run  {run_id} was submitted by an earlier try", soft_wrap=True)
    else:
        run_id = _submit_once(client, objects, config, images, wishes, parent, console)
    if run_id is None:
        return
    state = _wait(client, run_id, pause_seconds)
    console.print(f"run  {run_id}: {state}", soft_wrap=True)
    if state != "SUCCEEDED":
        raise EndedError(f"run {run_id} ended as {state}: `ngrpo status {run_id}` shows why")


def _submit_once(
    client: Client, objects: ObjectStore, config: RunConfig, images: str, wishes: Wishes, parent: str, console: Console
) -> str | None:
    """Return the run of the day: one that was submitted but not recorded, or a new one; None if none is due."""
    scheduled = _going(client, parent)
    submitted = submitted_by(client, parent)
    if submitted:
        run_id = str(submitted[0].run_id)
        console.print(f"run  {run_id} was submitted by an earlier try", soft_wrap=True)
    elif scheduled.recurring_run_id and not wishes.due(lambda: _last(client, scheduled), scheduled.created_at):
        console.print(
            f"nothing is due: {wishes.cron} in {wishes.time_zone} has not come since the last run of the schedule",
            soft_wrap=True,
        )
        return None
    else:
        seeded = wishes.seeded(config, scheduled.created_at)
        name = name_of_the_day(scheduled, config.preset)
        run_id = _submit(client, seeded, images, wishes.base, name, console)
    chosen = remember(objects, parent, run_id)
    if chosen != run_id:
        console.print(f"run  {chosen} was submitted by another pod; {run_id} is ended", soft_wrap=True)
        _end(client, run_id)
    try:
        _going(client, parent)
    except EndedError:
        _end(client, chosen)
        raise
    return chosen


def _submit(client: Client, config: RunConfig, images: str, base: str, name: str, console: Console) -> str:
    with tempfile.TemporaryDirectory(prefix="ngrpo-") as scratch:
        lock = Path(scratch) / "images.lock"
        lock.write_text(images, encoding="utf-8")
        chosen = against_champion(from_champion(config) if base else config)
        return submit(chosen, Images(lock), console, cache=Path(scratch) / "cache", name=name)


def _last(client: Client, scheduled: Any) -> datetime:
    """Return when the previous run of a run's schedule started, or when the schedule was created if there is none."""
    own = {"operation": "EQUALS", "key": "recurring_run_id", "stringValue": scheduled.recurring_run_id}
    with explained(f"the runs of schedule {scheduled.recurring_run_id}"):
        runs = every(
            client.list_runs,
            "runs",
            experiment_id=scheduled.experiment_id,
            sort_by="created_at desc",
            filter=json.dumps({"predicates": [own]}),
        )
        before = next((run.created_at for run in runs if run.created_at < scheduled.created_at), None)
        if before is None:
            before = client.get_recurring_run(scheduled.recurring_run_id).created_at
    made: datetime = before
    return made


def _going(client: Client, parent: str) -> Any:
    """Return the run that this task belongs to.

    Raises:
        EndedError: It was cancelled, so nothing may be submitted for it.
    """
    with explained(f"run {parent}"):
        run = client.get_run(parent)
    if run.state in ENDS:
        raise EndedError(f"run {parent}, to which this task belongs, is {run.state}: nothing is submitted")
    return run


def _end(client: Client, run_id: str) -> None:
    with explained(f"run {run_id}"):
        if client.get_run(run_id).state not in ENDS:
            client.terminate_run(run_id)


def _wait(client: Client, run_id: str, pause_seconds: float) -> str:
    """Wait for the end of a run and return its state."""
    heard, watched = time.monotonic(), True
    while True:
        try:
            with explained(f"run {run_id}"):
                state = str(client.get_run(run_id).state)
            if state in OVER:
                return state
            heard = time.monotonic()
        except ClusterError as error:
            if is_gone(error):
                raise EndedError(f"run {run_id}, the run of the day, is gone: it was deleted") from error
            if time.monotonic() - heard > _PATIENCE_SECONDS:
                raise
            print(f"no news: {error}", file=sys.stderr, flush=True)
        if watched:
            watched = _end_if_stuck(client, run_id)
        time.sleep(pause_seconds)


def _end_if_stuck(client: Client, run_id: str) -> bool:
    """End a run with an image that cannot be pulled. Returns whether this could be checked, which takes the right to list pods.

    Raises:
        EndedError: It was ended.
    """
    try:
        reason = unpullable(run_id)
    except KubernetesError as error:
        print(f"not watched for images that cannot be pulled: {error}", file=sys.stderr, flush=True)
        return False
    if reason is not None:
        _end(client, run_id)
        raise EndedError(f"run {run_id} was ended: {reason}")
    return True


def main() -> int:
    """Carry out the task given on standard input, and return the exit code."""
    try:
        asked = json.load(sys.stdin)
        (submit_what_is_asked if "preset" in asked else submit_and_wait)(**asked)
    except NGRPOError as error:
        problem = redacted(str(error))
        print(problem, file=sys.stderr, flush=True)
        if os.environ.get(ERROR_FILE):
            Path(os.environ[ERROR_FILE]).write_text(problem, encoding="utf-8")
        return NEVER_AGAIN if isinstance(error, EndedError | ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
