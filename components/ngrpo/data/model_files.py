"""Files of a model directory, read without a library of models, which takes seconds to import: settings, code, headers of the weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ngrpo.data.locations import explained
from ngrpo.errors import DataError

CONFIG = "config.json"
WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
COPY_AGAIN = "copy it again"
_SETTINGS = (
    CONFIG,
    "generation_config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
_GENERATION = "custom_generate/generate.py"
_TEXT = ("text_config", "decoder", "generator")
"""Sections of a config.json that may describe the language model of a larger one."""
_ADAPTER = "adapter_config.json"
# Values that are names on the hub (org/name) are fetched from there as code.
_KERNELS = re.compile(r"_?(attn|experts)_implementation")
_SHARD = re.compile(r"[\w.-]+\.safetensors")


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
            found += [f"{place} in {name}" for place in _code(settings_of(directory / name, label))]
    if found:
        raise DataError(
            f"{label}: it brings code of its own ({found[0]}), which is never run: use a model that transformers knows by itself, "
            "or a copy without that code if the model is right without"
        )


def require_no_adapter(directory: Path, label: str) -> None:
    """Refuse a model with an adapter beside it, which the library would merge into the model without saying so.

    Raises:
        DataError: There is one.
    """
    if (directory / _ADAPTER).is_file():
        raise DataError(
            f"{label}: an adapter ({_ADAPTER}) lies beside the model; merge the two (peft's merge_and_unload, then save_pretrained), or "
            "leave the adapter's files out of a copy"
        )


def require_unquantized(directory: Path, label: str) -> None:
    """Refuse a model with quantized weights: they can neither be trained nor saved as the numbers that stages pass on.

    Raises:
        DataError: They are quantized, or config.json is damaged.
    """
    tree = settings_of(directory / CONFIG, label)
    for settings in (tree, *(tree[name] for name in _TEXT if isinstance(tree.get(name), dict))):
        quantization = settings.get("quantization_config")
        if quantization is not None:
            method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
            raise DataError(
                f"{label}: its weights are quantized (quantization_config in config.json, quant_method={method!r}), so they cannot be "
                "trained; use the model that it was made from, or dequantize it and save it with save_pretrained"
            )


def require_files(directory: Path, label: str) -> None:
    """Refuse a directory without all files of its weights.

    Raises:
        DataError: Files are missing, or the index of shards is damaged.
    """
    files = {WEIGHTS}
    if (directory / SHARDS).is_file():
        files = set(shards(settings_of(directory / SHARDS, label), f"{label}: {SHARDS}").values())
    missing = sorted(file for file in files if not (directory / file).is_file())
    if missing:
        raise DataError(
            f"{label}: no weights: {', '.join(missing)} missing; save the model with save_pretrained (safetensors)"
        )


def tensor_shapes(directory: Path, label: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a directory by name, which the files' headers hold: no weights are read.

    Raises:
        DataError: A file is damaged, or one that the index of shards names is missing. A directory without any is empty.
    """
    paths = sorted(directory.glob("*.safetensors"))
    if paths:
        require_files(directory, label)
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        with (
            explained(f"{label}: {path.name} cannot be used", COPY_AGAIN, directory),
            safe_open(path, framework="np") as file,
        ):
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    return shapes


def shards(index: Any, label: str) -> Mapping[str, str]:
    """Return the file of each tensor as an index of shards has it.

    Raises:
        DataError: It is no such index, or names a file that is no safetensors file beside it.
    """
    held = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(held, dict) or not held:
        raise DataError(f"{label}: damaged (it has no weight_map); {COPY_AGAIN}")
    wrong = next((file for file in held.values() if not isinstance(file, str) or not _SHARD.fullmatch(file)), None)
    if wrong is not None:
        raise DataError(
            f"{label}: it names {str(wrong)[:80]!r}, which is no safetensors file beside it; save the model with save_pretrained"
        )
    return held


def settings_of(path: Path, label: str) -> dict[str, Any]:
    """Return the JSON object in a file of a model.

    Args:
        path: The file.
        label: What the model is called in the error.

    Raises:
        DataError: It cannot be read, or holds something else.
    """
    with explained(f"{label}: {path.name} cannot be used", COPY_AGAIN, path.parent):
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
