"""Exact nearest neighbors: float32 proposes, a certificate says for which rows that suffices, float64 decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ngrpo.neighbors.metrics import Rows

_TOGETHER = 8
"""Scores of a row that are first looked at as one, see `_exceeding`."""


@dataclass(frozen=True)
class Found:
    """What a search found; rows and columns are those of `Rows`.

    Attributes:
        neighbors: int64 `[R, count]`, the most similar rows, most similar first, ties by number.
        similarity: float64 `[R, count]`, their similarities.
        reserve: int64 `[R, spare]`, further similar rows in no order that matters.
        reserve_bound: float32 `[R, spare]`, upper bounds of their similarities.
        bound: float32 `[R]`, upper bound of the similarity of every other row; minus infinity if there is none.
        uncertified: Number of rows for which float32 could not tell the neighbors from the rest.
    """

    neighbors: Tensor
    similarity: Tensor
    reserve: Tensor
    reserve_bound: Tensor
    bound: Tensor
    uncertified: int


def nearest_neighbors(
    rows: Rows,
    count: int,
    spare: int,
    *,
    block_rows: int,
    wanted: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """Find the `count` most similar rows of every row, or of some (equations 7-8).

    Each row keeps the `count + spare` rows of the highest scores. Let s be its `count`-th score and e the error of a score.
    Every row that belongs to the neighbors scores at least s - 2e. If the last one that was kept scores less, all of
    them are among the kept (the certificate), and float64 only has to put them in order. Else the row is compared
    with all others again, and all that score s - 2e or more are looked at in float64.

    Args:
        rows: The rows.
        count: m, neighbors of a row, itself not counted; less than the number of rows.
        spare: Rows kept beyond the neighbors; fewer if there are not as many.
        block_rows: Edge of the square tiles in which scores are formed.
        wanted: Rows to search for; by default all, which halves the work, for a score serves both of its rows.
        progress: Called with (tiles done, tiles in all).
    """
    keep = min(count + spare, len(rows) - 1)
    searched = torch.arange(len(rows), device=rows.ids.device) if wanted is None else wanted
    best = _Best(len(searched), keep, rows.ids.device)
    for tile, of, columns in _tiles(rows, wanted, block_rows, progress):
        best.offer(tile, of, columns, both=wanted is None and of != columns)
    return _join(
        [_decide(rows, searched[of], *best.top(of), count, block_rows) for of in _ranges(len(searched), block_rows)]
    )


def _ranges(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _tiles(
    rows: Rows, wanted: Tensor | None, step: int, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[Tensor, slice, slice]]:
    """Yield scores with the ranges of their rows (of `wanted`) and columns; without `wanted` on and above the diagonal."""
    of_rows = _ranges(len(rows) if wanted is None else len(wanted), step)
    of_columns = _ranges(len(rows), step)
    total = len(of_rows) * len(of_columns) if wanted is not None else len(of_rows) * (len(of_rows) + 1) // 2
    done = 0
    for number, of in enumerate(of_rows):
        own = of if wanted is None else wanted[of]
        numbers = torch.arange(of.start, of.stop, device=rows.ids.device) if wanted is None else wanted[of]
        for columns in of_columns[number:] if wanted is None else of_columns:
            tile = rows.scores(own, columns)
            itself = ((numbers >= columns.start) & (numbers < columns.stop)).nonzero(as_tuple=True)[0]
            tile[itself, numbers[itself] - columns.start] = -torch.inf
            yield tile, of, columns
            done += 1
        if progress is not None:
            progress(done, total)


class _Best:
    """The columns with the highest scores so far of each row.

    A row has room for twice as many as it keeps. Only scores above the lowest that it kept when it last ran out of room
    are written down; there are few, and no tile is ever sorted but a row's first.
    """

    def __init__(self, rows: int, keep: int, device: torch.device):
        self._keep = keep
        self._scores = torch.full((rows, 2 * keep), -torch.inf, device=device)
        self._columns = torch.zeros(rows, 2 * keep, dtype=torch.int32, device=device)
        self._used = torch.zeros(rows, dtype=torch.long, device=device)
        self._floor = torch.full((rows,), -torch.inf, device=device)

    def offer(self, tile: Tensor, rows: slice, columns: slice, *, both: bool) -> None:
        """Take the scores of a range of rows to a range of columns; `both`: and of the columns, as rows, to the rows."""
        floor = self._open(tile, rows, columns.start)
        other = self._open(tile.T, columns, rows.start) if both else torch.full_like(tile[0], torch.inf)
        row, column = _exceeding(tile, floor, other)
        scores = tile[row, column]
        for_row, for_column = scores > floor[row], scores > other[column]
        row, column = row + rows.start, column + columns.start
        self._insert(row[for_row], column[for_row], scores[for_row])
        self._insert(column[for_column], row[for_column], scores[for_column])

    def _open(self, tile: Tensor, rows: slice, first_column: int) -> Tensor:
        """Return the scores `[R]` that the tile has to exceed; rows that have seen nothing yet take what they keep at once."""
        if self._used[rows.start]:
            return self._floor[rows]
        scores, columns = tile.topk(min(self._keep, tile.shape[1]), dim=1)
        width = slice(0, scores.shape[1])
        self._scores[rows, width], self._columns[rows, width] = scores, (columns + first_column).int()
        self._used[rows] = scores.shape[1]
        if scores.shape[1] == self._keep:
            self._floor[rows] = scores[:, -1]
        return torch.full_like(scores[:, 0], torch.inf)

    def _insert(self, rows: Tensor, columns: Tensor, scores: Tensor) -> None:
        while len(rows):
            rows, order = rows.sort(stable=True)
            columns, scores = columns[order], scores[order]
            rank = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
            place = self._used[rows] + rank
            fits = place < self._scores.shape[1]
            of, at = rows[fits], place[fits]
            self._scores[of, at], self._columns[of, at] = scores[fits], columns[fits].int()
            self._used.scatter_reduce_(0, of, at + 1, "amax")
            if len(of) == len(rows):
                return
            self._make_room(rows[~fits].unique_consecutive())
            rest = ~fits & (scores > self._floor[rows])
            rows, columns, scores = rows[rest], columns[rest], scores[rest]

    def _make_room(self, rows: Tensor) -> None:
        scores, order = self._scores[rows].topk(self._keep, dim=1)
        columns = self._columns[rows].gather(1, order)
        self._scores[rows] = torch.nn.functional.pad(scores, (0, self._keep), value=-torch.inf)
        self._columns[rows, : self._keep] = columns
        self._used[rows] = self._keep
        self._floor[rows] = scores[:, -1]

    def top(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Return what a range of rows keeps: scores, descending, and columns, `[R, keep]`."""
        scores, order = self._scores[rows].topk(self._keep, dim=1)
        return scores, self._columns[rows].gather(1, order).long()


