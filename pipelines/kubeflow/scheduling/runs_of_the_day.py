"""The run of the day: what a scheduled run submits, so that it is submitted once and either is found by the other.

The name of the run of the day holds the id of the scheduled run. Kubeflow's API finds one by the other, even if the process that
submitted it was killed before it could write anything down. Its id is kept beside the artifacts, written only if there is none
yet: Kubeflow does not mind two runs of one name, and if two pods of one scheduled run submit at the same time, that decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from kfp import Client

from ngrpo.errors import ClusterError
from ngrpo.storage.objects import ObjectStore
from ngrpo_kfp.pipelines.kubeflow.client import OVER, every, existing_experiment, explained

ENDS = (*OVER, "CANCELING")
"""States of a run that has ended or was told to."""

_FOLDER = "runs_of_the_day"
_MARK = "-of-"
_PARENT = re.compile(rf"{_MARK}(?P<parent>[0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}})$")


def name_of_the_day(parent: Any, preset: str) -> str:
    """Return the name of the run that a scheduled run submits: the same in each of its tries.

    Args:
        parent: The scheduled run, a `V2beta1Run`.
        preset: Name of the preset.
    """
    return f"{parent.created_at:%Y%m%d-%H%M%S}-{preset}{_MARK}{parent.run_id}"


def remembered(objects: ObjectStore, parent: str) -> str | None:
    """Return the id of the run that a scheduled run has submitted; none if none is written down.

    Args:
        objects: The artifact store.
        parent: Id of the scheduled run.

    Raises:
        StoreError: The store cannot be used.
    """
    data = objects.get_bytes(f"{_FOLDER}/{parent}")
    return None if data is None else data.decode()


def remember(objects: ObjectStore, parent: str, run_id: str) -> str:
    """Write down the run that a scheduled run has submitted, if none is written down, and return the one that is.

    Args:
        objects: The artifact store.
        parent: Id of the scheduled run.
        run_id: Id of the run of the day.

    Raises:
        StoreError: The store cannot be used.
    """
    if objects.put_bytes(run_id.encode(), f"{_FOLDER}/{parent}", if_none_match=True):
        return run_id
    return remembered(objects, parent) or run_id


def submitted_by(client: Client, parent: str) -> list[Any]:
    """Return the runs that a scheduled run has submitted, `V2beta1Run`s, oldest first: one, unless two pods of it were alive at once.

    Args:
        client: The way to Kubeflow Pipelines.
        parent: Id of the scheduled run.

    Raises:
        ClusterError: The API refuses or cannot be reached.
    """
    experiment = existing_experiment(client)
    if experiment is None:
        return []
    of_parent = {"operation": "IS_SUBSTRING", "key": "display_name", "stringValue": f"{_MARK}{parent}"}
    with explained(f"what run {parent} has submitted"):
        return list(
            every(
                client.list_runs,
                "runs",
                experiment_id=experiment,
                sort_by="created_at",
                filter=json.dumps({"predicates": [of_parent]}),
            )
        )


def related_runs(client: Client, run_id: str) -> Iterator[Any]:
    """Yield a scheduled run and then what it has submitted, `V2beta1Run`s; for any other run, the run alone.

    What was submitted is looked up only when the scheduled run has been taken: if that is ended first, what it submitted until then
    is found.

    Args:
        client: The way to Kubeflow Pipelines.
        run_id: Id of the scheduled run or of the run of the day.

    Raises:
        ClusterError: There is no such run, or the API refuses or cannot be reached.
    """
    with explained(f"run {run_id}"):
        run = client.get_run(run_id)
    child = _PARENT.search(run.display_name)
    parent = child["parent"] if child else run_id
    if child:
        scheduled = _run_if_any(client, parent)
        if scheduled is not None:
            yield scheduled
    yield run
    yield from (other for other in submitted_by(client, parent) if other.run_id != run_id)


def cancel_with_related(client: Client, run_id: str) -> list[str]:
    """End a run; with a scheduled run ends the run of the day, and with that the scheduled run.

    A scheduled run that is ended in the very second in which it submits can leave a run of the day behind. To cancel it again then
    ends that too.

    Args:
        client: The way to Kubeflow Pipelines.
        run_id: Id of either.

    Returns:
        Ids of the runs that are being ended.

    Raises:
        ClusterError: There is no such run, there is nothing to end, or the API refuses or cannot be reached.
    """
    ended = []
    states = {}
    for run in related_runs(client, run_id):
        states[run.run_id] = run.state
        if run.state not in ENDS:
            with explained(f"run {run.run_id}"):
                client.terminate_run(run.run_id)
            ended.append(run.run_id)
    if not ended:
        raise ClusterError(f"run {run_id} is over ({states[run_id]}): there is nothing to cancel")
    return ended


def is_gone(error: ClusterError) -> bool:
    """Say whether the API was asked for a run that it does not have."""
    return getattr(error.__cause__, "status", None) == 404


def _run_if_any(client: Client, run_id: str) -> Any | None:
    try:
        with explained(f"run {run_id}"):
            return client.get_run(run_id)
    except ClusterError as error:
        if is_gone(error):
            return None
        raise
