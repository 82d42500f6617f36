"""Read the input embedding matrix of a saved model without loading the model."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ngrpo.errors import DataError

_SUFFIX = "embed_tokens.weight"
_OTHER_NAMES = ("transformer.wte.weight", "gpt_neox.embed_in.weight")


def read_embedding(model: Path) -> Tensor:
    """Return the input embedding matrix `[V, d]` of a model directory, in the type it is stored in.

    Args:
        model: Directory with `model.safetensors`, or with shards and `model.safetensors.index.json`.

    Raises:
        DataError: There are no such files, or none holds an input embedding.
    """
    shards = model / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if shards.exists():
        files = sorted(set(json.loads(shards.read_text(encoding="utf-8"))["weight_map"].values()))
    for name in files:
        if not (model / name).exists():
            raise DataError(
                f"model directory {model}: {name} is missing; the model needs weights in safetensors format"
            )
        try:
            with safe_open(model / name, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                    if key.endswith(_SUFFIX) or key in _OTHER_NAMES:
                        return tensors.get_tensor(key)
        except SafetensorError as error:
            raise DataError(f"model file {model / name}: damaged ({error}); download or publish it again") from error
    raise DataError(f"model directory {model}: no input embedding (a tensor named *{_SUFFIX}) in {', '.join(files)}")
