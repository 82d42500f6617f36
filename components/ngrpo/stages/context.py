"""The environment of a stage: everything besides its settings, its inputs and its output directory."""

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
    """Work directory, object store, trackers and progress of a stage. Nothing here changes a result."""

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
    progress: Callable[[str], None] = say
    """Receives lines of progress."""
