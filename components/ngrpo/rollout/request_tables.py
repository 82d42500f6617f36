"""State of running requests and their responses, as tensors on the device of the model."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tables:
    """One row per slot, plus a dump row for writes to be ignored."""

    seed: Tensor  # int64 [S]
    temperature: Tensor  # float32 [S]
    top_p: Tensor  # float32 [S]
    rate: Tensor  # float64 [S], compared with float64 uniform numbers
    strategy: Tensor  # int64 [S], -1 for none
    progress: Tensor  # int16 [S, L + 1], state of the end marker before each position; 0 before the first
    mixed: Tensor  # bool [S, L]
    candidates: Tensor  # int32 [S, L, K]
    weights: Tensor  # float32 [S, L, K]
    logprobs: Tensor  # float32 [S, L]

    @classmethod
    def empty(cls, slots: int, length: int, width: int, device: torch.device) -> Tables:
        """Return tables of S slots, L positions and K candidates."""
        rows = slots + 1

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(rows, *shape, dtype=dtype, device=device)

        return cls(
            seed=zeros(dtype=torch.long),
            temperature=zeros() + 1.0,
            top_p=zeros() + 1.0,
            rate=zeros(dtype=torch.float64),
            strategy=zeros(dtype=torch.long) - 1,
            progress=zeros(length + 1, dtype=torch.int16),
            mixed=zeros(length, dtype=torch.bool),
            candidates=zeros(length, width, dtype=torch.int32),
            weights=zeros(length, width),
            logprobs=zeros(length),
        )

    @property
    def slots(self) -> int:
        """S, without the dump row."""
        return self.seed.shape[0] - 1

    @property
    def length(self) -> int:
        """L."""
        return self.mixed.shape[1]

    @property
    def width(self) -> int:
        """K."""
        return self.weights.shape[2]

    def grown(self, slots: int, length: int, width: int) -> Tables:
        """Return larger tables with the same contents."""
        larger = Tables.empty(slots, length, width, self.seed.device)
        for field in fields(self):
            old, new = getattr(self, field.name), getattr(larger, field.name)
            new[tuple(slice(size) for size in (self.slots, *old.shape[1:]))] = old[:-1]
        return larger
