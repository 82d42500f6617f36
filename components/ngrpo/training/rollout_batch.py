"""A rollout batch as observers of a training see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from ngrpo.mixing.mixer import Mixer
from ngrpo.mixing.records import InputMixture
from ngrpo.rollout.engine import Rollout


@dataclass(frozen=True)
class RolloutBatch:
    """One process's share of a rollout batch, as an observer sees it.

    Attributes:
        step: Optimizer steps made before it was generated.
        prompts: Token ids of each prompt, the copies of a group side by side.
        rollouts: One per prompt.
        rewards: One per rollout, the weighted sum of all rewards; none if no reward applied to it.
        mixture: The mixtures, padded to the longest rollout; none without mixing.
        embedding: The input embedding module that generated it; the current one if the batch is older than the weights.
        mixer: The mixer that was used; none without mixing.
    """

    step: int
    prompts: Sequence[Sequence[int]]
    rollouts: Sequence[Rollout]
    rewards: Sequence[float | None]
    mixture: InputMixture | None
    embedding: nn.Module
    mixer: Mixer | None = None


RolloutObserver = Callable[[RolloutBatch], dict[str, float]]
"""Called after each rollout batch; the numbers it returns are averaged over processes and logged."""
