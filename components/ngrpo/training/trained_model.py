"""The model that a training leaves: whole, wherever its shards are, adapters merged, and in the type that later stages compute in."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import is_peft_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, Trainer

from ngrpo.training.policy_weights import ADAPTER, adapter_state, base_of, merged


def save_model(trainer: Trainer, directory: Path, dtype: str = "float32") -> None:
    """Write a trainer's model and tokenizer. Every process takes part; the first one writes.

    Training keeps weights in float32. Who only generates with them rounds them to `model.dtype` when it loads them, so that nothing is
    lost if they are rounded here, and half of the bytes are saved. A model that training starts from stays float32.

    Adapters are merged into the model, and by themselves in `adapter/` beside it, where `PeftModel.from_pretrained` finds them.

    Args:
        trainer: The trainer after training.
        directory: Where to write.
        dtype: Name of the torch type to round to. What transformers keeps in float32 whatever type a model is loaded in stays so.
    """
    policy = trainer.accelerator.unwrap_model(trainer.model)
    model = base_of(policy)
    named = model.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for name, value in named.items():
        first.setdefault(id(value), name)
    untied = ((name, value.detach()) for name, value in named.items() if first[id(value)] == name)
    state: dict[str, Tensor] = {}
    for name, value in merged(policy, untied, _rounding(model, getattr(torch, dtype))):
        if trainer.is_world_process_zero():
            state[name] = value.cpu()
    own = adapter_state(policy) if is_peft_model(policy) else {}
    if not trainer.is_world_process_zero():
        return
    # Tied weights are one tensor: transformers leaves out the second name.
    state |= {name: state[first[id(value)]] for name, value in named.items() if first[id(value)] in state}
    model.save_pretrained(directory, state_dict=state)
    if dtype != "float32":
        model.config.dtype = dtype  # `save_pretrained` writes that of the weights in memory
        model.config.save_pretrained(directory)
    trainer.processing_class.save_pretrained(directory)
    if own:
        from peft.utils import SAFETENSORS_WEIGHTS_NAME

        beside = directory.with_name(ADAPTER)
        # `PeftModel.save_pretrained` writes where the base model was loaded from, a directory of this machine.
        replace(policy.peft_config["default"], base_model_name_or_path=None, inference_mode=True).save_pretrained(
            str(beside)
        )
        save_file(own, beside / SAFETENSORS_WEIGHTS_NAME, {"format": "pt"})


def _rounding(model: PreTrainedModel, dtype: torch.dtype) -> Callable[[str, Tensor], Tensor]:
    """Return what rounds a weight of a model, given its name."""
    kept = [re.compile(glob.replace("*", ".*")) for glob in model._keep_in_fp32_modules_strict or ()]

    def rounded(name: str, weight: Tensor) -> Tensor:
        exact = weight.dtype != torch.float32 or any(glob.search(name) for glob in kept)
        return weight if exact else weight.to(dtype)

    return rounded
