"""The neighbor index of a training run: verified against the weights, refreshed when they change, saved with checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from ngrpo.config import MixingConfig, NeighborsConfig
from ngrpo.errors import DataError
from ngrpo.mixing.end_marker import EndMarker
from ngrpo.mixing.mixer import Mixer
from ngrpo.neighbors.index import NeighborIndex
from ngrpo.rollout.configured_mixer import build_mixer


class FollowingIndex(TrainerCallback):
    """Provides the trainer with a mixer whose index matches the weights."""

    def __init__(
        self,
        index: NeighborIndex,
        *,
        neighbors: NeighborsConfig,
        mixing: MixingConfig,
        end_marker: EndMarker | None,
        every_batch: bool,
    ):
        """Start with an index.

        Args:
            index: Index of the base model, or of a checkpoint.
            neighbors: How the index is built.
            mixing: How it is used.
            end_marker: Text after which mixing ends.
            every_batch: Follow the weights before each rollout batch, which needs a copy of the embedding matrix; otherwise only
                before the first.
        """
        self.index = index
        self._neighbors = neighbors
        self._mixing = mixing
        self._end_marker = end_marker
        self._every_batch = every_batch
        self._verified = False
        self._matrix: Tensor | None = None
        """The matrix that `index` was made from; none if it is not available."""

    def mixer(self, model: PreTrainedModel) -> Mixer | None:
        """Return the mixer for the next rollouts of `model`."""
        if self._mixing.strategy == "token":
            return None
        embedding = model.get_input_embeddings().weight
        if self.index.neighbors.device != embedding.device:
            self.index = self.index.to(embedding.device)
            self._end_marker = self._end_marker and self._end_marker.to(embedding.device)
        if self._every_batch or not self._verified:
            self._follow(embedding.detach())
            self._verified = True
        return self.held()

    def held(self) -> Mixer | None:
        """Return the mixer over the current index, without comparing it with the weights."""
        return None if self._mixing.strategy == "token" else build_mixer(self._mixing, self.index, self._end_marker)

    def _follow(self, embedding: Tensor) -> None:
        """Make the index match a matrix."""
        if len(embedding) != len(self.index.eligible):
            raise DataError(
                f"the neighbor index has {len(self.index.eligible)} rows but the policy's embedding matrix {len(embedding)}: "
                "it is the index of another model; build it from the base model of this run"
            )
        block_rows = self._neighbors.block_rows
        if self._matrix is not None:
            moved = not torch.equal(self._matrix, embedding)
            if moved:
                self.index = self.index.refresh(self._matrix, embedding, block_rows=block_rows)
        else:
            moved = not self.index.matches(embedding)
            if moved:
                self.index = NeighborIndex.build(
                    embedding,
                    self.index.eligible,
                    candidates=self._neighbors.candidates,
                    block_rows=block_rows,
                    metric=self._neighbors.metric,
                    version=self.index.version + 1,
                )
        if moved:
            searched = self.index.statistics["searched"]
            print(
                f"neighbor index: version {self.index.version} follows the weights, {searched} rows searched",
                flush=True,
            )
        if self._every_batch and (moved or self._matrix is None):
            self._matrix = embedding.clone()

    def fingerprinted(self) -> NeighborIndex:
        """Return the index with the fingerprint of its matrix, which a refresh does not compute."""
        if self._matrix is not None:
            self.index = self.index.fingerprinted(self._matrix)
        return self.index

    def resume(self, checkpoint: Path) -> None:
        """Use the index saved with a checkpoint, which may be older than the checkpoint's weights."""
        self.index = NeighborIndex.load(checkpoint / "neighbor_index")
        self._matrix = None
        self._verified = True

    def on_save(self, args, state, control, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Save the index beside the checkpoint just written."""
        if state.is_world_process_zero:
            self.fingerprinted().save(Path(args.output_dir) / f"checkpoint-{state.global_step}" / "neighbor_index")
