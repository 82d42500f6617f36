"""MLflow runs: one for a pipeline run, a child for each stage."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ngrpo.errors import TrackingError

# Before mlflow is imported: an unreachable server is reported within seconds, not minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

from mlflow import MlflowClient  # noqa: E402
from mlflow.data.dataset import Dataset  # noqa: E402
from mlflow.data.http_dataset_source import HTTPDatasetSource  # noqa: E402
from mlflow.data.meta_dataset import MetaDataset  # noqa: E402
from mlflow.entities import DatasetInput, InputTag, Metric  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME  # noqa: E402

RUN_ID = "MLFLOW_RUN_ID"
"""Environment variable that names the run a process reports to; Kubeflow's MLflow plugin and transformers know it too."""


@dataclass(frozen=True)
class TrackedRun:
    """A run that is open."""

    client: MlflowClient
    run_id: str

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        for name, value in tags.items():
            self.client.set_tag(self.run_id, name, value)

    def log_metrics(self, values: Mapping[str, float]) -> None:
        """Log numbers without a step."""
        now = time.time_ns() // 1_000_000
        metrics = [Metric(name, float(value), now, 0) for name, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def log_file(self, path: Path) -> None:
        """Store a file with the run."""
        self.client.log_artifact(self.run_id, str(path))

    def log_input(self, name: str, uri: str, digest: str) -> None:
        """Name an artifact that the run reads, by address and digest: its lineage.

        Args:
            name: Name of the input.
            uri: Address of the artifact.
            digest: Digest of its manifest.
        """
        dataset: Dataset = MetaDataset(source=HTTPDatasetSource(uri), name=name, digest=digest[:32])
        entry = DatasetInput(dataset._to_mlflow_entity(), tags=[InputTag(MLFLOW_DATASET_CONTEXT, "input")])
        self.client.log_inputs(self.run_id, [entry])


@contextmanager
def parent_run(
    experiment: str, name: str, tags: Mapping[str, str], artifact_location: str | None
) -> Iterator[TrackedRun]:
    """Open the run of a whole pipeline run; how the context ends is how the run ends.

    The database is initialised here, before the stages open it: several first openings at once break its migrations.

    Args:
        experiment: Experiment of the run, made if missing.
        name: Name of the run.
        tags: Its tags.
        artifact_location: Where a new experiment keeps artifacts; none leaves it to the server.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    client = _client()
    with _explained():
        found = client.get_experiment_by_name(experiment)
        if found is not None and found.lifecycle_stage == "deleted":
            raise TrackingError(f"MLflow experiment {experiment!r} was deleted: restore it, or delete it for good")
        experiment_id = found.experiment_id if found else client.create_experiment(experiment, artifact_location)
        run_id = client.create_run(experiment_id, run_name=name, tags=dict(tags)).info.run_id
    with _terminated(client, run_id):
        yield TrackedRun(client, run_id)


@contextmanager
def stage_run(stage: str, parent_run_id: str | None, tags: Mapping[str, str]) -> Iterator[TrackedRun | None]:
    """Open the run of a stage; how the context ends is how the run ends.

    A run that the platform has made for this step (`MLFLOW_RUN_ID`) is joined; no second one is made. Otherwise the run is a
    child of `parent_run_id`. While the context is open `MLFLOW_RUN_ID` names the run, so that trainers report to it.

    Args:
        stage: Name of the stage.
        parent_run_id: Run of the pipeline run.
        tags: Tags of the stage's run.

    Yields:
        The run, or none where neither a run nor a parent is known: then nothing is tracked.

    Raises:
        TrackingError: MLflow cannot be reached.
    """
    given = os.environ.get(RUN_ID)
    if given is None and parent_run_id is None:
        yield None
        return
    client = _client()
    with _explained():
        if given is not None:
            run = TrackedRun(client, client.get_run(given).info.run_id)
            run.set_tags(tags)
        else:
            parent = client.get_run(str(parent_run_id))
            own = {MLFLOW_PARENT_RUN_ID: str(parent_run_id), MLFLOW_RUN_NAME: stage, **tags}
            created = client.create_run(parent.info.experiment_id, run_name=stage, tags=own)
            run = TrackedRun(client, created.info.run_id)
    os.environ[RUN_ID] = run.run_id
    try:
        with _terminated(client, run.run_id):
            yield run
    finally:
        if given is None:
            os.environ.pop(RUN_ID, None)  # mlflow itself removes it once a trainer has joined the run


def _client() -> MlflowClient:
    with _explained():
        return MlflowClient()


@contextmanager
def _terminated(client: MlflowClient, run_id: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        client.set_terminated(run_id, "KILLED")
        raise
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        address = os.environ.get("MLFLOW_TRACKING_URI", "(not set)")
        shown = _without_password(address)
        first_line = str(error).splitlines()[0].replace(address, shown)[:200]
        # mlflow's own error may spell out the password, so it is not shown as the cause.
        raise TrackingError(
            f"MLFLOW_TRACKING_URI={shown}: {first_line}; start the server, or correct address and credentials"
        ) from None


def _without_password(uri: str) -> str:
    """Leave out what stands between `//` and `@` of an address."""
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if separator else uri
