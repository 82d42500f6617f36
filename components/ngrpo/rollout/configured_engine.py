"""The rollout engine that a configuration asks for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ngrpo.config import EvaluationConfig, RolloutConfig
from ngrpo.rollout.engine import RolloutEngine
from ngrpo.rollout.loading import (
    end_of_sequence_ids,
    is_sharded,
    load_model,
    saved_end_of_sequence_ids,
    weights_as_saved,
)
from ngrpo.rollout.transformers_engine import TransformersEngine


def start_engine(
    config: RolloutConfig | EvaluationConfig,
    *,
    model: PreTrainedModel | None,
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Any],
    dtype: str,
) -> RolloutEngine:
    """Start an engine.

    Args:
        config: Which one, and how.
        model: The model that is trained. The transformers engine generates with it; vLLM, and where the model is sharded the transformers
            engine too, with a copy that `load_weights` brings up to date. None where nothing is trained: the engine loads the directory,
            and has the GPU to itself.
        directory: Directory of the model, as it was saved.
        tokenizer: Its tokenizer.
        chats: Every prompt that may be asked, as a chat: vLLM makes room for the longest.
        dtype: Name of the torch type to compute in.

    Raises:
        EngineError: vLLM is asked for and not installed.
        ConfigError: vLLM cannot mix as it is set up.
    """
    ends = saved_end_of_sequence_ids(directory, tokenizer) if model is None else end_of_sequence_ids(model, tokenizer)
    if config.engine == "transformers":
        if model is None:
            model = load_model(directory, dtype)
        # Padding is masked: a tokenizer without a token for it may use any.
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
        # Every forward of a sharded model gathers weights: processes would have to decode in step.
        whole = load_model(directory, "float32") if is_sharded(model) else model
        return TransformersEngine(whole, ends, padding, config.batch_size, dtype=dtype)
    from ngrpo.rollout.vllm.engine import VLLMEngine

    options: dict[str, Any] = dict(config.vllm.options)
    prompts = tokenizer.apply_chat_template(list(chats), add_generation_prompt=True, tokenize=True, return_dict=False)
    return VLLMEngine(
        directory,
        ends,
        as_saved=iter if model is None else partial(weights_as_saved, model),
        shares_gpu=model is not None,
        max_length=max(len(prompt) for prompt in prompts) + config.max_tokens,
        batch_size=config.batch_size,
        dtype=dtype,
        tensor_parallel_size=config.vllm.tensor_parallel_size,
        gpu_memory_utilization=config.vllm.gpu_memory_utilization,
        **options,
    )
