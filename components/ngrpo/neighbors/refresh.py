"""Follow the weights: which rows of an index still hold after the matrix moved, and a search for those that may not."""

from __future__ import annotations

import torch
from torch import Tensor

from ngrpo.neighbors.metrics import Rows
from ngrpo.neighbors.search import Found, above, nearest_neighbors, ordered

_MOVERS = 512
"""Of so many rows, at most one is compared with every row: those that moved much farther would spoil the bound for all."""


def refreshed(rows: Rows, before: Tensor, held: Found, *, block_rows: int) -> tuple[Found, int]:
    """Find the neighbors of every row from those that it had before the matrix moved.

    The neighbors and the reserve of a row are compared with it anew. By the triangle inequality no other row has come closer than
    its bound, loosened by how far both moved; the few rows that moved farthest are measured instead. A row whose
    neighbors all lie above that bound is certified: they are those that a search would find. The others are searched for.

    Args:
        rows: The matrix as it is now.
        before: `[V, d]`, the matrix that `held` belongs to.
        held: What was found for all rows then.
        block_rows: Edge of the square tiles in which scores are formed.

    Returns:
        What a new search finds (reserve and bounds may be others), and the number of rows searched for.
    """
    count, spare = held.neighbors.shape[1], held.reserve.shape[1]
    drift = rows.drift(before)
    candidates = torch.cat([held.neighbors, held.reserve], dim=1)
    similarity = held.similarity.clone()
    moved = drift > 0
    for part in (moved | moved[candidates].any(dim=1)).nonzero(as_tuple=True)[0].split(block_rows):
        values, candidates[part] = ordered(rows.similarity(part, candidates[part]), candidates[part])
        similarity[part] = values[:, :count].float()
    bound = _bound(rows, drift, held.bound, candidates, block_rows)
    # Similarities were rounded to the grid and to float32; a certificate must hold without either.
    lowest = similarity[:, -1].double()
    lowest = lowest - lowest.abs() * 2.0**-23 - 2 * rows.grid
    failed = (lowest <= bound).nonzero(as_tuple=True)[0]
    if 2 * len(failed) > len(rows):  # searching for all takes half the time for each
        return nearest_neighbors(rows, count, spare, block_rows=block_rows), len(rows)
    bound = above(bound)
    uncertified = 0
    if len(failed):
        again = nearest_neighbors(rows, count, spare, block_rows=block_rows, wanted=failed)
        candidates[failed] = torch.cat([again.neighbors, again.reserve], dim=1)
        similarity[failed], bound[failed], uncertified = again.similarity, again.bound, again.uncertified
    return Found(candidates[:, :count], similarity, candidates[:, count:], bound, uncertified), len(failed)


def _bound(rows: Rows, drift: Tensor, bound: Tensor, candidates: Tensor, block_rows: int) -> Tensor:
    """Return float64 bounds of the similarity of every row's `candidates` to all others, after the move."""
    farthest, order = drift.topk(min(len(rows) // _MOVERS + 1, len(rows) - 1) + 1)
    movers = order[farthest > 2 * farthest[-1]].sort().values
    loosened = rows.loosened(bound.double(), drift, float(farthest[len(movers)]))
    if not len(movers):
        return loosened
    number = torch.full((len(rows),), -1, device=drift.device)
    number[movers] = torch.arange(len(movers), device=drift.device)
    for start in range(0, len(rows), block_rows):
        part = torch.arange(start, min(start + block_rows, len(rows)), device=drift.device)
        scores = rows.scores(movers, slice(start, start + len(part))).T
        known = torch.cat([number[candidates[part]], number[part, None]], dim=1)
        row, place = (known >= 0).nonzero(as_tuple=True)
        scores[row, known[row, place]] = -torch.inf
        best = rows.similarity_of(scores.max(dim=1).values.double() + rows.error[part])
        loosened[part] = torch.where(loosened[part].isinf(), loosened[part], torch.maximum(loosened[part], best))
    return loosened
