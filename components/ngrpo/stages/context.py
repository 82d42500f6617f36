"""The environment of a stage: everything besides its settings, its inputs and its output directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pydantic import ConfigDict

if TYPE_CHECKING:
    from ngrpo.config import DeployConfig, RegisteredModel
    from ngrpo.contracts.evaluation import Evaluation
    from ngrpo.evaluation.equivalence import Equivalence


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def no_variable(name: str) -> str | None:
    """Give no environment variable a value."""
    return None


@runtime_checkable
class Deployer(Protocol):
    """Serves models on a cluster."""

    def __call__(
        self,
        model: RegisteredModel,
        config: DeployConfig,
        *,
        evaluate: Callable[[str], Evaluation],
        decide: Callable[[Evaluation], Equivalence],
        say: Callable[[str], None],
    ) -> Equivalence:
        """Deploy a registered version and decide whether to keep it; if not, restore the service from before.

        Args:
            model: The version.
            config: How it is deployed.
            evaluate: Evaluates the model through the endpoint with the given address.
            decide: Compares that evaluation with the one that the model was promoted on.
            say: Receives lines of progress.

        Raises:
            ConfigError: It cannot be deployed with these settings.
            ClusterError: The cluster refuses, or the service does not become ready.
        """
        ...


@dataclass(frozen=True)
class Context:
    """Work directory, object store, trackers and progress of a stage. Nothing here changes a result."""

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)
    """Processes of a group get the context as JSON, without the functions that only the first process can call."""

    work: Path
    """Directory that survives a killed try; a long stage resumes from its files there."""
    store: str | None = None
    """`s3://bucket/prefix` for data that outlives the machine: samples, the lock of promotions; none to keep samples in `work`."""
    checkpoints: str | None = None
    """Folder of `store` for the checkpoints of a training; none to keep them in `work` only."""
    save_minutes: float | None = None
    """Longest time between two checkpoints, in minutes; none for no limit besides `save_steps`."""
    processes: int | None = None
    """Processes that an evaluation generates in; none for one per GPU, or the stage's own without GPUs."""
    reporters: tuple[str, ...] = ()
    """Trackers for a trainer's curves, by their names in transformers."""
    on_cluster: bool = False
    """Whether the run is one on a cluster."""
    variable: Callable[[str], str | None] = no_variable
    """Returns the value of an environment variable, such as a signing key, which no setting may hold."""
    prices: str | None = None
    """Prices, for the model card: `CostsConfig` as JSON."""
    deploy: Deployer | None = None
    """Serves models on the cluster; none where there is no cluster."""
    progress: Callable[[str], None] = say
    """Receives lines of progress."""
