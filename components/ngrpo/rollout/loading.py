"""Load a saved model and its tokenizer for training or generation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import date
from itertools import groupby
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import GENERATION_CONFIG_NAME
from transformers.utils.logging import disable_progress_bar

from ngrpo.config.sections import TEMPLATE_DATE
from ngrpo.data.chat import end_of_turn
from ngrpo.data.model_directory import read_config, read_generation_config, read_model, read_tokenizer
from ngrpo.data.token_rows import require_rows

_LAYER = re.compile(r"^((?:.*?\.\d+\.)?).*$")
"""The part of a parameter's name that says which layer it is in."""


def load_model(directory: Path, dtype: str) -> PreTrainedModel:
    """Load a causal language model onto the GPU, or the CPU where there is none.

    Args:
        directory: What `save_pretrained` wrote.
        dtype: Name of a torch type.

    Raises:
        DataError: The directory holds no weights in safetensors format, is damaged, or brings code.
    """
    disable_progress_bar()  # logs are not terminals
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return read_model(directory, f"model directory {directory}", dtype).to(device)


def load_tokenizer(directory: Path, vocabulary: int, day: date = TEMPLATE_DATE) -> PreTrainedTokenizerBase:
    """Load a tokenizer that can write chats, padded on the left.

    Args:
        directory: What `save_pretrained` wrote.
        vocabulary: Rows of the model's embedding matrix.
        day: The day that its chat template is told (`model.template_date`).

    Raises:
        DataError: The tokenizer is missing or damaged, brings code, has no chat template that can be used, or knows tokens the
            model has no row for.
    """
    tokenizer = read_tokenizer(directory, f"model directory {directory}", day, padding_side="left")
    require_rows(tokenizer, vocabulary, f"model directory {directory}")
    return tokenizer


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether a model's weights are sharded over processes (FSDP2), so that its forward pass needs all of them."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def end_of_sequence_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return every token that ends a response.

    These are the tokenizer's, those that the model's generation settings name, and the one that the chat template ends a turn with: a
    base model with the template of its chat model declares none for turns.
    """
    return _ends(model.generation_config, tokenizer)


def saved_end_of_sequence_ids(directory: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Like `end_of_sequence_ids`, of a saved model, without its weights.

    Raises:
        DataError: Its settings are damaged.
    """
    label = f"model directory {directory}"
    if (directory / GENERATION_CONFIG_NAME).is_file():
        settings = read_generation_config(directory, label)
    else:  # as `from_pretrained` does
        settings = GenerationConfig.from_model_config(read_config(directory, label))
    return _ends(settings, tokenizer)


def _ends(settings: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    declared = settings.eos_token_id if settings is not None else None
    ids = declared if isinstance(declared, list) else [declared]
    return sorted({token for token in [*ids, tokenizer.eos_token_id, end_of_turn(tokenizer)] if token is not None})


def declare_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write every token that ends a response into a model's generation settings, so that servers of the model stop there too."""
    ids = end_of_sequence_ids(model, tokenizer)
    if len(ids) > 1:
        model.generation_config.eos_token_id = ids


def weights_as_saved(
    model: PreTrainedModel, weights: Iterable[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights of a model as `save_pretrained` writes them, layer by layer.

    In memory, experts are stacked, and parts of a larger model have other prefixes.

    Args:
        model: The model.
        weights: Its named parameters, in order.
    """
    for _, layer in groupby(weights, key=lambda item: _LAYER.sub(r"\1", item[0])):
        yield from revert_weight_conversion(model, dict(layer)).items()


def matrices_as(dtype: torch.dtype, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield weights in a type, cast where they are, one at a time.

    Vectors keep their type: they are small, and vLLM computes with some of them in float32.
    """
    for name, value in weights:
        cast = value.is_floating_point() and value.dim() > 1
        yield name, value.detach().to(dtype) if cast else value.detach()
