"""Checkpoints of a training: marked once complete, uploaded in the background, and resumed from.

A damaged checkpoint is skipped for the one before it. Training is deterministic, so the result is the same to the byte. Of the best
checkpoint only the weights are kept once it is not one of the newest.

If several nodes train, each has the shards of its own processes. Object storage has all of them, and all nodes resume from there.

A killed training loses the steps since its last save: it saves every `save_steps` steps and, if told to, every so many minutes. It also
saves at SIGTERM if there is time for it. A step of a Kubeflow pipeline has none: Argo kills it about a second after the signal.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import IntervalStrategy

from ngrpo.errors import Preempted, StoreError
from ngrpo.storage.checkpoint_store import CheckpointStore, Part
from ngrpo.training.checkpoint_size import KEPT
from ngrpo.training.marker import MARKER, WEIGHTS, mark, problem, settled

_SET_ASIDE = "set_aside"


class Checkpoints(TrainerCallback):
    """The checkpoints of one training; add it after every callback that writes into checkpoints.

    Attributes:
        resumed_from: The checkpoint to resume from; none to start from scratch.
        preempted: Whether training was stopped.
    """

    def __init__(
        self, work: Path, store: CheckpointStore | None, steps: int, stride: int, minutes: float | None = None
    ):
        """See `checkpoints_of`; `minutes` is the time after which it saves between two `save_steps`."""
        self.directory = work / "checkpoints"
        self.resumed_from: str | None = None
        self.preempted = False
        self._aside = work / _SET_ASIDE
        self._store = store
        self._steps = steps
        self._stride = stride
        self._minutes = minutes
        self._saved = time.monotonic()
        self._sound: set[tuple[int, bool]] = set()
        self._told_to_stop = False
        self._uploads = ThreadPoolExecutor(1, initializer=_yield_to_training)
        self._upload: Future[None] | None = None

    def restore(self) -> None:
        """Find the newest complete checkpoint whose best checkpoint is complete too; either may be in object storage.

        Damaged, unfinished and later checkpoints are set aside, and deleted once there is another of the same step or a later one.
        """
        first_of_node = PartialState().is_local_main_process
        if self._store is not None and gather_object([first_of_node]).count(True) > 1 and first_of_node:
            for step in self._here():  # a part of it, to be replaced by the complete one from object storage
                shutil.rmtree(self._of(step))
        limit = self._steps
        while True:  # until all nodes agree: they may have different checkpoints
            own = self._newest(limit) if PartialState().is_local_main_process else None
            found = [step for step in gather_object([own]) if step is not None]
            limit = min(found)
            if limit == max(found):
                break
        if PartialState().is_local_main_process:
            for step in self._here():
                if step > limit:
                    self._set_aside(step, self._why_not(step))
        PartialState().wait_for_everyone()
        if limit:
            PartialState().print(f"resuming from checkpoint-{limit}", flush=True)
            self.resumed_from = str(self._of(limit))

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGTERM: save and stop at the next step after which a resumed run is exact, if the process lives that long."""
        self._told_to_stop = True

    def on_train_begin(self, args, state, control, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Look for the best checkpoint where checkpoints are on this machine, and start the clock."""
        self._saved = time.monotonic()
        if state.best_global_step is not None:
            state.best_model_checkpoint = str(self._of(state.best_global_step))

    def on_step_end(self, args, state, control, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Save if it is time; save and stop if any process was told to. All processes do so at the same step, because they work together.

        A save between two `save_steps` only serves to resume from: it is not evaluated, so it cannot be selected.
        """
        if state.global_step >= state.max_steps:
            # The last checkpoint is saved at any step, and evaluated if others are.
            control.should_evaluate = args.eval_strategy != IntervalStrategy.NO
        elif state.global_step % self._stride == 0:
            # The first process decides by its clock; it also knows the state of the upload.
            wishes = [float(self._told_to_stop), float(state.is_world_process_zero and self._due())]
            stop, save = reduce(torch.tensor(wishes, device=PartialState().device)).tolist()
            if stop > 0:
                self.preempted = control.should_training_stop = True
            if stop > 0 or save > 0:
                control.should_save = True
        if control.should_save and PartialState().is_local_main_process:
            self._remove_old(state.best_global_step, keep=KEPT - 1)  # makes room for the next one

    def on_evaluate(self, args, state, control, metrics, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Save a policy that was evaluated between two `save_steps` and is better than all before: it may be the result."""
        if control.should_save or (state.best_metric is not None and metrics["eval_mean"] <= state.best_metric):
            return
        control.should_save = True
        if PartialState().is_local_main_process:
            self._remove_old(state.best_global_step, keep=KEPT - 1)

    def on_save(self, args, state, control, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Mark the checkpoint just written, and upload it in the background after the one before it.

        One process of each node does so with the files of its node. The marker lists those of all nodes.
        """
        PartialState().wait_for_everyone()  # every process writes its own files
        first_of_node = PartialState().is_local_main_process
        told = gather_object([(first_of_node, uuid.uuid4().hex[:8])])
        nodes = [process for process, (first, _) in enumerate(told) if first]
        checkpoint = self._of(state.global_step)
        files = settled(checkpoint) if first_of_node else {}
        if len(nodes) > 1:
            files = {name: entry for of_process in gather_object([files]) for name, entry in of_process.items()}
        if not first_of_node:
            return
        mark(checkpoint, files)
        self._remove_old(state.best_global_step)
        for path in self._aside.glob("checkpoint-*"):
            if _step(path) <= state.global_step:
                shutil.rmtree(path, ignore_errors=True)
        if self._store is not None:
            self.finish_upload()
            part = Part(told[0][1], nodes.index(PartialState().process_index), len(nodes))
            self._upload = self._uploads.submit(
                self._store.put, state.global_step, checkpoint, part, keep=KEPT, best=state.best_global_step
            )
        self._saved = time.monotonic()

    def on_train_end(self, args, state, control, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Wait until all nodes have uploaded their part, because the first one deletes the checkpoints once its stage is done."""
        self.finish_upload()
        PartialState().wait_for_everyone()

    def _due(self) -> bool:
        """Whether the last save is too long ago. False during an upload, because the next save would have to wait for its end."""
        if self._minutes is None or time.monotonic() < self._saved + 60 * self._minutes:
            return False
        return self._upload is None or self._upload.done()

    def finish_upload(self) -> None:
        """Wait for the upload in the background. A failed upload is logged, not raised: training does not need it."""
        if self._upload is not None:
            try:
                self._upload.result()
            except StoreError as error:
                print(f"a checkpoint is not in object storage: {error}", flush=True)
            self._upload = None

    def _newest(self, limit: int) -> int:
        """Return the newest checkpoint up to a step that can be resumed from, 0 if there is none; damaged ones are set aside."""
        newest = next((step for step in self._here() if step <= limit and self._usable(step)), 0)
        while self._store is not None:
            self._store.restore(self.directory, after=newest, until=limit)
            fetched = max((step for step in self._here() if step <= limit), default=0)
            if fetched == newest or self._usable(fetched):
                return fetched
            limit = fetched - 1
        return newest

    def _usable(self, step: int) -> bool:
        """Whether a checkpoint and its best checkpoint are complete; it is set aside if not."""
        if self._is_weights_alone(step) or not self._whole(step):
            return False
        best = TrainerState.load_from_json(str(self._of(step) / TRAINER_STATE_NAME)).best_global_step
        if best is None or self._whole(best, weights_alone=True):
            return True
        if self._store is not None:
            self._store.restore(self.directory, after=best - 1, until=best, only=(MARKER, *WEIGHTS))
        return self._whole(best, weights_alone=True) or self._set_aside(
            step, f"the best of its time, checkpoint-{best}, is lost"
        )

    def _whole(self, step: int, *, weights_alone: bool = False) -> bool:
        """Whether a checkpoint, or at least its weights, is here and complete; it is set aside if damaged."""
        known = (step, weights_alone)
        if known not in self._sound and self._of(step).exists():
            damage = problem(self._of(step), weights_alone=weights_alone)
            if damage is not None:
                return self._set_aside(step, damage)
            self._sound.add(known)
        return known in self._sound

    def _is_weights_alone(self, step: int) -> bool:
        """Whether only the weights are left, as the best of a newer checkpoint."""
        return (self._of(step) / MARKER).exists() and not (self._of(step) / TRAINER_STATE_NAME).exists()

    def _why_not(self, step: int) -> str:
        """Return why a later checkpoint than the one resumed from cannot be used."""
        if step > self._steps:
            return f"training has {self._steps} steps"
        return "only its weights were kept" if self._is_weights_alone(step) else "not every node has it"

    def _set_aside(self, step: int, reason: str) -> bool:
        """Move a checkpoint out of the way of its replacement; return false."""
        print(f"checkpoint-{step} is not used: {reason}", flush=True)
        self._move(step)
        return False

    def _move(self, step: int) -> Path:
        """Move a checkpoint away before deleting it, so that there is never half of one."""
        self._sound -= {(step, True), (step, False)}
        target = self._aside / self._of(step).name
        shutil.rmtree(target, ignore_errors=True)
        self._aside.mkdir(exist_ok=True)
        return self._of(step).rename(target)

    def _remove_old(self, best: int | None, *, keep: int = KEPT) -> None:
        """Delete all checkpoints except the newest marked ones and the weights of the best."""
        marked = [step for step in self._here() if (self._of(step) / MARKER).exists()]
        for step in self._here():
            if step == best and step in marked[keep:]:
                _leave_weights(self._of(step))
            elif step not in (*marked[:keep], best):
                shutil.rmtree(self._move(step), ignore_errors=True)

    def _here(self) -> list[int]:
        """Return the steps of the checkpoints on this machine, complete or not, newest first."""
        return sorted(map(_step, self.directory.glob("checkpoint-*")), reverse=True)

    def _of(self, step: int) -> Path:
        return self.directory / f"checkpoint-{step}"


@contextmanager
def checkpoints_of(
    work: Path,
    *,
    steps: int,
    stride: int = 1,
    store: CheckpointStore | None = None,
    minutes: float | None = None,
) -> Iterator[Checkpoints]:
    """Provide the checkpoints of a training while it runs.

    Besides every `save_steps` steps it saves every `minutes`, which does not change the result, and at SIGTERM, after which it ends. An
    orderly shutdown of a machine or job leaves time for that; a step of a Kubeflow pipeline has about one second, which is too short.

    Args:
        work: Checkpoints are in its directory `checkpoints`.
        steps: Steps of the training; later checkpoints are not resumed from.
        stride: A resumed run is exact if it was saved after a multiple of this many steps.
        store: Object storage for them; none to keep them in `work` only.
        minutes: Longest time between two of them; none for no limit besides `save_steps`.

    Raises:
        Preempted: SIGTERM arrived, and a checkpoint was saved.
        StoreError: Object storage holds a checkpoint that cannot be read.
    """
    kept = Checkpoints(work, store, steps, stride, minutes)
    kept.restore()
    before = signal.signal(signal.SIGTERM, kept.stop)
    try:
        yield kept
    finally:
        kept.finish_upload()
        signal.signal(signal.SIGTERM, before)
    if kept.preempted:
        raise Preempted


def _leave_weights(checkpoint: Path) -> None:
    """Delete all of a checkpoint except weights and marker, beginning with the file that makes it resumable."""
    (checkpoint / TRAINER_STATE_NAME).unlink(missing_ok=True)
    for path in checkpoint.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith((MARKER, *WEIGHTS)):
            path.unlink()


def _yield_to_training() -> None:
    """Give this thread, and threads it starts, the lowest priority, so that training is not slowed; Linux has priorities per thread."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
