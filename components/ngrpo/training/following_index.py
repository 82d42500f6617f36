"""The neighbor index of a training run: verified against the weights, rebuilt when they moved, saved with the checkpoints."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, TrainerCallback

from ngrpo.config import MixingConfig, NeighborsConfig
from ngrpo.mixing.mixer import Mixer
from ngrpo.neighbors.index import NeighborIndex
from ngrpo.rollout.mixers import build_mixer


class FollowingIndex(TrainerCallback):
    """Gives the trainer a mixer whose index belongs to the weights."""

    def __init__(
        self,
        index: NeighborIndex,
        *,
        neighbors: NeighborsConfig,
        mixing: MixingConfig,
        end_marker: list[int],
        every_batch: bool,
    ):
        """Take over an index.

        Args:
            index: Index of the base model, or of a checkpoint.
            neighbors: How the index is built.
            mixing: How it is used.
            end_marker: Token ids after which mixing ends.
            every_batch: Rebuild before each rollout batch; else only when the first batch finds other weights.
        """
        self.index = index
        self._neighbors = neighbors
        self._mixing = mixing
        self._end_marker = end_marker
        self._every_batch = every_batch
        self._verified = False

    def mixer(self, model: PreTrainedModel) -> Mixer | None:
        """Return the mixer for the rollouts that `model` generates next."""
        if self._mixing.strategy == "token":
            return None
        embedding = model.get_input_embeddings().weight
        if self.index.neighbors.device != embedding.device:
            self.index = self.index.to(embedding.device)
        if self._every_batch or not self._verified:
            if not self.index.matches(embedding):
                self.index = NeighborIndex.build(
                    embedding,
                    self.index.eligible,
                    candidates=self._neighbors.candidates,
                    block_rows=self._neighbors.block_rows,
                    version=self.index.version + 1,
                )
                print(f"neighbor index: rebuilt for the current weights, version {self.index.version}", flush=True)
            self._verified = True
        return build_mixer(self._mixing, self.index, self._end_marker)

    def resume(self, checkpoint: Path) -> None:
        """Take the index that a checkpoint was saved with: it may be older than the checkpoint's weights."""
        self.index = NeighborIndex.load(checkpoint / "neighbor_index")
        self._verified = True

    def on_save(self, args, state, control, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Save the index beside the checkpoint just written."""
        if state.is_world_process_zero:
            self.index.save(Path(args.output_dir) / f"checkpoint-{state.global_step}" / "neighbor_index")
