"""What a stage takes from outside, besides its settings, its inputs and the place for its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

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
        """Deploy a registered version, and decide whether it stays; if it does not, what was served before is served again.

        Args:
            model: The version.
            config: How it is deployed.
            evaluate: Evaluates the model through the endpoint with the address that it is given.
            decide: Compares that evaluation with the one that the model was promoted on.
            say: Receives lines of progress.

        Raises:
            ConfigError: It cannot be deployed as the settings say.
            ClusterError: The cluster refuses, or the service does not get ready.
        """
        ...


@dataclass(frozen=True)
class Context:
    """Work directory, object store, trackers and progress of a stage. Nothing in it changes a result."""

    work: Path
    """Directory that survives a killed try: a stage that takes long resumes from what it left there."""
    store: str | None = None
    """`s3://bucket/prefix` for what outlives the machine: samples, the lock of promotions; none to keep samples in `work`."""
    checkpoints: str | None = None
    """Where below `store` the checkpoints of a training are kept; none to keep them in `work` alone."""
    save_minutes: float | None = None
    """Longest time between two checkpoints, in minutes; none for no limit besides `save_steps`."""
    processes: int | None = None
    """Processes that an evaluation generates in; none for one a GPU, or the stage's own where there are no GPUs."""
    reporters: tuple[str, ...] = ()
    """Trackers that a trainer reports its curves to, as transformers calls them."""
    on_cluster: bool = False
    """Whether the run is one on a cluster."""
    variable: Callable[[str], str | None] = no_variable
    """Gives the value of an environment variable: a key to sign with, which no setting may hold."""
    prices: str | None = None
    """What an hour costs, for the model card: `CostsConfig` as JSON."""
    deploy: Deployer | None = None
    """Serves models on the cluster; none where there is no cluster."""
    progress: Callable[[str], None] = say
    """Receives lines of progress."""
