"""The MLflow runs of an experiment: a parent, a child for each arm, and below that the runs of its stages.

The settings of an arm and its final metrics, averaged over seeds, are on its run; the metrics are on the parent too, under the arm's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ngrpo.stages.process import PARENT_RUN
from ngrpo.storage.state import write_state
from ngrpo_kfp.pipelines.local.parent_run import EXPERIMENT, end_open_runs
from ngrpo_kfp.pipelines.local.services import Services
from ngrpo_kfp.pipelines.planning.experiment import Experiment

if TYPE_CHECKING:
    from ngrpo.tracking.mlflow_runs import TrackedRun

NAME = "ngrpo.experiment"
ARM = "ngrpo.arm"


class TrackedExperiment:
    """The runs, opened in the background one after another: MLflow takes seconds to import and to open its database."""

    def __init__(self, experiment: Experiment, around: Services, name: str, pool: ThreadPoolExecutor, stack: ExitStack):
        self._experiment = experiment
        self._pool = pool
        self._arms: dict[str, Future[TrackedRun]] = {}
        self._parent = pool.submit(_open_parent, experiment, around, name, stack)

    def announce(self, arm: str, directory: Path) -> None:
        """Open the run of an arm in the background, and announce it to the stages of the run in this directory, which wait for it."""
        if arm not in self._arms:
            self._arms[arm] = self._pool.submit(self._open_arm, arm)
        self._pool.submit(_announce, self._arms[arm], directory / PARENT_RUN)

    def require_open(self) -> None:
        """Wait until all runs are open.

        Raises:
            TrackingError: MLflow cannot be used; raised in place of the failure of the waiting stage.
        """
        for opening in (self._parent, *self._arms.values()):
            opening.result()

    def parent(self) -> TrackedRun:
        """Return the run of the experiment."""
        return self._parent.result()

    def finish(
        self, metrics: Mapping[str, Mapping[str, float]], failed: frozenset[str], files: tuple[Path, ...]
    ) -> None:
        """Log the outcome of the experiment, and end the runs of its arms.

        Args:
            metrics: Final metrics by arm.
            failed: Arms with a failed run.
            files: Files of the experiment.
        """
        parent = self.parent()
        for arm, values in metrics.items():
            if arm not in self._arms:  # all of its results were there
                self._arms[arm] = self._pool.submit(self._open_arm, arm)
            self._arms[arm].result().log_metrics(values)
        for arm, opening in self._arms.items():
            opening.result().client.set_terminated(opening.result().run_id, "FAILED" if arm in failed else "FINISHED")
        parent.log_metrics(
            {f"{arm}/{name}": value for arm, values in metrics.items() for name, value in values.items()}
        )
        for file in files:
            parent.log_file(file)

    def abandon(self) -> None:
        """End the runs whose process was killed with the experiment."""
        wait([self._parent, *self._arms.values()])
        if self._parent.exception() is not None:
            return
        parent = self.parent()
        for opening in self._arms.values():
            if opening.exception() is None:
                end_open_runs(parent, f"tags.`mlflow.parentRunId` = '{opening.result().run_id}'")
        end_open_runs(parent, f"tags.`mlflow.parentRunId` = '{parent.run_id}'")

    def _open_arm(self, arm: str) -> TrackedRun:
        from ngrpo.tracking.mlflow_runs import child_run

        config = self._experiment.arms[arm]
        opened = child_run(self.parent(), arm, {NAME: self._experiment.name, ARM: arm})
        opened.log_settings(config.model_dump(mode="json", exclude={"cluster", "seed"}))
        return opened


@contextmanager
def experiment_runs(experiment: Experiment, around: Services, name: str) -> Iterator[TrackedExperiment]:
    """Open the MLflow runs of an experiment; the status of the parent follows from how the context ends.

    Args:
        experiment: The experiment.
        around: Where MLflow is.
        name: Name of the parent.
    """
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        tracked = TrackedExperiment(experiment, around, name, pool, stack)
        try:
            yield tracked
        except BaseException:
            tracked.abandon()
            raise
        tracked.require_open()


def _open_parent(experiment: Experiment, around: Services, name: str, stack: ExitStack) -> TrackedRun:
    from ngrpo.tracking.mlflow_runs import parent_run

    tags = {NAME: experiment.name, "ngrpo.preset": experiment.baseline.preset}
    tracked = stack.enter_context(parent_run(EXPERIMENT, name, tags, around.artifact_location))
    if around.owns_database:
        # This workspace is locked, so the process that opened those runs was killed before ending them.
        end_open_runs(tracked)
    tracked.log_settings(experiment.file.model_dump(mode="json", exclude={"settings", "arms", "published"}))
    return tracked


def _announce(opening: Future[TrackedRun], announcement: Path) -> None:
    """Announce the parent run to stages, or why there is none."""
    failure = opening.exception()
    write_state(announcement, {"run_id": opening.result().run_id} if failure is None else {"error": str(failure)})
