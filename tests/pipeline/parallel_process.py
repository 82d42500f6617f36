"""One process of a training that several share: writes replay errors and lengths of its rollouts, and the final weights."""

import sys
from pathlib import Path

import torch
from observed_training import run
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from ngrpo.config import NGRPOTrainingConfig
from ngrpo.training.ngrpo_trainer import NGRPOTrainer
from ngrpo.training.policy_weights import merged_parameters
from ngrpo.training.rollout_batch import RolloutBatch
from replay import replay_error
from tiny import mixer_for


def main() -> None:
    names = ("errors", "errors_without_records", "longest", "sharded", "lengths", "gathered")
    seen: dict[str, list] = {name: [] for name in names}
    whole = AutoModelForCausalLM.from_pretrained(Path(sys.argv[1]) / "warm_start" / "model")

    def replay(trainer: NGRPOTrainer, config: NGRPOTrainingConfig, batch: RolloutBatch) -> None:
        model = trainer.accelerator.unwrap_model(trainer.model)
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
    run(replay, seen)
