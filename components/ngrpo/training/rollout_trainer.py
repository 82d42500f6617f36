"""TRL's `GRPOTrainer` with rollouts from a `RolloutEngine`: their weights, prompts, seeds and mixing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler

from ngrpo.mixing.mixer import Mixer
from ngrpo.rollout.engine import Rollout, RolloutEngine, Sampling
from ngrpo.rollout.seeds import request_seed
from ngrpo.rollout.separate_engine import SeparateEngine
from ngrpo.rollout.transformers_engine import TransformersEngine
from ngrpo.training.loop import SoundLoop
from ngrpo.training.policy_weights import WholeEmbeddings, base_of, merged_parameters, with_whole_embeddings
from ngrpo.training.prompt_sampler import PromptSampler, sets_of
from ngrpo.training.rollouts_ahead import Arrived, Request, RolloutsAhead
from ngrpo.training.trl_grpo import GRPOTrainer
from ngrpo.training.validation import Validation


class RolloutTrainer(SoundLoop, GRPOTrainer):
    """GRPO whose rollouts come from a `RolloutEngine`, generated with the current weights or, in separate processes, one batch ahead."""

    section = "training"

    def __init__(
        self,
        *args: Any,
        make_engine: Callable[[PreTrainedModel], RolloutEngine],
        current_mixer: Callable[[PreTrainedModel], Mixer | None],
        validation: Validation | None = None,
        ahead: RolloutsAhead | None = None,
        **kwargs: Any,
    ):
        """Build the trainer.

        Args:
            *args: Passed on to `GRPOTrainer`.
            make_engine: Called once with the unwrapped model.
            current_mixer: Called with the unwrapped model before each rollout batch, with the weights that will generate it; for a
                sharded model it gets only the input embeddings.
            validation: Problems that `evaluate` measures.
            ahead: Holds the next rollout batch, which a `SeparateEngine` generates while training uses the current one; None to generate
                each batch when it is needed.
            **kwargs: Passed on to `GRPOTrainer`.
        """
        super().__init__(*args, **kwargs)
        self._make_engine = make_engine
        self._engine: RolloutEngine | None = None
        self._current_mixer = current_mixer
        self._validation = validation
        self._ahead = ahead
        self._mixer: Mixer | None = None
        self._prompts: list[list[int]] = []
        self._rollouts: list[Rollout] = []
        self._embedding: nn.Module | None = None

    def close(self) -> None:
        """Release the engine."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        return self._sampler(lambda: int(self.state.epoch or 0), dataset)

    def _sampler(self, epoch: Callable[[], int], dataset: Any = None, **changes: int) -> RepeatSampler:
        stock = super()._get_train_sampler(dataset)
        repeats = {"mini_repeat_count": stock.mini_repeat_count, "repeat_count": stock.repeat_count} | changes
        return PromptSampler(
            epoch,
            data_source=stock.data_source,
            batch_size=stock.batch_size,
            shuffle=stock.shuffle,
            seed=stock.seed,
            sets=sets_of(self.train_dataset if dataset is None else dataset),
            **repeats,
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
        # One step may take several rollout batches.
        part = self._step % self.args.gradient_accumulation_steps
        sampling = Sampling(self.max_completion_length, self.temperature, self.top_p)
        with self._generation() as (engine, whole):
            # No collective operations in here, because processes end at different steps.
            if self._ahead is None:
                self._mixer = self._current_mixer(whole)
                rollouts = engine.generate(prompt_ids, self._seeds(step, part, prompt_ids), sampling, self._mixer)
            else:
                rollouts = self._batch_before(cast(SeparateEngine, engine), whole, prompt_ids, sampling)
        self._embedding = whole.get_input_embeddings()
        self._prompts, self._rollouts = prompt_ids, rollouts
        return [rollout.token_ids for rollout in rollouts], [rollout.logprobs for rollout in rollouts]

    def _seeds(self, step: int, part: int, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Return the seeds of this process's rollouts."""
        # Rows are numbered over all processes, so that a rollout does not depend on their number.
        first = self.accelerator.process_index * len(prompts)
        return [request_seed(self.args.seed, step, part, first + row) for row in range(len(prompts))]

    def _batch_before(
        self,
        engine: SeparateEngine,
        whole: PreTrainedModel | WholeEmbeddings,
        prompts: list[list[int]],
        sampling: Sampling,
    ) -> list[Rollout]:
        """Return the rollouts of this step, made with the weights of one batch ago, and start those of the next step."""
        assert self._ahead is not None
        step, first = self.state.global_step, self.accelerator.process_index * len(prompts)
        following = step + self.args.steps_per_generation * self.num_iterations // self.args.gradient_accumulation_steps
        arrived = self._ahead.take(step, first, prompts)
        mixer = None
        if arrived is None or following < self.state.max_steps:
            mixer = self._current_mixer(whole)
        if arrived is None:  # the first batch
            began = time.perf_counter()
            rollouts = engine.generate(prompts, self._seeds(step, 0, prompts), sampling, mixer)
            arrived = Arrived(rollouts, mixer, step, time.perf_counter() - began)
        if following < self.state.max_steps:
            later = self._prompts_of(following, len(prompts))
            request = Request(following, step, first, later, self._seeds(following, 0, later), mixer)
            self._ahead.ask(engine, request, sampling)
        self._mixer = arrived.mixer
        self._metrics["train"]["rollout/steps_behind"].append(step - arrived.made_at)
        self._metrics["train"]["rollout/wait_seconds"].append(arrived.waited)
        if arrived.mixer is not None:
            self._metrics["train"]["rollout/index_version"].append(arrived.mixer.index_version)
        return arrived.rollouts

    def _prompts_of(self, step: int, rows: int) -> list[list[int]]:
        """Return this process's prompts of a later step, which the data loader has not read yet."""
        batch = step * self.args.gradient_accumulation_steps // (self.args.steps_per_generation * self.num_iterations)
        prompts = self.args.generation_batch_size // self.num_generations
        epoch, place = divmod(batch, len(self.train_dataset) // prompts)
        order = self._sampler(lambda: epoch, mini_repeat_count=1, repeat_count=1)
        ahead = islice(order, place * prompts, (place + 1) * prompts)
        first = self.accelerator.process_index * rows
        numbers = [number for number in ahead for _ in range(self.num_generations)][first : first + rows]
        ids, *_ = self._tokenize_prompts([self.train_dataset[number]["prompt"] for number in numbers])
        return [list(each) for each in ids]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self._ahead is not None:
            self._ahead.settle(cast(SeparateEngine, self._engine))
            directory = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            self._ahead.save(Path(self._get_output_dir(trial=trial)) / directory)

    @contextmanager
    def _generation(self) -> Iterator[tuple[RolloutEngine, PreTrainedModel | WholeEmbeddings]]:
        """Load the current weights into the engine, and provide the model with unsharded input embeddings."""
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
            if self._ahead is not None:
                self._ahead.settle(cast(SeparateEngine, self._engine))
            whole = with_whole_embeddings(policy)
            if not (isinstance(self._engine, TransformersEngine) and self._engine.model is policy):
                self._engine.load_weights(merged_parameters(model, whole.get_input_embeddings().weight))
            yield self._engine, whole
            self._engine.sleep()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure the policy on `validation`; `Trainer` calls this before it saves, and remembers the best checkpoint.

        Args:
            *args: Ignored.
            **kwargs: Ignored.

        Returns:
            `eval_mean`: share of correct answers.

        Raises:
            TrainingError: The share is not finite.
            ValueError: The trainer has no `validation`.
        """
        if self._validation is None:
            raise ValueError("no validation problems: build the trainer with `validation`")
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        with self._generation() as (engine, _):
            verdicts = gather_object(self._validation.verdicts(engine, process=process, processes=processes))
        metrics = {"eval_mean": sum(verdicts) / len(verdicts)}
        self.require_finite(self.state.global_step, metrics)
        self.log(dict(metrics))
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
