"""Memory of an engine that generates."""

from __future__ import annotations

from dataclasses import dataclass

from ngrpo.config import EvaluationConfig, RolloutConfig
from ngrpo.sizing import figures
from ngrpo.sizing.amounts import GIB, Amount
from ngrpo.sizing.model_shape import ModelShape


@dataclass(frozen=True)
class Generation:
    """What an engine is to generate."""

    settings: RolloutConfig | EvaluationConfig
    shape: ModelShape
    number: int
    """Bytes of a number that it computes with."""
    rows: int
    """Sequences that are decoded together."""
    prompt: int
    """Tokens of the longest prompt."""

    @property
    def cache(self) -> float:
        """Bytes of the keys and values of one longest sequence."""
        return self.shape.cached * self.number * (self.prompt + self.settings.max_tokens)

    @property
    def of_transformers(self) -> Amount:
        """What the transformers engine takes beside the weights; the cache of one layer is there twice where it grows."""
        grown = 1 + 1 / self.shape.layers
        return Amount.of(
            keys_and_values=self.rows * self.cache * grown,
            logits=self.rows * self.shape.vocabulary * figures.LOGITS_OF_A_STEP,
        )

    @property
    def weights_of_vllm(self) -> float:
        """Bytes of the weights on each of vLLM's GPUs."""
        return self.shape.parameters * self.number / self.settings.vllm.tensor_parallel_size

    @property
    def least_of_vllm(self) -> float:
        """Bytes below which vLLM cannot start: the weights and one longest sequence."""
        return self.weights_of_vllm + self.cache / self.settings.vllm.tensor_parallel_size

    def share_of_vllm(self, gpu_gib: int) -> float:
        """Return the bytes that vLLM takes of a GPU: it takes its share whatever it needs."""
        return self.settings.vllm.gpu_memory_utilization * gpu_gib * GIB

    def of_vllm(self, gpu_gib: int) -> Amount:
        """Return what vLLM takes of a GPU: its weights, and keys and values with the rest of its share."""
        share = self.share_of_vllm(gpu_gib)
        weights = min(self.weights_of_vllm, share)
        return Amount.of(weights_of_vLLM=weights, keys_and_values_of_vLLM=share - weights)
