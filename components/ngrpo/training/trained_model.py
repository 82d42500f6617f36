"""The model that a training leaves: whole, wherever its shards are, and in the type that later stages compute in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, Trainer


def save_model(trainer: Trainer, directory: Path, dtype: str = "float32") -> None:
    """Write a trainer's model and tokenizer. Every process takes part; the first one writes.

    Training keeps weights in float32. Who only generates with them rounds them to `model.dtype` when it loads them, so that nothing is
    lost if they are rounded here, and half of the bytes are saved. A model that training starts from stays float32.

    Args:
        trainer: The trainer after training.
        directory: Where to write.
        dtype: Name of the torch type to round to. What transformers keeps in float32 whatever type a model is loaded in stays so.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    state = {}
    for name, value in _whole_state(model, getattr(torch, dtype)):
        if trainer.is_world_process_zero():
            state[name] = value
    if not trainer.is_world_process_zero():
        return
    model.save_pretrained(directory, state_dict=state)
    if dtype != "float32":
        model.config.dtype = dtype  # `save_pretrained` writes that of the weights in memory
        model.config.save_pretrained(directory)
    trainer.processing_class.save_pretrained(directory)


def _whole_state(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield the rounded weights by name, gathered one after the other; tied ones are one tensor."""
    kept = [re.compile(glob.replace("*", ".*")) for glob in model._keep_in_fp32_modules_strict or ()]
    seen: dict[int, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            tensor = value.detach()
            if tensor.dtype == torch.float32 and not any(glob.search(name) for glob in kept):
                tensor = tensor.to(dtype)
            seen[id(value)] = tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
        yield name, seen[id(value)]
