"""MLflow runs: one for a pipeline run, a child for each stage."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID
from mlflow.utils.validation import MAX_METRICS_PER_BATCH, MAX_PARAMS_TAGS_PER_BATCH

from ngrpo.config.code import with_digests
from ngrpo.environment import environment
from ngrpo.errors import TrackingError
from ngrpo.tracking.connection import connect, explained

RUN_ID = "MLFLOW_RUN_ID"
"""Environment variable that names the run a process reports to; Kubeflow's MLflow plugin and transformers use it too."""

DATASET_DIGEST_LENGTH = 36
"""Number of characters that MLflow keeps of a data set's digest."""


@dataclass(frozen=True)
class TrackedRun:
    """An open run. Its methods raise a `TrackingError` if MLflow or its object storage cannot be reached."""

    client: MlflowClient
    run_id: str

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        self._log("tags", [RunTag(name, str(value)) for name, value in tags.items()], MAX_PARAMS_TAGS_PER_BATCH)

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Log a tree of settings as parameters: `{"training": {"steps": 30}}` becomes `config.training.steps`.

        The prefix keeps them apart from a trainer's parameters, which MLflow would refuse under the same name. The user's files are
        logged by digest.
        """
        leaves = _flat("config", with_digests(settings))
        self._log("params", [Param(name, str(value)) for name, value in leaves], MAX_PARAMS_TAGS_PER_BATCH)

    def log_metrics(self, values: Mapping[str, float]) -> None:
        """Log numbers without a step (see `metrics_of`)."""
        metrics = metrics_of(values)
        self._log("metrics", metrics, MAX_METRICS_PER_BATCH)

    def log_file(self, path: Path) -> None:
        """Store a file with the run."""
        with explained():
            self.client.log_artifact(self.run_id, str(path))

    def log_input(self, name: str, uri: str, digest: str) -> None:
        """Record an input artifact of the run, by address and digest, as its lineage. Nothing is read.

        Args:
            name: Name of the input.
            uri: Address of the artifact, `scheme://…`.
            digest: Digest of its manifest; MLflow keeps the first 36 characters, and the tag `ngrpo.digest` all of them.
        """
        source = json.dumps({"uri": uri})
        dataset = Dataset(name, digest[:DATASET_DIGEST_LENGTH], uri.partition("://")[0], source)
        tags = [InputTag(MLFLOW_DATASET_CONTEXT, "input"), InputTag("ngrpo.digest", digest)]
        with explained():
            self.client.log_inputs(self.run_id, [DatasetInput(dataset, tags)])

    def _log(self, kind: str, entries: Sequence[Any], limit: int) -> None:
        for start in range(0, len(entries), limit):
            with explained():
                self.client.log_batch(self.run_id, **{kind: entries[start : start + limit]})


@contextmanager
def parent_run(
    experiment: str, name: str, tags: Mapping[str, str], artifact_location: str | None
) -> Iterator[TrackedRun]:
    """Open the run of a whole pipeline run; its status follows from how the context ends.

    Args:
        experiment: Experiment of the run, created if missing.
        name: Name of the run.
        tags: Its tags.
        artifact_location: Where the experiment keeps artifacts; None leaves it to the server.

    Raises:
        TrackingError: MLflow cannot be reached, or the experiment was deleted or keeps its artifacts elsewhere.
    """
    client = connect()
    with explained():
        experiment_id = _experiment(client, experiment, artifact_location)
        run = TrackedRun(client, client.create_run(experiment_id, run_name=name, tags=dict(tags)).info.run_id)
    with _ended(run):
        yield run


def child_run(parent: TrackedRun, name: str, tags: Mapping[str, str]) -> TrackedRun:
    """Open a child run; the caller ends it.

    Args:
        parent: The run above it.
        name: Name of the run.
        tags: Its tags.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    with explained():
        experiment_id = parent.client.get_run(parent.run_id).info.experiment_id
        own = {MLFLOW_PARENT_RUN_ID: parent.run_id, **tags}
        return TrackedRun(parent.client, parent.client.create_run(experiment_id, run_name=name, tags=own).info.run_id)


