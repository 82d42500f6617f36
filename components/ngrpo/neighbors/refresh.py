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

    Only what moved is measured: the similarity of a row and a neighbor of which neither moved stands, and one of the reserve is
    measured once its bound, loosened by how far both moved, reaches the neighbors. By the triangle inequality no other row has come
    closer than its bound, loosened likewise; the few rows that moved farthest are measured instead. A row whose neighbors all
    lie above that bound is certified: they are those that a search would find. The others are searched for.

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
    grid = rows.grid[:, None]
    candidates = torch.cat([held.neighbors, held.reserve], dim=1)
    reserve_bound = rows.loosened(held.reserve_bound.double(), drift, drift[held.reserve])
    similarity = torch.cat([held.similarity, reserve_bound], dim=1)
    # What other metrics round to depends on the longest row.
    outdated = (drift[:, None] + drift[held.neighbors] > 0) | (rows.metric != "cosine")
    _measure(rows, similarity[:, :count], held.neighbors, outdated)
    lowest = similarity[:, :count].amin(dim=1, keepdim=True)
    near = similarity[:, count:] + grid >= lowest
    _measure(rows, similarity[:, count:], held.reserve, near)
    changed = (similarity[:, 1:count] >= similarity[:, : count - 1]).any(dim=1) | near.any(dim=1)
    similarity[changed], candidates[changed] = ordered(similarity[changed], candidates[changed])
    similarity, reserve_bound = similarity[:, :count], above(similarity[:, count:] + grid)
    bound = _bound(rows, drift, held.bound, candidates, block_rows)
    # Similarities were rounded to the grid; a certificate must hold without.
    failed = (similarity[:, -1] - 2 * rows.grid <= bound).nonzero(as_tuple=True)[0]
    if 2 * len(failed) > len(rows):  # searching for all takes half the time for each
        return nearest_neighbors(rows, count, spare, block_rows=block_rows), len(rows)
    bound = above(bound)
    uncertified = 0
    if len(failed):
        again = nearest_neighbors(rows, count, spare, block_rows=block_rows, wanted=failed)
        candidates[failed] = torch.cat([again.neighbors, again.reserve], dim=1)
        similarity[failed], reserve_bound[failed], bound[failed] = again.similarity, again.reserve_bound, again.bound
        uncertified = again.uncertified
    return Found(candidates[:, :count], similarity, candidates[:, count:], reserve_bound, bound, uncertified), len(
        failed
    )


def _measure(rows: Rows, similarity: Tensor, columns: Tensor, wanted: Tensor) -> None:
    """Put the similarities of rows `[n]` to `columns` `[n, c]` in their places where they are `wanted`, bool `[n, c]`."""
    of = wanted.all(dim=1)
    row, place = (wanted & ~of[:, None]).nonzero(as_tuple=True)
    order = columns[row, place].argsort()  # the same column again and again is read from the cache
    row, place = row[order], place[order]
    similarity[row, place] = rows.similarity(row, columns[row, place, None])[:, 0]
    of = of.nonzero(as_tuple=True)[0]
    similarity[of] = rows.similarity(of, columns[of])


def _bound(rows: Rows, drift: Tensor, bound: Tensor, candidates: Tensor, block_rows: int) -> Tensor:
    """Return float64 bounds of the similarity of every row's `candidates` to all others, after the move."""
    farthest, order = drift.topk(min(len(rows) // _MOVERS + 1, len(rows) - 1) + 1)
    movers = order[farthest > 2 * farthest[-1]].sort().values
    loosened = rows.loosened(bound.double()[:, None], drift, farthest[len(movers)])[:, 0]
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
