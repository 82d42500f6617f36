"""What our trainer costs beside stock TRL: the same engine, the same rollouts, the gate closed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from tests.benchmarks.measure import alternate, report
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from ngrpo.config import ArithmeticSource, InitializedModel
from ngrpo.data.arithmetic import load
from ngrpo.data.models import materialize, usable_tokens
from ngrpo.mixing.mixer import Mixer
from ngrpo.mixing.strategies import Neighbor
from ngrpo.neighbors.index import NeighborIndex
from ngrpo.rollout.engine import Sampling
from ngrpo.rollout.loading import end_of_sequence_ids, load_model, load_tokenizer
from ngrpo.rollout.seeds import request_seed
from ngrpo.rollout.transformers_engine import TransformersEngine
from ngrpo.training.ngrpo_trainer import NGRPOTrainer

STEPS, PROMPTS, GROUP, ROUNDS = 2, 16, 8, 7


class StockTrainer(GRPOTrainer):
    """TRL's trainer, generating with our engine and without mixing."""

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        seeds = [request_seed(self.args.seed, self.state.global_step, 0, row) for row in range(len(prompt_ids))]
        rollouts = self.engine.generate(prompt_ids, seeds, Sampling(self.max_completion_length, self.temperature))
        return [rollout.token_ids for rollout in rollouts], [rollout.logprobs for rollout in rollouts]


def run() -> list[dict]:
    """Measure whole training steps: generation, old and reference passes, loss, backward, optimizer."""
    with tempfile.TemporaryDirectory() as directory:
        model = materialize(InitializedModel(kind="initialized"), Path(directory) / "model")
        problems = load(ArithmeticSource(size=STEPS * PROMPTS, fold="train"))
        dataset = Dataset.from_list(
            [{"prompt": [{"role": "user", "content": item.problem}], "answer": item.answer} for item in problems]
        )
        ours, peer = alternate(lambda: _train(model, dataset, False), lambda: _train(model, dataset, True), ROUNDS)
    return [
        report(
            "training_step",
            ours,
            peer,
            unit="ms per step",
            scale=1000 / STEPS,
            peer_is="TRL's GRPOTrainer with the same rollout engine",
            sequences=PROMPTS * GROUP,
        )
    ]


def _train(directory: Path, dataset: Dataset, stock: bool) -> None:
    model = load_model(directory, "float32")
    tokenizer = load_tokenizer(directory, model.get_input_embeddings().num_embeddings)
    arguments = GRPOConfig(
        output_dir=str(directory / "out"),
        max_steps=STEPS,
        per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=44,
        temperature=0.7,
        beta=0.001,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    settings = {
        "model": model,
        "reward_funcs": [lambda completions, **_: [float(len(one[0]["content"]) % 3) for one in completions]],
        "args": arguments,
        "train_dataset": dataset,
        "processing_class": tokenizer,
    }
    ends = end_of_sequence_ids(model, tokenizer)
    engine = TransformersEngine(model, ends, tokenizer.pad_token_id, PROMPTS * GROUP)
    if stock:
        trainer = StockTrainer(**settings)
        trainer.engine = engine
    else:
        embedding = model.get_input_embeddings().weight
        index = NeighborIndex.build(embedding, usable_tokens(tokenizer, len(embedding)), candidates=8, block_rows=512)
        closed = Mixer(Neighbor(3), 0.0, index.neighbors, index.eligible, 0)
        trainer = NGRPOTrainer(**settings, make_engine=lambda _: engine, current_mixer=lambda _: closed)
    trainer.remove_callback(PrinterCallback)
    torch.manual_seed(0)
    trainer.train()
