"""Supervised fine-tuning with TRL's `SFTTrainer`: the warm start before N-GRPO."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl import SFTConfig, SFTTrainer

from ngrpo.config import SFTWarmStartConfig
from ngrpo.storage.checkpoint_store import CheckpointStore
from ngrpo.training.checkpointing import checkpoints_of
from ngrpo.training.loop import SoundLoop
from ngrpo.training.model_traits import can_balance_experts, name_backbone
from ngrpo.training.policy_weights import adapters, base_of
from ngrpo.training.trl_arguments import built

_LOGS = 60
"""Points of the curves, at least about."""
_LONGEST_WINDOW = 10
"""Most steps between two logs: told to stop, or due to save, training goes on to the next."""


class WarmStartTrainer(SoundLoop, SFTTrainer):
    """TRL's trainer in a sound loop."""

    section = "warm_start"


def train_warm_start(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    config: SFTWarmStartConfig,
    work: Path,
    *,
    store: CheckpointStore | None = None,
    save_minutes: float | None = None,
    reporters: Sequence[str] = (),
    watch: Callable[[Trainer], None] = lambda trainer: None,
) -> WarmStartTrainer:
    """Fine-tune a model on worked solutions, resuming from the last whole checkpoint.

    Args:
        model: Base model, changed in place.
        tokenizer: Its tokenizer.
        dataset: Columns `prompt` and `completion`, both chats; the loss is on the completion alone.
        config: Settings.
        work: Where checkpoints go.
        store: Where checkpoints are kept too.
        save_minutes: See `checkpoints_of`.
        reporters: Trackers of the trainer.
        watch: Called with the trainer before it starts, to show what it does.

    Returns:
        The trainer after training.

    Raises:
        Preempted: The process was told to stop; see `checkpoints_of`.
        TrainingError: It diverged.
    """
    arguments = sft_arguments(config, work, reporters)
    with checkpoints_of(
        work, steps=arguments.max_steps, stride=int(arguments.logging_steps), store=store, minutes=save_minutes
    ) as checkpoints:
        trainer = WarmStartTrainer(
            model=model,
            args=arguments,
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[checkpoints],
            peft_config=adapters(config.warm_start.lora, model, "warm_start"),
        )
        policy = base_of(trainer.model)
        name_backbone(policy)
        if trainer.aux_loss_enabled and not can_balance_experts(policy):
            trainer.aux_loss_enabled = policy.config.get_text_config().output_router_logits = False
        watch(trainer)
        trainer.train(resume_from_checkpoint=checkpoints.resumed_from)
    return trainer


def sft_arguments(config: SFTWarmStartConfig, work: Path, reporters: Sequence[str] = ()) -> SFTConfig:
    """Translate the configuration into TRL's arguments.

    Args:
        config: Settings.
        work: Where checkpoints go.
        reporters: Trackers of the trainer.

    Raises:
        ConfigError: TRL refuses the arguments of `warm_start.trl`.
    """
    settings = config.warm_start
    # What is logged is a mean over the steps since the last log, which no checkpoint remembers: logs fall on every save.
    logging_steps = math.gcd(settings.save_steps, max(1, min(_LONGEST_WINDOW, settings.steps // _LOGS)))
    arguments = {
        "output_dir": str(work / "checkpoints"),
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.micro_batch_size,
        "gradient_accumulation_steps": settings.batch_size // settings.micro_batch_size,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(settings.warmup_ratio * settings.steps),
        "weight_decay": settings.weight_decay,
        "max_length": settings.max_tokens,
        "seed": config.seed,
        "bf16": config.model.dtype == "bfloat16",
        "gradient_checkpointing": False,
        "save_steps": settings.save_steps,
        "logging_steps": logging_steps,
        "logging_nan_inf_filter": False,
        "report_to": list(reporters),
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": not torch.cuda.is_available(),
    }
    return built(SFTConfig, arguments | settings.trl, "warm_start.trl")
