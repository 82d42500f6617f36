"""Read configuration, tokenizer and weights of untrusted model directories; their custom code is never run."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ngrpo.config.sections import TEMPLATE_DATE
from ngrpo.data.chat import require_template
from ngrpo.data.locations import explained
from ngrpo.data.model_class import auto_class
from ngrpo.data.model_files import CONFIG, COPY_AGAIN, require_files, require_no_adapter, require_no_code
from ngrpo.data.template_clock import stop_clock
from ngrpo.data.weights import weights_problem
from ngrpo.errors import DataError

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_GENERATION_SETTINGS = "generation_config.json"
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Unless `trust_remote_code` is False, transformers asks on the terminal whether it may run code. Only local files may be read.
_CLOSED = {"trust_remote_code": False, "local_files_only": True}


def read_config(directory: Path, label: str) -> PretrainedConfig:
    """Return the configuration of a model.

    Raises:
        DataError: It is missing or damaged, refers to custom code, or the directory also holds an adapter.
    """
    if not (directory / CONFIG).is_file():
        raise DataError(f"{label}: no config.json; the directory must be one that save_pretrained wrote")
    require_no_code(directory, label)
    require_no_adapter(directory, label)
    with explained(f"{label}: config.json cannot be used", COPY_AGAIN, directory):
        config: PretrainedConfig = AutoConfig.from_pretrained(directory, **_CLOSED)
        if not isinstance(config.get_text_config().vocab_size, int):
            raise TypeError(f"vocab_size={config.get_text_config().vocab_size!r} is not a whole number")
    return config


def read_tokenizer(directory: Path, label: str, day: date = TEMPLATE_DATE, **options: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model, after checking its chat template.

    Args:
        directory: Directory of the model.
        label: Name of the model in errors.
        day: Date that the chat template sees as today.
        options: Options of `from_pretrained`.

    Raises:
        DataError: The tokenizer is missing or damaged, refers to custom code, or has no usable chat template.
    """
    tokenizer = read_bare_tokenizer(directory, label, **options)
    require_template(tokenizer, label, day)
    stop_clock(tokenizer, day)
    return tokenizer


def read_bare_tokenizer(directory: Path, label: str, **options: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model without checking its chat template; see `read_tokenizer`."""
    if not any((directory / file).is_file() for file in _TOKENIZERS):
        raise DataError(f"{label}: no tokenizer; save it there with save_pretrained")
    require_no_code(directory, label)
    with explained(f"{label}: its tokenizer cannot be used", COPY_AGAIN, directory):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, **_CLOSED, **options)
    return tokenizer


def read_model(directory: Path, label: str, dtype: str) -> PreTrainedModel:
    """Load the model in a directory. Of generation settings that cannot be saved again, only the token ids are kept.

    Args:
        directory: Directory of the model.
        label: Name of the model in errors.
        dtype: Name of a torch dtype.

    Raises:
        DataError: Configuration or weights are missing or damaged, the weights are pickles, there is custom code, or the model is not
            supported (see `auto_class`).
    """
    require_weights(directory, label)
    config = read_config(directory, label)
    loader = auto_class(config, label)
    if hasattr(config.get_text_config(), "output_router_logits"):
        # Trainers request router logits when they need them. A model that always returns them cannot decode with a cache.
        config.get_text_config().output_router_logits = False
    with explained(f"{label}: its weights cannot be used", COPY_AGAIN, directory):
        model: PreTrainedModel
        model, loading = loader.from_pretrained(
            directory,
            config=config,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
            **_CLOSED,
        )
        missing = sorted(loading["missing_keys"])
        if missing:
            raise ValueError(
                f"{len(missing)} of them are missing, {missing[0]} for example, and would be random numbers"
            )
    if generation_problem(model.generation_config) is not None:
        kept = {name: getattr(model.generation_config, name) for name in _TOKENS}
        model.generation_config = GenerationConfig(**kept)
    return model


def read_generation_config(directory: Path, label: str) -> GenerationConfig:
    """Return the generation settings of a model, or default ones if it has none.

    Raises:
        DataError: They are damaged, or a token id is not an integer.
    """
    if not (directory / _GENERATION_SETTINGS).is_file():
        return GenerationConfig()
    with explained(
        f"{label}: {_GENERATION_SETTINGS} cannot be used", "correct it in a copy of the model, or delete it", directory
    ):
        settings: GenerationConfig = GenerationConfig.from_pretrained(directory, local_files_only=True)
        for name in _TOKENS:
            value = getattr(settings, name)
            if not all(type(token) is int for token in (value if isinstance(value, list) else [value or 0])):
                raise TypeError(f"{name}={value!r} is not a token id")
    return settings


def generation_problem(settings: GenerationConfig) -> str | None:
    """Return why generation settings cannot be saved with a trained model, or None if they can."""
    try:
        settings.validate(strict=True)
    except ValueError as error:
        return " ".join(str(error).split())
    return None


def require_weights(directory: Path, label: str) -> None:
    """Refuse a directory without complete weights in safetensors format; pickles are not read.

    Raises:
        DataError: Files are missing, the shard index is damaged, or a weight is NaN or infinite.
    """
    require_files(directory, label)
    problem = weights_problem(directory)
    if problem is not None:
        raise DataError(f"{label}: its weights cannot be used: {problem}; copy or save the model again")
