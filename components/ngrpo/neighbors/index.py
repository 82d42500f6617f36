"""The neighbor index as an artifact: neighbors, similarities, bounds and the fingerprint of the matrix they come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ngrpo.errors import DataError
from ngrpo.neighbors.search import nearest_neighbors


@dataclass(frozen=True)
class NeighborIndex:
    """Nearest tokens of every token.

    Attributes:
        neighbors: int32 `[V, m]`, nearest first, the token itself left out; a row that is not eligible holds its own id.
        similarity: float32 `[V, m]`, cosine similarities.
        bound: float32 `[V]`, upper bound of the similarity of every eligible token left out.
        eligible: bool `[V]`, tokens that may be anchors or neighbors.
        fingerprint: Digest of the matrix and of `eligible`, see `fingerprint`.
        version: Counts the builds since training began; 0 for an index from its stage.
    """

    neighbors: Tensor
    similarity: Tensor
    bound: Tensor
    eligible: Tensor
    fingerprint: str
    version: int = 0

    @classmethod
    def build(
        cls,
        embedding: Tensor,
        eligible: Tensor,
        *,
        candidates: int,
        block_rows: int,
        version: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> NeighborIndex:
        """Build the index of an embedding matrix.

        Args:
            embedding: `[V, d]`, input embeddings.
            eligible: bool `[V]`.
            candidates: m, neighbors kept for each token.
            block_rows: Rows of the similarity matrix held at a time.
            version: Version of the new index.
            progress: Called with (rows done, rows in all).

        Raises:
            DataError: The matrix is not finite, does not fit `eligible`, or has too few eligible tokens.
        """
        embedding = embedding.detach()
        if embedding.shape[0] != eligible.shape[0]:
            raise DataError(
                f"the embedding has {embedding.shape[0]} rows but {eligible.shape[0]} tokens were described"
            )
        bad = (~torch.isfinite(embedding).all(dim=1)).nonzero(as_tuple=True)[0]
        if len(bad):
            raise DataError(
                f"embedding rows {bad[:5].tolist()} ({len(bad)} in all) hold NaN or infinity: repair the model's weights"
            )
        available = int(eligible.sum()) - 1
        if available < candidates:
            raise DataError(
                f"neighbors.candidates={candidates} but a token has only {max(available, 0)} possible neighbors: "
                f"set neighbors.candidates to at most {max(available, 0)}"
            )
        eligible = eligible.to(embedding.device)
        neighbors, similarity, bound = nearest_neighbors(
            embedding, eligible, candidates, block_rows=block_rows, progress=progress
        )
        return cls(neighbors, similarity, bound, eligible, fingerprint(embedding, eligible), version)

    def matches(self, embedding: Tensor) -> bool:
        """Whether the index was built from exactly this matrix."""
        if embedding.shape[0] != len(self.eligible):
            return False
        return fingerprint(embedding.detach(), self.eligible) == self.fingerprint

    def to(self, device: torch.device | str) -> NeighborIndex:
        """Return the index with its tensors on a device."""
        return NeighborIndex(
            self.neighbors.to(device),
            self.similarity.to(device),
            self.bound.to(device),
            self.eligible.to(device),
            self.fingerprint,
            self.version,
        )

    def save(self, directory: Path) -> None:
        """Write `index.safetensors` and `index.json` into a directory."""
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {name: getattr(self, name).cpu().contiguous() for name in _TENSORS}
        save_file(tensors, directory / "index.safetensors")
        description = {
            "metric": "cosine",
            "fingerprint": self.fingerprint,
            "version": self.version,
            "vocabulary": len(self.eligible),
            "candidates": self.neighbors.shape[1],
            "excluded": (~self.eligible).nonzero(as_tuple=True)[0].tolist(),
        }
        (directory / "index.json").write_text(json.dumps(description), encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> NeighborIndex:
        """Read what `save` wrote.

        Raises:
            DataError: A file is missing or damaged.
        """
        try:
            description = json.loads((directory / "index.json").read_text(encoding="utf-8"))
            tensors = load_file(directory / "index.safetensors")
            return cls(
                **{name: tensors[name] for name in _TENSORS},
                fingerprint=description["fingerprint"],
                version=description["version"],
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise DataError(f"neighbor index in {directory}: cannot be read ({error}); build it again") from error


_TENSORS = ("neighbors", "similarity", "bound", "eligible")


def fingerprint(embedding: Tensor, eligible: Tensor) -> str:
    """Digest of a matrix and of the eligible tokens: sha256 over the shape and the values as float32, block by block."""
    digest = hashlib.sha256(str(tuple(embedding.shape)).encode())
    for block in embedding.split(8192):
        digest.update(block.detach().float().cpu().contiguous().numpy().tobytes())
    digest.update(eligible.cpu().numpy().tobytes())
    return digest.hexdigest()
