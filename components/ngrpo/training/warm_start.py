"""Supervised fine-tuning with TRL's `SFTTrainer`: the warm start before N-GRPO."""

from __future__ import annotations

import os
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from ngrpo.config import SFTWarmStartConfig
from ngrpo.training.checkpoints import KEPT, checkpoints_of
from ngrpo.training.progress import show_progress


def train_warm_start(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    config: SFTWarmStartConfig,
    work: Path,
) -> SFTTrainer:
    """Fine-tune a model on worked solutions, resuming from the last whole checkpoint.

    Args:
        model: Base model, changed in place.
        tokenizer: Its tokenizer.
        dataset: Columns `prompt` and `completion`, both chats; the loss is on the completion alone.
        config: Settings.
        work: Where checkpoints go.

    Returns:
        The trainer after training.

    Raises:
        Preempted: The process was told to stop; see `checkpoints_of`.
    """
    settings = config.warm_start
    arguments = SFTConfig(
        output_dir=str(work / "checkpoints"),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.batch_size // settings.micro_batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(settings.warmup_ratio * settings.steps),
        weight_decay=settings.weight_decay,
        max_length=settings.max_tokens,
        seed=config.seed,
        bf16=config.model.dtype == "bfloat16",
        gradient_checkpointing=False,
        save_steps=settings.save_steps,
        save_total_limit=KEPT,
        logging_steps=max(1, settings.steps // 60),
        report_to=reporters(),
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    with checkpoints_of(work) as checkpoints:
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[checkpoints],
        )
        show_progress(trainer, {"loss": "loss", "mean_token_accuracy": "accuracy"})
        trainer.train(resume_from_checkpoint=checkpoints.resumed_from)
    return trainer


def reporters() -> list[str]:
    """Trackers for a trainer: MLflow where a run is open, else none."""
    return ["mlflow"] if os.environ.get("MLFLOW_RUN_ID") else []
