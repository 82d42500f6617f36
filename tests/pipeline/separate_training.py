"""One process of a training whose rollouts are made apart; writes what each rollout batch was, and the weights it ends with.

Arguments, in `sys.argv`: directory of the inputs, directory for what is written, the engine, and `sharded` or `copied`.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from parallel_process import shard_on_processors
from safetensors.torch import save_file
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


def main() -> None:
    root, output, engine = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    if sys.argv[4] == "sharded":
        shard_on_processors()
    if "LOCAL_RANK" in os.environ:
        join()
    policy_optimization.CorrectnessReward = LengthReward
    now, before = (AutoModelForCausalLM.from_pretrained(root / "warm_start" / "model") for _ in range(2))
    trainers: list[NGRPOTrainer] = []
    seen: list[dict[str, object]] = []

    def watched(*, config, observers, **arguments):
        def watch(batch: RolloutBatch) -> dict[str, float]:
            trainer = trainers[0]
            before.load_state_dict(now.state_dict())
            named = dict(now.named_parameters())
            with torch.no_grad():
                for name, value in merged_parameters(trainer.accelerator.unwrap_model(trainer.model)):
                    named[name].copy_(value)
            rollouts, temperature = batch.rollouts, config.rollout.temperature
            version = rollouts[0].records.index_version
            # The first batch has the weights of now; any other those that the one before it was trained from.
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
            return {}

        return train(config=config, observers=[*observers, watch], **arguments)

    train, initialize = ngrpo_training.train_policy, NGRPOTrainer.__init__
    ngrpo_training.train_policy = watched

    def remember(self, *arguments, **keywords):
        initialize(self, *arguments, **keywords)
        trainers.append(self)

    NGRPOTrainer.__init__ = remember
    rank, save = PartialState().process_index, policy_optimization.save_model

    def save_both(trainer, directory, dtype):
        save(trainer, directory, dtype)
        parameters = merged_parameters(trainer.accelerator.unwrap_model(trainer.model))
        save_file({name: value.detach().clone() for name, value in parameters}, output / f"weights-{rank}.safetensors")

    policy_optimization.save_model = save_both
    config = NGRPOTrainingConfig.model_validate_json((root / "config.json").read_text())
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"engine": engine})})
    inputs = {name: root / name for name in ("dataset", "neighbor_index", "warm_start")}
    (output / "artifact").mkdir(exist_ok=True)
    ngrpo_training.run(config, inputs, output / "artifact", Context(output / "work"))
    (output / f"seen-{rank}.json").write_text(json.dumps(seen))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
