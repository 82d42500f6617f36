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

from ngrpo.config import WarmStartConfig, load_config
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
PRESET = Path(__file__).parents[2] / "pipelines" / "presets" / "smollm2.toml"
TOKENS = 256
"""Of each example; those of the preset have up to 384."""


class _Clock(TrainerCallback):
    """Has the first step saved, and measures each step without the time that saving takes: it is spent with and without an upload."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self._started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self._started)
        control.should_save = state.global_step == 1


def run() -> list[dict]:
    """Measure the steps from one checkpoint of the preset's warm start to the next, while the first is uploaded, and without an upload."""
    settings = load_config(PRESET).warm_start
    with tempfile.TemporaryDirectory() as directory, serve(Path(directory) / "store") as endpoint:
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**SMOLLM2)).save_pretrained(Path(directory) / "model")
        for process in psutil.Process(endpoint.pid).children(recursive=True):
            process.nice(19)  # a store is elsewhere: this one shall take as little from training as can be
        variables = endpoint.environment() | {"NGRPO_STORE": "s3://ngrpo/bench"}
        with environment(variables):
            peer, ours = (
                _steps(Path(directory) / name, Path(directory) / "model", place, settings)
                for name, place in (("peer", None), ("ours", "checkpoints/bench/0"))
            )
    return [
        report(
            "checkpoint_upload",
            [sum(ours)],
            [sum(peer)],
            unit=f"s for {settings.save_steps} steps",
            scale=1.0,
            peer_is="the same steps without an upload",
            cores=os.cpu_count(),
            store="on the same machine",
        )
    ]


def _steps(work: Path, model: Path, place: str | None, settings: WarmStartConfig) -> list[float]:
    """Return the seconds of each step after the first."""
    clock = _Clock()
    steps = 1 + settings.save_steps
    rows = torch.randint(0, SMOLLM2["vocab_size"], (settings.batch_size * steps, TOKENS)).tolist()
    with environment({checkpoints.PLACE: place}), checkpoints_of(work) as kept:
        trainer = Trainer(
            model=LlamaForCausalLM.from_pretrained(model),
            args=TrainingArguments(
                output_dir=str(kept.directory),
                max_steps=steps,
                per_device_train_batch_size=settings.batch_size,
                save_strategy="no",
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
    return clock.seconds[1:]
