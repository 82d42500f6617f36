"""Which layers of a model may have adapters, and whether it has those that a run names. It needs no weights."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers.pytorch_utils import Conv1D

from ngrpo.config.lora import FROZEN, LoRAConfig
from ngrpo.errors import ConfigError


def linear_layers(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a model's linear layers, of which adapters are made."""
    return tuple(name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D))


def require_targets(settings: LoRAConfig, linear: Iterable[str], section: str) -> None:
    """Refuse a target that names no linear layer: PEFT would leave it out, or find it when training begins.

    Args:
        settings: `lora` of a training.
        linear: Names of the linear layers of the model.
        section: Where the settings stand, for the error.

    Raises:
        ConfigError: There is one.
    """
    names = list(linear)
    for target in () if isinstance(settings.targets, str) else settings.targets:
        if not any(f".{name}".endswith(f".{target}") for name in names):
            known = sorted({name.rpartition(".")[2] for name in names} - FROZEN)
            raise ConfigError(
                f"{section}.lora.targets={list(settings.targets)}: the model has no linear layer {target!r}; it has {', '.join(known)}"
            )
