"""What uploading checkpoints costs a training that goes on meanwhile: steps at the size of SmolLM2-135M, with and without it."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from tests.benchmarks.discarding_store import discard
from tests.benchmarks.measure import report
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ngrpo.config import WarmStartConfig, load_config
from ngrpo.environment import environment
from ngrpo.storage.checkpoint_store import CheckpointStore, Part
from ngrpo.storage.objects import ObjectStore
from ngrpo.training.checkpoint_size import KEPT
from ngrpo.training.checkpointing import checkpoints_of

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
ROUNDS = 3


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
    """Measure the steps from one checkpoint of the preset's warm start to the next, while the first is uploaded and without an upload.

    The store takes what it is sent and drops it: a store that is elsewhere needs none of these cores. The second figure tells the
    cost from the noise of the machine: the processor time of an upload, as part of what the cores had for those steps.
    """
    settings = load_config(PRESET).warm_start
    with tempfile.TemporaryDirectory() as directory, discard() as store:
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**SMOLLM2)).save_pretrained(Path(directory) / "model")
        work = Path(directory) / "work"
        uploads: list[float] = []

        def measure(place: str | None) -> float:
            with environment(store):
                kept = None if place is None else CheckpointStore(ObjectStore("s3://ngrpo"), place, work / "downloads")
                seconds = _steps(work, Path(directory) / "model", settings, kept)
                if kept is not None:
                    uploads.append(_processor_time(work, kept))
            shutil.rmtree(work)
            return seconds

        ours, peer = zip(
            *((measure(f"checkpoints/bench/{number}"), measure(None)) for number in range(ROUNDS)), strict=True
        )
    had = [seconds * (os.cpu_count() or 1) for seconds in peer]
    details = {"scale": 1.0, "cores": os.cpu_count(), "steps": settings.save_steps}
    return [
        report(
            "checkpoint_upload",
            list(ours),
            list(peer),
            unit=f"s for {settings.save_steps} steps",
            peer_is="the same steps without an upload",
            **details,
        ),
        report(
            "checkpoint_upload_processor",
            [time + upload for time, upload in zip(had, uploads, strict=True)],
            had,
            unit="s of processor time",
            peer_is="what the cores had for these steps",
            **details,
        ),
    ]


def _processor_time(work: Path, store: CheckpointStore) -> float:
    """Return the seconds of processor time that the upload of the checkpoint takes."""
    (checkpoint,) = (work / "checkpoints").glob("checkpoint-*")
    started = time.process_time()
    store.put(1, checkpoint, Part("ab"), keep=KEPT, best=None)
    return time.process_time() - started


def _steps(work: Path, model: Path, settings: WarmStartConfig, store: CheckpointStore | None) -> float:
    """Return the seconds of the steps after the first, which is saved."""
    clock = _Clock()
    steps = 1 + settings.save_steps
    rows = torch.randint(0, SMOLLM2["vocab_size"], (settings.batch_size * steps, TOKENS)).tolist()
    with checkpoints_of(work, steps=steps, store=store) as kept:
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
    return sum(clock.seconds[1:])
