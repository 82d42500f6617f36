"""Messages from training to an engine in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ngrpo.config import RolloutConfig
from ngrpo.mixing.strategy import StrategySource
from ngrpo.rollout.engine import Sampling


@dataclass(frozen=True)
class EngineTask:
    """Settings that a process needs to start its engine; the first message.

    Attributes:
        config: Settings of the rollouts.
        directory: Directory of the model, as it was saved.
        ends: Tokens that end a response.
        padding: Token that fills short prompts.
        max_length: Longest prompt and response together.
        dtype: Name of the torch type to compute in.
        threads: Threads of an operation on processors: another number changes the rounding of sums.
    """

    config: RolloutConfig
    directory: Path
    ends: Sequence[int]
    padding: int
    max_length: int
    dtype: str
    threads: int


@dataclass(frozen=True)
class NewWeights:
    """Asks to replace weights.

    Attributes:
        path: File with the weights, which is there until the answer.
    """

    path: str


@dataclass(frozen=True)
class NewMixer:
    """Sets the mixer from now on; see `Mixer`. There is no reply.

    Attributes:
        source: Source of its strategy.
        rate: Gate rate.
        index_version: Version of its index.
        tables: Neighbors, eligible tokens and the end marker's transitions; none if unchanged since the last message.
    """

    source: StrategySource
    rate: float
    index_version: int
    tables: tuple[Tensor, Tensor, Tensor | None] | None


@dataclass(frozen=True)
class Prompts:
    """Asks for responses; see `RolloutEngine.generate`."""

    prompts: Sequence[Sequence[int]]
    seeds: Sequence[int]
    sampling: Sampling
    mixed: bool
