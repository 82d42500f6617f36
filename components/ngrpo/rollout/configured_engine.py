"""Start the rollout engine of a configuration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ngrpo.config import EvaluationConfig, RolloutConfig
from ngrpo.rollout.engine import RolloutEngine
from ngrpo.rollout.engine_from_files import vllm_engine
from ngrpo.rollout.loading import (
    end_of_sequence_ids,
    is_sharded,
    load_model,
    matrices_as,
    saved_end_of_sequence_ids,
    weights_as_saved,
)
from ngrpo.rollout.separate_engine import SeparateEngine, devices_of_engines
from ngrpo.rollout.separate_messages import EngineTask
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
            engine too, with a copy that `load_weights` updates. None if nothing is trained: then the engine loads the directory,
            and has the GPU to itself.
        directory: Directory of the model, as it was saved.
        tokenizer: Its tokenizer.
        chats: Every prompt of the run, as a chat: vLLM makes room for the longest.
        dtype: Name of the torch type to compute in.

    Raises:
        EngineError: vLLM is asked for and not installed.
        ConfigError: vLLM cannot mix as it is set up.
    """
    ends = saved_end_of_sequence_ids(directory, tokenizer) if model is None else end_of_sequence_ids(model, tokenizer)
    # Padding is masked, so a tokenizer without a padding token may use any token.
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    if isinstance(config, RolloutConfig) and config.placement == "separate" and model is not None:
        task = EngineTask(
            config,
            directory,
            ends,
            padding,
            _longest(config, tokenizer, chats) if config.engine == "vllm" else 0,
            dtype,
            torch.get_num_threads(),
        )
        each = config.vllm.tensor_parallel_size if config.engine == "vllm" else 1
        return SeparateEngine(task, devices_of_engines(config.gpus, each), partial(_as_sent, config, model, dtype))
    if config.engine == "transformers":
        if model is None:
            model = load_model(directory, dtype)
        # Every forward of a sharded model gathers weights: processes would have to decode in step.
        whole = load_model(directory, "float32") if is_sharded(model) else model
        return TransformersEngine(whole, ends, padding, config.batch_size, dtype=dtype)
    as_saved = iter if model is None else partial(weights_as_saved, model)
    longest = _longest(config, tokenizer, chats)
    return vllm_engine(config, directory, ends, as_saved, shares_gpu=model is not None, max_length=longest, dtype=dtype)


def _longest(config: RolloutConfig | EvaluationConfig, tokenizer: PreTrainedTokenizerBase, chats: Sequence[Any]) -> int:
    """Return the tokens of the longest prompt and response together."""
    prompts = tokenizer.apply_chat_template(list(chats), add_generation_prompt=True, tokenize=True, return_dict=False)
    return max(len(prompt) for prompt in prompts) + config.max_tokens


def _as_sent(
    config: RolloutConfig, model: PreTrainedModel, dtype: str, weights: Iterable[tuple[str, Tensor]]
) -> Iterable[tuple[str, Tensor]]:
    """Return training weights in the form that an engine in another process needs: for vLLM as they are saved, and in its type."""
    if config.engine == "transformers":
        return weights
    return weights_as_saved(model, matrices_as(getattr(torch, dtype), weights))
