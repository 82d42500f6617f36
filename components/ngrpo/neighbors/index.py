"""The neighbor index: built, refreshed, saved and loaded, with the fingerprint of the matrix it belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ngrpo.errors import DataError
from ngrpo.neighbors.metrics import Rows
from ngrpo.neighbors.precision import ieee_float32
from ngrpo.neighbors.refresh import refreshed
from ngrpo.neighbors.search import Found, nearest_neighbors

_SPARE = 32
"""Tokens kept beyond the neighbors: they certify nearly every row, and let the weights move far before one is searched again."""


@dataclass(frozen=True)
class NeighborIndex:
    """Nearest tokens of every token.

    Attributes:
        neighbors: int32 `[V, m]`, nearest first, the token itself left out; a row that is not eligible holds its own id.
        similarity: float64 `[V, m]`, similarities under `metric`.
        reserve: int32 `[V, r]`, the tokens that come next, in no order; a refresh looks at them too.
        reserve_bound: float32 `[V, r]`, upper bounds of their similarities.
        bound: float32 `[V]`, upper bound of the similarity of every eligible token in neither; minus infinity if there is none.
        eligible: bool `[V]`, tokens that may be anchors or neighbors.
        fingerprint: Digest of the matrix and of `eligible`, see `fingerprint`; none after a refresh, which hashes nothing: see
            `fingerprinted`.
        metric: `cosine`, `dot`, `l2` or `l1`; a distance counts as similarity with its sign turned.
        version: Counts the builds and refreshes since training began; 0 for an index from its stage.
        statistics: What the last build or refresh did: `searched`, the rows that were compared with all others, and
            `uncertified`, those of them that float32 could not decide.
    """

    neighbors: Tensor
    similarity: Tensor
    reserve: Tensor
    reserve_bound: Tensor
    bound: Tensor
    eligible: Tensor
    fingerprint: str | None
    metric: str = "cosine"
    version: int = 0
    statistics: dict[str, int] = field(default_factory=dict)

    @classmethod
    @ieee_float32()
    def build(
        cls,
        embedding: Tensor,
        eligible: Tensor,
        *,
        candidates: int,
        block_rows: int,
        metric: str = "cosine",
        version: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> NeighborIndex:
        """Build the index of an embedding matrix.

        Args:
            embedding: `[V, d]`, input embeddings.
            eligible: bool `[V]`.
            candidates: m, neighbors kept for each token.
            block_rows: Edge of the square tiles of similarities held at a time.
            metric: How rows are compared.
            version: Version of the new index.
            progress: Called with (tiles done, tiles in all).

        Raises:
            DataError: The matrix is not finite, does not fit `eligible`, or has too few eligible tokens.
        """
        embedding, eligible = embedding.detach(), eligible.to(embedding.device)
        _check(embedding, eligible, candidates)
        rows = Rows(embedding, eligible, metric)
        found = nearest_neighbors(rows, candidates, _SPARE, block_rows=block_rows, progress=progress)
        return cls(
            **_spread(rows, found, len(eligible)),
            eligible=eligible,
            fingerprint=fingerprint(embedding, eligible),
            metric=metric,
            version=version,
            statistics={"searched": len(rows), "uncertified": found.uncertified},
        )

    @ieee_float32()
    def refresh(self, before: Tensor, embedding: Tensor, *, block_rows: int) -> NeighborIndex:
        """Return the index of a matrix that has moved, the next version: the neighbors are those that `build` finds.

        It has no fingerprint: to hash the matrix takes longer than to follow a small move, and only a saved index needs it.

        Args:
            before: `[V, d]`, the matrix that this index belongs to.
            embedding: `[V, d]`, the matrix as it is now.
            block_rows: Edge of the square tiles of similarities held at a time.

        Raises:
            DataError: The matrix is not finite, or has another number of rows.
        """
        embedding = embedding.detach()
        _check(embedding, self.eligible, self.neighbors.shape[1])
        rows = Rows(embedding, self.eligible, self.metric)
        number = torch.zeros(len(self.eligible), dtype=torch.long, device=embedding.device)
        number[rows.ids] = torch.arange(len(rows), device=embedding.device)
        held = Found(
            number[self.neighbors[rows.ids].long()],
            self.similarity[rows.ids],
            number[self.reserve[rows.ids].long()],
            self.reserve_bound[rows.ids],
            self.bound[rows.ids],
            0,
        )
        found, searched = refreshed(rows, before, held, block_rows=block_rows)
        return replace(
            self,
            **_spread(rows, found, len(self.eligible)),
            fingerprint=None,
            version=self.version + 1,
            statistics={"searched": searched, "uncertified": found.uncertified},
        )

    def fingerprinted(self, embedding: Tensor) -> NeighborIndex:
        """Return the index with the fingerprint of its matrix, hashed if it is not known.

        Args:
            embedding: `[V, d]`, the matrix that this index was built from or refreshed to.
        """
        if self.fingerprint is not None:
            return self
        return replace(self, fingerprint=fingerprint(embedding, self.eligible))

    def matches(self, embedding: Tensor) -> bool:
        """Whether the index was built from exactly this matrix.

        Raises:
            DataError: It has no fingerprint.
        """
        known = self._known_fingerprint()
        return embedding.shape[0] == len(self.eligible) and fingerprint(embedding, self.eligible) == known

    def to(self, device: torch.device | str) -> NeighborIndex:
        """Return the index with its tensors on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in _TENSORS})

    def save(self, directory: Path) -> None:
        """Write `index.safetensors` and `index.json` into a directory: both, or neither.

        Raises:
            DataError: It has no fingerprint, there is no room, or the directory cannot be written.
        """
        description = {
            "metric": self.metric,
            "fingerprint": self._known_fingerprint(),
            "version": self.version,
            "vocabulary": len(self.eligible),
            "candidates": self.neighbors.shape[1],
            "statistics": self.statistics,
            "excluded": (~self.eligible).nonzero(as_tuple=True)[0].tolist(),
        }
        from ngrpo.neighbors import files  # reads and writes with libraries that the index itself does without

        files.write(directory, {name: getattr(self, name) for name in _TENSORS}, description)

    @classmethod
    def load(cls, directory: Path) -> NeighborIndex:
        """Read what `save` wrote. The tensors are mapped into memory, not copied.

        Raises:
            DataError: A file is missing or is not as it was written.
        """
        from ngrpo.neighbors import files

        tensors, description = files.read(directory, _TENSORS)
        values = {name: description[name] for name in ("fingerprint", "metric", "version", "statistics")}
        return cls(**tensors, **values)

    def _known_fingerprint(self) -> str:
        if self.fingerprint is None:
            raise DataError(
                f"neighbor index of version {self.version}: refreshed, so the fingerprint of its matrix is not known; take "
                "`index.fingerprinted(embedding)` with the matrix that it was refreshed to"
            )
        return self.fingerprint


