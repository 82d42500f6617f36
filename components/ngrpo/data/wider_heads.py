"""Convert a model to an equivalent one with wider attention heads, for engines that do not support its head size.

Rotary position embeddings rotate pair i of a head of size d (components i and i + d/2) by position · theta^(-2i/d). In a head of size f·d,
pair f·i has the same angle, so each pair i moves there, with zeros in between. Attention scores are divided by the square root of the head
size, so queries are multiplied by the square root of f.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig

from ngrpo.data.model_class import outline
from ngrpo.data.vllm_service import Service, require_service
from ngrpo.errors import DataError

_FACTORS = (2, 4)
_PROJECTION = re.compile(r"\.self_attn\.([qkvo])_proj\.(weight|bias)$")


def wider_config(config: PretrainedConfig, factor: int) -> PretrainedConfig | None:
    """Return the configuration of the equivalent model with wider heads, or None if there is no equivalent.

    The model must be a Llama (whose class reads `head_dim`), with plain rotary embeddings, in float32: in other dtypes, multiplying by the
    square root of the factor would round the queries.

    Args:
        config: Configuration of the model.
        factor: Ratio of the new to the old head size.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    plain = rope.get("rope_type") == "default" and rope.get("partial_rotary_factor", 1.0) == 1.0
    if config.model_type != "llama" or not plain or config.dtype != torch.float32:
        return None
    wider = deepcopy(config)
    wider.head_dim = factor * config.head_dim
    return wider


def widening(config: PretrainedConfig, service: Service, label: str) -> int | None:
    """Return the factor by which to widen a model's heads so that vLLM can serve it, or None if widening does not help.

    Args:
        config: Configuration of a model that vLLM cannot serve unchanged.
        service: How vLLM is to serve it.
        label: Name of the model in errors.
    """
    for factor in _FACTORS if service.dtype == "float32" else ():
        wider = wider_config(config, factor)
        with suppress(DataError):
            if wider is not None:
                require_service(outline(wider, label), service, label)
                return factor
    return None


def write_wider(source: Path, target: Path, factor: int) -> None:
    """Write the equivalent model with wider heads; `wider_config` must have returned a configuration for it.

    Args:
        source: Directory of the model.
        target: Empty directory to write to.
        factor: Ratio of the new to the old head size.
    """
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    settings = json.loads((source / "config.json").read_bytes())
    width = settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"]
    (target / "config.json").write_text(json.dumps(settings | {"head_dim": factor * width}), encoding="utf-8")
    for path in source.glob("*.safetensors"):
        tensors = {name: _wider(name, tensor, width, factor) for name, tensor in load_file(path).items()}
        save_file(tensors, target / path.name, metadata={"format": "pt"})


def _wider(name: str, tensor: torch.Tensor, width: int, factor: int) -> torch.Tensor:
    """Return a tensor of the wider model; only those of attention projections change.

    Args:
        name: Name of the tensor.
        tensor: Weight `[heads · width, hidden]` (`o_proj`: `[hidden, heads · width]`) or bias `[heads · width]`.
        width: Old head size.
        factor: Ratio of the new to the old head size.
    """
    found = _PROJECTION.search(name)
    if found is None or (found[1], found[2]) == ("o", "bias"):
        return tensor
    rows = tensor.T if found[1] == "o" else tensor
    heads = rows.reshape(-1, width, *rows.shape[1:])
    wider = heads.new_zeros(len(heads), factor * width, *rows.shape[1:])
    wider[:, ::factor] = heads * (math.sqrt(factor) if found[1] == "q" else 1.0)
    rows = wider.flatten(0, 1)
    return (rows.T if found[1] == "o" else rows).contiguous()
