"""A layout taken through the stages in small: examined, indexed, warm-started for a step, one rollout batch, one optimizer step, saved."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from layouts import LAYOUTS
from transformers import PretrainedConfig
from trl import GRPOConfig

from ngrpo.config import HubModel, RolloutConfig, SFTWarmStartConfig
from ngrpo.data.embedding import load_embedding
from ngrpo.data.model_class import auto_class
from ngrpo.data.models import examine, usable_tokens
from ngrpo.mixing.mixer import Mixer
from ngrpo.mixing.strategies import Neighbor
from ngrpo.neighbors.index import NeighborIndex
from ngrpo.rollout.configured_engine import start_engine
from ngrpo.rollout.engine import Sampling
from ngrpo.rollout.loading import declare_ends, load_model, load_tokenizer
from ngrpo.training.ngrpo_trainer import NGRPOTrainer
from ngrpo.training.trained_model import save_model
from ngrpo.training.warm_start import train_warm_start
from replay import replay_error
from tiny import save_tiny_model

COMMIT = "0" * 40
TEMPERATURE = 0.7
QUESTIONS = ["1 + 2 =", "3 + 4 + 5 + 6 =", "7 - 1 =", "9 ="]
"""Of different lengths: shorter prompts are padded."""


@dataclass(frozen=True)
class Outcome:
    """What came out of one step.

    Attributes:
        replay: Largest difference of log-probabilities between generation and a forward pass over each rollout alone.
        scored: The same between generation and what the trainer makes its loss of.
        mixed: Mixed positions.
        second: `replay` of rollouts that were generated after the optimizer step.
    """

    replay: float
    scored: float
    mixed: int
    second: float


def save(name: str, directory: Path, edit: Callable[[PretrainedConfig], None] = lambda config: None) -> Path:
    """Write a layout with random weights, and a tokenizer of words."""
    save_tiny_model(directory)
    (directory / "model.safetensors").unlink()
    config = LAYOUTS[name].build()
    edit(config)
    torch.manual_seed(0)
    auto_class(config, name).from_config(config).float().save_pretrained(directory)
    return directory


def source(directory: Path) -> HubModel:
    return HubModel(kind="hub", id=str(directory), revision=COMMIT)


def length(completions: list, **_: object) -> list[float]:
    return [len(one[0]["content"]) % 5 / 5 for one in completions]


def take_a_step(base: Path, root: Path, engine: str = "transformers") -> Outcome:
    """Go through the stages with a model that the examination lets pass."""
    _, facts = examine(source(base), root / "examined")
    embedding, tokenizer = load_embedding(source(base), root / "base")
    assert len(embedding) == facts.rows
    index = NeighborIndex.build(embedding, usable_tokens(tokenizer, len(embedding)), candidates=6, block_rows=64)
    start = _warm_started(base, root)
    model = load_model(start, "float32")
    tokenizer = load_tokenizer(start, facts.rows)
    declare_ends(model, tokenizer)
    dataset = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in QUESTIONS])
    rollout = RolloutConfig(engine=engine, group_size=2, max_tokens=12, temperature=TEMPERATURE, batch_size=8)
    trainer = NGRPOTrainer(
        model=model,
        reward_funcs=[length],
        args=_arguments(root),
        train_dataset=dataset,
        processing_class=tokenizer,
        make_engine=lambda policy: start_engine(
            rollout, model=policy, directory=start, tokenizer=tokenizer, chats=dataset["prompt"], dtype="float32"
        ),
        current_mixer=lambda policy: _mixer(index),
        observers=[lambda batch: batches.append(batch) or {}],
    )
    batches, scored = [], []
    _compare_scores(trainer, scored)
    trainer.train()
    (batch,) = batches
    mixer = _mixer(index)
    trainer._engine.load_weights(model.named_parameters())
    again = trainer._engine.generate(batch.prompts, range(8), Sampling(12, TEMPERATURE), mixer)
    second = replay_error(model.eval(), batch.prompts, again, mixer, TEMPERATURE)
    save_model(trainer, root / "trained")
    trainer.close()
    load_model(root / "trained", "float32")
    first = replay_error(load_model(start, "float32").eval(), batch.prompts, batch.rollouts, mixer, TEMPERATURE)
    return Outcome(first, max(scored), sum(len(one.records.positions) for one in batch.rollouts), second)


def _warm_started(base: Path, root: Path) -> Path:
    model = load_model(base, "float32")
    tokenizer = load_tokenizer(base, model.get_input_embeddings().num_embeddings)
    examples = [
        {"prompt": [{"role": "user", "content": text}], "completion": [{"role": "assistant", "content": "1 2 3 stop"}]}
        for text in QUESTIONS
    ]
    config = SFTWarmStartConfig(
        seed=0,
        model={"source": {"kind": "initialized"}},
        warm_start={"steps": 1, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-4, "save_steps": 1},
    )
    trainer = train_warm_start(model, tokenizer, Dataset.from_list(examples), config, root / "warm_start")
    save_model(trainer, root / "warm_started")
    return root / "warm_started"


def _arguments(root: Path) -> GRPOConfig:
    return GRPOConfig(
        output_dir=str(root / "out"),
        max_steps=1,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        num_generations=2,
        max_completion_length=12,
        temperature=TEMPERATURE,
        beta=0.05,
        loss_type="grpo",
        learning_rate=1e-3,
        disable_dropout=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        dataloader_pin_memory=False,
    )


def _mixer(index: NeighborIndex) -> Mixer:
    return Mixer(Neighbor(3), 0.4, index.neighbors, index.eligible, index.version)


def _compare_scores(trainer: NGRPOTrainer, scored: list[float]) -> None:
    """Note how far the scores that policy and reference give are from those of generation."""
    compute_loss, score = trainer._compute_loss, trainer._get_per_token_logps_and_entropies
    policy = []

    def watched_score(*arguments: object, **named: object) -> object:
        result = score(*arguments, **named)
        policy[:] = [result[0].detach()]
        return result

    def watched_loss(model: object, inputs: dict) -> torch.Tensor:
        loss = compute_loss(model, inputs)
        mask = inputs["completion_mask"].bool()
        for one in (policy[0], inputs["ref_per_token_logps"]):
            scored.append((one - inputs["sampling_per_token_logps"])[mask].abs().max().item())
        return loss

    trainer._get_per_token_logps_and_entropies = watched_score
    trainer._compute_loss = watched_loss
