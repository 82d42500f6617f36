"""Stage `ngrpo_training`: train the warm-started model with N-GRPO."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import set_seed

from ngrpo.config import NGRPOTrainingConfig
from ngrpo.contracts.history import write_history
from ngrpo.contracts.metrics import write_metrics
from ngrpo.errors import DataError
from ngrpo.evaluation.benchmark import Benchmark, read_benchmark
from ngrpo.grading.grader import Grader
from ngrpo.neighbors.index import NeighborIndex
from ngrpo.report.index_facts import example_neighbors
from ngrpo.report.progress_lines import show_progress
from ngrpo.report.rollout_log import RolloutLog
from ngrpo.rollout.loading import declare_ends, load_model, load_tokenizer
from ngrpo.stages.context import Context
from ngrpo.storage.checkpoint_store import CheckpointStore
from ngrpo.training.policy_optimization import train_policy
from ngrpo.user_code import write_code

_SHOWN = {"reward": "reward", "kl": "kl", "completions/mean_length": "length", "eval_mean": "validation"}
"""Metrics in a line of progress, and their names there."""


def run(config: NGRPOTrainingConfig, inputs: Mapping[str, Path], output: Path, context: Context) -> None:
    """Write the trained `model/`, its learning curves, sample rollouts, the `code/` of the user and `metrics.json`.

    Args:
        config: Settings of the stage.
        inputs: `dataset`, `neighbor_index`, `warm_start`.
        output: Empty directory for the artifact.
        context: Where training keeps checkpoints, which it resumes from, and whom it tells.

    Raises:
        DataError: The data set is too small for one batch, or the model or its tokenizer cannot be used.
        TrainingError: Training diverged.
        UserCodeError: A reward of the user cannot be used, raised an error, or returned invalid values.
    """
    set_seed(config.seed)
    start = inputs["warm_start"] / "model"
    # Weights stay in float32 whatever the compute type: an update at a learning rate of 1e-6 is below bfloat16's resolution.
    model = load_model(start, "float32")
    tokenizer = load_tokenizer(start, model.get_input_embeddings().num_embeddings, config.model.template_date)
    declare_ends(model, tokenizer)
    dataset = Dataset.from_parquet(str(inputs["dataset"] / "train.parquet"), cache_dir=str(context.work / "datasets"))
    if len(dataset) < config.training.prompts_per_batch:
        raise DataError(
            f"data.train has {len(dataset)} problems but training.prompts_per_batch={config.training.prompts_per_batch}: "
            "use more problems or a smaller batch"
        )
    # The grader's process, which only regular expressions need, ends with this one.
    grader = Grader(workers=1, grading=config.train_grading)
    rollout_log = RolloutLog(tokenizer, config.rollout.group_size, grader.extract)
    trained = train_policy(
        model=model,
        start=start,
        tokenizer=tokenizer,
        dataset=dataset,
        validation=_validation_problems(config, inputs["dataset"] / "benchmarks"),
        index=NeighborIndex.load(inputs["neighbor_index"]),
        config=config,
        work=context.work,
        output=output / "model",
        store=CheckpointStore.open(context.store, context.checkpoints, context.work / "downloads"),
        save_minutes=context.save_minutes,
        reporters=context.reporters,
        callbacks=[rollout_log],
        observers=[rollout_log],
        watch=partial(show_progress, metrics=_SHOWN, say=context.progress),
    )
    if not trained.trainer.is_world_process_zero():
        return
    history = [entry for entry in trained.trainer.state.log_history if "train_runtime" not in entry]
    write_history(output, history)
    rollout_log.write(output)
    for name, reward in config.training.rewards.items():
        write_code(reward.code, output / "code" / name)
    write_code(config.train_grading.compare.code, output / "code" / "data.train.grading")
    write_code(config.selection_grading.compare.code, output / "code" / "training.selection.grading")
    if config.mixing.reference is not None:
        write_code(config.mixing.reference.code, output / "code" / "mixing.strategy")
    examples = example_neighbors(trained.index, tokenizer)
    (output / "example_neighbors.json").write_text(json.dumps(examples), encoding="utf-8")
    summary = _summary(history, config.training.steps)
    if config.training.selection is not None:
        summary["selected_step"] = trained.trainer.state.best_global_step
    write_metrics(output, summary)


def _validation_problems(config: NGRPOTrainingConfig, benchmarks: Path) -> Benchmark | None:
    selection = config.training.selection
    if selection is None:
        return None
    path = benchmarks / f"{selection.benchmark}.parquet"
    if not path.exists():
        raise DataError(
            f"training.selection.benchmark={selection.benchmark!r}: the data set has no such benchmark (a gated one without a "
            "token is left out); name another"
        )
    return read_benchmark(path, config.selection_grading)


def _summary(history: list[dict[str, Any]], steps: int) -> dict[str, float]:
    """Reward at both ends of training, and the last value of every other metric."""
    rewards = [entry["reward"] for entry in history if entry.get("reward") is not None]
    tail = max(1, len(rewards) // 10)
    # Metrics of rollouts are logged once per rollout batch, so not every step has one.
    last = {
        f"last/{name}": value for entry in history for name, value in entry.items() if isinstance(value, int | float)
    }
    return {
        "steps": steps,
        "reward_first": sum(rewards[:tail]) / tail,
        "reward_last": sum(rewards[-tail:]) / tail,
        **last,
    }


if __name__ == "__main__":
    from ngrpo.stages.standalone import main

    main("ngrpo_training")
