"""Stage `sft_warm_start`: teach the base model the form of an answer, or pass it on unchanged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from datasets import Dataset
from transformers import set_seed

from ngrpo.config import SFTWarmStartConfig
from ngrpo.contracts.history import write_history
from ngrpo.contracts.metrics import write_metrics
from ngrpo.data.models import materialize
from ngrpo.report.progress_lines import show_progress
from ngrpo.rollout.loading import load_model, load_tokenizer
from ngrpo.stages.context import Context
from ngrpo.storage.checkpoint_store import CheckpointStore
from ngrpo.training.trained_model import save_model
from ngrpo.training.warm_start import train_warm_start

_SHOWN = {"loss": "loss", "mean_token_accuracy": "accuracy"}
"""Metrics in a line of progress, and their names there."""


def run(config: SFTWarmStartConfig, inputs: Mapping[str, Path], output: Path, context: Context) -> None:
    """Write `model/`, `log_history.json` and `metrics.json`.

    Args:
        config: Settings of the stage; with `warm_start.steps = 0` the base model is passed on unchanged.
        inputs: `dataset`.
        output: Empty directory for the artifact.
        context: See `Context`.

    Raises:
        DataError: The base model or its tokenizer cannot be used.
        TrainingError: Training diverged.
    """
    base = materialize(config.model.source, context.work / "base_model", config.model)
    if config.warm_start.steps == 0:
        shutil.copytree(base, output / "model", copy_function=_link)
        write_history(output, [])
        write_metrics(output, {"steps": 0})
        return
    set_seed(config.seed)
    model = load_model(base, "float32")
    tokenizer = load_tokenizer(base, model.get_input_embeddings().num_embeddings, config.model.template_date)
    dataset = Dataset.from_parquet(
        str(inputs["dataset"] / "warm_start.parquet"),
        columns=["prompt", "completion"],
        cache_dir=str(context.work / "datasets"),
    )
    trainer = train_warm_start(
        model,
        tokenizer,
        dataset,
        config,
        context.work,
        store=CheckpointStore.open(context.store, context.checkpoints, context.work / "downloads"),
        save_minutes=context.save_minutes,
        reporters=context.reporters,
        watch=partial(show_progress, metrics=_SHOWN, say=context.progress),
    )
    save_model(trainer, output / "model")  # in float32: training starts from these weights
    # The last entry is about time; TRL counts `num_tokens` from the last resume on.
    history = [
        {name: value for name, value in entry.items() if name != "num_tokens"}
        for entry in trainer.state.log_history
        if "train_runtime" not in entry
    ]
    write_history(output, history)
    losses = [entry["loss"] for entry in history if "loss" in entry]
    write_metrics(output, {"steps": config.warm_start.steps, "final_loss": losses[-1], "examples": len(dataset)})


def _link(source: str, target: str) -> None:
    """Hard-link a file, because a model takes gigabytes; copy it if the target is on another file system."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)


if __name__ == "__main__":
    from ngrpo.stages.standalone import main

    main("sft_warm_start")
