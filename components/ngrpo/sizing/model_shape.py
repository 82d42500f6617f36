"""Shape and parameter count of a model, without its weights and without importing transformers, which takes seconds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngrpo.config import BaseModelSource, CopiedModel, HubModel, InitializedModel, PackagedModel
from ngrpo.config.sources import is_bucket
from ngrpo.data.locations import is_local
from ngrpo.data.vocabularies import VOCABULARIES
from ngrpo.sizing.known_models import KNOWN

_COUNTED_BY_FORMULA = {"llama": 0, "mistral": 0, "smollm3": 0, "qwen2": 1, "qwen3": 0}
"""Model types whose layers have four attention projections, three feed-forward matrices and two norms; 1 if q, k and v have a bias."""
_NORMED_HEADS = {"qwen3"}
"""Model types with an additional norm for queries and one for keys, each of head size."""
_FURTHER_TOKENS = 7
"""Tokens of `ngrpo.data.word_tokenizer` in addition to the words."""
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class ModelShape:
    """The dimensions that determine the memory of a model."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate_size: int
    vocabulary: int
    parameters: int
    stored: int
    """Bytes per parameter in the model's files."""

    @property
    def embedding(self) -> int:
        """Numbers in the input embedding matrix."""
        return self.vocabulary * self.hidden_size

    @property
    def layer(self) -> int:
        """Parameters of one layer, without norms and biases."""
        attention = 2 * self.hidden_size * self.head_size * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden_size * self.intermediate_size

    @property
    def cached(self) -> int:
        """Numbers per token in the KV cache: keys and values of all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size


def model_shape(source: BaseModelSource) -> ModelShape | None:
    """Return the shape of a base model, or None if it is unknown.

    In a local directory, configuration and parameter count are read from the files; in the hub's cache, only the configuration. Other
    models are known if a preset uses one of that name. Nothing is downloaded.

    Args:
        source: Source of the model.
    """
    if isinstance(source, InitializedModel):
        return _of_settings(_initialized(source))
    if isinstance(source, PackagedModel):
        return _of_settings(KNOWN.get(source.package))
    if not isinstance(source, CopiedModel):
        return None
    if not is_bucket(source.location) and is_local(source.location):
        place = Path(source.location).expanduser()
        return _of_settings(_read(place / "config.json"), _counted(place))
    known = KNOWN.get(source.location.rstrip("/").rpartition("/")[2])
    return _of_settings(_from_cache(source) or known)


def _initialized(source: InitializedModel) -> Mapping[str, Any]:
    return {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "hidden_size": source.hidden_size,
        "num_hidden_layers": source.layers,
        "num_attention_heads": source.heads,
        "num_key_value_heads": source.kv_heads,
        "intermediate_size": source.intermediate_size,
        "vocab_size": len(VOCABULARIES[source.vocabulary]) + _FURTHER_TOKENS,
    }


def _of_settings(settings: Mapping[str, Any] | None, counted: int | None = None) -> ModelShape | None:
    """Return the shape that a `config.json` describes; None if a dimension is missing or the parameters cannot be counted."""
    if settings is None:
        return None
    inner = settings.get("text_config")
    tree = {**settings, **inner} if isinstance(inner, Mapping) else settings
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    numbers = [tree.get(name) for name in names]
    if not all(type(number) is int and number > 0 for number in numbers):
        return None
    hidden, layers, heads, intermediate, vocabulary = (int(number or 0) for number in numbers)
    kv_heads, head_size = tree.get("num_key_value_heads"), tree.get("head_dim")
    kv_heads = kv_heads if type(kv_heads) is int and kv_heads > 0 else heads
    head_size = head_size if type(head_size) is int and head_size > 0 else hidden // heads
    kind = tree.get("model_type")
    if counted is None:
        if kind not in _COUNTED_BY_FORMULA:
            return None
        wide, narrow = heads * head_size, kv_heads * head_size
        layer = 2 * hidden * (wide + narrow) + 3 * hidden * intermediate + 2 * hidden
        layer += (wide + 2 * narrow) * _COUNTED_BY_FORMULA[kind] + 2 * head_size * (kind in _NORMED_HEADS)
        matrices = 1 if tree.get("tie_word_embeddings", False) else 2
        counted = layers * layer + matrices * vocabulary * hidden + hidden
    stored = _BYTES.get(str(tree.get("dtype") or tree.get("torch_dtype")), 4)
    return ModelShape(hidden, layers, heads, kv_heads, head_size, intermediate, vocabulary, counted, stored)


def _from_cache(source: CopiedModel) -> Mapping[str, Any] | None:
    """Return the configuration of a hub model if it is already in the hub's cache."""
    if not isinstance(source, HubModel) or is_bucket(source.id):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.id, "config.json", revision=source.revision)
    return _read(Path(found)) if isinstance(found, str) else None


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None  # `ngrpo.checking.places` reports what is wrong
    return tree if isinstance(tree, dict) else None


def _counted(place: Path) -> int | None:
    """Count the parameters in the safetensors files of a directory, from their headers; None if there are no readable files."""
    files = sorted(path for path in place.glob("*.safetensors") if not path.name.startswith("adapter_"))
    try:
        return sum(map(_numbers, files)) if files else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # as above


def _numbers(file: Path) -> int:
    with file.open("rb") as content:
        size = int.from_bytes(content.read(8), "little")
        if size > _LONGEST_HEADER:
            raise ValueError(f"{file} has no header")
        header = json.loads(content.read(size))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
