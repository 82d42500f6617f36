"""One process of a training that several share: writes the replay error of its rollouts, their lengths, and the weights it ends with.

Arguments, in `sys.argv`: directory of the inputs, directory for what is written, the engine, and `sharded` or `copied`.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, DistributedType
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from ngrpo.config import NGRPOTrainingConfig
from ngrpo.stages import ngrpo_training
from ngrpo.stages.context import Context
from ngrpo.stages.torchrun import join
from ngrpo.training import policy_optimization
from ngrpo.training.ngrpo_trainer import NGRPOTrainer
from ngrpo.training.policy_weights import merged_parameters
from ngrpo.training.rollout_batch import RolloutBatch
from replay import replay_error
from rewards import LengthReward
from tiny import mixer_for


def shard_on_processors() -> None:
    """Let accelerate shard on a CPU too: it offers FSDP for accelerators only, although torch's FSDP2 runs on gloo."""
    initialize = AcceleratorState.__init__

    def sharding(self, *arguments, fsdp_plugin=None, **keywords):
        initialize(self, *arguments, fsdp_plugin=fsdp_plugin, **keywords)
        self.fsdp_plugin = fsdp_plugin or self.__dict__.get("fsdp_plugin")
        if self.fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP

    AcceleratorState.__init__ = sharding


def main() -> None:
    root, output, engine, sharded = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "sharded"
    if sharded:
        shard_on_processors()
    if "LOCAL_RANK" in os.environ:
        join()
    policy_optimization.CorrectnessReward = LengthReward
    names = ("errors", "errors_without_records", "longest", "sharded", "lengths", "gathered")
    seen: dict[str, list] = {name: [] for name in names}
    whole = AutoModelForCausalLM.from_pretrained(root / "warm_start" / "model")
    trainers = []

    def watched(*, config, observers, **arguments):
        def replay(batch: RolloutBatch) -> dict[str, float]:
            model = trainers[0].accelerator.unwrap_model(trainers[0].model)
            for (_, mine), (_, theirs) in zip(whole.named_parameters(), merged_parameters(model), strict=True):
                mine.data.copy_(theirs)
            version = batch.rollouts[0].records.index_version
            mixer = mixer_for(whole, "neighbor", config.mixing.rate, version=version)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.model.dtype == "bfloat16"):
                for name, replayed in (("errors", mixer), ("errors_without_records", None)):
                    seen[name].append(
                        replay_error(whole, batch.prompts, batch.rollouts, replayed, config.rollout.temperature)
                    )
            seen["longest"].append(max(len(rollout.token_ids) for rollout in batch.rollouts))
            seen["sharded"].append(isinstance(model, FSDPModule))
            return {}

        return train(config=config, observers=[*observers, replay], **arguments)

    train, initialize = ngrpo_training.train_policy, NGRPOTrainer.__init__
    ngrpo_training.train_policy = watched

    def remember(self, *arguments, **keywords):
        initialize(self, *arguments, **keywords)
        trainers.append(self)

    NGRPOTrainer.__init__ = remember
    compute_loss = NGRPOTrainer._compute_loss

    def measure(self, model, inputs):
        seen["lengths"].append((inputs["prompt_mask"].sum(dim=1) + inputs["completion_mask"].sum(dim=1)).tolist())
        return compute_loss(self, model, inputs)

    NGRPOTrainer._compute_loss = measure
    roll_out, gather = NGRPOTrainer._generate_and_score_completions, DTensor.full_tensor

    def count(self, inputs):
        shape, gathered = self.model.get_input_embeddings().weight.shape, []

        def counting(tensor, **arguments):
            gathered.append(tensor.shape == shape)
            return gather(tensor, **arguments)

        DTensor.full_tensor = counting
        try:
            return roll_out(self, inputs)
        finally:
            DTensor.full_tensor = gather
            seen["gathered"].append(sum(gathered))

    NGRPOTrainer._generate_and_score_completions = count
    rank, save = PartialState().process_index, policy_optimization.save_model

    def save_both(trainer, directory, dtype):
        save(trainer, directory, dtype)
        parameters = merged_parameters(trainer.accelerator.unwrap_model(trainer.model))
        tensors = {name: value.detach().clone() for name, value in parameters}
        save_file(tensors, output / f"weights-{rank}.safetensors")

    policy_optimization.save_model = save_both
    config = NGRPOTrainingConfig.model_validate_json((root / "config.json").read_text())
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"engine": engine})})
    inputs = {name: root / name for name in ("dataset", "neighbor_index", "warm_start")}
    (output / "artifact").mkdir(exist_ok=True)
    ngrpo_training.run(config, inputs, output / "artifact", Context(output / "work"))
    (output / f"seen-{rank}.json").write_text(json.dumps(seen))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
