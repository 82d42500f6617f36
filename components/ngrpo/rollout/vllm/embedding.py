"""The matrix of vLLM's input embeddings, from which mixtures can be read without calling the model."""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)

_TRIED = 64


def whole_embedding(model: Any) -> VocabParallelEmbedding | None:
    """Return the layer whose weight's rows are the model's input embeddings, all of them on this device.

    Args:
        model: A model of vLLM, loaded.

    Returns:
        None where ranks share the vocabulary, or the model does more than look up: some scale, some are quantized.
    """
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, VocabParallelEmbedding) and not isinstance(layer, ParallelLMHead)
    ]
    if len(layers) != 1:
        return None
    (layer,) = layers
    if layer.tp_size > 1 or not isinstance(layer.quant_method, UnquantizedEmbeddingMethod):
        return None
    ids = torch.arange(min(len(layer.weight), _TRIED), device=layer.weight.device)
    with torch.inference_mode():
        return layer if torch.equal(model.embed_input_ids(ids), layer.weight[ids]) else None
