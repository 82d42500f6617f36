"""Progress of a trainer as plain lines: a stage's log is no terminal."""

from __future__ import annotations

from transformers import PrinterCallback, Trainer, TrainerCallback

_LINES = 20


class PrintProgress(TrainerCallback):
    """Prints about twenty lines over a run, with the metrics that were named."""

    def __init__(self, metrics: dict[str, str]):
        """Choose what is printed: metric name to label."""
        self._metrics = metrics

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Print a line when it is time for one."""
        if not state.is_world_process_zero or "train_runtime" in logs:
            return
        every = max(1, state.max_steps // _LINES)
        if state.global_step % every and state.global_step != state.max_steps:
            return
        values = " ".join(
            f"{label} {float(logs[name]):.3g}" for name, label in self._metrics.items() if logs.get(name) is not None
        )
        print(f"step {state.global_step}/{state.max_steps} {values}", flush=True)


def print_progress(trainer: Trainer, metrics: dict[str, str]) -> None:
    """Let a trainer print progress lines in place of every log as a dictionary."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(PrintProgress(metrics))
