"""Set up and run N-GRPO: from configuration to TRL's arguments, engine, index, rewards and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from trl import GRPOConfig

from ngrpo.config import NGRPOTrainingConfig, TrainingConfig
from ngrpo.errors import ConfigError
from ngrpo.evaluation.benchmark import Benchmark
from ngrpo.grading.grader import Grader
from ngrpo.neighbors.index import NeighborIndex
from ngrpo.rollout.configured_engine import start_engine
from ngrpo.rollout.configured_mixer import configured_end_marker
from ngrpo.storage.checkpoint_store import CheckpointStore
from ngrpo.training.checkpointing import checkpoints_of
from ngrpo.training.configured_rewards import configured_rewards
from ngrpo.training.following_index import FollowingIndex
from ngrpo.training.ngrpo_trainer import NGRPOTrainer
from ngrpo.training.policy_weights import adapters
from ngrpo.training.rewards import CorrectnessReward
from ngrpo.training.rollout_batch import RolloutObserver
from ngrpo.training.rollouts_ahead import RolloutsAhead
from ngrpo.training.trained_model import save_model
from ngrpo.training.trl_arguments import built
from ngrpo.training.validation import Validation


@dataclass(frozen=True)
class TrainedPolicy:
    """Result of training: the trainer with the trained model, and the index of the last rollout batch."""

    trainer: NGRPOTrainer
    index: NeighborIndex


def train_policy(
    *,
    model: PreTrainedModel,
    start: Path,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    validation: Benchmark | None,
    index: NeighborIndex,
    config: NGRPOTrainingConfig,
    work: Path,
    output: Path,
    store: CheckpointStore | None = None,
    save_minutes: float | None = None,
    reporters: Sequence[str] = (),
    callbacks: Sequence[TrainerCallback] = (),
    observers: Sequence[RolloutObserver] = (),
    watch: Callable[[Trainer], None] = lambda trainer: None,
) -> TrainedPolicy:
    """Train a policy, resuming from the last complete checkpoint.

    Args:
        model: Policy to start from.
        start: Directory of its weights, from which the reference model is loaded too.
        tokenizer: Its tokenizer.
        dataset: Columns `prompt` (a chat) and `answer`; rewards get the others too.
        validation: Problems for choosing the best checkpoint, if `training.selection` is set.
        index: Neighbor index of the base model; refreshed if the policy's embeddings differ.
        config: Settings.
        work: Directory for checkpoints.
        output: Directory for the trained model; trained adapters are in `adapter/` beside it.
        store: Object storage for checkpoints.
        save_minutes: See `checkpoints_of`.
        reporters: Trackers of the trainer.
        callbacks: Callbacks of the trainer; files that they write into a checkpoint are part of it.
        observers: Called after each rollout batch.
        watch: Called with the trainer before it starts, to observe it.

    Returns:
        The trainer and the index after training.

    Raises:
        Preempted: The process was told to stop; see `checkpoints_of`.
        UserCodeError: A reward of the user cannot be used, raised an error, or returned invalid values.
    """
    following = FollowingIndex(
        index,
        neighbors=config.neighbors,
        mixing=config.mixing,
        end_marker=configured_end_marker(config.mixing, tokenizer, len(index.eligible)),
        every_batch=config.training.index_refresh == "every_batch",
    )
    settings = config.training
    with (
        Grader(grading=config.train_grading) as grader,
        checkpoints_of(
            work, steps=settings.steps, stride=settings.steps_per_batch, store=store, minutes=save_minutes
        ) as checkpoints,
    ):
        ahead = RolloutsAhead() if config.rollout.placement == "separate" else None
        if checkpoints.resumed_from is not None:
            following.resume(Path(checkpoints.resumed_from))
            if ahead is not None:
                ahead.resume(Path(checkpoints.resumed_from), following.held())
        trainer = NGRPOTrainer(
            model=model,
            reward_funcs=configured_rewards(settings, config.rollout, grader, dataset.column_names, work)
            or [CorrectnessReward(grader)],
            args=grpo_arguments(config, checkpoints.directory, reporters),
            train_dataset=dataset,
            eval_dataset=None
            if validation is None
            else dataset,  # `Trainer` wants one; what is measured is `validation`
            processing_class=tokenizer,
            callbacks=[following, *callbacks, checkpoints],
            make_engine=lambda policy: start_engine(
                config.rollout,
                model=policy,
                directory=start,
                tokenizer=tokenizer,
                chats=[*dataset["prompt"], *([] if validation is None else validation.prompts)],
                dtype=config.model.dtype,
            ),
            peft_config=adapters(settings.lora, model, "training"),
            current_mixer=following.mixer,
            mask_mixed_positions=config.training.mask_mixed_positions,
            mixed_ratio=settings.mixed_ratio,
            correct_mismatch=settings.mismatch_correction != "off",
            mismatch_bound=settings.mismatch_bound,
            observers=observers,
            validation=_validation(config, validation, tokenizer, grader),
            ahead=ahead,
        )
        watch(trainer)
        with closing(trainer):
            trainer.train(resume_from_checkpoint=checkpoints.resumed_from)
            if not checkpoints.preempted:
                # While processes can still communicate: vLLM destroys their process group with its engine.
                save_model(trainer, output, config.model.dtype)
    return TrainedPolicy(trainer, following.index)


def grpo_arguments(config: NGRPOTrainingConfig, checkpoints: Path, reporters: Sequence[str] = ()) -> GRPOConfig:
    """Translate the configuration into TRL's arguments.

    One rollout batch holds `prompts_per_batch * group_size` sequences, of which each of `updates_per_batch` optimizer steps takes its
    share; it is used `num_iterations` times. Several processes split it: on GPUs they shard the model (FSDP2), on processors
    accelerate gives each a copy.

    Raises:
        ConfigError: The processes cannot share a batch evenly, an engine would take more than the GPU of its process, or TRL refuses
            the arguments of `training.trl`.
    """
    settings, rollout = config.training, config.rollout
    sequences = settings.prompts_per_batch * rollout.group_size
    processes = PartialState().num_processes
    if sequences % (settings.updates_per_batch * settings.micro_batch_size * processes):
        raise ConfigError(
            f"training.prompts_per_batch={settings.prompts_per_batch} x rollout.group_size={rollout.group_size} = {sequences} "
            f"sequences cannot be shared by {processes} processes: they must be a multiple of updates_per_batch x micro_batch_size "
            f"x processes = {settings.updates_per_batch} x {settings.micro_batch_size} x {processes}"
        )
    shared = rollout.placement == "colocated"
    if shared and processes > 1 and rollout.engine == "vllm" and rollout.vllm.tensor_parallel_size > 1:
        raise ConfigError(
            f"rollout.vllm.tensor_parallel_size={rollout.vllm.tensor_parallel_size}: each of the {processes} training processes has an "
            "engine on its own GPU; set 1"
        )
    selecting: dict[str, Any] = {}
    if settings.selection is not None:
        selecting = {
            "eval_strategy": "steps",
            "eval_steps": settings.selection.steps or settings.save_steps,
            "num_generations_eval": 1,  # not used, see `NGRPOTrainer.evaluate`
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_mean",
            "greater_is_better": True,
        }
    correcting: dict[str, Any] = {}
    if settings.mismatch_correction != "off":
        correcting["vllm_importance_sampling_mode"] = settings.mismatch_correction
        if settings.mismatch_cap is not None:
            correcting["vllm_importance_sampling_clip_max"] = settings.mismatch_cap
    arguments: dict[str, Any] = {
        "output_dir": str(checkpoints),
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.micro_batch_size,
        "gradient_accumulation_steps": sequences
        // settings.updates_per_batch
        // settings.micro_batch_size
        // processes,
        "steps_per_generation": sequences // settings.micro_batch_size // processes,
        "num_iterations": settings.num_iterations,
        "num_generations": rollout.group_size,
        "max_completion_length": rollout.max_tokens,
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": _schedule(settings),
        "warmup_steps": round(settings.warmup_ratio * settings.steps),
        "adam_beta2": settings.adam_beta2,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "beta": settings.kl_coefficient,
        "use_bias_correction_kl": settings.use_bias_correction_kl,
        "epsilon": settings.clip_epsilon,
        "epsilon_high": settings.epsilon_high,
        "delta": settings.delta,
        "loss_type": settings.loss_type,
        "scale_rewards": settings.scale_rewards,
        "mask_truncated_completions": settings.mask_truncated_completions,
        "top_entropy_quantile": settings.top_entropy_quantile,
        "entropy_coef": settings.entropy_coefficient,
        "importance_sampling_level": settings.importance_sampling_level,
        "disable_dropout": True,
        "bf16": config.model.dtype == "bfloat16",
        # transformers advises accelerate's own checkpointing for sharded models. With FSDP2 both gather a layer once for its backward pass;
        # accelerate's changes the names of parameters, which engines and checkpoints rely on.
        "gradient_checkpointing": settings.gradient_checkpointing,
        "cast_lm_head_to_fp32": settings.cast_lm_head_to_fp32,
        "seed": config.seed,
        "save_steps": settings.save_steps,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": list(reporters),
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "fsdp": processes > 1,
        # Each process writes its own shards to a checkpoint, so no process holds all weights, and each is stored once.
        "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"} if processes > 1 else None,
        "use_cpu": not torch.cuda.is_available(),
        "reward_weights": [reward.weight for reward in settings.rewards.values()] or None,
        **selecting,
        **correcting,
    }
    result = built(GRPOConfig, arguments | settings.trl, "training.trl")
    # A process trains on one GPU. A single process would otherwise use all visible GPUs, including those for generating.
    result._n_gpu = min(result.n_gpu, 1)
    if result.bf16 and result.fsdp_plugin_args is not None:
        # accelerate's own policy would sum gradients, and return logits, in bfloat16.
        result.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32
        )
    return result


def _schedule(settings: TrainingConfig) -> str:
    """Return the learning-rate schedule by its name in transformers, where a constant rate has no warm-up."""
    return (
        "constant_with_warmup"
        if settings.lr_scheduler == "constant" and settings.warmup_ratio
        else settings.lr_scheduler
    )


def _validation(
    config: NGRPOTrainingConfig, benchmark: Benchmark | None, tokenizer: PreTrainedTokenizerBase, grader: Grader
) -> Validation | None:
    selection = config.training.selection
    if selection is None or benchmark is None:
        return None
    return Validation(benchmark, selection, config.rollout.max_tokens, tokenizer, grader, config.seed)
