"""Memory of a rollout engine."""

from __future__ import annotations

from dataclasses import dataclass

from ngrpo.config import EvaluationConfig, RolloutConfig
from ngrpo.sizing import figures
from ngrpo.sizing.amounts import GIB, Amount
from ngrpo.sizing.model_shape import ModelShape


@dataclass(frozen=True)
class Generation:
    """The generation of one engine."""

    settings: RolloutConfig | EvaluationConfig
    shape: ModelShape
    number: int
    """Bytes per number of the compute dtype."""
    rows: int
    """Sequences that are decoded as one batch."""
    prompt: int
    """Length of the longest prompt, in tokens."""

    @property
    def cache(self) -> float:
        """Bytes of the KV cache of one sequence of maximal length."""
        return self.shape.cached * self.number * (self.prompt + self.settings.max_tokens)

    @property
    def of_transformers(self) -> Amount:
        """Memory of the transformers engine besides the weights. While the KV cache of a layer grows, it exists twice."""
        grown = 1 + 1 / self.shape.layers
        return Amount.of(
            keys_and_values=self.rows * self.cache * grown,
            logits=self.rows * self.shape.vocabulary * figures.LOGITS_OF_A_STEP,
        )

    @property
    def weights_of_vllm(self) -> float:
        """Bytes of the weights on each GPU of vLLM."""
        return self.shape.parameters * self.number / self.settings.vllm.tensor_parallel_size

    @property
    def least_of_vllm(self) -> float:
        """Bytes that vLLM needs to start: the weights and the KV cache of one sequence of maximal length."""
        return self.weights_of_vllm + self.cache / self.settings.vllm.tensor_parallel_size

    def share_of_vllm(self, gpu_gib: int) -> float:
        """Return the bytes that vLLM allocates on a GPU, `gpu_memory_utilization` of its memory, regardless of need."""
        return self.settings.vllm.gpu_memory_utilization * gpu_gib * GIB

    def of_vllm(self, gpu_gib: int) -> Amount:
        """Return the memory that vLLM allocates on a GPU: the weights, and a KV cache in the rest of its share."""
        share = self.share_of_vllm(gpu_gib)
        weights = min(self.weights_of_vllm, share)
        return Amount.of(weights_of_vLLM=weights, keys_and_values_of_vLLM=share - weights)
