"""The MLflow run of a pipeline run on a cluster: shared by its stages, because no process outlives all of them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from ngrpo.errors import TrackingError
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.state import DamagedStateError
from ngrpo.tracking.connection import TRACKING_URI, connect, explained
from ngrpo.tracking.mlflow_runs import RUN_ID, TrackedRun, experiment_of_this_process

PIPELINE_RUN = "ngrpo.pipeline_run"
"""Tag of the run: the id of the pipeline run."""
_FOLDER = "mlflow_runs"
_COST = "cost/"
_RESULTS = ("benchmark_evaluation", "model_promotion")
"""Nodes whose metrics are copied to the whole run."""
_RUN_ID = re.compile(rb"[0-9A-Za-z_-]{1,64}")


@contextmanager
def parent_on_cluster(pipeline_run: str | None, node: str, objects: ObjectStore) -> Iterator[str | None]:
    """Provide the parent run for the run of a stage.

    The status of the parent is set whenever a stage ends, from those of its stages so far. So it shows as ended between two stages.

    Args:
        pipeline_run: Id of the pipeline run.
        node: Name of the stage's place in the pipeline, and of its run.
        objects: Store in which the stages of a pipeline run agree on one run.

    Yields:
        Id of the run. None if the platform has created a run for this step, which `stage_run` joins, or if nothing can be tracked,
        which is printed to standard error.

    Raises:
        TrackingError: MLflow cannot be reached.
        StoreError: The object store cannot be reached.
    """
    if os.environ.get(RUN_ID):
        yield None
        return
    missing = [
        name for name, value in ((TRACKING_URI, os.environ.get(TRACKING_URI)), ("the run", pipeline_run)) if not value
    ]
    if pipeline_run is None or missing:
        print(
            f"{node}: nothing is tracked: neither {RUN_ID} nor {' and '.join(missing)} is given",
            file=sys.stderr,
            flush=True,
        )
        yield None
        return
    client = connect()
    run_id = _agreed(client, pipeline_run, objects)
    with explained():
        for run in _children(client, run_id):
            # A stage never has two tries at a time, so the try that opened that run was killed before ending it.
            if run.info.run_name == node and run.info.status == "RUNNING":
                client.set_terminated(run.info.run_id, "KILLED")
        client.update_run(run_id, status="RUNNING")
    try:
        yield run_id
    except BaseException as error:
        try:
            _settle(client, run_id)
        except TrackingError as failure:
            error.add_note(f"its MLflow run is left open: {failure}")
        raise
    _settle(client, run_id)


@explained()
def _agreed(client: MlflowClient, pipeline_run: str, objects: ObjectStore) -> str:
    """Return the run of a pipeline run, created if missing; if several stages start together, one creates it."""
    key = f"{_FOLDER}/{pipeline_run}"
    known = objects.get_bytes(key)
    if known is not None:
        return _run_id(known, objects, key)
    experiment_id, _ = experiment_of_this_process(client)
    # A stage may have created it, and been killed before it could record the id.
    found = client.search_runs([experiment_id], f"tags.`{PIPELINE_RUN}` = '{pipeline_run}'", max_results=1)
    run = (
        found[0]
        if found
        else client.create_run(experiment_id, run_name=pipeline_run, tags={PIPELINE_RUN: pipeline_run})
    )
    run_id: str = run.info.run_id
    if objects.put_bytes(run_id.encode(), key, if_none_match=True):
        return run_id
    agreed = _run_id(objects.get_bytes(key) or b"", objects, key)
    if agreed != run_id and not found:
        client.delete_run(run_id)
    return agreed


def _run_id(data: bytes, objects: ObjectStore, key: str) -> str:
    """Return the id of a run that the stages have agreed on."""
    if _RUN_ID.fullmatch(data) is None:
        raise DamagedStateError(
            f"{objects.uri}/{key}: damaged: it is not the id of an MLflow run; delete it: the stages then find the run by its tag"
        )
    return data.decode()


@explained()
def _settle(client: MlflowClient, run_id: str) -> None:
    """Set status, total costs and results of the run from the last try of each stage."""
    children = {run.info.run_name: run for run in _children(client, run_id)}
    last = {name: run.info.status for name, run in children.items()}
    TrackedRun(client, run_id).log_metrics(_whole(children))
    if "RUNNING" not in last.values():
        client.set_terminated(run_id, "FINISHED" if set(last.values()) == {"FINISHED"} else "FAILED")


def _whole(children: Mapping[str, Run]) -> dict[str, float]:
    """Return the metrics of the whole run: the total costs of its stages, and the results of evaluation and promotion."""
    values: dict[str, float] = {}
    for node, run in children.items():
        for name, value in run.data.metrics.items():
            if name.startswith(_COST):
                values[name] = values.get(name, 0.0) + value
            elif node in _RESULTS and not name.startswith("system/"):
                values[name] = value
    return values


def _children(client: MlflowClient, run_id: str) -> list[Run]:
    """Return the runs of the stages, oldest first."""
    experiment_id = client.get_run(run_id).info.experiment_id
    condition = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run_id}'"
    return list(client.search_runs([experiment_id], condition, order_by=["attributes.start_time ASC"]))
