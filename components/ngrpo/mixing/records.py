"""Records of what was mixed: enough to rebuild every input embedding of a rollout from the current embedding matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ngrpo.mixing.neighbor_mixing import candidate_sets
from ngrpo.mixing.strategy import Strategy


@dataclass(frozen=True)
class RolloutRecords:
    """The mixed steps of one rollout.

    Attributes:
        positions: int64 `[n]`, positions in the response, ascending.
        weights: float32 `[n, k]`, mixing weights of the candidates.
        seed: The rollout's seed; what a strategy draws is a function of it and of the position.
        index_version: Version of the neighbor index that named the neighbors.
        candidates: integer `[n, k]`, candidate ids; none where they are the rollout's token at the position, the anchor, and its
            nearest neighbors in the index (`Strategy.records_candidates`).
    """

    positions: Tensor
    weights: Tensor
    seed: int
    index_version: int
    candidates: Tensor | None = None


@dataclass(frozen=True)
class InputMixture:
    """Which input embeddings of a batch are mixtures, aligned with the last `C` columns of its token ids.

    Attributes:
        mask: bool `[B, C]`, mixed positions.
        candidates: int64 `[B, C, k]`, candidate ids; arbitrary valid ids where the mask is off.
        weights: float32 `[B, C, k]`.
        seeds: int64 `[B]`, the rollouts' seeds.
        positions: int64 `[B]`, position in the response of the first of the `C` columns.
        strategy: Makes input embeddings of candidates and weights.
    """

    mask: Tensor
    candidates: Tensor
    weights: Tensor
    seeds: Tensor
    positions: Tensor
    strategy: Strategy

    def select(self, rows: slice | Tensor, columns: int | None = None) -> InputMixture:
        """Return some rows of the batch, and of those the first columns, or all."""
        return InputMixture(
            self.mask[rows, :columns],
            self.candidates[rows, :columns],
            self.weights[rows, :columns],
            self.seeds[rows],
            self.positions[rows],
            self.strategy,
        )


def collate(
    records: Sequence[RolloutRecords],
    token_ids: Sequence[Sequence[int]],
    columns: int,
    *,
    strategy: Strategy,
    neighbors: Tensor,
    index_version: int,
    device: torch.device | str,
) -> InputMixture:
    """Gather the records of a batch of rollouts into dense tensors.

    Args:
        records: One a rollout.
        token_ids: Response tokens of each rollout.
        columns: Width `C` to pad to; at least the longest response.
        strategy: What made the records.
        neighbors: integer `[V, m]` of the index that they were made with.
        index_version: Version of that index.
        device: Where the tensors go.

    Raises:
        ValueError: A record was made with another version of the index.
    """
    batch = len(records)
    mask = torch.zeros(batch, columns, dtype=torch.bool)
    candidates = torch.zeros(batch, columns, strategy.k, dtype=torch.long)
    weights = torch.zeros(batch, columns, strategy.k)
    for row, (record, tokens) in enumerate(zip(records, token_ids, strict=True)):
        if len(record.positions) == 0:
            continue
        if record.index_version != index_version:
            raise ValueError(
                f"records of index version {record.index_version} cannot be resolved with version {index_version}"
            )
        mask[row, record.positions] = True
        if record.candidates is None:
            anchor_ids = torch.tensor(tokens, device=neighbors.device)[record.positions.to(neighbors.device)]
            candidates[row, record.positions] = candidate_sets(anchor_ids, neighbors, strategy.k).cpu()
        else:
            candidates[row, record.positions] = record.candidates.long().cpu()
        weights[row, record.positions] = record.weights.cpu()
    seeds = torch.tensor([record.seed for record in records], dtype=torch.long)
    return InputMixture(
        mask.to(device),
        candidates.to(device),
        weights.to(device),
        seeds.to(device),
        torch.zeros(batch, dtype=torch.long, device=device),
        strategy,
    )
