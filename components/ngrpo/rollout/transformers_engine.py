"""The rollout engine on plain transformers: batched, with a KV cache; finished rows leave the batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ngrpo.mixing.inputs import mixed_inputs
from ngrpo.mixing.mixer import MixedStep, Mixer, mixed_step
from ngrpo.mixing.neighbor_mixing import scale_logits
from ngrpo.mixing.records import InputMixture, RolloutRecords
from ngrpo.mixing.strategy import Step
from ngrpo.rollout.engine import Rollout, Sampling
from ngrpo.rollout.sampling import keep_nucleus, sample_tokens, token_logprobs

_COMPACT_BELOW = 0.875
"""Finished rows leave the batch once less than this share of its rows is alive: copying the cache for every one would cost more."""


class TransformersEngine:
    """Generates with a `PreTrainedModel` that may be in training: see `RolloutEngine`."""

    def __init__(
        self,
        model: PreTrainedModel,
        eos_token_ids: Sequence[int],
        pad_token_id: int,
        batch_size: int,
        *,
        dtype: str = "float32",
    ):
        """Wrap a model.

        Args:
            model: The model; its weights are read at each call, so an optimizer step needs no `load_weights`.
            eos_token_ids: Tokens that end a response.
            pad_token_id: Token that fills short prompts.
            batch_size: Sequences decoded together.
            dtype: Name of the torch type to compute in. Weights in training are float32 whatever it is: they are cast as in training.
        """
        self.model = model
        cast = dtype == "bfloat16" and model.dtype == torch.float32
        self._arithmetic = torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=cast)
        self.batch_size = batch_size
        # Purely recurrent classes (Mamba's) have a name of their own for the cache.
        self._recurrent = "cache_params" in inspect.signature(model.forward).parameters
        self._cache_name = "cache_params" if self._recurrent else "past_key_values"
        self._eos = torch.tensor(sorted(set(eos_token_ids)), device=model.device)
        self._pad_token_id = pad_token_id

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        mixer: Mixer | None = None,
    ) -> list[Rollout]:
        """Generate one response for each prompt; see `RolloutEngine.generate`."""
        was_training = self.model.training
        self.model.eval()  # no dropout; and with gradient checkpointing, training mode would switch the cache off
        try:
            rollouts: list[Rollout] = []
            for start in range(0, len(prompts), self.batch_size):
                part = slice(start, start + self.batch_size)
                rollouts += self._generate_batch(prompts[part], seeds[part], sampling, mixer)
            return rollouts
        finally:
            self.model.train(was_training)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy the named weights into the model, except those that are its own tensors."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in weights:
                if value is not parameters[name]:
                    parameters[name].copy_(value)

    def sleep(self) -> None:
        """Nothing to free: the model is the one in training, or only its weights take memory."""

    def close(self) -> None:
        """Nothing to release: the model belongs to the caller."""

    def _generate_batch(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling, mixer: Mixer | None
    ) -> list[Rollout]:
        batch = _Batch.start(len(prompts), seeds, sampling, mixer, self._eos)
        logits, cache, attention_mask = self._prefill(prompts, sampling.max_tokens)
        prompt_width = attention_mask.shape[1] - sampling.max_tokens
        embedding = self.model.get_input_embeddings()
        for position in range(sampling.max_tokens):
            tokens, mixture = batch.decide(logits, position)
            if batch.finished() or position + 1 == sampling.max_tokens:
                break
            kept = batch.compact()
            if kept is not None:
                tokens, attention_mask = tokens[kept], attention_mask[kept]
                mixture = None if mixture is None else mixture.select(kept)
                cache.reorder_cache(kept)  # not `batch_select_indices`, which skips the states of recurrent layers
            width = prompt_width + position + 1
            mask = attention_mask[:, :width]
            with self._arithmetic, mixed_inputs(embedding, mixture):
                output = self.model(
                    input_ids=tokens[:, None],
                    attention_mask=None if self._recurrent else mask,  # their state has no columns to mask
                    position_ids=mask.sum(dim=1, keepdim=True) - 1,
                    use_cache=True,
                    **{self._cache_name: cache},
                )
            logits = output.logits[:, -1]
        return batch.rollouts()

    def _prefill(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> tuple[Tensor, DynamicCache, Tensor]:
        """Run each distinct prompt once; return the logits `[B, V]`, the cache, and a mask with room for the response."""
        distinct = {tuple(prompt): None for prompt in prompts}
        order = {prompt: row for row, prompt in enumerate(distinct)}
        width = max(len(prompt) for prompt in distinct)
        device = self.model.device
        ids = torch.full((len(distinct), width), self._pad_token_id)
        mask = torch.zeros(len(distinct), width, dtype=torch.long)
        for prompt, row in order.items():
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        ids, mask = ids.to(device), mask.to(device)
        cache = DynamicCache(config=self.model.config)
        with self._arithmetic:
            output = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
                use_cache=True,
                logits_to_keep=1,
                **{self._cache_name: cache},
            )
        rows = torch.tensor([order[tuple(prompt)] for prompt in prompts], device=device)
        cache.reorder_cache(rows)
        room = torch.ones(len(rows), max_tokens, dtype=torch.long, device=device)
        return output.logits[rows, -1], cache, torch.cat([mask[rows], room], dim=1)


@dataclass
class _Batch:
    """The rows being decoded, and what has been decoded so far."""

    sampling: Sampling
    mixer: Mixer | None
    eos: Tensor
    request: Tensor  # [B] which request a row is
    seeds: Tensor  # [B]
    alive: Tensor  # bool [B]
    progress: Tensor  # int64 [B], state of the end marker
    all_seeds: Sequence[int]
    tokens: Tensor  # int64 [requests, max_tokens]
    logprobs: Tensor  # [requests, max_tokens]
    lengths: Tensor  # int64 [requests]
    mixed: Tensor  # bool [requests, max_tokens]
    weights: Tensor  # [requests, max_tokens, k]
    candidates: Tensor | None  # int32 [requests, max_tokens, k], where the strategy records them

    @classmethod
    def start(cls, size: int, seeds: Sequence[int], sampling: Sampling, mixer: Mixer | None, eos: Tensor) -> _Batch:
        device, length = eos.device, sampling.max_tokens
        width = mixer.k if mixer else 1
        recorded = mixer is not None and mixer.strategy.records_candidates
        return cls(
            sampling=sampling,
            mixer=mixer,
            eos=eos,
            request=torch.arange(size, device=device),
            seeds=torch.tensor(list(seeds), dtype=torch.long, device=device),
            alive=torch.ones(size, dtype=torch.bool, device=device),
            progress=torch.zeros(size, dtype=torch.long, device=device),
            all_seeds=seeds,
            tokens=torch.zeros(size, length, dtype=torch.long, device=device),
            logprobs=torch.zeros(size, length, device=device),
            lengths=torch.zeros(size, dtype=torch.long, device=device),
            mixed=torch.zeros(size, length, dtype=torch.bool, device=device),
            weights=torch.zeros(size, length, width, device=device),
            candidates=torch.zeros(size, length, width, dtype=torch.int32, device=device) if recorded else None,
        )

    def decide(self, logits: Tensor, position: int) -> tuple[Tensor, InputMixture | None]:
        """Emit one token a row; return the tokens `[B]` and the mixture of their embeddings."""
        scaled = scale_logits(logits, self.sampling.temperature)
        positions = torch.full_like(self.seeds, position)
        nucleus = keep_nucleus(scaled, self.sampling.top_p) if self.sampling.top_p < 1.0 else scaled
        tokens = sample_tokens(nucleus, self.seeds, positions)
        mixture = None
        if self.mixer is not None:
            mixer = self.mixer
            asked = Step(scaled, tokens, self.seeds, positions, mixer.neighbors, mixer.eligible)
            step = self._mixed_step(mixer, asked)
            tokens = step.tokens
            mixture = InputMixture(
                step.mixed[:, None],
                step.candidates[:, None],
                step.weights[:, None],
                self.seeds,
                positions,
                mixer.strategy,
            )
            self._record(step, position)
        rows = self.request[self.alive]
        self.tokens[rows, position] = tokens[self.alive]
        self.logprobs[rows, position] = token_logprobs(scaled, tokens)[self.alive]
        self.lengths[rows] = position + 1
        self.alive &= ~torch.isin(tokens, self.eos)
        return tokens, mixture

    def _mixed_step(self, mixer: Mixer, step: Step) -> MixedStep:
        active, marker = self.alive, mixer.end_marker
        if marker is not None:
            active = active & ~marker.passed(self.progress)
        decided = mixed_step(mixer.strategy, step, rate=mixer.rate, active=active)
        if marker is not None:
            self.progress = marker.advance(self.progress, decided.tokens)
        return decided

    def _record(self, step: MixedStep, position: int) -> None:
        self.mixed[self.request, position] = step.mixed
        self.weights[self.request, position] = step.weights
        if self.candidates is not None:
            self.candidates[self.request, position] = step.candidates.int()

    def finished(self) -> bool:
        return not bool(self.alive.any())

    def compact(self) -> Tensor | None:
        """Drop finished rows when enough have gathered; return the rows kept, or none when nothing was dropped."""
        if float(self.alive.float().mean()) >= _COMPACT_BELOW:
            return None
        kept = self.alive.nonzero(as_tuple=True)[0]
        self.request, self.seeds = self.request[kept], self.seeds[kept]
        self.alive, self.progress = self.alive[kept], self.progress[kept]
        return kept

    def rollouts(self) -> list[Rollout]:
        lengths = self.lengths.tolist()
        tokens, logprobs = self.tokens.cpu(), self.logprobs.cpu()
        mixed, weights = self.mixed.cpu(), self.weights.cpu()
        candidates = None if self.candidates is None else self.candidates.cpu()
        ends = torch.isin(tokens[torch.arange(len(lengths)), self.lengths.cpu() - 1], self.eos.cpu()).tolist()
        version = self.mixer.index_version if self.mixer else 0
        result = []
        for row, length in enumerate(lengths):
            positions = mixed[row, :length].nonzero(as_tuple=True)[0]
            records = RolloutRecords(
                positions,
                weights[row, positions],
                self.all_seeds[row],
                version,
                None if candidates is None else candidates[row, positions],
            )
            reason: Any = "stop" if ends[row] else "length"
            result.append(Rollout(tokens[row, :length].tolist(), logprobs[row, :length].tolist(), reason, records))
        return result
