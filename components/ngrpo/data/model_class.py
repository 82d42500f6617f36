"""Which class of transformers a model directory is loaded with, whether the pipeline can use it, and what that class calls its weights."""

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
"""Models that keep what they have read in a form of their own, not in the cache that transformers has for all others."""
_ALWAYS_DECODERS = {"gpt_neox", "gpt_neox_japanese"}
"""Their settings have the switch `is_decoder` of BERT's kind, where it means nothing."""
_CURE = "use a decoder-only language model (Llama, Qwen, Gemma, Mistral, OLMo, Mamba, ...; docs/models.md)"


def auto_class(config: PretrainedConfig, label: str) -> Any:
    """Return what loads a model: `AutoModelForCausalLM`, or, for a model of images and text that this does not know, its counterpart.

    Args:
        config: Configuration of the model.
        label: What the model is called in the error.

    Raises:
        DataError: It is no language model that can be trained and sampled from here.
    """
    kind = config.model_type
    if kind in _OWN_STATE:
        problem = "keeps its state in a form of its own, so rollouts cannot leave a batch when they end"
    elif config.is_encoder_decoder:
        problem = "has an encoder, so prompt and response are not one sequence"
    elif getattr(config, "is_decoder", True) is False and kind not in _ALWAYS_DECODERS:
        problem = "is an encoder (is_decoder=False), which does not continue a text"
    elif type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    elif type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    else:
        problem = "is no language model that transformers knows by itself"
    raise DataError(f"{label}: a model of type {kind!r} {problem}; {_CURE}")


def outline(config: PretrainedConfig, label: str) -> PreTrainedModel:
    """Return a model without the content of its weights: its modules, and the names and shapes of its parameters.

    Raises:
        DataError: See `auto_class`; or the configuration describes no model that can be made here.
    """
    kind = auto_class(config, label)
    with (
        explained(f"{label}: no model can be made of its config.json", "correct it in a copy of the model"),
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
    """Return what a parameter is called among the tensors of a model's files; none if it is not there.

    Files have names of their own: those of an older version of the library, without the prefix of the class, or of a larger model.

    Args:
        model: The model, with or without the content of its weights.
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
    """Return the parameters of a model that its files do not hold, and that loading would fill with random numbers in silence.

    Where files hold parts of a parameter, as of stacked experts, nothing is said.

    Args:
        model: The model, with or without the content of its weights.
        stored: Names of the tensors in the files.
    """
    _, converters = _transforms(model)
    if converters:
        return []
    found = _loaded_as(model, stored)
    # Tied parameters are there once, by one of their names.
    held = {id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False) if name in found}
    return [name for name, parameter in model.named_parameters() if id(parameter) not in held]


def _loaded_as(model: PreTrainedModel, stored: Iterable[str]) -> set[str]:
    """Return what tensors of a model's files are called in the model."""
    renamings, converters = _transforms(model)
    known = model.state_dict()
    return {rename_source_key(name, renamings, converters, model.base_model_prefix, known)[0] for name in stored}


def _transforms(model: PreTrainedModel) -> tuple[list[WeightRenaming], list[WeightConverter]]:
    transforms = get_model_conversion_mapping(model)
    return (
        [transform for transform in transforms if isinstance(transform, WeightRenaming)],
        [transform for transform in transforms if isinstance(transform, WeightConverter)],
    )
