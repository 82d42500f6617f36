"""Model directories from elsewhere: their settings, tokenizer and weights are read, and no code of theirs is ever run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
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
from ngrpo.data.template_clock import stop_clock
from ngrpo.data.weights import weights_problem
from ngrpo.errors import DataError

WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
_GENERATION = "custom_generate/generate.py"
_ADAPTER = "adapter_config.json"
_GENERATION_SETTINGS = "generation_config.json"
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Values that are names on the hub (org/name) are fetched from there as code.
_KERNELS = re.compile(r"_?(attn|experts)_implementation")
_SHARD = re.compile(r"[\w.-]+\.safetensors")
# Without the first, a library asks on the terminal whether it may run code; the directory is all it is to look at.
_CLOSED = {"trust_remote_code": False, "local_files_only": True}
_COPY_AGAIN = "copy it again"


def require_no_code(directory: Path, label: str) -> None:
    """Refuse a model that brings code: what it needs to be right, nobody has looked at.

    Args:
        directory: Directory of the model.
        label: What it is called in the error.

    Raises:
        DataError: Its settings name code of its own or of the hub, or are damaged.
    """
    found = [_GENERATION] if (directory / _GENERATION).exists() else []
    for name in _SETTINGS:
        if (directory / name).is_file():
            found += [f"{place} in {name}" for place in _code(_settings(directory / name, label))]
    if found:
        raise DataError(
            f"{label}: it brings code of its own ({found[0]}), which is never run: use a model that transformers knows by itself, "
            "or a copy without that code if the model is right without"
        )


def read_config(directory: Path, label: str) -> PretrainedConfig:
    """Return the configuration of a model.

    Raises:
        DataError: It is missing, damaged, brings code, or has an adapter beside it.
    """
    if not (directory / "config.json").is_file():
        raise DataError(f"{label}: no config.json; the directory must be one that save_pretrained wrote")
    require_no_code(directory, label)
    if (directory / _ADAPTER).is_file():
        # The library would put it into the model without a word.
        raise DataError(
            f"{label}: an adapter ({_ADAPTER}) lies beside the model; merge the two (peft's merge_and_unload, then save_pretrained), or "
            "leave the adapter's files out of a copy"
        )
    with explained(f"{label}: config.json cannot be used", _COPY_AGAIN, directory):
        config: PretrainedConfig = AutoConfig.from_pretrained(directory, **_CLOSED)
        if not isinstance(config.get_text_config().vocab_size, int):
            raise TypeError(f"vocab_size={config.get_text_config().vocab_size!r} is no whole number")
    return config


def read_tokenizer(directory: Path, label: str, day: date = TEMPLATE_DATE, **options: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model, with a chat template that can be used.

    Args:
        directory: Directory of the model.
        label: What it is called in the error.
        day: The day that its template is told.
        options: Options of `from_pretrained`.

    Raises:
        DataError: It is missing or damaged, brings code, or its chat template cannot be used.
    """
    tokenizer = read_bare_tokenizer(directory, label, **options)
    require_template(tokenizer, label, day)
    stop_clock(tokenizer, day)
    return tokenizer


def read_bare_tokenizer(directory: Path, label: str, **options: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model, whether or not it can write chats; see `read_tokenizer`."""
    if not any((directory / file).is_file() for file in _TOKENIZERS):
        raise DataError(f"{label}: no tokenizer; save it there with save_pretrained")
    require_no_code(directory, label)
    with explained(f"{label}: its tokenizer cannot be used", _COPY_AGAIN, directory):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, **_CLOSED, **options)
    return tokenizer


def read_model(directory: Path, label: str, dtype: str) -> PreTrainedModel:
    """Return the model in a directory. Generation settings that could not be saved again are left out, but for their tokens.

    Args:
        directory: Directory of the model.
        label: What it is called in the error.
        dtype: Name of a torch type.

    Raises:
        DataError: Configuration or weights are missing or damaged, the weights are pickles, there is code, or it is no language model
            that can be used here (see `auto_class`).
    """
    require_weights(directory, label)
    config = read_config(directory, label)
    loader = auto_class(config, label)
    if hasattr(config.get_text_config(), "output_router_logits"):
        # Trainers ask for them where they need them; a model that always gives them cannot decode with a cache.
        config.get_text_config().output_router_logits = False
    with explained(f"{label}: its weights cannot be used", _COPY_AGAIN, directory):
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
    """Return the generation settings of a model; empty ones where it has none.

    Raises:
        DataError: They are damaged, or contradict themselves.
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
                raise TypeError(f"{name}={value!r} is no id of a token")
    return settings


def generation_problem(settings: GenerationConfig) -> str | None:
    """Say why generation settings could not be saved with a trained model; none if they can."""
    try:
        settings.validate(strict=True)
    except ValueError as error:
        return " ".join(str(error).split())
    return None


def require_weights(directory: Path, label: str) -> None:
    """Refuse a directory without all weights in safetensors format; pickles are not read.

    Raises:
        DataError: Files are missing, the index of shards is damaged, or a number is not finite.
    """
    _require_files(directory, label)
    problem = weights_problem(directory)
    if problem is not None:
        raise DataError(f"{label}: its weights cannot be used: {problem}; copy or save the model again")


def tensor_shapes(directory: Path, label: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a directory by name, which the files' headers hold: no weights are read.

    Raises:
        DataError: A file is damaged, or one that the index of shards names is missing. A directory without any is empty.
    """
    paths = sorted(directory.glob("*.safetensors"))
    if paths:
        _require_files(directory, label)
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        with (
            explained(f"{label}: {path.name} cannot be used", _COPY_AGAIN, directory),
            safe_open(path, framework="pt") as file,
        ):
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    return shapes


def _require_files(directory: Path, label: str) -> None:
    files = {WEIGHTS}
    if (directory / SHARDS).is_file():
        files = set(shards(_settings(directory / SHARDS, label), f"{label}: {SHARDS}").values())
    missing = sorted(file for file in files if not (directory / file).is_file())
    if missing:
        raise DataError(
            f"{label}: no weights: {', '.join(missing)} missing; save the model with save_pretrained (safetensors)"
        )


def shards(index: Any, label: str) -> Mapping[str, str]:
    """Return the file of each tensor as an index of shards has it.

    Raises:
        DataError: It is no such index, or names a file that is no safetensors file beside it.
    """
    held = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(held, dict) or not held:
        raise DataError(f"{label}: damaged (it has no weight_map); {_COPY_AGAIN}")
    wrong = next((file for file in held.values() if not isinstance(file, str) or not _SHARD.fullmatch(file)), None)
    if wrong is not None:
        raise DataError(
            f"{label}: it names {str(wrong)[:80]!r}, which is no safetensors file beside it; save the model with save_pretrained"
        )
    return held


def _settings(path: Path, label: str) -> dict[str, Any]:
    with explained(f"{label}: {path.name} cannot be used", _COPY_AGAIN, path.parent):
        tree = json.loads(path.read_bytes().decode("utf-8"))
        if not isinstance(tree, dict):
            raise TypeError(f"it holds a {type(tree).__name__}, no object")
    settings: dict[str, Any] = tree
    return settings


def _code(tree: Any) -> Iterator[str]:
    """Yield the settings, however deep, that name code."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == "auto_map" and value:
                yield name
            elif _KERNELS.fullmatch(name) and "/" in str(value):
                yield f"{name}={value!r}"
            else:
                yield from _code(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _code(value)
