"""The MLflow run of a pipeline run, opened in the background: MLflow takes seconds to import and to open its database."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ngrpo.config import RegisteredModel, RunConfig
from ngrpo.stages.process import PARENT_RUN
from ngrpo.storage.state import write_state
from ngrpo_kfp.pipelines.local.services import Services

if TYPE_CHECKING:
    from ngrpo.tracking.mlflow_runs import TrackedRun

EXPERIMENT = "ngrpo"


@contextmanager
def pipeline_run(config: RunConfig, around: Services, directory: Path) -> Iterator[Future[TrackedRun]]:
    """Open the MLflow run of a pipeline run; its status follows from how the context ends.

    Stages wait for `parent_run.json` in the run's directory, which has the id of the run, or why there is none.

    Args:
        config: Configuration of the run.
        around: Where MLflow is.
        directory: Directory of the run; its name becomes the name of the MLflow run.

    Yields:
        The run, as soon as it is open.

    Raises:
        TrackingError: MLflow cannot be used; raised in place of the failure of the waiting stage.
    """
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        opening = pool.submit(_open, stack, config, around, directory)
        try:
            yield opening
        except BaseException as failure:
            wait([opening])
            refusal = opening.exception()
            if refusal is not None:
                raise refusal from failure
            tracked = opening.result()
            end_open_runs(tracked, f"tags.`mlflow.parentRunId` = '{tracked.run_id}'")
            raise
        wait([opening])


def _open(stack: ExitStack, config: RunConfig, around: Services, directory: Path) -> TrackedRun:
    announcement = directory / PARENT_RUN
    try:
        from ngrpo.tracking.mlflow_runs import parent_run
        from ngrpo.tracking.model_registry import BASE_MODEL

        tags = {"ngrpo.preset": config.preset, "ngrpo.run": directory.name}
        if isinstance(config.model.source, RegisteredModel):
            tags[BASE_MODEL] = config.model.source.uri
        tracked = stack.enter_context(parent_run(EXPERIMENT, directory.name, tags, around.artifact_location))
        if around.owns_database:
            # This workspace is locked, so the process that opened those runs was killed before ending them.
            end_open_runs(tracked)
    except BaseException as error:
        write_state(announcement, {"error": str(error)})
        raise
    write_state(announcement, {"run_id": tracked.run_id})
    tracked.log_settings(config.model_dump(mode="json", exclude={"cluster", "notifications"}))
    return tracked


def end_open_runs(tracked: TrackedRun, condition: str = "") -> None:
    """End the MLflow runs of killed processes; `condition` selects them."""
    experiment = tracked.client.get_run(tracked.run_id).info.experiment_id
    is_open = "attributes.status = 'RUNNING'"
    for run in tracked.client.search_runs([experiment], f"{is_open} and {condition}" if condition else is_open):
        if run.info.run_id != tracked.run_id:
            tracked.client.set_terminated(run.info.run_id, "KILLED")
