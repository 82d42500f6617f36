"""N-GRPO as a small subclass of TRL's `GRPOTrainer`: our rollouts, and every forward pass over the same mixed inputs.

The policy, the old policy and the reference all score a rollout on the input embeddings it was generated from, rebuilt from its
records. Objective, clipping, advantages and KL are TRL's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler

from ngrpo.data.problem import SET, WEIGHT
from ngrpo.mixing.inputs import mixed_inputs
from ngrpo.mixing.mixer import Mixer
from ngrpo.mixing.records import InputMixture, collate
from ngrpo.rollout.engine import Rollout, RolloutEngine, Sampling
from ngrpo.rollout.seeds import request_seed
from ngrpo.rollout.transformers_engine import TransformersEngine
from ngrpo.training.loop import SoundLoop
from ngrpo.training.model_traits import (
    can_balance_experts,
    counts_from_the_padding,
    name_backbone,
    positions_of_text,
    silence_dropout,
)
from ngrpo.training.policy_weights import base_of, merged_parameters, with_whole_embeddings
from ngrpo.training.training_sets import TrainingSets, set_metrics
from ngrpo.training.trl_grpo import GRPOTrainer
from ngrpo.training.validation import Validation

_MIXTURE_KEYS = ("mix_mask", "mix_candidates", "mix_weights", "mix_seeds")


_NOT_SCORING = object()
"""Stands for the mixture where no rollouts are being scored, so that no forward pass can do without its records."""


@dataclass(frozen=True)
class RolloutBatch:
    """One process's share of a rollout batch, as an observer sees it.

    Attributes:
        step: Optimizer steps made before it was generated.
        prompts: Token ids of each prompt, a group's copies side by side.
        rollouts: One a prompt.
        rewards: One a rollout, the weighted sum of all; none where no reward was for it.
        mixture: What was mixed, padded to the longest rollout; none without mixing.
        embedding: The input embedding module that generated it.
    """

    step: int
    prompts: Sequence[Sequence[int]]
    rollouts: Sequence[Rollout]
    rewards: Sequence[float | None]
    mixture: InputMixture | None
    embedding: nn.Module


RolloutObserver = Callable[[RolloutBatch], dict[str, float]]
"""Called after each rollout batch; the numbers it returns are averaged over processes and logged."""


class NGRPOTrainer(SoundLoop, GRPOTrainer):
    """GRPO whose rollouts may be mixed.

    With `current_mixer` returning none, losses and log-probabilities are exactly those of `GRPOTrainer`.
    """

    section = "training"

    def __init__(
        self,
        *args: Any,
        make_engine: Callable[[PreTrainedModel], RolloutEngine],
        current_mixer: Callable[[PreTrainedModel], Mixer | None],
        mask_mixed_positions: bool = False,
        observers: Sequence[RolloutObserver] = (),
        validation: Validation | None = None,
        **kwargs: Any,
    ):
        """Build the trainer.

        Args:
            *args: Passed on to `GRPOTrainer`.
            make_engine: Called once with the unwrapped model.
            current_mixer: Called with the unwrapped model before each rollout batch, with the weights that will generate it; of a
                model that is sharded it gets the input embeddings alone.
            mask_mixed_positions: Leave mixed positions out of the loss and of its normaliser.
            observers: Called after each rollout batch.
            validation: What `evaluate` measures.
            **kwargs: Passed on to `GRPOTrainer`.
        """
        super().__init__(*args, **kwargs)
        for model in filter(None, (self.model, self.ref_model)):
            name_backbone(base_of(model))
        if self.args.disable_dropout:
            silence_dropout(self.model)
        self.aux_loss_enabled &= can_balance_experts(base_of(self.model))
        self._padding_counts = counts_from_the_padding(base_of(self.model))
        self._make_engine = make_engine
        self._engine: RolloutEngine | None = None
        self._current_mixer = current_mixer
        self._mask_mixed_positions = mask_mixed_positions
        self._observers = observers
        self._validation = validation
        self._mixer: Mixer | None = None
        self._prompts: list[list[int]] = []
        self._rollouts: list[Rollout] = []
        self._mixture: Any = _NOT_SCORING

    def close(self) -> None:
        """Release the engine."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        stock = super()._get_train_sampler(dataset)
        return _EpochSampler(
            lambda: int(self.state.epoch or 0),
            data_source=stock.data_source,
            mini_repeat_count=stock.mini_repeat_count,
            batch_size=stock.batch_size,
            repeat_count=stock.repeat_count,
            shuffle=stock.shuffle,
            seed=stock.seed,
            sets=_training_sets(self.train_dataset if dataset is None else dataset),
        )

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], list[list[float]]]:
        if images is not None or multimodal_fields:
            raise ValueError("N-GRPO mixes token embeddings: prompts with images are not supported")
        step = self.state.global_step
        # Rows are counted over all processes, so that a rollout does not depend on how many there are.
        first = self.accelerator.process_index * len(prompt_ids)
        # One step may take several rollout batches.
        part = self._step % self.args.gradient_accumulation_steps
        seeds = [request_seed(self.args.seed, step, part, first + row) for row in range(len(prompt_ids))]
        sampling = Sampling(self.max_completion_length, self.temperature, self.top_p)
        with self._generation() as (engine, model):
            self._mixer = self._current_mixer(with_whole_embeddings(model))
            # In here a process waits for no other: they end at different steps.
            rollouts = engine.generate(prompt_ids, seeds, sampling, self._mixer)
        self._prompts, self._rollouts = prompt_ids, rollouts
        self._mixture = self._collate(rollouts)
        return [rollout.token_ids for rollout in rollouts], [rollout.logprobs for rollout in rollouts]

    @contextmanager
    def _generation(self) -> Iterator[tuple[RolloutEngine, PreTrainedModel]]:
        """Provide the engine with the weights of now, and the model that they are of."""
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            torch.no_grad(),
        ):
            policy = base_of(model)
            if self._engine is None:
                self._engine = self._make_engine(policy)
            if not (isinstance(self._engine, TransformersEngine) and self._engine.model is policy):
                self._engine.load_weights(merged_parameters(model))
            yield self._engine, policy

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure the policy by `validation`; `Trainer` calls this before it saves, and remembers which checkpoint was best.

        Args:
            *args: Not read.
            **kwargs: Not read.

        Returns:
            `eval_mean`: share of correct answers.

        Raises:
            TrainingError: It is not finite.
        """
        if self._validation is None:
            raise ValueError("there is nothing to evaluate by: build the trainer with a validation")
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        with self._generation() as (engine, _):
            verdicts = gather_object(self._validation.verdicts(engine, process=process, processes=processes))
        metrics = {"eval_mean": sum(verdicts) / len(verdicts)}
        self.require_finite(self.state.global_step, metrics)
        self.log(dict(metrics))
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        prompt_ids, completion_ids, tool_mask, *rest = super()._generate(prompts)
        if self._mask_mixed_positions and self._mixer is not None:
            tool_mask = []
            for rollout in self._rollouts:
                mixed = set(rollout.records.positions.tolist())
                tool_mask.append([int(position not in mixed) for position in range(len(rollout.token_ids))])
        return prompt_ids, completion_ids, tool_mask, *rest

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        try:
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
            mixture = self._mixture
        finally:
            self._mixture = _NOT_SCORING
        if mixture is not None:
            values = (mixture.mask, mixture.candidates, mixture.weights, mixture.seeds)
            output.update(zip(_MIXTURE_KEYS, values, strict=True))
        self._observe(mixture)
        self._log_sets(inputs)
        return output

    def _log_sets(self, inputs: list[dict[str, Any]]) -> None:
        """Log share and reward of each training set, where there are several."""
        if SET not in inputs[0]:
            return
        sets = gather_object([row[SET] for row in inputs])
        rewards = [list(values) for values in self._logs["rewards"].values()]
        for name, value in set_metrics(sets, rewards, self.reward_weights.tolist()).items():
            self._metrics["train"][name].append(value)

    def _observe(self, mixture: InputMixture | None) -> None:
        start = self.accelerator.process_index * len(self._rollouts)
        by_function = [list(rewards)[start : start + len(self._rollouts)] for rewards in self._logs["rewards"].values()]
        model = self.accelerator.unwrap_model(self.model)
        batch = RolloutBatch(
            step=self.state.global_step,
            prompts=self._prompts,
            rollouts=self._rollouts,
            rewards=[_total(values, self.reward_weights.tolist()) for values in zip(*by_function, strict=True)],
            mixture=mixture,
            embedding=with_whole_embeddings(model).get_input_embeddings(),
        )
        numbers = {name: value for observe in self._observers for name, value in observe(batch).items()}
        # A process may have nothing to say where another has: with few rollouts, none of them may be mixed.
        of_processes = gather_object([numbers])
        for name in {name: None for one in of_processes for name in one}:
            values = [one[name] for one in of_processes if name in one]
            self._metrics["train"][name].append(sum(values) / len(values))

    def _collate(self, rollouts: Sequence[Rollout]) -> InputMixture | None:
        """Return the mixture of rollouts, as wide as TRL pads them."""
        if self._mixer is None:
            return None
        columns = max(len(rollout.token_ids) for rollout in rollouts)
        multiple = self.pad_to_multiple_of or 1
        return collate(
            [rollout.records for rollout in rollouts],
            [rollout.token_ids for rollout in rollouts],
            -(-columns // multiple) * multiple,
            strategy=self._mixer.strategy,
            neighbors=self._mixer.neighbors,
            index_version=self._mixer.index_version,
            device=self.accelerator.device,
        )

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if self._mixture is _NOT_SCORING:
            raise RuntimeError("log-probabilities were asked for outside of a rollout batch: its records are not known")
        with positions_of_text(self.accelerator.unwrap_model(model)) if self._padding_counts else nullcontext():
            return self._score(model, input_ids, attention_mask, logits_to_keep, batch_size, **kwargs)

    def _score(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        mixture = self._mixture
        if mixture is None:
            stock: tuple[Tensor, Tensor | None, Tensor | None] = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size=batch_size, **kwargs
            )
            return stock
        # TRL splits the rows into chunks; the records must be split with them, so one call scores one chunk.
        embedding = self.accelerator.unwrap_model(model).get_input_embeddings()
        size = batch_size or len(input_ids)
        parts = []
        for start in range(0, len(input_ids), size):
            rows = slice(start, start + size)
            with mixed_inputs(embedding, mixture.select(rows)):
                parts.append(
                    super()._get_per_token_logps_and_entropies(
                        model, input_ids[rows], attention_mask[rows], logits_to_keep, **kwargs
                    )
                )
        logps, entropies, aux_losses = zip(*parts, strict=True)
        return (
            torch.cat(logps),
            torch.cat(entropies) if entropies[0] is not None else None,
            torch.stack(aux_losses).mean() if aux_losses[0] is not None else None,
        )

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._mixture = None
        if self._mixer is not None:
            mask, candidates, weights, seeds = (inputs[key] for key in _MIXTURE_KEYS)
            start = torch.zeros_like(seeds)
            self._mixture = InputMixture(mask, candidates, weights, seeds, start, self._mixer.strategy)
        try:
            loss: Tensor = super()._compute_loss(model, inputs)
            return loss
        finally:
            self._mixture = _NOT_SCORING


def _total(values: Sequence[float], weights: Sequence[float]) -> float | None:
    """Return the weighted sum of a rollout's rewards; TRL has NaN for those that left it out."""
    weighted = [value * weight for value, weight in zip(values, weights, strict=True) if not math.isnan(value)]
    return sum(weighted) if weighted else None


def _training_sets(dataset: Any) -> TrainingSets | None:
    """Return the sets that a data set consists of; none where it is one."""
    columns = getattr(dataset, "column_names", None) or ()
    return TrainingSets.of(dataset[SET][:], dataset[WEIGHT][:]) if {SET, WEIGHT} <= {*columns} else None


class _EpochSampler(RepeatSampler):
    """TRL's sampler with an order that depends on the epoch alone, so that a run resumed in a later epoch sees the same order.

    It asks for the epoch itself: accelerate's `set_epoch` does not reach the sampler of a resumed epoch that processes share.
    """

    def __init__(self, epoch: Callable[[], int], sets: TrainingSets | None, **kwargs: Any):
        super().__init__(**(kwargs if sets is None else kwargs | {"shuffle": False}))
        self._epoch = epoch
        self._sets = sets

    def __iter__(self) -> Iterator[int]:
        """Yield the rows of the current epoch."""
        if self._sets is not None:
            order = self._sets.order(self.seed, self._epoch())
            yield from (order[place] for place in super().__iter__())
            return
        if self.shuffle:
            self.generator.manual_seed(request_seed(self.seed, self._epoch()))
        yield from super().__iter__()
