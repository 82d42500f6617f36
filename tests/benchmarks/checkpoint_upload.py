"""What uploading checkpoints costs a training that goes on meanwhile: steps at the size of SmolLM2-135M, with and without it."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import psutil
import torch
from datasets import Dataset
from tests.benchmarks.measure import report
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ngrpo.environment import environment
from ngrpo.storage import checkpoints
from ngrpo.storage.seaweed import serve
from ngrpo.training.checkpoints import KEPT, checkpoints_of

# Of SmolLM2-135M: its config.json.
SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
SEQUENCES, TOKENS = 2, 128
STEPS, SAVE_STEPS = 8, 4


class _Clock(TrainerCallback):
    """Measures each step without the time that saving takes, which is spent with and without an upload."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self._started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self._started)


def run() -> list[dict]:
    """Measure the steps after a checkpoint, while it is uploaded, against the same steps without an upload."""
    with tempfile.TemporaryDirectory() as directory, serve(Path(directory) / "store") as endpoint:
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**SMOLLM2)).save_pretrained(Path(directory) / "model")
        for process in psutil.Process(endpoint.pid).children(recursive=True):
            process.nice(19)  # a store is elsewhere: this one shall take as little from training as can be
        variables = endpoint.environment() | {"NGRPO_STORE": "s3://ngrpo/bench"}
        with environment(variables):
            peer = _steps(Path(directory) / "peer", Path(directory) / "model", None)
            ours = _steps(Path(directory) / "ours", Path(directory) / "model", "checkpoints/bench/0")
    interval = slice(SAVE_STEPS, 2 * SAVE_STEPS)
    return [
        report(
            "checkpoint_upload",
            [sum(ours[interval])],
            [sum(peer[interval])],
            unit=f"s for {SAVE_STEPS} steps",
            scale=1.0,
            peer_is="the same steps without an upload",
            cores=os.cpu_count(),
            store="on the same machine",
        )
    ]


def _steps(work: Path, model: Path, place: str | None) -> list[float]:
    clock = _Clock()
    rows = torch.randint(0, SMOLLM2["vocab_size"], (SEQUENCES * STEPS, TOKENS)).tolist()
    with environment({checkpoints.PLACE: place}), checkpoints_of(work) as kept:
        trainer = Trainer(
            model=LlamaForCausalLM.from_pretrained(model),
            args=TrainingArguments(
                output_dir=str(kept.directory),
                max_steps=STEPS,
                per_device_train_batch_size=SEQUENCES,
                save_steps=SAVE_STEPS,
                save_total_limit=KEPT,
                report_to=[],
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.from_list([{"input_ids": row, "labels": row} for row in rows]),
            callbacks=[clock, kept],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.seconds
