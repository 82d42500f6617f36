"""Exact nearest neighbors by cosine similarity: float32 proposes, float64 decides, and a certificate says when to look closer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_SPARE = 16
"""Proposals beyond the wanted number; they let the certificate hold for nearly every row."""


def nearest_neighbors(
    embedding: Tensor,
    eligible: Tensor,
    count: int,
    *,
    block_rows: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the `count` most similar eligible tokens of every eligible token (equations 7-8).

    Rows that are not eligible get themselves as neighbors and similarity 0. Equal similarities, that is equal
    to 2**-40, are ordered by token id. A zero row has similarity 0 to every row.

    Args:
        embedding: `[V, d]`, finite.
        eligible: bool `[V]`; more than `count` tokens must be eligible.
        count: m, neighbors of a token, itself not counted.
        block_rows: Rows of the similarity matrix held at a time.
        progress: Called with (rows done, rows in all).

    Returns:
        Neighbor ids, int32 `[V, m]`; similarities, float32 `[V, m]`, descending; an upper bound of the similarity of every
        token left out, float32 `[V]`.
    """
    vocabulary = embedding.shape[0]
    ids = eligible.nonzero(as_tuple=True)[0]
    unit64 = torch.nn.functional.normalize(embedding[ids].double(), dim=1)
    unit32 = unit64.float()
    proposals = min(count + _SPARE, len(ids) - 1)
    # Worst-case rounding of a float32 dot product of unit vectors, the rounding of the vectors themselves included.
    error = (embedding.shape[1] + 4) * 2.0**-24

    neighbors = torch.arange(vocabulary, dtype=torch.int32, device=embedding.device)[:, None].repeat(1, count)
    similarity = torch.zeros(vocabulary, count, device=embedding.device)
    bound = torch.zeros(vocabulary, device=embedding.device)
    for start in range(0, len(ids), block_rows):
        block = torch.arange(start, min(start + block_rows, len(ids)), device=embedding.device)
        scores = unit32[block] @ unit32.T
        scores[torch.arange(len(block), device=scores.device), block] = -torch.inf
        proposed_scores, proposed = scores.topk(proposals, dim=1)
        exact, proposed = _ordered((unit64[proposed] * unit64[block][:, None, :]).sum(dim=-1), proposed)
        if proposals == len(ids) - 1:
            left_out = torch.full_like(exact[:, 0], -1.0)
        else:
            left_out = proposed_scores[:, -1].double() + error
            for row in (exact[:, count - 1] <= left_out).nonzero(as_tuple=True)[0].split(max(1, block_rows // 4)):
                # The proposals do not prove that nothing better was left out: look at every token, in float64.
                scores64 = unit64[block[row]] @ unit64.T
                scores64[torch.arange(len(row), device=scores64.device), block[row]] = -torch.inf
                ordered, order = _ordered(scores64, torch.arange(len(ids), device=row.device).expand_as(scores64))
                exact[row], proposed[row] = ordered[:, :proposals], order[:, :proposals]
                left_out[row] = ordered[:, count]
        if proposals > count:
            left_out = torch.maximum(left_out, exact[:, count])
        neighbors[ids[block]] = ids[proposed[:, :count]].int()
        similarity[ids[block]] = exact[:, :count].float()
        bound[ids[block]] = left_out.float()
        if progress is not None:
            progress(int(block[-1]) + 1, len(ids))
    return neighbors, similarity, bound


def _ordered(scores: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Sort rows by descending score, equal scores by ascending column."""
    # Equal rows of the matrix can differ in the last bits of a sum that is formed in another order: round them away.
    scores = (scores * 2.0**40).round() * 2.0**-40
    by_column = columns.argsort(dim=1)
    scores, columns = scores.gather(1, by_column), columns.gather(1, by_column)
    by_score = scores.argsort(dim=1, descending=True, stable=True)
    return scores.gather(1, by_score), columns.gather(1, by_score)
