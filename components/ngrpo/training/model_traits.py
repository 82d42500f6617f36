"""Adjustments for some classes of transformers, so that TRL's trainer scores a rollout as it was generated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel


def name_backbone(model: PreTrainedModel) -> None:
    """Make `base_model` refer to the layers below the output head, as TRL expects: Llama 4's class uses another name."""
    if model.base_model is model:
        tokens = model.get_input_embeddings()
        model.base_model_prefix = next(name for name, child in model.named_children() if tokens in child.modules())


def can_balance_experts(model: PreTrainedModel) -> bool:
    """Whether TRL can add a load-balancing loss for experts: it reads their number from a setting that Llama 4 names differently."""
    return hasattr(model.config.get_text_config(), "num_experts")


def silence_dropout(model: nn.Module) -> None:
    """Switch off dropout that is not a module, such as OPT's, which TRL's `disable_dropout` misses."""
    for module in model.modules():
        for name, value in vars(module).items():
            if ("dropout" in name or name in ("layerdrop", "attn_pdrop", "resid_pdrop")) and type(value) is float:
                setattr(module, name, 0.0)


def counts_from_the_padding(model: PreTrainedModel) -> bool:
    """Whether a model without explicit positions counts padding on the left as text.

    That is harmless with rotary positions, which are relative, but not with learned ones (GPT-2) or attention scaled by position (Llama 4).
    """
    text = model.config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    if getattr(text, "attn_temperature_tuning", False) or "llama_4_scaling_beta" in rope:
        return True
    tokens = model.get_input_embeddings()
    tables = [module for module in model.get_decoder().modules() if isinstance(module, nn.Embedding)]
    return any(table is not tokens and table.num_embeddings >= text.max_position_embeddings for table in tables)


@contextmanager
def positions_of_text(model: PreTrainedModel) -> Iterator[None]:
    """Within this context, a forward pass without explicit positions counts them from the first token after the padding."""

    def add_positions(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        mask = named.get("attention_mask")
        if mask is None or named.get("position_ids") is not None:
            return None
        return arguments, {**named, "position_ids": (mask.long().cumsum(dim=1) - 1).clamp(min=0)}

    handle = model.register_forward_pre_hook(add_positions, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
