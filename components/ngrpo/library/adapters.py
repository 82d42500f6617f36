"""Which of PEFT's adapters can be trained: those whose merged weights are the base weights and a product of two matrices."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_FREE = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "peft_type",
    "peft_version",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
}
"""Settings of PEFT's `LoraConfig` that leave the form of an adapter as it is."""
_INITIAL = (True, False, "gaussian")
"""Ways to begin that leave the base weights as they are."""


def problem_of(config: Any) -> str | None:
    """Say why adapters of a configuration cannot be trained; none if they can."""
    from peft import LoraConfig

    if not isinstance(config, LoraConfig):
        return f"{type(config).__name__}: only adapters of a peft.LoraConfig can be trained"
    defaults = LoraConfig()
    if config.init_lora_weights not in _INITIAL:
        return f"init_lora_weights={config.init_lora_weights!r} changes base weights: choose one of {list(_INITIAL)}"
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in _FREE | {"init_lora_weights"} and value != getattr(defaults, field.name):
            return (
                f"{field.name}={value!r}: rollouts would come from other weights than those in training; leave it out"
            )
    return None


def adapted_embedding(model: nn.Module) -> str | None:
    """Return the name of an embedding that has an adapter, which would move under the neighbor index; none if none has."""
    from peft.tuners.lora import Embedding

    return next((name for name, module in model.named_modules() if isinstance(module, Embedding)), None)