def _exceeding(tile: Tensor, floor: Tensor, other: Tensor) -> tuple[Tensor, ...]:
    """Return row and column of each score in a tile that exceeds the floor of its row, or the other floor, of its column.

    Where few do, comparing the highest score of every eight first takes a fifth of the time of comparing all.
    """
    height, width = tile.shape
    together = _TOGETHER if width % _TOGETHER == 0 else 1
    step = width // together
    highest = tile.view(height, together, step).amax(dim=1)
    lowest = other.view(together, step).amin(dim=0)
    row, group = (highest > torch.minimum(floor[:, None], lowest)).nonzero(as_tuple=True)
    if len(row) * 64 > tile.numel():
        return (tile > torch.minimum(floor[:, None], other)).nonzero(as_tuple=True)
    column = group[:, None] + step * torch.arange(together, device=tile.device)
    exceeds = tile[row[:, None], column] > torch.minimum(floor[row, None], other[column])
    return row[:, None].expand_as(column)[exceeds], column[exceeds]


def _decide(rows: Rows, searched: Tensor, scores: Tensor, columns: Tensor, count: int, block_rows: int) -> Found:
    """Order what was kept for some rows, and search again where the certificate fails."""
    keep = columns.shape[1]
    everything = keep == len(rows) - 1
    error = rows.error[searched]
    edge = scores[:, count - 1].double() - 2 * error
    # Only the columns that may be neighbors of some row are looked at in float64.
    width = int((scores >= edge[:, None]).sum(dim=1).max())
    similarity, front = ordered(rows.similarity(searched, columns[:, :width]), columns[:, :width])
    columns = torch.cat([front, columns[:, width:]], dim=1)
    unmeasured = rows.similarity_of(scores[:, width:].double() + error[:, None])
    reserve_bound = torch.cat([similarity[:, count:], unmeasured], dim=1)
    similarity = similarity[:, :count]
    bound = rows.similarity_of(scores[:, -1].double() + error)
    failed = torch.zeros(0, dtype=torch.long, device=searched.device)
    if everything:
        bound.fill_(-torch.inf)
    else:
        failed = (scores[:, -1] >= edge).nonzero(as_tuple=True)[0]
    for part in failed.split(max(1, block_rows**2 // len(rows))):
        again = rows.scores(searched[part], slice(0, len(rows)))
        for row, score in zip(part.tolist(), again, strict=True):
            near = (score >= edge[row]).nonzero(as_tuple=True)[0]
            near = near[near != searched[row]]
            values, near = ordered(rows.similarity(searched[row, None], near[None]), near[None])
            columns[row], similarity[row], reserve_bound[row] = near[0, :keep], values[0, :count], values[0, count:keep]
            bound[row] = rows.similarity_of(edge[row] + error[row])
            if near.shape[1] > keep:
                bound[row] = torch.maximum(bound[row], values[0, keep])
    grid = rows.grid[searched]  # a similarity is rounded to it
    return Found(
        columns[:, :count],
        similarity,
        columns[:, count:],
        above(reserve_bound + grid[:, None]),
        above(bound + grid),
        len(failed),
    )


def above(bound: Tensor) -> Tensor:
    """Round bounds to float32, upward."""
    rounded = bound.float()
    return torch.where(rounded.isinf(), rounded, rounded.nextafter(torch.full_like(rounded, torch.inf)))


def ordered(similarity: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Sort rows by descending similarity, equal similarities by ascending column."""
    columns, by_column = columns.sort(dim=1)
    similarity, by_similarity = similarity.gather(1, by_column).sort(dim=1, descending=True, stable=True)
    return similarity, columns.gather(1, by_similarity)


def _join(parts: list[Found]) -> Found:
    def column(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    tensors = ("neighbors", "similarity", "reserve", "reserve_bound", "bound")
    return Found(**{name: column(name) for name in tensors}, uncertified=sum(part.uncertified for part in parts))
