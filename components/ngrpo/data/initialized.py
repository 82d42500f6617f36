"""A small model with random weights, for tasks that are learned from scratch."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ngrpo.config import InitializedModel
from ngrpo.data.word_tokenizer import word_tokenizer

_MAX_TOKENS = 1024


def write(source: InitializedModel, directory: Path, *, weights: bool) -> None:
    """Write the tokenizer of a generated task and a Llama model: float32, tied embeddings, weights determined by the seed.

    Args:
        source: Shape and seed.
        directory: Existing directory to write to.
        weights: Write weights and configuration; otherwise only the configuration.
    """
    tokenizer = word_tokenizer(source.vocabulary)
    tokenizer.save_pretrained(directory)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=source.hidden_size,
        intermediate_size=source.intermediate_size,
        num_hidden_layers=source.layers,
        num_attention_heads=source.heads,
        num_key_value_heads=source.kv_heads,
        max_position_embeddings=_MAX_TOKENS,
        initializer_range=source.initializer_range,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    if not weights:
        config.save_pretrained(directory)
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(source.seed)
        model = LlamaForCausalLM(config).float()
    model.save_pretrained(directory)
