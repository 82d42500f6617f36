"""A model with wider attention heads that computes the same, for an engine that has no attention with heads as narrow as its own.

Rotary positions turn pair i of a head of d numbers (its numbers i and i + d/2) by the position times theta^(-2i/d). In a head of f·d
numbers that is the angle of pair f·i: each pair goes there, and zeros are between. Scores are divided by the root of the width, so that
queries are multiplied by the root of f.
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
    """Return the configuration of a model with heads that are wider; none where no such model computes the same.

    It has to be a Llama, whose class reads the width in `config.json`, with plain rotary positions, in float32: in another type the root
    of the factor would round the queries.

    Args:
        config: Configuration of the model.
        factor: How many times as wide.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    plain = rope.get("rope_type") == "default" and rope.get("partial_rotary_factor", 1.0) == 1.0
    if config.model_type != "llama" or not plain or config.dtype != torch.float32:
        return None
    wider = deepcopy(config)
    wider.head_dim = factor * config.head_dim
    return wider


def widening(config: PretrainedConfig, service: Service, label: str) -> int | None:
    """Return how many times as wide the heads of a model must be for vLLM to serve it; none where that is no cure.

    Args:
        config: Configuration of a model that vLLM could not serve as it is.
        service: How it is to be served.
        label: What it is called.
    """
    for factor in _FACTORS if service.dtype == "float32" else ():
        wider = wider_config(config, factor)
        with suppress(DataError):
            if wider is not None:
                require_service(outline(wider, label), service, label)
                return factor
    return None


def write_wider(source: Path, target: Path, factor: int) -> None:
    """Write a model with wider heads, whose configuration `wider_config` gives.

    Args:
        source: Directory of the model.
        target: Directory to write to; there is nothing in it.
        factor: How many times as wide.
    """
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    settings = json.loads((source / "config.json").read_bytes())
    width = settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"]
    (target / "config.json").write_text(json.dumps(settings | {"head_dim": factor * width}), encoding="utf-8")
    for path in source.glob("*.safetensors"):
        tensors = {name: _wider(name, tensor, width, factor) for name, tensor in load_file(path).items()}
        save_file(tensors, target / path.name, metadata={"format": "pt"})


def _wider(name: str, tensor: torch.Tensor, width: int, factor: int) -> torch.Tensor:
    """Return a tensor of the wider model; all but those of the projections stay.

    Args:
        name: Its name.
        tensor: A weight, [heads · width, hidden], of `o_proj` [hidden, heads · width]; or a bias, [heads · width].
        width: Numbers of a head.
        factor: How many times as wide.
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
