"""A decode step of `MixingSlots` in three Triton kernels, for GPUs; the torch code of `ngrpo.rollout.slots` is their reference.

`scan` reads the logits once, `decision` decides each row and writes the tables, `mixture` writes mixed embeddings; `launch` calls them.
Triton is imported with `launch`, so by those who launch, and by nobody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ngrpo.mixing.end_marker import EndMarker
from ngrpo.mixing.strategies import Neighbor, Token
from ngrpo.mixing.strategy import Strategy

SERVED: tuple[type[Strategy], ...] = (Neighbor, Token)
"""The strategies that the kernels know, and no subclass of theirs: that one may decide otherwise. Of `Neighbor` they know the paper's."""


def serves(strategy: Strategy) -> bool:
    """Return whether the kernels do what a strategy does."""
    if type(strategy) is Neighbor:
        return strategy == Neighbor(strategy.k)
    return type(strategy) in SERVED


@dataclass(frozen=True)
class Mixing:
    """What mixed steps are decided by, on the device.

    Attributes:
        anchored: int32, by number of a strategy: candidates of one that emits the anchor, 0 of one that emits the sampled token.
        neighbors: integer `[V, m]`, see `Mixer`; columns next to each other.
        eligible: bool `[V]`, see `Mixer`.
        end_marker: See `Mixer`.
    """

    anchored: Tensor
    neighbors: Tensor
    eligible: Tensor
    end_marker: EndMarker | None


def anchored(strategies: Mapping[int, Strategy], device: torch.device) -> Tensor:
    """Return `Mixing.anchored` of strategies by number; of one that the kernels do not serve it means nothing."""
    values = [0] * (max(strategies) + 1)
    for number, strategy in strategies.items():
        values[number] = strategy.k if type(strategy) is Neighbor else 0
    return torch.tensor(values, dtype=torch.int32, device=device)
