"""Read only the input embedding matrix of a base model, from a directory or with ranged reads from object storage."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ngrpo.config import BaseModelSource, CopiedModel, RegisteredModel
from ngrpo.data.copies import require_planned
from ngrpo.data.locations import is_bucket
from ngrpo.data.model_class import input_embedding, outline, stored_name
from ngrpo.data.model_directory import read_bare_tokenizer, read_config
from ngrpo.data.model_files import SHARDS, WEIGHTS, shards
from ngrpo.data.models import materialize, materialize_tokenizer
from ngrpo.data.token_rows import require_rows
from ngrpo.errors import DataError

_SUFFIX = "embed_tokens.weight"
"""Usual name of the input embedding, used if there is no configuration."""
_OUTPUT = "lm_head.weight"
"""If input and output embeddings are tied, files may store them only under this name."""
_LONGEST_HEADER = 100_000_000
"""Largest header that the safetensors format allows, in bytes."""
_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Read = Callable[[str, int, int | None], Any]
"""Takes file name, first byte, and number of bytes (None for all). Returns a writable buffer, shorter if the file ends early, or None if
there is no such file."""


def load_embedding(source: BaseModelSource, directory: Path) -> tuple[Tensor, PreTrainedTokenizerBase]:
    """Return the input embedding matrix of a base model and its tokenizer.

    From object storage only the tokenizer, the configuration and the matrix are read, not the other weights.

    Args:
        source: Source of the model.
        directory: Directory for downloaded or generated files; existing files are replaced.

    Returns:
        The matrix `[V, d]` and the tokenizer.

    Raises:
        DataError: The model cannot be reached, has no tokenizer or input embedding, or the two do not fit together.
        StoreError: The object store that holds the copy cannot be reached or refuses the credentials.
    """
    if not (isinstance(source, CopiedModel | RegisteredModel) and is_bucket(source.location)):
        path = materialize(source, directory, None)
        return read_embedding(path), read_bare_tokenizer(path, f"model {str(path)!r}")
    from ngrpo.storage.objects import ObjectStore

    tokenizer = materialize_tokenizer(source, directory)
    config = read_config(directory, f"model {source.location!r}")
    embedding = _read(source.location, ObjectStore(source.location).get_range, config)
    if isinstance(source, CopiedModel):
        require_planned(source)
    require_rows(tokenizer, len(embedding), f"model {source.location!r}")
    return embedding, tokenizer


def read_embedding(model: Path) -> Tensor:
    """Return the input embedding matrix `[V, d]` of a model directory, memory-mapped, in its stored dtype.

    The model class decides which tensor that is, because vision and audio towers have embeddings as well.

    Args:
        model: Directory with `config.json` and `model.safetensors`, or with shards and `model.safetensors.index.json`.

    Raises:
        DataError: The files are missing or damaged, or contain no input embedding.
    """

    def read(name: str, start: int, length: int | None) -> Any:
        path = model / name
        if not path.is_file():
            return None
        with path.open("rb") as file:
            if path.stat().st_size == 0:  # an empty file cannot be mapped
                return bytearray()
            # Copy-on-write: writes to the buffer never reach the file.
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        return content[start : None if length is None else start + length]

    config = read_config(model, f"model {model}") if (model / "config.json").is_file() else None
    return _read(str(model), read, config)


def _read(model: str, read: Read, config: PretrainedConfig | None) -> Tensor:
    index = read(SHARDS, 0, None)
    if index is not None:
        held = shards(_parsed(f"{model}/{SHARDS}", index), f"model file {model}/{SHARDS}")
    else:
        held = dict.fromkeys(_header(model, WEIGHTS, read)[0], WEIGHTS)
    if config is None:
        wanted = f"*{_SUFFIX}"
        name = next((name for name in held if name.endswith(_SUFFIX)), None)
    else:
        described = outline(config, f"model {model}")
        wanted = input_embedding(described)
        name = stored_name(described, wanted, held)
        if name is None and _OUTPUT in held and config.tie_word_embeddings:
            name = _OUTPUT
    if name is None:
        raise DataError(
            f"model {model}: no input embedding (a tensor named {wanted}) in {', '.join(sorted(set(held.values())))}"
        )
    header, data = _header(model, held[name], read)
    try:
        dtype, (rows, columns) = _TYPES[header[name]["dtype"]], header[name]["shape"]
        start, stop = header[name]["data_offsets"]
        sound = min(rows, columns) > 0 <= start < stop and all(type(n) is int for n in (rows, columns, start, stop))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(f"{model}/{held[name]}", f"{name} is not a matrix of floating-point numbers") from error
    if not sound:
        raise _damaged(f"{model}/{held[name]}", f"{name} has an impossible shape or place")
    content = read(held[name], data + start, stop - start)
    if content is None or not len(content) == stop - start == rows * columns * dtype.itemsize:
        raise _damaged(f"{model}/{held[name]}", f"it ends within {name}")
    return torch.frombuffer(content, dtype=dtype).view(rows, columns)


def _header(model: str, file: str, read: Read) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file, by tensor, and the offset of the data."""
    length = read(file, 0, 8)
    if length is None:
        raise DataError(f"model {model}: {file} is missing; the model needs weights in safetensors format")
    size = int.from_bytes(length, "little")
    if len(length) < 8 or size > _LONGEST_HEADER:
        raise _damaged(f"{model}/{file}", "it has no header")
    header = _parsed(f"{model}/{file}", read(file, 8, size))
    header.pop("__metadata__", None)
    return header, 8 + size


def _parsed(file: str, content: Any) -> dict[str, Any]:
    try:
        values = json.loads(bytes(content).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(file, str(error)) from error
    if not isinstance(values, dict):
        raise _damaged(file, "it holds no JSON object")
    return values


def _damaged(file: str, what: str) -> DataError:
    return DataError(f"model file {file}: damaged ({what}); download or publish it again")
