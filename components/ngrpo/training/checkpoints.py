"""Checkpoints that are known to be whole: a marker is written last, and only marked ones are resumed from."""

from __future__ import annotations

from pathlib import Path

from transformers import TrainerCallback

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
