"""Check the files of an untrusted model directory without importing transformers, which takes seconds."""

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
# If the value is a hub id (org/name), transformers downloads code from there.
_KERNELS = re.compile(r"_?(attn|experts)_implementation")
_SHARD = re.compile(r"[\w.-]+\.safetensors")


def require_no_code(directory: Path, label: str) -> None:
    """Refuse a model with custom code: nobody has reviewed it, and the model may be wrong without it.

    Args:
        directory: Directory of the model.
        label: Name of the model in errors.

    Raises:
        DataError: The model's files refer to custom code, in the directory or on the hub, or are damaged.
    """
    found = [_GENERATION] if (directory / _GENERATION).exists() else []
    for name in _SETTINGS:
        if (directory / name).is_file():
            found += [f"{place} in {name}" for place in _code(settings_of(directory / name, label))]
    if found:
        raise DataError(
            f"{label}: it comes with custom code ({found[0]}), which is never run: use a model that transformers supports, "
            "or a copy without that code if the model is correct without it"
        )


def require_no_adapter(directory: Path, label: str) -> None:
    """Refuse a model with an adapter beside it, which transformers would load silently.

    Raises:
        DataError: There is one.
    """
    if (directory / _ADAPTER).is_file():
        raise DataError(
            f"{label}: an adapter ({_ADAPTER}) lies beside the model; merge the two (peft's merge_and_unload, then save_pretrained), or "
            "leave the adapter's files out of a copy"
        )


def require_unquantized(directory: Path, label: str) -> None:
    """Refuse a model with quantized weights: they can neither be trained nor saved in the format that stages exchange.

    Raises:
        DataError: The weights are quantized, or config.json is damaged.
    """
    tree = settings_of(directory / CONFIG, label)
    for settings in (tree, *(tree[name] for name in _TEXT if isinstance(tree.get(name), dict))):
        quantization = settings.get("quantization_config")
        if quantization is not None:
            method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
            raise DataError(
                f"{label}: its weights are quantized (quantization_config in config.json, quant_method={method!r}), so they cannot be "
                "trained; use the model that it was quantized from, or dequantize it and save it with save_pretrained"
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
    """Return the shapes of the tensors in a directory by name, from the files' headers; empty if there are no safetensors files.

    Raises:
        DataError: A file is damaged, or the shard index lists a file that is missing.
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
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a mapping
    return shapes


def shards(index: Any, label: str) -> Mapping[str, str]:
    """Return the file of each tensor from a parsed shard index.

    Raises:
        DataError: The index is damaged, or names something other than a safetensors file in the same directory.
    """
    held = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(held, dict) or not held:
        raise DataError(f"{label}: damaged (it has no weight_map); {COPY_AGAIN}")
    wrong = next((file for file in held.values() if not isinstance(file, str) or not _SHARD.fullmatch(file)), None)
    if wrong is not None:
        raise DataError(
            f"{label}: it names {str(wrong)[:80]!r}, which is not a safetensors file beside it; save the model with save_pretrained"
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
            raise TypeError(f"it holds a {type(tree).__name__}, not an object")
    settings: dict[str, Any] = tree
    return settings


def _code(tree: Any) -> Iterator[str]:
    """Yield the settings, at any depth, that refer to custom code."""
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
