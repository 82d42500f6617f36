"""One process of a training with rollouts in separate processes: writes each rollout batch, and the final weights."""

import sys
from pathlib import Path

import torch
from observed_training import run
from transformers import AutoModelForCausalLM

from ngrpo.config import NGRPOTrainingConfig
from ngrpo.training.ngrpo_trainer import NGRPOTrainer
from ngrpo.training.policy_weights import merged_parameters
from ngrpo.training.rollout_batch import RolloutBatch
from replay import replay_error
from tiny import mixer_for


def main() -> None:
    start = Path(sys.argv[1]) / "warm_start" / "model"
    now, before = (AutoModelForCausalLM.from_pretrained(start) for _ in range(2))
    seen: list[dict[str, object]] = []

    def watch(trainer: NGRPOTrainer, config: NGRPOTrainingConfig, batch: RolloutBatch) -> None:
        before.load_state_dict(now.state_dict())
        named = dict(now.named_parameters())
        with torch.no_grad():
            for name, value in merged_parameters(trainer.accelerator.unwrap_model(trainer.model)):
                named[name].copy_(value)
        rollouts, temperature = batch.rollouts, config.rollout.temperature
        version = rollouts[0].records.index_version
        # The first batch is generated with the current weights, any other with those that the previous batch was trained from.
        made_by = now if not seen else before
        mixer = mixer_for(made_by, "neighbor", config.mixing.rate, version=version)
        seen.append(
            {
                "step": batch.step,
                "prompts": [list(prompt) for prompt in batch.prompts],
                "tokens": [rollout.token_ids for rollout in rollouts],
                "error": replay_error(made_by, batch.prompts, rollouts, mixer, temperature),
                "error_of_now": replay_error(now, batch.prompts, rollouts, mixer, temperature),
            }
        )
        print(f"at {batch.step}", flush=True)

    run(watch, seen)
