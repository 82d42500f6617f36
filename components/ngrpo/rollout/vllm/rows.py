"""Which rows of a step belong to which slot and position: plain arithmetic on the scheduler's plan."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ngrpo.rollout.transfers import to_device


def response_tokens(
    slots: np.ndarray, computed: np.ndarray, scheduled: np.ndarray, prompt_lengths: np.ndarray, device: torch.device
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Find the tokens of responses among the tokens that a step computes, whether for the first time or again.

    Args:
        slots: int `[B]`, slot of each request in the order of the batch, -1 for none.
        computed: int `[B]`, tokens computed before this step.
        scheduled: int `[B]`, tokens computed in this step.
        prompt_lengths: int `[B]`.
        device: Where the result goes.

    Returns:
        int64 `[T]` each: index in the flattened batch, slot, and position in the response; none if there are no such tokens.
    """
    first = np.maximum(computed, prompt_lengths)
    counts = np.where(slots >= 0, np.maximum(computed + scheduled - first, 0), 0)
    total = int(counts.sum())
    if total == 0:
        return None
    starts = np.cumsum(scheduled) - scheduled
    within = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.stack(
        [
            np.repeat(starts + first - computed, counts) + within,
            np.repeat(slots, counts),
            np.repeat(first - prompt_lengths, counts) + within,
        ]
    )
    indices, of_slots, positions = to_device(torch.from_numpy(table.astype(np.int64)), device)
    return indices, of_slots, positions
