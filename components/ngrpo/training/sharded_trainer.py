"""A trainer whose processes write each its own shards to a checkpoint, where transformers would write weights twice, gathered."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.distributed.fsdp import StateDictType
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME

from ngrpo.errors import DataError
from ngrpo.training import shards


class ShardedTrainer(Trainer):
    """Saves and loads a model that FSDP2 shards as `shards` does, where it is told to with `state_dict_type="SHARDED_STATE_DICT"`.

    Transformers' own form of that setting saves tied weights twice, and its index is a pickle. Any number of processes goes on from
    shards, one too. From the checkpoint of one process, several do not.
    """

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._shards():
            super()._save_optimizer_and_scheduler(output_dir)
            return
        shards.save(self.model, self.optimizer, Path(output_dir))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        checkpoint = Path(resume_from_checkpoint)
        if shards.are_in(checkpoint):
            shards.load_weights(self.model if model is None else model, checkpoint)
        elif self._shards():
            raise DataError(
                f"{checkpoint}: was saved by a process that trained alone, and {self.args.world_size} that shard the model cannot go on "
                "from it: train with one process, or remove it to start again"
            )
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not shards.are_in(Path(checkpoint)):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        shards.load_optimizer(self.model, self.optimizer, Path(checkpoint))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint)
        if shards.are_in(best):
            shards.load_weights(self.model, best)
        else:
            super()._load_best_model()

    def _shards(self) -> bool:
        if not self.is_fsdp_enabled:
            return False
        plugin = self.accelerator.state.fsdp_plugin
        return bool(plugin.state_dict_type == StateDictType.SHARDED_STATE_DICT)
