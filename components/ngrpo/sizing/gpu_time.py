"""Lower bounds of generation and training time on GPUs, for plans: computed from a data sheet, not measured."""

from __future__ import annotations

from ngrpo.config import RunConfig
from ngrpo.sizing import figures
from ngrpo.sizing.generation import Generation
from ngrpo.sizing.model_shape import ModelShape

_BANDWIDTH = figures.GPU_BYTES_A_SECOND * figures.GPU_BANDWIDTH_USED
_FLOPS = figures.GPU_FLOPS * figures.GPU_FLOPS_USED


def generating(generation: Generation, sequences: float) -> float:
    """Return the seconds that one vLLM engine needs for its answers, all of maximal length.

    A step is bound either by memory bandwidth (it reads the weights once, and the KV cache of all rows, half full on average) or by
    compute.

    Args:
        generation: The generation of the engine.
        sequences: Number of answers; those beyond `generation.rows` wait for others to finish.
    """
    shape, shared = generation.shape, generation.settings.vllm.tensor_parallel_size
    rows = min(generation.rows, sequences)
    read = generation.weights_of_vllm + rows * _half(generation) * shape.cached * generation.number / shared
    computed = rows * _forward(shape, _half(generation)) / shared
    steps = generation.settings.max_tokens * sequences / rows
    return steps * max(read / _BANDWIDTH, computed / _FLOPS)


def training(config: RunConfig, shape: ModelShape, gpus: int) -> float:
    """Return the seconds that GPUs need to train on one rollout batch with responses of maximal length; prompts are not counted."""
    settings, length = config.training, config.rollout.max_tokens
    tokens = settings.prompts_per_batch * config.rollout.group_size * length
    # The backward pass takes twice the FLOP of the forward pass.
    passes = settings.num_iterations * (4 if settings.gradient_checkpointing else 3)
    passes += settings.kl_coefficient > 0
    passes += settings.steps_per_batch > 1 or settings.mismatch_correction != "off"
    return passes * tokens * _forward(shape, length / 2) / (gpus * _FLOPS)


def _half(generation: Generation) -> float:
    return generation.settings.max_tokens / 2


def _forward(shape: ModelShape, before: float) -> float:
    """Return the FLOP of the forward pass of one token that attends to `before` earlier tokens."""
    return 2 * shape.parameters + 4 * shape.layers * shape.heads * shape.head_size * before
