"""Load a saved model and its tokenizer for training or generation."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from ngrpo.errors import DataError


def load_model(directory: Path, dtype: str) -> PreTrainedModel:
    """Load a causal language model onto the GPU, or the CPU where there is none.

    Args:
        directory: What `save_pretrained` wrote.
        dtype: Name of a torch type.

    Raises:
        DataError: The directory holds no weights in safetensors format.
    """
    if not any(directory.glob("*.safetensors")):
        raise DataError(f"model directory {directory}: no *.safetensors file; a model needs its weights there")
    disable_progress_bar()  # a stage's log is no terminal
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).to(device)


def load_tokenizer(directory: Path, vocabulary: int) -> PreTrainedTokenizerBase:
    """Load a tokenizer that can write chats, padded on the left.

    Args:
        directory: What `save_pretrained` wrote.
        vocabulary: Rows of the model's embedding matrix.

    Raises:
        DataError: The tokenizer is missing, has no chat template, or knows tokens the model has no row for.
    """
    if not any((directory / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise DataError(f"model directory {directory}: no tokenizer files (tokenizer.json); save the tokenizer there")
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    if tokenizer.chat_template is None:
        raise DataError(f"tokenizer in {directory}: no chat template; problems are asked as chats and need one")
    if len(tokenizer) > vocabulary:
        raise DataError(
            f"tokenizer in {directory}: {len(tokenizer)} tokens but the model has {vocabulary} embedding rows; "
            "use the tokenizer that belongs to the model"
        )
    return tokenizer


def end_of_sequence_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return every token that ends a response: the tokenizer's, and those the model's generation settings name."""
    declared = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = declared if isinstance(declared, list) else [declared]
    return sorted({token for token in [*ids, tokenizer.eos_token_id] if token is not None})
