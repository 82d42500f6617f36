"""Where a stage runs, read from the environment: machine, run and other processes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ngrpo.environment import SAVE_MINUTES
from ngrpo.errors import ConfigError
from ngrpo.stages.process import parent_run_id

if TYPE_CHECKING:
    from ngrpo.storage.objects import ObjectStore

PIPELINE_RUN = "NGRPO_PIPELINE_RUN"
"""Environment variable of a pod: the id of the pipeline run."""
PROCESSES = "NGRPO_PROCESSES"
"""Environment variable of a stage: its processes per node. For training it is the pod's GPUs; an evaluation counts them itself."""
IMAGES = "NGRPO_IMAGES"
"""Environment variable of a pod that signs or deploys: the image of every stage of the run by digest, as JSON."""
TRIES = "NGRPO_TRIES"
"""Environment variable of a pod: retries of a failed stage there, `RetryConfig` as JSON."""
ERROR_FILE = "NGRPO_ERROR_FILE"
"""Environment variable of a try: file for the error line."""
REASON = ".reason"
"""Suffix of a file beside that one, with the reason that may leave the cluster (`ngrpo.notifications.reasons`)."""
NODE = "NGRPO_NODE"
"""Environment variable of a step: its node in the pipeline, if not named like its stage."""
_TRAINER_STATUS = "KUBEFLOW_TRAINER_SERVER_URL"
_TRAINER_OFF = "DISABLE_KUBEFLOW_INTEGRATION"
STORE_IS_LOCAL = "NGRPO_STORE_IS_LOCAL"
"""Environment variable of a stage: set if the store is on the same disk as the work directory, so that checkpoints are not uploaded."""


@dataclass(frozen=True)
class Surroundings:
    """Where a stage runs."""

    store: str
    """`s3://bucket/prefix` of the artifact store (`NGRPO_STORE`)."""
    cache: Path
    """Directory of verified downloads (`NGRPO_CACHE_DIR`)."""
    work: Path
    """Directory for unfinished results; what is there survives a killed try (`NGRPO_WORK_DIR`)."""
    run_directory: Path | None
    """Directory of the local run that this process belongs to (`NGRPO_RUN_DIR`); none on a cluster."""
    pipeline_run: str | None
    """Id of the pipeline run on a cluster (`NGRPO_PIPELINE_RUN`); none on one machine."""
    processes: int | None
    """Processes per node of a stage that can use several (`NGRPO_PROCESSES`); none if not set."""
    nodes: int
    """Number of nodes that work on the stage together (`PET_NNODES`, torchrun's variable)."""
    node_rank: int
    """Rank of this node (`PET_NODE_RANK`); only the first publishes and reports."""
    store_is_local: bool
    """Whether checkpoints in the store would be no safer than in `work` (`NGRPO_STORE_IS_LOCAL`)."""
    save_minutes: float | None
    """Longest time between two checkpoints of a training (`NGRPO_SAVE_MINUTES`)."""

    @classmethod
    def from_environment(cls) -> Surroundings:
        """Read the environment.

        Raises:
            ConfigError: A variable that has no default is not set, or `NGRPO_SAVE_MINUTES` or `NGRPO_PROCESSES` is not a positive number.
        """
        for name in ("NGRPO_STORE", "NGRPO_CACHE_DIR", "NGRPO_WORK_DIR"):
            if not os.environ.get(name):
                raise ConfigError(
                    f"{name} is not set: a stage needs it; see `Surroundings` in ngrpo.stages.surroundings"
                )
        run_directory = os.environ.get("NGRPO_RUN_DIR")
        return cls(
            store=os.environ["NGRPO_STORE"],
            cache=Path(os.environ["NGRPO_CACHE_DIR"]),
            work=Path(os.environ["NGRPO_WORK_DIR"]),
            run_directory=Path(run_directory) if run_directory else None,
            pipeline_run=os.environ.get(PIPELINE_RUN) or None,
            processes=processes(),
            nodes=int(os.environ.get("PET_NNODES", "1")),
            node_rank=int(os.environ.get("PET_NODE_RANK", "0")),
            store_is_local=bool(os.environ.get(STORE_IS_LOCAL)),
            save_minutes=save_minutes(),
        )

    @property
    def run_name(self) -> str:
        """Name of the run: the directory of a local run, or the id of the pipeline run; empty outside a run."""
        return self.pipeline_run or (self.run_directory.name if self.run_directory is not None else "")

    @contextmanager
    def parent_run(self, node: str, objects: ObjectStore) -> Iterator[str | None]:
        """Provide the MLflow run of the whole pipeline run, none if there is none.

        Raises:
            TrackingError: The local run could not open one, or MLflow cannot be reached.
        """
        if self.run_directory is not None:
            yield parent_run_id(self.run_directory)
            return
        from ngrpo.tracking.cluster_parent_run import parent_on_cluster

        with parent_on_cluster(self.pipeline_run, node, objects) as run_id:
            yield run_id


def job_reporters() -> tuple[str, ...]:
    """Return the reporter of transformers that sends progress to Kubeflow Trainer, if this is a node of a TrainJob.

    Trainer sets the address on nodes where its feature gate `TrainJobStatus` is on (2.2 and later).
    """
    off = os.environ.get(_TRAINER_OFF, "").upper() == "TRUE"  # transformers refuses to create its callback then
    return ("kubeflow",) if os.environ.get(_TRAINER_STATUS) and not off else ()


def save_minutes() -> float | None:
    """Return the longest time between two checkpoints, in minutes (`NGRPO_SAVE_MINUTES`); none if not set.

    Raises:
        ConfigError: It is not a positive number.
    """
    text = os.environ.get(SAVE_MINUTES)
    if not text:
        return None
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise ConfigError(
            f"{SAVE_MINUTES}={text!r}: not a positive number of minutes; set it to 10, for example, or unset it to save every "
            "save_steps steps only"
        )
    return minutes


def processes() -> int | None:
    """Return the number of processes of a stage that can use several (`NGRPO_PROCESSES`); none if not set.

    Raises:
        ConfigError: It is not a positive number.
    """
    text = os.environ.get(PROCESSES)
    if not text:
        return None
    if not text.isdecimal() or int(text) == 0:
        raise ConfigError(
            f"{PROCESSES}={text!r}: not a positive number of processes; set it to 2, for example, or unset it"
        )
    return int(text)