_TENSORS = ("neighbors", "similarity", "reserve", "reserve_bound", "bound", "eligible")


def fingerprint(embedding: Tensor, eligible: Tensor) -> str:
    """Digest of a matrix and of the eligible tokens: sha256 over the shape and the digests of the values, as float32, block by block."""

    def hashed(block: Tensor) -> bytes:
        return hashlib.sha256(block.float().cpu().contiguous().numpy().data).digest()

    digest = hashlib.sha256(str(tuple(embedding.shape)).encode())
    # Hashing lets go of the interpreter: blocks are hashed on all cores.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for block in pool.map(hashed, embedding.detach().split(8192)):
            digest.update(block)
    digest.update(eligible.cpu().numpy().data)
    return digest.hexdigest()


@ieee_float32()
def look_up(
    embedding: Tensor, eligible: Tensor, tokens: list[int], *, count: int, block_rows: int, metric: str
) -> tuple[Tensor, Tensor]:
    """Find the nearest neighbors of a few tokens, without an index of all.

    Args:
        embedding: `[V, d]`, input embeddings.
        eligible: bool `[V]`; of the tokens themselves too.
        tokens: Ids to search for.
        count: Neighbors of each.
        block_rows: Edge of the square tiles of similarities held at a time.
        metric: How rows are compared.

    Returns:
        Ids `[len(tokens), count]`, nearest first, and similarities.

    Raises:
        DataError: The matrix is not finite, does not fit `eligible`, or has too few eligible tokens.
    """
    _check(embedding, eligible, count)
    rows = Rows(embedding, eligible, metric)
    wanted = torch.searchsorted(rows.ids, torch.tensor(tokens, device=rows.ids.device))
    found = nearest_neighbors(rows, count, _SPARE, block_rows=block_rows, wanted=wanted)
    return rows.ids[found.neighbors], found.similarity


def _check(embedding: Tensor, eligible: Tensor, candidates: int) -> None:
    if embedding.shape[0] != eligible.shape[0]:
        raise DataError(f"the embedding has {embedding.shape[0]} rows but {eligible.shape[0]} tokens were described")
    # A sum that is finite has finite terms only, and is quick; one that is not may have overflowed.
    suspect = (~torch.isfinite(embedding.sum(dim=1, dtype=torch.float32))).nonzero(as_tuple=True)[0]
    bad = suspect[~torch.isfinite(embedding[suspect]).all(dim=1)]
    if len(bad):
        raise DataError(
            f"embedding rows {bad[:5].tolist()} ({len(bad)} in all) hold NaN or infinity: repair the model's weights"
        )
    available = max(int(eligible.sum()) - 1, 0)
    if available < candidates:
        raise DataError(
            f"neighbors.candidates={candidates} but a token has only {available} possible neighbors: "
            f"set neighbors.candidates to at most {available}"
        )


def _spread(rows: Rows, found: Found, vocabulary: int) -> dict[str, Any]:
    """Lay what was found for the eligible rows out over the whole vocabulary."""
    device = rows.ids.device
    own = torch.arange(vocabulary, dtype=torch.int32, device=device)[:, None]
    tensors = {
        "neighbors": own.repeat(1, found.neighbors.shape[1]),
        "similarity": torch.zeros(vocabulary, found.similarity.shape[1], dtype=torch.float64, device=device),
        "reserve": own.repeat(1, found.reserve.shape[1]),
        "reserve_bound": torch.zeros(vocabulary, found.reserve.shape[1], device=device),
        "bound": torch.zeros(vocabulary, device=device),
    }
    for name, tensor in tensors.items():
        values = getattr(found, name)
        tensor[rows.ids] = values if tensor.is_floating_point() else rows.ids[values].int()
    return tensors
