"""The transformers class that loads a model, whether the pipeline supports it, and how its parameter names map to tensors in files."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from ngrpo.data.locations import explained
from ngrpo.errors import DataError

_OWN_STATE = {"minimax", "recurrent_gemma", "reformer", "rwkv", "xlnet", "xlstm"}
"""Model types that keep their state in a custom form instead of the standard cache of transformers."""
_ALWAYS_DECODERS = {"gpt_neox", "gpt_neox_japanese"}
"""Model types whose configuration inherits BERT's `is_decoder`, which has no effect."""
_CURE = "use a decoder-only language model (Llama, Qwen, Gemma, Mistral, OLMo, Mamba, ...; docs/models.md)"


def auto_class(config: PretrainedConfig, label: str) -> Any:
    """Return the auto class of a model: `AutoModelForCausalLM`, or `AutoModelForImageTextToText` if only that supports it.

    Args:
        config: Configuration of the model.
        label: Name of the model in errors.

    Raises:
        DataError: The model is not a language model that can be trained and sampled from.
    """
    kind = config.model_type
    if kind in _OWN_STATE:
        problem = "keeps its state in a custom form, so finished rollouts cannot be removed from a batch"
    elif config.is_encoder_decoder:
        problem = "has an encoder, so prompt and response are not one sequence"
    elif getattr(config, "is_decoder", True) is False and kind not in _ALWAYS_DECODERS:
        problem = "is an encoder (is_decoder=False), which does not continue a text"
    elif type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    elif type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    else:
        problem = "is not a language model that transformers supports without custom code"
    raise DataError(f"{label}: a model of type {kind!r} {problem}; {_CURE}")


def outline(config: PretrainedConfig, label: str) -> PreTrainedModel:
    """Build a model on the meta device: modules, parameter names and shapes, without weights.

    Raises:
        DataError: See `auto_class`; or no model can be built from the configuration.
    """
    kind = auto_class(config, label)
    with (
        explained(f"{label}: no model can be built from its config.json", "correct it in a copy of the model"),
        torch.device("meta"),
    ):
        # A copy, because building a model writes to its configuration.
        model: PreTrainedModel = kind.from_config(deepcopy(config))
    return model


def input_embedding(model: PreTrainedModel) -> str:
    """Return the name of the parameter that holds a model's input embeddings."""
    embedding = model.get_input_embeddings()
    return next(f"{name}.weight" for name, module in model.named_modules() if module is embedding)


def stored_name(model: PreTrainedModel, parameter: str, stored: Iterable[str]) -> str | None:
    """Return the name of a parameter's tensor in a model's files, or None if it is not there.

    Names in files can differ: from an older version of transformers, without the prefix of the base model, or with that of a larger model.

    Args:
        model: The model; it may be on the meta device.
        parameter: Name of the parameter in the model.
        stored: Names of the tensors in the files.
    """
    renamings, converters = _transforms(model)
    known = model.state_dict()
    return next(
        (
            name
            for name in stored
            if rename_source_key(name, renamings, converters, model.base_model_prefix, known)[0] == parameter
        ),
        None,
    )


def missing_weights(model: PreTrainedModel, stored: Iterable[str]) -> list[str]:
    """Return the parameters that are missing in a model's files, and that loading would silently initialize at random.

    Returns an empty list for models whose files store parts of parameters, such as stacked experts: their names cannot be compared.

    Args:
        model: The model; it may be on the meta device.
        stored: Names of the tensors in the files.
    """
    _, converters = _transforms(model)
    if converters:
        return []
    found = _loaded_as(model, stored)
    # Tied parameters are stored once, under one of their names.
    held = {id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False) if name in found}
    return [name for name, parameter in model.named_parameters() if id(parameter) not in held]


def _loaded_as(model: PreTrainedModel, stored: Iterable[str]) -> set[str]:
    """Return the parameter names of the tensors in a model's files."""
    renamings, converters = _transforms(model)
    known = model.state_dict()
    return {rename_source_key(name, renamings, converters, model.base_model_prefix, known)[0] for name in stored}


def _transforms(model: PreTrainedModel) -> tuple[list[WeightRenaming], list[WeightConverter]]:
    transforms = get_model_conversion_mapping(model)
    return (
        [transform for transform in transforms if isinstance(transform, WeightRenaming)],
        [transform for transform in transforms if isinstance(transform, WeightConverter)],
    )
