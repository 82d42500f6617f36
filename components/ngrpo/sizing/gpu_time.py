"""How long GPUs generate and train at least per token: computed from the figures of a GPU, for a plan; nothing was measured."""

from __future__ import annotations

from ngrpo.config import RunConfig
from ngrpo.sizing import figures
from ngrpo.sizing.generation import Generation
from ngrpo.sizing.model_shape import ModelShape

_BANDWIDTH = figures.GPU_BYTES_A_SECOND * figures.GPU_BANDWIDTH_USED
_FLOPS = figures.GPU_FLOPS * figures.GPU_FLOPS_USED


def generating(generation: Generation, sequences: float) -> float:
    """Return the seconds in which one vLLM engine answers, every answer as long as it may be.

    A step reads the weights once, and the keys and values of all rows, at half of their length on average; or it is bound by its
    operations.

    Args:
        generation: What the engine generates at once.
        sequences: Answers that it gives, one after another where they are more than rows.
    """
    shape, shared = generation.shape, generation.settings.vllm.tensor_parallel_size
    rows = min(generation.rows, sequences)
    read = generation.weights_of_vllm + rows * _half(generation) * shape.cached * generation.number / shared
    computed = rows * _forward(shape, _half(generation)) / shared
    steps = generation.settings.max_tokens * sequences / rows
    return steps * max(read / _BANDWIDTH, computed / _FLOPS)


def training(config: RunConfig, shape: ModelShape, gpus: int) -> float:
    """Return the seconds in which GPUs train one rollout batch, every response as long as it may be; prompts are not counted."""
    settings, length = config.training, config.rollout.max_tokens
    tokens = settings.prompts_per_batch * config.rollout.group_size * length
    # The backward pass takes twice the operations of the forward pass.
    passes = settings.num_iterations * (4 if settings.gradient_checkpointing else 3)
    passes += settings.kl_coefficient > 0
    passes += settings.steps_per_batch > 1 or settings.mismatch_correction != "off"
    return passes * tokens * _forward(shape, length / 2) / (gpus * _FLOPS)


def _half(generation: Generation) -> float:
    return generation.settings.max_tokens / 2


def _forward(shape: ModelShape, before: float) -> float:
    """Return the operations of a token's forward pass that attends to so many tokens before it."""
    return 2 * shape.parameters + 4 * shape.layers * shape.heads * shape.head_size * before
