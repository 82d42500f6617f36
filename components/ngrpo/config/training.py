"""The section `training`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ngrpo.config.lora import LoRAConfig
from ngrpo.config.passed_on import GRPOOptions
from ngrpo.config.rewards import RewardConfig, named
from ngrpo.section import (
    Coefficient,
    Flag,
    LearningRate,
    Name,
    Nucleus,
    Probability,
    Samples,
    Section,
    Sequences,
    Spelled,
    Steps,
    Temperature,
    count,
    keep_apart,
    number,
    refuse,
    unless_set,
)


class SelectionConfig(Section):
    """Choice of the best checkpoint by a validation benchmark, whose results are then no longer a test of the model."""

    benchmark: Spelled
    """One of `data.benchmarks`, other than those that promotion decides by."""
    samples: Samples = 8
    """Answers for each problem."""
    steps: Steps | None = unless_set(None)
    """Optimizer steps between two measurements, a divisor of `training.save_steps`: the policy is measured more often than it is saved,
    and also saved when it is better than ever before. None measures at `training.save_steps`."""
    temperature: Temperature = 0.6
    """Sampling temperature."""
    top_p: Nucleus = 0.95
    """Nucleus of sampling."""


class TrainingConfig(Section):
    """N-GRPO training."""

    rewards: Annotated[
        dict[Name, RewardConfig], BeforeValidator(named), BeforeValidator(keep_apart), Field(max_length=50)
    ] = {}
    """Rewards by name, added up with their weights. Without any it is `correctness`; otherwise `correctness` counts only if it is
    named."""
    steps: Steps
    """Optimizer steps."""
    prompts_per_batch: Sequences
    """Prompts of one rollout batch; each gets `rollout.group_size` rollouts."""
    updates_per_batch: Sequences = 1
    """Optimizer steps per rollout batch, each on its own share of it."""
    num_iterations: Annotated[int, count(1, 1000)] = 1
    """Passes over a rollout batch, mu of the GRPO paper: each pass makes `updates_per_batch` optimizer steps."""
    micro_batch_size: Sequences
    """Sequences per forward pass; must divide the sequences of an optimizer step."""
    learning_rate: LearningRate = 1e-6
    """Learning rate."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    """Schedule of the learning rate."""
    warmup_ratio: Probability = 0.0
    """Share of the steps with a rising learning rate, before the schedule begins."""
    adam_beta2: Annotated[float, number(above=0.0, below=1.0)] = 0.999
    """Second moment decay of AdamW."""
    weight_decay: Coefficient = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: Annotated[float, number(above=0.0, most=1e9)] = 1.0
    """Gradient norm at which gradients are clipped."""
    kl_coefficient: Coefficient = 0.001
    """beta: weight of the KL divergence from the reference model; 0 needs no reference model."""
    clip_epsilon: Annotated[float, number(above=0.0, most=100.0)] = 0.2
    """Clipping range of the importance ratio: on both sides, or only downwards if `epsilon_high` is given."""
    epsilon_high: Annotated[float, number(above=0.0, most=100.0)] | None = None
    """Upper clipping range of the importance ratio, for example 0.28 (DAPO). With `loss_type = "cispo"` the largest ratio, for
    example 5 (ScaleRL)."""
    delta: Annotated[float, number(above=1.0, most=1000.0)] | None = None
    """Largest importance ratio where the advantage is negative (two-sided clipping, INTELLECT-2); above one plus the upper clipping
    range."""
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"] = "grpo"
    """Form and normalisation of the loss, as TRL names it. The `dr_grpo` paper combines it with `scale_rewards = "none"`."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What the advantages of a group are divided by: the standard deviation of its rewards, of those of the batch, or nothing."""
    mask_truncated_completions: Flag = False
    """Leave rollouts that reached `rollout.max_tokens` out of the loss; they still count in the advantages of their group."""
    top_entropy_quantile: Probability = 1.0
    """Share of the positions, those of the highest entropy, whose policy loss counts; the paper of this method uses 0.2. Mixed positions
    are ranked with the others."""
    entropy_coefficient: Coefficient = 0.0
    """Weight of the mean entropy of the policy, which is added to the objective."""
    use_bias_correction_kl: Flag = True
    """Weight the KL divergence with the importance ratio, so that its gradient is unbiased (DeepSeek-V3.2)."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """`token` is GRPO, `sequence` is GSPO."""
    mask_mixed_positions: Flag = False
    """Leave mixed steps out of the loss: their label is an argmax, not a sample."""
    mixed_ratio: Literal["policy", "one"] = unless_set("policy")
    """Importance ratio of mixed steps: `policy` is that of the probabilities now and at the rollout, as of any other step. `one` is
    exp(log p - sg(log p)) with sg a stop of the gradient: 1 whatever the update, so it is never clipped, with the gradient of log p."""
    mismatch_correction: Literal["off", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = (
        unless_set("off")
    )
    """Weighs the policy loss by the ratio of a token's (or a sequence's) probabilities by trainer and engine: above the cap the ratio is
    cut (`truncate`) or taken as 0 (`mask`), like TRL's `vllm_importance_sampling_mode`. On a mixed step it is 1. It takes one additional
    forward pass if a rollout batch is used for one step."""
    mismatch_cap: Annotated[float, number(least=1.0, most=1e6)] | None = unless_set(None)
    """Largest ratio of `mismatch_correction`; by default 3, as in TRL."""
    mismatch_bound: Annotated[float, number(above=0.0, most=1000.0)] | None = unless_set(None)
    """Training stops if the log-probabilities of engine and trainer differ by more than this on average, on the mixed or the unmixed
    steps of a rollout batch. In float32 it is about 1e-5, in bfloat16 a few hundredths at most."""
    gradient_checkpointing: Flag = False
    """Trade compute for memory in the backward pass."""
    cast_lm_head_to_fp32: Flag = False
    """Compute the logits of training in float32 (ScaleRL). For `model.dtype = "bfloat16"`; with float32 they always are."""
    index_refresh: Literal["at_start", "every_batch"] = "at_start"
    """When the neighbor index follows the weights: once before the first rollout, or before every rollout batch."""
    save_steps: Steps
    """Optimizer steps between two checkpoints; a multiple of the steps of a rollout batch, so that a resumed run is exact."""
    lora: LoRAConfig | None = unless_set(None)
    """Adapters to train in place of all weights. The result has the adapters and the merged model. None trains all weights."""
    selection: SelectionConfig | None = None
    """Measures the policy at every checkpoint, or more often; the result is the best of them. Otherwise it is the last."""
    trl: GRPOOptions = {}
    """Further arguments of TRL's `GRPOConfig`."""

    @property
    def steps_per_batch(self) -> int:
        """Optimizer steps that a rollout batch is used for."""
        return self.updates_per_batch * self.num_iterations

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        refuse([*self._off_boundaries(), *self._without_effect()])
        return self

    def _off_boundaries(self) -> Iterator[str]:
        each = f"updates_per_batch={self.updates_per_batch}"
        if self.num_iterations > 1:
            each = f"{each} x num_iterations={self.num_iterations}, {self.steps_per_batch}"
        for name, value, why in (
            ("save_steps", self.save_steps, "a checkpoint off a rollout boundary cannot be resumed exactly"),
            ("steps", self.steps, "a run ends with a whole rollout batch"),
        ):
            if value % self.steps_per_batch:
                yield f"{name}={value} must be a multiple of {each}: {why}"
        measured = self.selection.steps if self.selection is not None else None
        if measured is not None and (measured % self.steps_per_batch or self.save_steps % measured):
            yield (
                f"selection.steps={measured} must be a multiple of {each}, and divide save_steps={self.save_steps}: every checkpoint is "
                f"measured, and one that is the best can be resumed from exactly; set it to {self.steps_per_batch}, or leave it out"
            )

    def _without_effect(self) -> Iterator[str]:
        """Yield settings that TRL would accept and not use, or use for something else."""
        loss, clipped = f"loss_type={self.loss_type!r}", self.loss_type not in ("cispo", "sapo", "vespo")
        if self.loss_type == "cispo" and self.epsilon_high is None:
            yield f"{loss} needs epsilon_high, the largest importance ratio: set it, for example to 5"
        if self.epsilon_high is not None and not clipped and self.loss_type != "cispo":
            yield f"epsilon_high={self.epsilon_high:g} has no effect with {loss}, which does not clip: leave it out"
        if self.delta is not None and not clipped:
            yield f"delta={self.delta:g} has no effect with {loss}: leave it out"
        high = self.clip_epsilon if self.epsilon_high is None else self.epsilon_high
        if self.delta is not None and clipped and self.delta <= 1 + high:
            yield f"delta={self.delta:g} must be above 1 + {high:g}, where the ratio is clipped already: raise it"
        if self.loss_type == "luspo" and self.importance_sampling_level != "sequence":
            yield f"{loss} weighs whole sequences: set importance_sampling_level to 'sequence'"
        if self.loss_type == "vespo" and self.importance_sampling_level != "token":
            yield f"{loss} has weights of sequences of its own: leave importance_sampling_level at 'token'"
        if self.mixed_ratio == "one" and self.mask_mixed_positions:
            yield "mixed_ratio='one' has no effect with mask_mixed_positions=true, which leaves mixed steps out: leave one of them out"
        if self.mixed_ratio == "one" and self.steps_per_batch == 1:
            yield (
                "mixed_ratio='one' has no effect with updates_per_batch=1 and num_iterations=1, where every ratio is one: leave it "
                "out, or raise updates_per_batch"
            )
        if self.mismatch_cap is not None and self.mismatch_correction == "off":
            yield f"mismatch_cap={self.mismatch_cap:g} has no effect with mismatch_correction='off': leave it out"
        if self.loss_type == "vespo" and self.mismatch_correction.startswith("sequence"):
            yield f"{loss} takes ratios of tokens: set mismatch_correction to 'token_truncate' or 'token_mask'"
        if not self.use_bias_correction_kl and self.kl_coefficient == 0:
            yield "use_bias_correction_kl=false has no effect with kl_coefficient=0: leave it out"
