"""What a stage takes from outside, besides its settings, its inputs and the place for its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def no_variable(name: str) -> str | None:
    """Give no environment variable a value."""
    return None


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
    progress: Callable[[str], None] = say
    """Receives lines of progress."""
