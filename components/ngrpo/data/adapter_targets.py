"""The layers of a model that can have LoRA adapters, and a check of the configured targets. Needs no weights."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers.pytorch_utils import Conv1D

from ngrpo.config.lora import FROZEN, LoRAConfig
from ngrpo.errors import ConfigError


def linear_layers(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a model's linear layers, the ones that can have adapters."""
    return tuple(name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D))


def require_targets(settings: LoRAConfig, linear: Iterable[str], section: str) -> None:
    """Refuse a target that matches no linear layer: PEFT would skip it, or fail only when training begins.

    Args:
        settings: The `lora` settings of a training stage.
        linear: Names of the linear layers of the model.
        section: Section that holds the `lora` settings, for the error message.

    Raises:
        ConfigError: A target matches no linear layer.
    """
    names = list(linear)
    for target in () if isinstance(settings.targets, str) else settings.targets:
        if not any(f".{name}".endswith(f".{target}") for name in names):
            known = sorted({name.rpartition(".")[2] for name in names} - FROZEN)
            raise ConfigError(
                f"{section}.lora.targets={list(settings.targets)}: the model has no linear layer {target!r}; it has {', '.join(known)}"
            )
