"""The run of the day, which a scheduled run submits: it is submitted once, and each of the two can be found from the other.

The name of the run of the day contains the id of the scheduled run. So Kubeflow's API finds one from the other, even if the process that
submitted it was killed before it could record anything. Its id is stored beside the artifacts, and written only if there is none yet.
Kubeflow allows two runs with one name, so if two pods of a scheduled run submit at the same time, this record decides.
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
"""States of a run that has ended or was told to end."""

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
    """Return the recorded id of the run that a scheduled run has submitted; None if there is no record.

    Args:
        objects: The artifact store.
        parent: Id of the scheduled run.

    Raises:
        StoreError: The store cannot be used.
    """
    data = objects.get_bytes(f"{_FOLDER}/{parent}")
    return None if data is None else data.decode()


def remember(objects: ObjectStore, parent: str, run_id: str) -> str:
    """Record the run that a scheduled run has submitted, unless there is a record already, and return the recorded id.

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
    """Return the runs that a scheduled run has submitted, `V2beta1Run`s, oldest first: one, unless two of its pods were alive at once.

    Args:
        client: Client of Kubeflow Pipelines.
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
    """Yield a scheduled run and then the runs that it has submitted, `V2beta1Run`s; for any other run, only that run.

    Submitted runs are looked up only after the caller has received the scheduled run: if the caller ends it first, all runs that it
    submitted until then are found.

    Args:
        client: Client of Kubeflow Pipelines.
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
    """End a run. A scheduled run and its run of the day are ended together, whichever is given.

    A scheduled run that is ended in the second in which it submits can leave a run of the day behind. Cancelling it again ends that too.

    Args:
        client: Client of Kubeflow Pipelines.
        run_id: Id of either.

    Returns:
        Ids of the runs that were told to end.

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
    """Whether an error means that the API does not have the run."""
    return getattr(error.__cause__, "status", None) == 404


def _run_if_any(client: Client, run_id: str) -> Any | None:
    try:
        with explained(f"run {run_id}"):
            return client.get_run(run_id)
    except ClusterError as error:
        if is_gone(error):
            return None
        raise
