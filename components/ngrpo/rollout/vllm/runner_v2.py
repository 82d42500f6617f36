"""Mixing in vLLM's Model Runner V2, the one that a GPU gets by default.

Mixtures are written into the runner's persistent buffer of input embeddings before the model runs: CUDA graphs capture the buffer, while
the writes happen outside of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.worker.gpu.buffer_utils import UvaBackedTensor
from vllm.v1.worker.gpu.model_runner import GPUModelRunner
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.sample.sampler import Sampler

from ngrpo.rollout.slots import MixingSlots
from ngrpo.rollout.vllm.embedding import whole_embedding
from ngrpo.rollout.vllm.request import follow
from ngrpo.rollout.vllm.rows import response_tokens

if TYPE_CHECKING:
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.states import RequestState


class _SlotMap:
    """Slot of each request index of the runner, on the host and, as vLLM keeps its own of a request, within the device's reach."""

    def __init__(self, slots: MixingSlots, max_requests: int):
        self.slots = slots
        self._table = UvaBackedTensor(max_requests, dtype=torch.long)
        self.host.fill(-1)
        self._table.copy_to_uva()

    @property
    def host(self) -> np.ndarray:
        table: np.ndarray = self._table.np
        return table

    @property
    def device(self) -> Tensor:
        table: Tensor = self._table.gpu
        return table

    def update(self, slots: dict[int, int]) -> None:
        """Note the slots of requests that join, by index; the device sees them all at once."""
        for index, slot in slots.items():
            self.host[index] = slot
        if slots:
            self._table.copy_to_uva()


class MixingSampler(Sampler):
    """Samples the requests that have a slot; leaves all others to vLLM."""

    slot_map: _SlotMap

    def sample(
        self,
        logits: Tensor,
        expanded_idx_mapping: Tensor,
        idx_mapping: Tensor,
        idx_mapping_np: np.ndarray,
        pos: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """See `Sampler.sample`."""
        ours = self.slot_map.host[idx_mapping_np] >= 0
        if not ours.any():
            sampled: tuple[Tensor, Tensor] = super().sample(
                logits, expanded_idx_mapping, idx_mapping, idx_mapping_np, pos, *args, **kwargs
            )
            return sampled
        rows = self.slot_map.device[idx_mapping]
        following = pos.long() + 1  # `pos` is where the last token in stands, the next one comes after it
        tokens = self.slot_map.slots.decide(
            logits,
            rows,
            following - self.req_states.prompt_len.gpu[idx_mapping],
            following >= self.req_states.prefill_len.gpu[idx_mapping],
        )
        if ours.all():
            return tokens, logits
        stock, processed = super().sample(
            logits, expanded_idx_mapping, idx_mapping, idx_mapping_np, pos, *args, **kwargs
        )
        return torch.where(rows >= 0, tokens, stock.long()), processed


class MixingModelState(DefaultModelState):
    """Mixin for the class of a model's state."""

    slot_map: _SlotMap
    embedding: VocabParallelEmbedding | None

    def prepare_inputs_embeds(
        self, scheduled_encoder_inputs: dict[str, list[int]], input_batch: InputBatch, req_states: RequestState
    ) -> Tensor:
        """See `DefaultModelState.prepare_inputs_embeds`."""
        embeddings: Tensor = super().prepare_inputs_embeds(scheduled_encoder_inputs, input_batch, req_states)
        slots = self.slot_map.slots
        if not slots.mixing:
            return embeddings
        requests = input_batch.idx_mapping_np[: input_batch.num_reqs]
        tokens = response_tokens(
            self.slot_map.host[requests],
            input_batch.num_computed_tokens_np[: input_batch.num_reqs],
            input_batch.num_scheduled_tokens[: input_batch.num_reqs],
            req_states.prompt_len.np[requests],
            self.device,
        )
        if tokens is not None:
            indices, of_slots, positions = tokens
            matrix = None if self.embedding is None else self.embedding.weight
            slots.mix_in_place(self.model.embed_input_ids, embeddings, indices, of_slots, positions, matrix=matrix)
        return embeddings


class MixingRunner(GPUModelRunner):
    """Mixin for the class of a V2 runner (see `ngrpo.rollout.vllm.worker`)."""

    slot_map: _SlotMap

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """See `GPUModelRunner.load_model`."""
        super().load_model(*args, **kwargs)
        for part, mixing in ((self.model_state, MixingModelState), (self.sampler, MixingSampler)):
            part.slot_map = self.slot_map
            part.__class__ = type(f"Mixing{type(part).__name__}", (mixing, type(part)), {})
        self.model_state.embedding = whole_embedding(self.model) if self.slot_map.slots.fused else None

    def add_requests(self, scheduler_output: SchedulerOutput) -> None:
        """See `GPUModelRunner.add_requests`; a request that comes back from a preemption arrives here again."""
        joined = follow(self.slot_map.slots, scheduler_output)
        super().add_requests(scheduler_output)
        self.slot_map.update({self.req_states.req_id_to_index[request]: slot for request, slot in joined})


def adapt(runner: GPUModelRunner, slots: MixingSlots) -> None:
    """Make a runner mix; its model must not be loaded yet."""
    runner.slot_map = _SlotMap(slots, runner.max_num_reqs)
    runner.__class__ = type(f"Mixing{type(runner).__name__}", (MixingRunner, type(runner)), {})
