"""Checkpoints of a training: marked once they are whole, copied to object storage while training goes on, resumed from."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import IntervalStrategy

from ngrpo.errors import Preempted, StoreError
from ngrpo.storage.checkpoints import CheckpointStore

KEPT = 2
"""Checkpoints that are kept beside the best, on disk and in object storage: while one is uploaded, only older ones are deleted."""
_MARKER = "complete"


class Checkpoints(TrainerCallback):
    """The checkpoints of one training; add it after every callback that writes into checkpoints.

    Attributes:
        resumed_from: The checkpoint to go on from, none to start.
        preempted: Whether training was stopped.
    """

    def __init__(self, directory: Path, store: CheckpointStore | None, stride: int):
        """See `checkpoints_of`."""
        self.directory = directory
        self.resumed_from: str | None = None
        self.preempted = False
        self._store = store
        self._stride = stride
        self._told_to_stop = False
        self._uploads = ThreadPoolExecutor(1, initializer=_yield_to_training)
        self._upload: Future[None] | None = None

    def restore(self) -> None:
        """Find the newest whole checkpoint, which may be in object storage, as may be the best that it remembers."""
        if self._store is not None and PartialState().is_local_main_process:
            last = self._last()
            self._store.restore(self.directory, after=0 if last is None else _step(last))
            last = self._last()
            best = (
                None if last is None else TrainerState.load_from_json(str(last / TRAINER_STATE_NAME)).best_global_step
            )
            if best is not None and not self._whole(best):
                self._store.restore(self.directory, after=best - 1, until=best)
        PartialState().wait_for_everyone()
        last = self._last()
        if last is not None:
            PartialState().print(f"resuming from {last.name}", flush=True)
            self.resumed_from = str(last)

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: save and stop at the next step after which a resumed run is exact."""
        self._told_to_stop = True

    def on_train_begin(self, args, state, control, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Look for the best checkpoint where checkpoints are on this machine; without it, the best is still to come."""
        best = state.best_global_step
        if best is None:
            return
        if self._whole(best):
            state.best_model_checkpoint = str(self.directory / f"checkpoint-{best}")
        else:
            print(f"checkpoint of step {best}: the best so far is lost; the best of the next is the result", flush=True)
            state.best_global_step = state.best_metric = state.best_model_checkpoint = None

    def on_step_end(self, args, state, control, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Save and stop if any process was told to; all of them at the same step, for they work together."""
        if state.global_step >= state.max_steps:
            # The last checkpoint is saved wherever it falls: it is measured too where others are.
            control.should_evaluate = args.eval_strategy != IntervalStrategy.NO
            return
        if state.global_step % self._stride:
            return
        told = torch.tensor([float(self._told_to_stop)], device=PartialState().device)
        if reduce(told).item() > 0:
            self.preempted = control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Mark the checkpoint just written and upload it in the background, once the one before it is uploaded."""
        PartialState().wait_for_everyone()  # every process writes files of its own
        checkpoint = self.directory / f"checkpoint-{state.global_step}"
        if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:  # torchrun's number of nodes
            _gather(checkpoint)
        if not state.is_world_process_zero:
            return
        (checkpoint / _MARKER).touch()
        if self._store is not None:
            self.finish_upload()
            self._upload = self._uploads.submit(
                self._store.put, state.global_step, checkpoint, keep=KEPT, best=state.best_global_step
            )

    def finish_upload(self) -> None:
        """Wait for the upload in the background. Training can do without it: if it failed, that is said and no more."""
        if self._upload is not None:
            try:
                self._upload.result()
            except StoreError as error:
                print(f"a checkpoint is not in object storage: {error}", flush=True)
            self._upload = None

    def _whole(self, step: int) -> bool:
        return (self.directory / f"checkpoint-{step}" / _MARKER).exists()

    def _last(self) -> Path | None:
        """Return the newest whole checkpoint on this machine."""
        whole = [path.parent for path in self.directory.glob(f"checkpoint-*/{_MARKER}")]
        return max(whole, key=_step, default=None)


@contextmanager
def checkpoints_of(work: Path, *, stride: int = 1) -> Iterator[Checkpoints]:
    """Provide the checkpoints of a training while it runs; with SIGTERM it saves one and ends.

    Args:
        work: They are in its directory `checkpoints`, and in object storage where the environment says so (`NGRPO_CHECKPOINTS`).
        stride: A resumed run is exact if it was saved after a multiple of so many steps.

    Raises:
        Preempted: SIGTERM arrived, and a checkpoint was saved.
        StoreError: Object storage holds a checkpoint that cannot be had.
    """
    kept = Checkpoints(work / "checkpoints", CheckpointStore.from_environment(work / "downloads"), stride)
    kept.restore()
    before = signal.signal(signal.SIGTERM, kept.stop)
    try:
        yield kept
    finally:
        kept.finish_upload()
        signal.signal(signal.SIGTERM, before)
    if kept.preempted:
        raise Preempted


def save_model(trainer: Trainer, directory: Path) -> None:
    """Write a trainer's model and tokenizer, without the pickle of its arguments that `Trainer.save_model` adds."""
    trainer.save_model(str(directory))  # every process takes part where the model is sharded
    if trainer.is_world_process_zero():
        (directory / TRAINING_ARGS_NAME).unlink()


def _gather(checkpoint: Path) -> None:
    """Bring to the first node what other nodes have written: the state of each process's random numbers, a few kB."""
    own = checkpoint / f"rng_state_{PartialState().process_index}.pth"
    for name, content in gather_object([(own.name, own.read_bytes())]):
        if PartialState().is_main_process:
            (checkpoint / name).write_bytes(content)


def _yield_to_training() -> None:
    """Give this thread, and those that it starts, only the processor time that training leaves: Linux has priorities by thread."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
