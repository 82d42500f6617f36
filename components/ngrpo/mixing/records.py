"""Records of what was mixed: enough to rebuild every input embedding of a rollout from the current embedding matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RolloutRecords:
    """The mixed steps of one rollout.

    A step's anchor is the rollout's token at its position, and its neighbors follow from the anchor and the index version.

    Attributes:
        positions: int64 `[n]`, positions in the response, ascending.
        weights: float32 `[n, k]`, mixing weights, the anchor's first. All ones with `k = 1` where noise was added instead.
        seed: The rollout's seed; noise is a function of it and of the position.
        index_version: Version of the neighbor index that named the neighbors.
    """

    positions: Tensor
    weights: Tensor
    seed: int
    index_version: int


@dataclass(frozen=True)
class InputMixture:
    """Which input embeddings of a batch are mixtures, aligned with the last `C` columns of its token ids.

    Attributes:
        mask: bool `[B, C]`, mixed positions.
        candidates: int64 `[B, C, k]`, candidate ids, the anchor first; arbitrary valid ids where the mask is off.
        weights: float32 `[B, C, k]`.
        seeds: int64 `[B]`, the rollouts' seeds.
        positions: int64 `[B]`, position in the response of the first of the `C` columns.
        noise_std: Standard deviation of added noise, relative to the embedding's root mean square; 0 adds none.
    """

    mask: Tensor
    candidates: Tensor
    weights: Tensor
    seeds: Tensor
    positions: Tensor
    noise_std: float = 0.0

    def select(self, rows: slice | Tensor) -> InputMixture:
        """Return some rows of the batch."""
        return InputMixture(
            self.mask[rows],
            self.candidates[rows],
            self.weights[rows],
            self.seeds[rows],
            self.positions[rows],
            self.noise_std,
        )


def collate(
    records: Sequence[RolloutRecords],
    token_ids: Sequence[Sequence[int]],
    columns: int,
    *,
    neighbors: Tensor,
    index_version: int,
    k: int,
    noise_std: float,
    device: torch.device | str,
) -> InputMixture:
    """Gather the records of a batch of rollouts into dense tensors.

    Args:
        records: One a rollout.
        token_ids: Response tokens of each rollout.
        columns: Width `C` to pad to; at least the longest response.
        neighbors: integer `[V, m]` of the index that made the records.
        index_version: Version of that index.
        k: Size of the candidate set.
        noise_std: See `InputMixture`.
        device: Where the tensors go.

    Raises:
        ValueError: A record was made with another version of the index.
    """
    batch = len(records)
    mask = torch.zeros(batch, columns, dtype=torch.bool)
    candidates = torch.zeros(batch, columns, k, dtype=torch.long)
    weights = torch.zeros(batch, columns, k)
    for row, (record, tokens) in enumerate(zip(records, token_ids, strict=True)):
        if len(record.positions) == 0:
            continue
        if record.index_version != index_version:
            raise ValueError(
                f"records of index version {record.index_version} cannot be resolved with version {index_version}"
            )
        anchor_ids = torch.tensor(tokens)[record.positions]
        mask[row, record.positions] = True
        candidates[row, record.positions, 0] = anchor_ids
        candidates[row, record.positions, 1:] = neighbors[anchor_ids.to(neighbors.device), : k - 1].long().cpu()
        weights[row, record.positions] = record.weights.cpu()
    seeds = torch.tensor([record.seed for record in records], dtype=torch.long)
    return InputMixture(
        mask.to(device),
        candidates.to(device),
        weights.to(device),
        seeds.to(device),
        torch.zeros(batch, dtype=torch.long, device=device),
        noise_std,
    )
