"""N-GRPO as a small subclass of TRL's `GRPOTrainer`: every forward pass is over the mixed inputs of the rollouts.

The policy, the old policy and the reference all score a rollout on the input embeddings it was generated from, rebuilt from its
records. Objective, clipping, advantages and KL are TRL's own. `RolloutTrainer` generates the rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.functional import pad

from ngrpo.data.problem import SET
from ngrpo.errors import TrainingError
from ngrpo.mixing.inputs import mixed_inputs
from ngrpo.mixing.records import InputMixture, collate
from ngrpo.rollout.engine import Rollout
from ngrpo.training.micro_batches import SUMS_OVER_ROWS, Columns, by_length, sorted_micro_batches
from ngrpo.training.mismatch import Mismatch
from ngrpo.training.model_traits import (
    can_balance_experts,
    counts_from_the_padding,
    name_backbone,
    positions_of_text,
    silence_dropout,
)
from ngrpo.training.policy_weights import base_of
from ngrpo.training.rollout_batch import RolloutBatch, RolloutObserver
from ngrpo.training.rollout_trainer import RolloutTrainer
from ngrpo.training.training_sets import set_metrics

_MIXTURE_KEYS = ("mix_mask", "mix_candidates", "mix_weights", "mix_seeds")


_NOT_SCORING = object()
"""Placeholder for the mixture while no rollouts are scored, so that a forward pass without its records fails."""


class NGRPOTrainer(RolloutTrainer):
    """GRPO whose rollouts may be mixed.

    With `current_mixer` returning none, losses and log-probabilities are exactly those of `GRPOTrainer`.
    """

    def __init__(
        self,
        *args: Any,
        mask_mixed_positions: bool = False,
        mixed_ratio: Literal["policy", "one"] = "policy",
        correct_mismatch: bool = False,
        mismatch_bound: float | None = None,
        observers: Sequence[RolloutObserver] = (),
        **kwargs: Any,
    ):
        """Build the trainer.

        Args:
            *args: Passed on to `RolloutTrainer`.
            mask_mixed_positions: Leave mixed positions out of the loss and of its normaliser.
            mixed_ratio: Importance ratio r of mixed steps. `policy`: exp(log p - log p_old), as of other steps. `one`:
                exp(log p - sg(log p)), where sg stops the gradient. Its value is 1, so it is never clipped, and its gradient is that
                of log p, as if the label came from the current policy. In a sequence-level ratio (GSPO) such a step adds nothing to
                the mean of log ratios.
            correct_mismatch: Weigh the policy loss of unmixed steps by the probabilities of trainer and engine, as TRL does for vLLM:
                see its `vllm_importance_sampling_mode`.
            mismatch_bound: Mean difference of their log-probabilities above which training stops.
            observers: Called after each rollout batch.
            **kwargs: Passed on to `RolloutTrainer`.
        """
        super().__init__(*args, **kwargs)
        self._buffered_inputs: Any
        for model in filter(None, (self.model, self.ref_model)):
            name_backbone(base_of(model))
        if self.args.disable_dropout:
            silence_dropout(self.model)
        self.aux_loss_enabled &= can_balance_experts(base_of(self.model))
        self._padding_counts = counts_from_the_padding(base_of(self.model))
        self._mask_mixed_positions = mask_mixed_positions
        self._mixed_ratio = mixed_ratio
        self._loss_inputs: dict[str, Any] = {}  # inputs of the loss that TRL is computing
        # The correction is TRL's own, which it enables only with its own vLLM; nothing else used here depends on that setting.
        self.use_vllm = self._correct_mismatch = correct_mismatch
        self._mismatch_bound = mismatch_bound
        self._mismatch = Mismatch(self.accelerator)
        self._scores: Tensor | None = None
        self._observers = observers
        self._mixture: Any = _NOT_SCORING

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple[list[list[int]], list[list[float]]]:
        token_ids, logprobs = super()._generate_single_turn(*args, **kwargs)
        self._mixture = self._collate(self._rollouts)
        return token_ids, [_unmixed(rollout) for rollout in self._rollouts] if self._correct_mismatch else logprobs

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        prompt_ids, completion_ids, tool_mask, *rest = super()._generate(prompts)
        if self._mask_mixed_positions and self._mixer is not None:
            tool_mask = []
            for rollout in self._rollouts:
                mixed = set(rollout.records.positions.tolist())
                tool_mask.append([int(position not in mixed) for position in range(len(rollout.token_ids))])
        return prompt_ids, completion_ids, tool_mask, *rest

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training or self._buffered_inputs is before or not self._rows_may_move():
            return inputs
        # An optimizer step may end after any number of micro-batches that divides those of a step and of a rollout batch.
        window = math.gcd(self.args.gradient_accumulation_steps, self.args.steps_per_generation)
        self._buffered_inputs = sorted_micro_batches(self._buffered_inputs, window, self.accelerator)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _rows_may_move(self) -> bool:
        """Whether the loss of an optimizer step does not depend on how its rows are split into micro-batches."""
        alone: bool = self.args.per_device_train_batch_size == 1
        if self.top_entropy_quantile < 1:  # a quantile of the rows that all processes go through together
            return alone and self.accelerator.num_processes == 1
        means: bool = self.loss_type not in SUMS_OVER_ROWS or self._entropy_bonus_enabled or self.aux_loss_enabled
        return alone or not means

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        try:
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
            mixture = self._mixture
        finally:
            self._mixture = _NOT_SCORING
        if mixture is not None:
            values = (mixture.mask, mixture.candidates, mixture.weights, mixture.seeds)
            output.update(zip(_MIXTURE_KEYS, values, strict=True))
        if self.model.training and "old_per_token_logps" in output:
            old = output["old_per_token_logps"]
            engine = torch.zeros_like(old, dtype=torch.float32)
            for row, rollout in enumerate(self._rollouts):
                engine[row, : len(rollout.logprobs)] = torch.tensor(rollout.logprobs)
            self._mismatch.add(output, engine, old)
            self._settle_mismatch()
        self._observe(mixture)
        self._log_sets(inputs)
        return output

    def _log_sets(self, inputs: list[dict[str, Any]]) -> None:
        """Log share and reward of each training set, if there are several."""
        if SET not in inputs[0]:
            return
        sets = gather_object([row[SET] for row in inputs])
        rewards = [list(values) for values in self._logs["rewards"].values()]
        for name, value in set_metrics(sets, rewards, self.reward_weights.tolist()).items():
            self._metrics["train"][name].append(value)

    def _observe(self, mixture: InputMixture | None) -> None:
        start = self.accelerator.process_index * len(self._rollouts)
        by_function = [list(rewards)[start : start + len(self._rollouts)] for rewards in self._logs["rewards"].values()]
        embedding, self._embedding = self._embedding, None  # of a sharded model, a copy that training has no room for
        assert embedding is not None, "rollouts come before what they are"
        batch = RolloutBatch(
            step=self.state.global_step,
            prompts=self._prompts,
            rollouts=self._rollouts,
            rewards=[_total(values, self.reward_weights.tolist()) for values in zip(*by_function, strict=True)],
            mixture=mixture,
            embedding=embedding,
            mixer=self._mixer,
        )
        numbers = {name: value for observe in self._observers for name, value in observe(batch).items()}
        # One process may have no value where another has: with few rollouts, none may be mixed.
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
        embedding = self.accelerator.unwrap_model(model).get_input_embeddings()
        mixture = self._mixture
        # TRL would score rows in their given order, padded to the longest of all.
        order = by_length(attention_mask.sum(dim=1)) if batch_size and batch_size < len(input_ids) else None
        chunks = (slice(None),) if order is None else order.split(batch_size)
        parts = []
        for rows in chunks:
            columns = Columns.of(attention_mask[rows], logits_to_keep, self.pad_to_multiple_of or 1)
            seen = slice(columns.start, columns.end)
            chosen = None if mixture is None else mixture.select(rows, columns.kept)
            with mixed_inputs(embedding, chosen):
                logps, entropies, aux_loss = super()._get_per_token_logps_and_entropies(
                    model, input_ids[rows, seen], attention_mask[rows, seen], columns.kept, **kwargs
                )
            padding = (0, logits_to_keep - columns.kept)
            parts.append((pad(logps, padding), None if entropies is None else pad(entropies, padding), aux_loss))
        logps, entropies, aux_losses = zip(*parts, strict=True)
        self._scores = _in_order(logps, order)
        if self._mixed_ratio == "one":
            self._fix_mixed_ratios(self._scores)
        return (
            self._scores,
            _in_order(entropies, order) if entropies[0] is not None else None,
            torch.stack(aux_losses).mean() if aux_losses[0] is not None else None,
        )

    def _fix_mixed_ratios(self, logps: Tensor) -> None:
        """Set the importance ratios of mixed steps to one while a loss is computed: TRL reads the old policy after scoring."""
        inputs = self._loss_inputs
        if "old_per_token_logps" in inputs and "mix_mask" in inputs:
            old = inputs["old_per_token_logps"]
            inputs["old_per_token_logps"] = torch.where(inputs["mix_mask"], logps.detach(), old)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._mixture = self._mixture_of(inputs)
        self._loss_inputs = dict(inputs)
        try:
            loss: Tensor = super()._compute_loss(model, self._loss_inputs)
        finally:
            self._mixture, self._loss_inputs = _NOT_SCORING, {}
            scores, self._scores = self._scores, None
        if self.model.training and "old_per_token_logps" not in inputs:
            # There is only one update with this rollout batch, so the weights are those that generated it.
            assert scores is not None, "TRL scores rows to compute their loss"
            self._mismatch.add(inputs, inputs["sampling_per_token_logps"], scores)
            if (self._step + 1) % self.args.steps_per_generation == 0:
                self._settle_mismatch()
        return loss

    def _mixture_of(self, inputs: Mapping[str, Tensor]) -> InputMixture | None:
        """Return the mixture of the rows of a batch."""
        if self._mixer is None:
            return None
        mask, candidates, weights, seeds = (inputs[key] for key in _MIXTURE_KEYS)
        return InputMixture(mask, candidates, weights, seeds, torch.zeros_like(seeds), self._mixer.strategy)

    def _settle_mismatch(self) -> None:
        """Log the difference of engine and trainer on a rollout batch.

        Raises:
            TrainingError: Too far.
        """
        numbers = self._mismatch.statistics()
        for name, value in numbers.items():
            self._metrics["train"][name].append(value)
        bound = self._mismatch_bound
        cause = "the engine does not compute what is trained"
        if self._ahead is not None:
            cause += ", or the policy moves too far within a batch"
        for kind in ("mixed", "unmixed"):
            mean = numbers.get(f"mismatch/{kind}_mean", 0.0)
            if bound is not None and not mean <= bound:
                raise TrainingError(
                    f"step {self.state.global_step + 1}: log-probabilities of engine and trainer differ by {mean:.3g} on average on "
                    f"{kind} steps, more than {self.section}.mismatch_bound={bound:g}: {cause}: "
                    f"look for other weights, types or kernels in it, or raise the bound\n{self._worst_texts()}"
                )
        self._mismatch.clear()

    @torch.no_grad()
    def _worst_texts(self) -> str:
        """Return the engine's tokens at the largest differences, beside the trainer's most likely tokens."""
        worst = self._mismatch.worst()
        model, tokenizer = self.model, self._tokenizer
        rows = slice(worst.row, worst.row + 1)
        ids, mask = (
            torch.cat([worst.inputs[f"prompt_{of}"], worst.inputs[f"completion_{of}"]], dim=1)[rows]
            for of in ("ids", "mask")
        )
        responses = worst.inputs["completion_ids"]
        columns = Columns.of(mask, responses.shape[1], self.pad_to_multiple_of or 1)
        seen = slice(columns.start, columns.end)
        before = torch.tensor(worst.columns, device=ids.device) + (columns.end - columns.start - columns.kept - 1)
        mixture = self._mixture_of(worst.inputs)
        unwrapped = self.accelerator.unwrap_model(model)
        with (
            positions_of_text(unwrapped) if self._padding_counts else nullcontext(),
            mixed_inputs(
                unwrapped.get_input_embeddings(), None if mixture is None else mixture.select(rows, columns.kept)
            ),
            self.accelerator.autocast(),
        ):
            logits = model(
                input_ids=ids[:, seen], attention_mask=mask[:, seen], logits_to_keep=before, use_cache=False
            ).logits[0]
        scores = (logits.float() / self.temperature).log_softmax(dim=-1).max(dim=-1)
        lines = []
        for place, column in enumerate(worst.columns):
            token, likely = int(responses[worst.row, column]), int(scores.indices[place])
            lines.append(
                f"  token {column}: engine {tokenizer.decode([token])!r} {worst.engine[place]:.2f} | trainer "
                f"{tokenizer.decode([likely])!r} {scores.values[place]:.2f}, the engine's {worst.trainer[place]:.2f}"
            )
        texts = gather_object([(worst.difference, "\n".join(lines))])
        _, text = max(texts)
        return str(text)


def _unmixed(rollout: Rollout) -> list[float]:
    """Return log-probabilities for TRL's correction, with a ratio of one at mixed steps, whose tokens were not sampled."""
    mixed = set(rollout.records.positions.tolist())
    return [math.nan if place in mixed else value for place, value in enumerate(rollout.logprobs)]


def _in_order(parts: tuple[Tensor, ...], order: Tensor | None) -> Tensor:
    """Return reordered rows in their original order."""
    return torch.cat(parts) if order is None else torch.cat(parts)[order.argsort()]


def _total(values: Sequence[float], weights: Sequence[float]) -> float | None:
    """Return the weighted sum of a rollout's rewards; TRL has NaN for rewards that skipped it."""
    weighted = [value * weight for value, weight in zip(values, weights, strict=True) if not math.isnan(value)]
    return sum(weighted) if weighted else None
