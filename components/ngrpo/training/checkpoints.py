"""What training leaves on disk: the model, and checkpoints, marked last of all and resumed from only if they are marked."""

from __future__ import annotations

from pathlib import Path

from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINING_ARGS_NAME

_MARKER = "complete"


class MarkComplete(TrainerCallback):
    """Marks a checkpoint once everything in it is written; add it after every callback that writes into checkpoints."""

    def on_save(self, args, state, control, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Mark the checkpoint just written."""
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _MARKER).touch()


def last_checkpoint(directory: Path) -> Path | None:
    """Return the newest whole checkpoint of a trainer's output directory, or none."""
    whole = [path.parent for path in directory.glob(f"checkpoint-*/{_MARKER}")]
    return max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def save_model(trainer: Trainer, directory: Path) -> None:
    """Write a trainer's model and tokenizer, without the pickle of its arguments that `Trainer.save_model` adds."""
    trainer.save_model(str(directory))
    (directory / TRAINING_ARGS_NAME).unlink()
