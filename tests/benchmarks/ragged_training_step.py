"""Cost of a training step on responses of very different lengths, against stock TRL on the same rollouts with equal micro-batches."""

from __future__ import annotations

import math
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tests.benchmarks.measure import alternate, report
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from ngrpo.config import InitializedModel
from ngrpo.data.models import materialize
from ngrpo.mixing.records import RolloutRecords
from ngrpo.rollout.engine import Rollout
from ngrpo.rollout.loading import load_tokenizer
from ngrpo.training.ngrpo_trainer import NGRPOTrainer

PROMPTS, GROUP, MICRO, ROUNDS = 16, 4, 4, 3
MEDIAN, SPREAD = 80, 10
"""Tokens of a response: log-normal, the longest of twenty about ten times as long as the shortest, and none beyond."""
VOCABULARY = 4096


class Recorded:
    """An engine that has its responses already."""

    def generate(self, prompts: Any, seeds: Any, sampling: Any, mixer: Any = None) -> list[Rollout]:
        """Return as many as there are prompts."""
        draw = random.Random(0)
        none = RolloutRecords(torch.zeros(0, dtype=torch.long), torch.zeros(0, 1), 0, 0)
        rollouts = []
        for _ in prompts:
            lengths = draw.lognormvariate(math.log(MEDIAN), math.log(SPREAD) / 2 / 1.96)
            length = round(min(max(lengths, MEDIAN / SPREAD**0.5), MEDIAN * SPREAD**0.5))
            tokens = [draw.randrange(10, VOCABULARY) for _ in range(length)]
            rollouts.append(Rollout(tokens, [-9.0] * length, "stop", none))
        return rollouts

    def load_weights(self, weights: Any) -> None:
        """Go through them."""
        for _ in weights:
            pass

    def sleep(self) -> None:
        """Free nothing."""

    def close(self) -> None:
        """Release nothing."""


class StockTrainer(GRPOTrainer):
    """TRL's trainer on the same rollouts."""

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        rollouts = Recorded().generate(prompt_ids, None, None)
        return [rollout.token_ids for rollout in rollouts], [rollout.logprobs for rollout in rollouts]


def run() -> list[dict]:
    """Measure a training step without generation: old and reference passes, loss, backward, optimizer."""
    losses: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as directory:
        tokenizer = materialize(InitializedModel(kind="initialized"), Path(directory) / "tokenizer")
        model = Path(directory) / "model"
        sizes = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4}
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes, tie_word_embeddings=True)).save_pretrained(model)
        ours, peer = alternate(
            lambda: losses[False].append(_train(model, tokenizer, False)),
            lambda: losses[True].append(_train(model, tokenizer, True)),
            ROUNDS,
        )
    mine, theirs = losses[False][0], losses[True][0]
    if not math.isclose(mine, theirs, rel_tol=1e-3, abs_tol=1e-6):
        raise AssertionError(f"the gradient norm of our step is {mine}, that of stock TRL {theirs}")
    return [
        report(
            "ragged_training_step",
            ours,
            peer,
            unit="s per step",
            scale=0.5,
            peer_is="TRL's GRPOTrainer on the same rollouts",
            sequences=PROMPTS * GROUP,
            micro_batch=MICRO,
            median_tokens=MEDIAN,
            spread=SPREAD,
            gradient_norms=[mine, theirs],
        )
    ]


def _train(directory: Path, tokenizer_directory: Path, stock: bool) -> float:
    """Make two steps on one rollout batch; return the gradient norm of the first."""
    model = LlamaForCausalLM.from_pretrained(directory)
    tokenizer = load_tokenizer(tokenizer_directory, VOCABULARY)
    arguments = GRPOConfig(
        output_dir=str(directory / "out"),
        max_steps=2,
        per_device_train_batch_size=MICRO,
        steps_per_generation=PROMPTS * GROUP // MICRO,
        gradient_accumulation_steps=PROMPTS * GROUP // MICRO // 2,
        num_generations=GROUP,
        max_completion_length=MEDIAN * SPREAD,
        shuffle_dataset=False,
        loss_type="grpo",
        beta=0.001,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    settings = {
        "model": model,
        "reward_funcs": [lambda completion_ids, **_: [float(len(ids) % 7) for ids in completion_ids]],
        "args": arguments,
        "train_dataset": Dataset.from_list(
            [{"prompt": [{"role": "user", "content": f"{row} + 1 ="}], "answer": ""} for row in range(PROMPTS)]
        ),
        "processing_class": tokenizer,
    }
    trainer: Any
    if stock:
        trainer = StockTrainer(**settings)
    else:
        trainer = NGRPOTrainer(**settings, make_engine=lambda _: Recorded(), current_mixer=lambda _: None)
    trainer.remove_callback(PrinterCallback)
    torch.manual_seed(0)
    trainer.train()
    return float(trainer.state.log_history[0]["grad_norm"])
