"""The rows of an embedding matrix as a metric compares them: quickly in float32 with a known error, and in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

_ROUNDOFF = 2.0**-24
"""Largest relative error of one rounding to float32."""
_TIE = 2.0**-40
"""Similarities that differ by less, relative to the largest that a row can have, are equal."""
_CHUNK = 2**20
"""Elements that are looked at in float64 at a time: a few megabytes, which stay in the cache."""


class Rows:
    """The eligible rows of an embedding matrix under a metric.

    Rows are numbered from 0 in the order of their token ids. A *similarity* is what the index stores: the cosine (0 to a
    zero row), the dot product, or the negative L1 or L2 distance. A *score* is a float32 number that orders as the
    similarity does, and that a matrix product gives; it is off by at most `error`.
    """

    def __init__(self, embedding: Tensor, eligible: Tensor, metric: str):
        """Look at a matrix.

        Args:
            embedding: `[V, d]`, finite; not copied.
            eligible: bool `[V]`, on the same device.
            metric: `cosine`, `dot`, `l2` or `l1`.
        """
        self.metric = metric
        self.ids = eligible.nonzero(as_tuple=True)[0]
        self._embedding = embedding.detach()
        self._order = 1 if metric == "l1" else 2
        norms = [torch.linalg.vector_norm(block, self._order, dim=1) for _, block in self._blocks()]
        self.norms = torch.cat(norms)
        """float64 `[n]`: L1 norms for `l1`, else L2 norms."""
        self._largest = float(self.norms.max())
        # Scaling by a power of two is exact, and keeps products of large rows inside float32.
        self._scale = 2.0 ** math.ceil(math.log2(self._largest)) if self._largest else 1.0

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def vectors(self) -> Tensor:
        """float32 `[n, d]`: what scores are formed from, unit rows for `cosine`."""
        vectors = torch.empty(len(self), self._embedding.shape[1], device=self.ids.device)
        divisors = self.norms.clamp(min=1e-300) if self.metric == "cosine" else torch.full_like(self.norms, self._scale)
        for part, block in self._blocks():
            torch.div(block, divisors[part, None], out=block)
            vectors[part] = block
        return vectors

    @cached_property
    def _half_squares(self) -> Tensor:
        return ((self.norms / self._scale).square() / 2).float()

    @cached_property
    def error(self) -> Tensor:
        """float64 `[n]`: a bound of |score - its value in exact arithmetic| for a row and any other.

        The worst case of a float32 sum of d products in any order, the rounding of the vectors included.
        """
        own, largest = self.norms / self._scale, self._largest / self._scale
        size = {
            "cosine": torch.ones_like(own),
            "dot": own * largest,
            "l2": (own + largest).square(),
            "l1": own + largest,
        }[self.metric]
        return (self._embedding.shape[1] + 8) * _ROUNDOFF * size + 2.0**-100

    @cached_property
    def grid(self) -> Tensor:
        """float64 `[n]`: similarities of a row are rounded to multiples of this, so that equal ones compare as equal."""
        if self.metric == "cosine":
            return torch.full_like(self.norms, _TIE)
        own, largest = self.norms, self._largest
        size = own * largest if self.metric == "dot" else own + largest
        return _TIE * torch.exp2(size.clamp(min=1e-290).log2().ceil())

    def scores(self, rows: Tensor | slice, columns: slice) -> Tensor:
        """Return the scores `[R, C]` of some rows to a range of rows."""
        left, right = self.vectors[rows], self.vectors[columns]
        if self.metric == "l1":
            return -torch.cdist(left, right, p=1.0)
        scores = left @ right.T
        if self.metric == "l2":  # minus half the squared distance
            scores.sub_(self._half_squares[rows, None]).sub_(self._half_squares[columns])
        return scores

    def similarity_of(self, scores: Tensor) -> Tensor:
        """Return the similarities, float64, that scores stand for."""
        scores = scores.double()
        if self.metric == "l2":
            return -self._scale * (-2 * scores).clamp(min=0).sqrt()
        return scores * {"cosine": 1.0, "dot": self._scale**2, "l1": self._scale}[self.metric]

    def similarity(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the similarities of rows `[R]` to rows `[R, C]`, in float64, equal ones rounded to the same number."""
        result = torch.empty(columns.shape, dtype=torch.float64, device=columns.device)
        width = columns.shape[1]
        step = max(1, _CHUNK // (width * self._embedding.shape[1]))
        # Reused from chunk to chunk: fresh memory costs more than the arithmetic.
        gathered = self._embedding.new_empty(step * width, self._embedding.shape[1])
        others = torch.empty_like(gathered, dtype=torch.float64)
        for part in (slice(start, start + step) for start in range(0, len(rows), step)):
            ids = self.ids[columns[part]].flatten()
            torch.index_select(self._embedding, 0, ids, out=gathered[: len(ids)])
            other = others[: len(ids)].copy_(gathered[: len(ids)]).view(-1, width, gathered.shape[1])
            own = self._embedding[self.ids[rows[part]]].double()[:, None]
            if self.metric == "l2":
                result[part] = -other.sub_(own).square_().sum(dim=-1).sqrt()
            elif self.metric == "l1":
                result[part] = -other.sub_(own).abs_().sum(dim=-1)
            else:
                result[part] = other.mul_(own).sum(dim=-1)
        if self.metric == "cosine":
            norms = self.norms.clamp(min=1e-150)
            result /= norms[rows, None] * norms[columns]
        grid = self.grid[rows, None]
        return (result / grid).round() * grid

    def drift(self, before: Tensor) -> Tensor:
        """Say how far each row moved: an angle for `cosine`, else the norm of the difference.

        Args:
            before: `[V, d]`, the matrix as it was.

        Returns:
            float64 `[n]`, 0 only for a row that is the same.
        """
        matrix, block = self._embedding, max(1, _CHUNK // self._embedding.shape[1])
        pairs = zip(matrix.split(block), before.split(block), strict=True)
        changed = torch.cat([(now != then).any(dim=1) for now, then in pairs])[self.ids].nonzero(as_tuple=True)[0]
        moved = torch.zeros_like(self.norms)
        for part in changed.split(block):
            way = matrix[self.ids[part]].double() - before[self.ids[part]].double()
            moved[part] = torch.linalg.vector_norm(way, self._order, dim=1)
        if self.metric != "cosine":
            return moved
        # The sine of the angle is at most the way divided by either norm; beyond a right angle nothing is known.
        ratio = moved / self.norms.clamp(min=1e-300)
        return torch.where(ratio < 1, ratio.clamp(max=1).asin(), torch.pi * (moved > 0))

    def loosened(self, bound: Tensor, own: Tensor, other: Tensor) -> Tensor:
        """Return bounds that hold after rows have moved, by the triangle inequality.

        Args:
            bound: float64 `[n, c]`, upper bounds of similarities before; minus infinity where nothing is bounded.
            own: float64 `[n]`, `drift` of the rows.
            other: float64, broadcast to `[n, c]`: the most that those moved which a row is compared with.
        """
        own = own[:, None]
        if self.metric == "cosine":
            loose = (bound.clamp(-1, 1).acos() - own - other).clamp(min=0).cos()
        elif self.metric == "dot":
            # x'y' = xy + (x'-x)y + x'(y'-y), where |y| <= |y'| + its move
            loose = bound + own * (self._largest + other) + self.norms[:, None] * other
        else:
            loose = bound + own + other
        return torch.where(bound.isinf() | (own + other == 0), bound, loose)

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield ranges of rows, and a copy of them in float64."""
        size = max(1, _CHUNK // self._embedding.shape[1])
        for start in range(0, len(self), size):
            part = slice(start, min(start + size, len(self)))
            yield part, self._embedding[self.ids[part]].double()
