"""vLLM's worker with a model runner that mixes, and the calls that the engine makes to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.platforms import current_platform

from ngrpo.errors import ConfigError
from ngrpo.mixing.end_marker import EndMarker
from ngrpo.mixing.strategy import Strategy, StrategySource
from ngrpo.rollout.configured_strategy import load_strategy
from ngrpo.rollout.slots import MixingSlots
from ngrpo.rollout.vllm.compatibility import require_hooks, require_plain

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as Worker
else:
    from vllm.v1.worker.gpu_worker import Worker


class MixingWorker(Worker):
    """A worker whose model runner mixes; the methods that begin with `mixing_` are called by `VLLMEngine`."""

    def init_device(self) -> None:
        """See `Worker.init_device`."""
        require_plain(self.vllm_config)
        super().init_device()
        # Twice the requests that run at a time, so that records are copied in large batches, not one by one.
        self.mixing = MixingSlots(self.device, 2 * self.vllm_config.scheduler_config.max_num_seqs)
        if self.use_v2_model_runner:
            _adapt_v2(self.model_runner, self.mixing)
        else:
            _adapt_v1(self.model_runner, self.mixing)

    def mixing_set_index(self, neighbors: Tensor, eligible: Tensor, transitions: Tensor | None) -> None:
        """See `MixingSlots.set_index`; of the end marker, its transitions."""
        self.mixing.set_index(neighbors, eligible, None if transitions is None else EndMarker(transitions))

    def mixing_load_index(self, path: str) -> None:
        """Like `mixing_set_index`, with the tensors in a file."""
        tensors = load_file(path)
        self.mixing_set_index(tensors["neighbors"], tensors["eligible"], tensors.get("transitions"))

    def mixing_add_strategy(self, number: int, strategy: Strategy) -> None:
        """See `MixingSlots.add_strategy`."""
        self.mixing.add_strategy(number, strategy)

    def mixing_load_strategy(self, number: int, source: dict[str, Any]) -> None:
        """Like `mixing_add_strategy`, with the source of the strategy."""
        self.mixing.add_strategy(number, load_strategy(StrategySource(**source)))

    def reload_weights(self, *args: Any, **kwargs: Any) -> None:
        """See `Worker.reload_weights`; on a CPU, packed copies of weights are brought up to date too.

        The Transformers backend creates a new bias when it loads that of an output head (Phi has one); vLLM's reloading then restores the
        old one. So the bias is loaded once more, by the head's own loader: after reloading, the parameter's has no effect.
        Output heads that are tied to the embedding multiply with one, which vLLM packs again only where the head's own weights were
        loaded. Experts multiply with another, which vLLM packs only when it builds their kernel: it builds a new one here.
        """
        layers = list(self.model_runner.get_model().modules())
        experts = [layer for layer in layers if isinstance(layer, RoutedExperts)] if current_platform.is_cpu() else []
        for layer in experts:
            layer.quant_method.moe_kernel = None
        biases: list[Tensor] = []
        if kwargs.get("weights_iterator") is not None:
            kwargs["weights_iterator"] = _noting_biases(kwargs["weights_iterator"], biases)
        super().reload_weights(*args, **kwargs)
        if any(layer.quant_method.moe_kernel is None for layer in experts):
            raise ConfigError(
                "rollout.engine='vllm': the CPU build of vLLM did not take the new weights of this model's experts: set "
                "rollout.engine='transformers', or train on a GPU"
            )
        for layer in layers:
            if isinstance(layer, ParallelLMHead):
                for bias in biases:
                    layer.weight_loader(layer.bias, bias)
                layer.quant_method.process_weights_after_loading(layer)

    def mixing_load_weights(self, path: str) -> None:
        """See `Worker.reload_weights`; the tensors come from a file."""
        self.reload_weights(weights_iterator=iter(load_file(path).items()))

    def mixing_take(self, names: list[str]) -> list[tuple[bytes, bytes, bytes, bytes]]:
        """See `MixingSlots.take`; the tensors of each record as bytes, which pass between processes unchanged."""
        return [
            (
                record.mixed.numpy().tobytes(),
                record.weights.numpy().tobytes(),
                record.logprobs.numpy().tobytes(),
                b"" if record.candidates is None else record.candidates.numpy().tobytes(),
            )
            for record in self.mixing.take(names)
        ]


def _noting_biases(weights: Iterable[tuple[str, Tensor]], biases: list[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield weights, and keep those that are the bias of an output head."""
    for name, weight in weights:
        if name.endswith("lm_head.bias"):
            biases.append(weight)
        yield name, weight


def _adapt_v1(runner: Any, slots: MixingSlots) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.sample.sampler import Sampler
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    from ngrpo.rollout.vllm.runner_v1 import adapt

    require_hooks(
        {
            Scheduler.add_request: ("request",),
            Sampler.sample: ("logits", "sampling_metadata", "logprobs_mode_override"),
            GPUModelRunner._update_states: ("scheduler_output",),
            GPUModelRunner._preprocess: ("scheduler_output", "num_input_tokens", "intermediate_tensors"),
            GPUModelRunner._sample: ("logits", "spec_decode_metadata"),
        }
    )
    adapt(runner, slots)


def _adapt_v2(runner: Any, slots: MixingSlots) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.worker.gpu.buffer_utils import UvaBackedTensor
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner
    from vllm.v1.worker.gpu.model_states.default import DefaultModelState
    from vllm.v1.worker.gpu.sample.sampler import Sampler

    from ngrpo.rollout.vllm.runner_v2 import adapt

    require_hooks(
        {
            Scheduler.add_request: ("request",),
            Sampler.sample: ("logits", "expanded_idx_mapping", "idx_mapping", "idx_mapping_np", "pos"),
            DefaultModelState.prepare_inputs_embeds: ("scheduled_encoder_inputs", "input_batch", "req_states"),
            GPUModelRunner.add_requests: ("scheduler_output",),
            UvaBackedTensor.copy_to_uva: ("n",),
        }
    )
    adapt(runner, slots)
