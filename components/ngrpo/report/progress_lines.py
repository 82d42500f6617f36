"""What a trainer prints while it works: plain lines, because a stage's log is not a terminal, and curves that survive a resume."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Mapping

from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.integrations import MLflowCallback

from ngrpo.environment import METRICS_PORT
from ngrpo.report.remaining import Remaining, sparkline

_LINES = 20
_QUIET_SECONDS = 5.0
"""Longest time without a line, as far as there is something to log."""
_CURVE = "reward"
"""The metric whose curve is drawn."""


class PrintProgress(TrainerCallback):
    """Says about twenty lines over a run, more where steps take long: the metrics that were named, the time left, the rewards so far."""

    def __init__(self, metrics: Mapping[str, str], say: Callable[[str], None]):
        """Set the metrics that are printed, by name with their labels, and where lines go."""
        self._metrics = metrics
        self._say = say
        self._remaining = Remaining()
        self._curve: list[float] = []
        self._said = time.monotonic()

    def on_train_begin(self, args, state, control, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Start the clock, and say where a resumed training goes on."""
        self._remaining = Remaining(state.global_step)
        for entry in state.log_history:
            self._draw(entry)
        if state.is_world_process_zero and state.global_step:
            self._say(f"resuming at {state.global_step}/{state.max_steps}")

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Say a line when it is time for one."""
        if not state.is_world_process_zero or "train_runtime" in logs:
            return
        self._draw(logs)
        every = max(1, state.max_steps // _LINES)
        due = state.global_step % every == 0 or time.monotonic() - self._said >= _QUIET_SECONDS
        if "eval_mean" not in logs and not due and state.global_step != state.max_steps:
            return
        self._said = time.monotonic()
        values = " ".join(
            f"{label} {float(logs[name]):.3g}" for name, label in self._metrics.items() if logs.get(name) is not None
        )
        left = self._remaining.words(state.global_step, state.max_steps)
        self._say(f"step {state.global_step}/{state.max_steps} {values}{left} {sparkline(self._curve)}".rstrip())

    def _draw(self, logs: Mapping[str, object]) -> None:
        value = logs.get(_CURVE)
        if isinstance(value, int | float) and math.isfinite(value):
            self._curve.append(float(value))


class RepeatCurves(TrainerCallback):
    """Reports the steps before a resume again: each try has a run of its own, whose curves would begin at the resume."""

    def __init__(self, reporter: TrainerCallback):
        """Choose who is told."""
        self._reporter = reporter

    def on_train_begin(self, args, state, control, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Report what the checkpoint remembers."""
        for entry in state.log_history:
            past = copy.copy(state)
            past.global_step = entry["step"]
            logs = {name: value for name, value in entry.items() if name != "step"}
            self._reporter.on_log(args, past, control, logs=logs)


def show_progress(trainer: Trainer, metrics: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Let a trainer say progress lines in place of every log as a dictionary, and its tracker have whole curves; Prometheus may scrape it.

    Raises:
        ConfigError: It cannot be scraped where the environment says.
    """
    if os.environ.get(METRICS_PORT):
        from ngrpo.report.exposition import expose

        expose(trainer, str(getattr(trainer, "section", "training")))
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(PrintProgress(metrics, say))
    for callback in list(trainer.callback_handler.callbacks):
        if isinstance(callback, MLflowCallback):
            trainer.add_callback(RepeatCurves(callback))
