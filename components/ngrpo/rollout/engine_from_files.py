"""Engines that generate with a model of their own, loaded from its files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ngrpo.config import EvaluationConfig, RolloutConfig
from ngrpo.rollout.engine import RolloutEngine
from ngrpo.rollout.loading import load_model
from ngrpo.rollout.separate_messages import EngineTask
from ngrpo.rollout.transformers_engine import TransformersEngine


def engine_of(task: EngineTask) -> RolloutEngine:
    """Start the engine of a process that only generates, for a model that another process trains.

    Raises:
        EngineError: vLLM is asked for and not installed.
        ConfigError: vLLM cannot mix as it is set up.
    """
    if task.config.engine == "transformers":
        # Weights in training are float32: they are cast as there.
        model = load_model(task.directory, "float32")
        return TransformersEngine(model, task.ends, task.padding, task.config.batch_size, dtype=task.dtype)
    return vllm_engine(
        task.config, task.directory, task.ends, iter, shares_gpu=False, max_length=task.max_length, dtype=task.dtype
    )


def vllm_engine(
    config: RolloutConfig | EvaluationConfig,
    directory: Path,
    ends: Sequence[int],
    as_saved: Callable[[Iterable[tuple[str, Tensor]]], Iterable[tuple[str, Tensor]]],
    *,
    shares_gpu: bool,
    max_length: int,
    dtype: str,
) -> RolloutEngine:
    """Start vLLM as a configuration asks for; see `VLLMEngine`.

    Raises:
        EngineError: It is not installed.
        ConfigError: It cannot mix as it is set up.
    """
    from ngrpo.rollout.vllm.engine import VLLMEngine

    options: dict[str, Any] = dict(config.vllm.options)
    return VLLMEngine(
        directory,
        ends,
        as_saved=as_saved,
        shares_gpu=shares_gpu,
        max_length=max_length,
        batch_size=config.batch_size,
        dtype=dtype,
        tensor_parallel_size=config.vllm.tensor_parallel_size,
        gpu_memory_utilization=config.vllm.gpu_memory_utilization,
        **options,
    )
