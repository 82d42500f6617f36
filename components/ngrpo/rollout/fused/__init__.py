"""A decode step of `MixingSlots` in three Triton kernels, for GPUs; the torch code of `ngrpo.rollout.slots` is their reference.

`scan` reads the logits once, `decision` decides each row and writes the tables, `mixture` writes mixed embeddings; `launch` calls them.
Only `launch` imports Triton.
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
"""Strategies that the kernels implement, without subclasses, which may decide differently; of `Neighbor` only the paper's form."""


def serves(strategy: Strategy) -> bool:
    """Whether the kernels implement a strategy."""
    if type(strategy) is Neighbor:
        return strategy == Neighbor(strategy.k)
    return type(strategy) in SERVED


@dataclass(frozen=True)
class Mixing:
    """Tables on the device from which mixed steps are decided.

    Attributes:
        anchored: int32, by number of a strategy: its candidates if it emits the anchor, 0 if it emits the sampled token.
        neighbors: integer `[V, m]`, see `Mixer`; columns are contiguous.
        eligible: bool `[V]`, see `Mixer`.
        end_marker: See `Mixer`.
    """

    anchored: Tensor
    neighbors: Tensor
    eligible: Tensor
    end_marker: EndMarker | None


def anchored(strategies: Mapping[int, Strategy], device: torch.device) -> Tensor:
    """Return `Mixing.anchored` of strategies by number; the entry of a strategy that the kernels do not implement is meaningless."""
    values = [0] * (max(strategies) + 1)
    for number, strategy in strategies.items():
        values[number] = strategy.k if type(strategy) is Neighbor else 0
    return torch.tensor(values, dtype=torch.int32, device=device)