@contextmanager
def stage_run(node: str, parent_run_id: str | None, tags: Mapping[str, str]) -> Iterator[TrackedRun | None]:
    """Open the run of a stage; its status follows from how the context ends.

    If the platform has created a run for this step (`MLFLOW_RUN_ID`), that run is used, and the platform ends it. Otherwise the run is
    a child of `parent_run_id`. While the context is open, `MLFLOW_RUN_ID` names the run. A trainer of transformers reports to it and ends
    it, which is harmless: this context ends it again, with the true status.

    Args:
        node: Name of the stage's place in the pipeline, and of the run.
        parent_run_id: Run of the pipeline run.
        tags: Tags of the stage's run.

    Yields:
        The run; None if neither a run nor a parent is given, and then nothing is tracked.

    Raises:
        TrackingError: MLflow cannot be reached, or there is no such run.
    """
    given = os.environ.get(RUN_ID)
    if given is None and parent_run_id is None:
        yield None
        return
    client = connect()
    with explained():
        if given is not None:
            run = TrackedRun(client, given)
            run.set_tags(tags)
        else:
            experiment_id = client.get_run(str(parent_run_id)).info.experiment_id
            own = {MLFLOW_PARENT_RUN_ID: str(parent_run_id), **tags}
            run = TrackedRun(client, client.create_run(experiment_id, run_name=node, tags=own).info.run_id)
    # With MLFLOW_EXPERIMENT_NAME set, a trainer selects that experiment, and then fails because our run belongs to another.
    with environment({RUN_ID: run.run_id, "MLFLOW_EXPERIMENT_NAME": None}), _ended(run, ours=given is None):
        yield run


def metrics_of(values: Mapping[str, float], **of_what: str | None) -> list[Metric]:
    """Return numbers without a step as MLflow metrics; characters that are not allowed in names become `_`.

    Args:
        values: The numbers by name.
        of_what: `model_id`, `dataset_name` and `dataset_digest`, for metrics of a model.
    """
    now = time.time_ns() // 1_000_000
    return [
        Metric(re.sub(r"[^\w\-. :/]", "_", name), float(value), now, 0, **of_what) for name, value in values.items()
    ]


def experiment_of_this_process(client: MlflowClient) -> tuple[str, str | None]:
    """Return the experiment and the run that this process reports to; outside a run, experiment `ngrpo` and no run."""
    run_id = os.environ.get(RUN_ID)
    if run_id is None:
        return _experiment(client, "ngrpo", None), None
    return client.get_run(run_id).info.experiment_id, run_id


def _experiment(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process has created it
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"MLflow experiment {name!r} was deleted: restore it (mlflow experiments restore -x {found.experiment_id})"
        )
    # An experiment's bucket cannot be changed later. Local paths are not compared: MLflow rewrites them.
    elsewhere = found.artifact_location.rstrip("/") != (artifact_location or "").rstrip("/")
    if (artifact_location or "").startswith("s3://") and elsewhere:
        raise TrackingError(
            f"MLflow experiment {name!r} keeps its artifacts in {found.artifact_location}, not in {artifact_location}: use "
            "that bucket, or another MLFLOW_TRACKING_URI"
        )
    return str(found.experiment_id)


@contextmanager
def _ended(run: TrackedRun, *, ours: bool = True) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        try:
            _end(run, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", ours)
        except TrackingError as failure:
            error.add_note(f"its MLflow run is left open: {failure}")
        raise
    _end(run, "FINISHED", ours)


def _end(run: TrackedRun, status: str, ours: bool) -> None:
    with explained():
        # A trainer that failed leaves the run active in mlflow, which would end it as FINISHED when the trainer is
        # garbage-collected or the process exits.
        active = mlflow.active_run()
        if active is not None and active.info.run_id == run.run_id:
            mlflow.end_run(status)
        if ours:
            run.client.set_terminated(run.run_id, status)


def _flat(prefix: str, tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}.{name}", value)
        else:
            yield f"{prefix}.{name}", value
