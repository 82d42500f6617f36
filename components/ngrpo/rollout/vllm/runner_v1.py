"""Mixing in vLLM's Model Runner V1, the one that its CPU build runs by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.sample.sampler import Sampler
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from ngrpo.rollout.slots import MixingSlots
from ngrpo.rollout.transfers import to_device
from ngrpo.rollout.vllm.embedding import whole_embedding
from ngrpo.rollout.vllm.request import follow
from ngrpo.rollout.vllm.rows import response_tokens

if TYPE_CHECKING:
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
    from vllm.v1.core.sched.output import SchedulerOutput


@dataclass(frozen=True)
class _Rows:
    """The rows of one sampling step."""

    slots: Tensor
    positions: Tensor
    emits: Tensor
    all_ours: bool


class MixingSampler(Sampler):
    """Samples the requests that have a slot; leaves all others to vLLM."""

    slots: MixingSlots
    rows: _Rows | None = None

    def sample(self, logits: Tensor, sampling_metadata: Any, logprobs_mode_override: Any = None) -> Any:
        """See `Sampler.sample`."""
        rows = self.rows
        if rows is None:
            return super().sample(logits, sampling_metadata, logprobs_mode_override)
        # Before vLLM samples the rest: it changes the logits in place.
        tokens = self.slots.decide(logits, rows.slots, rows.positions, rows.emits, overwrite=rows.all_ours)
        if rows.all_ours:
            return tokens, None
        stock, processed = super().sample(logits, sampling_metadata, logprobs_mode_override)
        return torch.where(rows.slots >= 0, tokens, stock.long()), processed


class MixingRunner(GPUModelRunner):
    """Mixin for the class of a V1 runner (see `ngrpo.rollout.vllm.worker`)."""

    embedding: VocabParallelEmbedding | None
    slots: MixingSlots
    rows: np.ndarray
    """Slot of each request of the step, in the order of the batch, -1 for none."""

    def _update_states(self, scheduler_output: SchedulerOutput) -> Any:
        follow(self.slots, scheduler_output)
        updated = super()._update_states(scheduler_output)
        if self.model_config.enforce_eager:
            # Without CUDA graphs, embeddings are needed only if a request brings its own or a step mixes.
            self.enable_prompt_embeds = bool(self.input_batch.req_prompt_embeds)
        return updated

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """See `GPUModelRunner.load_model`."""
        super().load_model(*args, **kwargs)
        self.embedding = whole_embedding(self.model) if self.slots.fused else None

    def _preprocess(self, scheduler_output: SchedulerOutput, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._preprocess(scheduler_output, *args, **kwargs)
        batch = self.input_batch
        self.rows = np.array([self.slots.slot(request) for request in batch.req_ids], dtype=np.int64)
        if not self.slots.mixing:
            return prepared
        tokens = response_tokens(
            self.rows,
            batch.num_computed_tokens_cpu[: batch.num_reqs],
            np.diff(self.query_start_loc.np[: batch.num_reqs + 1]),
            batch.num_prompt_tokens[: batch.num_reqs],
            self.device,
        )
        if tokens is None:
            return prepared
        input_ids, embeddings, *rest = prepared
        if embeddings is None:
            input_ids, embeddings = None, self.model.embed_input_ids(input_ids)
        matrix = None if self.embedding is None else self.embedding.weight
        self.slots.mix_in_place(self.model.embed_input_ids, embeddings, *tokens, matrix=matrix)
        return input_ids, embeddings, *rest

    def _sample(self, logits: Tensor | None, spec_decode_metadata: Any) -> Any:
        slots, batch = self.rows, self.input_batch
        if (slots < 0).all():
            return super()._sample(logits, spec_decode_metadata)
        positions = self.optimistic_seq_lens_cpu[: batch.num_reqs].numpy() - batch.num_prompt_tokens[: batch.num_reqs]
        emits = ~self.discard_request_mask.np[: batch.num_reqs]
        table = torch.from_numpy(np.stack([slots, positions, emits]).astype(np.int64))
        on_device, at, emitting = to_device(table, self.device)
        self.sampler.rows = _Rows(on_device, at, emitting.bool(), bool((slots >= 0).all()))
        try:
            return super()._sample(logits, spec_decode_metadata)
        finally:
            self.sampler.rows = None


def adapt(runner: GPUModelRunner, slots: MixingSlots) -> None:
    """Make a runner mix."""
    runner.slots = slots
    runner.__class__ = type(f"Mixing{type(runner).__name__}", (MixingRunner, type(runner)), {})
    runner.sampler.slots = slots
    runner.sampler.__class__ = MixingSampler
