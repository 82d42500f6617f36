"""What a schedule runs: one task that plans on the day, submits what is left to do, and waits for it.

Only on the day it is known what the store has, and which model is the champion. The task waits, so that a schedule that runs one at
a time starts no second run.

Whatever happens to its pod, it submits once: the next pod, or the next try in the same pod, joins the run that was submitted
(`runs_of_the_day`). A pod that is told to stop has about a second on Kubeflow, too short to end anything, and it
cannot tell a lost node from a cancelled run. So it does nothing then, and the run of the day goes on: `ngrpo cancel` ends both.

It runs as a process of its own: where `_KFP_RUNTIME` is set, as it is in every component of kfp, `import kfp.client` fails.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kfp import Client
from rich.console import Console

from ngrpo.config import RunConfig, validate
from ngrpo.environment import addresses_without_users, redacted
from ngrpo.errors import ConfigError, NGRPOError
from ngrpo.stages.supervision import NEVER_AGAIN
from ngrpo.stages.surroundings import ERROR_FILE
from ngrpo.storage.objects import ObjectStore
from ngrpo_kfp.pipelines.kubeflow.client import OVER, ClusterError, connect, explained
from ngrpo_kfp.pipelines.kubeflow.images import Images
from ngrpo_kfp.pipelines.kubeflow.kubernetes_api import KubernetesError
from ngrpo_kfp.pipelines.kubeflow.scheduling.runs_of_the_day import (
    ENDS,
    is_gone,
    name_of_the_day,
    remember,
    remembered,
    submitted_by,
)
from ngrpo_kfp.pipelines.kubeflow.submission import submit
from ngrpo_kfp.pipelines.kubeflow.unpullable_images import unpullable
from ngrpo_kfp.pipelines.planning.base_model import from_champion
from ngrpo_kfp.pipelines.planning.early_stop import against_champion

_PAUSE_SECONDS = 30.0
_PATIENCE_SECONDS = 3600.0
"""How long the API may be out of reach. Giving up early would let the schedule start an overlapping run."""


class EndedError(ClusterError):
    """The run of the day did not succeed, is gone, or must not be submitted: trying again changes nothing."""


@addresses_without_users()
def submit_and_wait(
    config_json: str, images: str, base: str, parent: str, *, pause_seconds: float = _PAUSE_SECONDS
) -> None:
    """Submit the run of the day, unless an earlier try has, and wait for its end.

    Args:
        config_json: Configuration of the run.
        images: Text of `images.lock`.
        base: `champion` for a run that starts from the champion of the day; empty for the base model of the configuration.
        parent: Id of the run that this is the task of.
        pause_seconds: Time between two looks at the run.

    Raises:
        EndedError: The run of the day did not succeed, or this run was cancelled.
        NGRPOError: The run cannot be submitted, or the API was out of reach for an hour.
    """
    console = Console(file=sys.stdout, highlight=False)
    config = validate(RunConfig, json.loads(config_json))
    client = connect()
    objects = ObjectStore(config.cluster.store)
    run_id = remembered(objects, parent)
    if run_id is None:
        run_id = _submit_once(client, objects, config, images, base, parent, console)
    else:
        console.print(f"run  {run_id} was submitted by an earlier try", soft_wrap=True)
    state = _wait(client, run_id, pause_seconds)
    console.print(f"run  {run_id}: {state}", soft_wrap=True)
    if state != "SUCCEEDED":
        raise EndedError(f"run {run_id} ended as {state}: `ngrpo status {run_id}` shows why")


def _submit_once(
    client: Client, objects: ObjectStore, config: RunConfig, images: str, base: str, parent: str, console: Console
) -> str:
    """Return the run of the day: one that was submitted without being written down, or a new one."""
    scheduled = _going(client, parent)
    submitted = submitted_by(client, parent)
    if submitted:
        run_id = str(submitted[0].run_id)
        console.print(f"run  {run_id} was submitted by an earlier try", soft_wrap=True)
    else:
        run_id = _submit(client, config, images, base, name_of_the_day(scheduled, config.preset), console)
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


def _going(client: Client, parent: str) -> Any:
    """Return the run that this is the task of.

    Raises:
        EndedError: It was cancelled; nothing may be submitted for it any more.
    """
    with explained(f"run {parent}"):
        run = client.get_run(parent)
    if run.state in ENDS:
        raise EndedError(f"run {parent}, which this is the task of, is {run.state}: nothing is submitted")
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
    """End a run whose image cannot be pulled; say whether it can be watched for that, which takes the right to list pods.

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
    """Do the task on standard input, and return the exit code."""
    try:
        submit_and_wait(**json.load(sys.stdin))
    except NGRPOError as error:
        problem = redacted(str(error))
        print(problem, file=sys.stderr, flush=True)
        if os.environ.get(ERROR_FILE):
            Path(os.environ[ERROR_FILE]).write_text(problem, encoding="utf-8")
        return NEVER_AGAIN if isinstance(error, EndedError | ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
