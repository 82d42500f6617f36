"""What a training leaves: the model as files that anything loads, and its adapters by themselves where adapters were trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from accelerate.utils import is_peft_model
from safetensors.torch import save_file
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME

from ngrpo.training.policy_weights import ADAPTER, adapter_state, base_of, merged_state


def save_policy(trainer: Trainer, directory: Path) -> None:
    """Write a trainer's model and tokenizer; adapters are merged there, and by themselves in `adapter/` beside it.

    Every process takes part where the model is sharded. The pickle of its arguments that `Trainer.save_model` adds is left out.

    Args:
        trainer: The trainer, when it has trained.
        directory: Where the model goes.
    """
    policy = trainer.accelerator.unwrap_model(trainer.model)
    if not is_peft_model(policy):
        trainer.save_model(str(directory))
        if trainer.is_world_process_zero():
            (directory / TRAINING_ARGS_NAME).unlink()
        return
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    merged, own = merged_state(policy), adapter_state(policy)
    if trainer.is_world_process_zero():
        base_of(policy).save_pretrained(directory, state_dict=merged)
        trainer.processing_class.save_pretrained(directory)
        beside = directory.with_name(ADAPTER)
        # `PeftModel.save_pretrained` writes where the base model was loaded from, a directory of this machine.
        config = replace(policy.peft_config["default"], base_model_name_or_path=None, inference_mode=True)
        config.save_pretrained(str(beside))
        save_file(own, beside / SAFETENSORS_WEIGHTS_NAME, {"format": "pt"})
