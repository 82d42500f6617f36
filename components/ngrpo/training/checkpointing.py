"""Checkpoints of a training: marked once they are whole, copied to object storage while training goes on, resumed from.

One that is damaged is not resumed from: the one before it is. Training is exact, so that it comes to the same bytes. Of the best
checkpoint only the weights are kept once it is not one of the newest.

Where several nodes train, each has what its own processes wrote. Object storage has the whole, and all go on from there.

What a killed training loses is bounded by how often it saves: every `save_steps` steps, and every so many minutes where it is told to.
A save at SIGTERM comes on top of these where a process is given the time for it. A step of a Kubeflow pipeline is not: Argo ends it about
a second after the signal.
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
        resumed_from: The checkpoint to go on from, none to start.
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
        """Find the newest checkpoint that is whole, as is the best that it remembers; either may be in object storage.

        What is damaged, unfinished or beyond it is set aside, and deleted once there is another of the same step or a later one.
        """
        first_of_node = PartialState().is_local_main_process
        if self._store is not None and gather_object([first_of_node]).count(True) > 1 and first_of_node:
            for step in self._here():  # a part of it, whose place is needed: the whole comes from object storage
                shutil.rmtree(self._of(step))
        limit = self._steps
        while True:  # until all nodes have the same: one may have more than another
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
        """Save where it is time to, save and stop if any process was told to: all of them at the same step, for they work together.

        A save between two `save_steps` is there to go on from, nothing else: it is not evaluated, so it cannot be selected.
        """
        if state.global_step >= state.max_steps:
            # The last checkpoint is saved wherever it falls: it is measured too where others are.
            control.should_evaluate = args.eval_strategy != IntervalStrategy.NO
        elif state.global_step % self._stride == 0:
            # The clock is that of the first process, which also knows of the upload.
            wishes = [float(self._told_to_stop), float(state.is_world_process_zero and self._due())]
            stop, save = reduce(torch.tensor(wishes, device=PartialState().device)).tolist()
            if stop > 0:
                self.preempted = control.should_training_stop = True
            if stop > 0 or save > 0:
                control.should_save = True
        if control.should_save and PartialState().is_local_main_process:
            self._remove_old(state.best_global_step, keep=KEPT - 1)  # its place is for the one that is written next

    def on_evaluate(self, args, state, control, metrics, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Save a policy that was measured between two `save_steps` and is better than all before: it may be the result."""
        if control.should_save or (state.best_metric is not None and metrics["eval_mean"] <= state.best_metric):
            return
        control.should_save = True
        if PartialState().is_local_main_process:
            self._remove_old(state.best_global_step, keep=KEPT - 1)

    def on_save(self, args, state, control, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Mark the checkpoint just written and upload it in the background, once the one before it is uploaded.

        One process of each node does that with the files of its node. The marker has those of all nodes.
        """
        PartialState().wait_for_everyone()  # every process writes files of its own
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
        """Wait until all nodes have uploaded their part: the first one deletes the checkpoints once its stage is done."""
        self.finish_upload()
        PartialState().wait_for_everyone()

    def _due(self) -> bool:
        """Whether the last save is too long ago. An upload that is under way is not outrun: the next save would wait for its end."""
        if self._minutes is None or time.monotonic() < self._saved + 60 * self._minutes:
            return False
        return self._upload is None or self._upload.done()

    def finish_upload(self) -> None:
        """Wait for the upload in the background. Training can do without it: if it failed, that is said and no more."""
        if self._upload is not None:
            try:
                self._upload.result()
            except StoreError as error:
                print(f"a checkpoint is not in object storage: {error}", flush=True)
            self._upload = None

    def _newest(self, limit: int) -> int:
        """Return the newest checkpoint up to a step that can be resumed from, 0 if there is none; what is damaged is set aside."""
        newest = next((step for step in self._here() if step <= limit and self._usable(step)), 0)
        while self._store is not None:
            self._store.restore(self.directory, after=newest, until=limit)
            fetched = max((step for step in self._here() if step <= limit), default=0)
            if fetched == newest or self._usable(fetched):
                return fetched
            limit = fetched - 1
        return newest

    def _usable(self, step: int) -> bool:
        """Whether a checkpoint and the best that it remembers are whole; it is set aside if not."""
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
        """Whether a checkpoint, or what there is of its weights, is here and whole; it is set aside if it is damaged."""
        known = (step, weights_alone)
        if known not in self._sound and self._of(step).exists():
            damage = problem(self._of(step), weights_alone=weights_alone)
            if damage is not None:
                return self._set_aside(step, damage)
            self._sound.add(known)
        return known in self._sound

    def _is_weights_alone(self, step: int) -> bool:
        """Whether this was kept as the best of a newer one."""
        return (self._of(step) / MARKER).exists() and not (self._of(step) / TRAINER_STATE_NAME).exists()

    def _why_not(self, step: int) -> str:
        """Say why a checkpoint beyond the one that is resumed from is not."""
        if step > self._steps:
            return f"training has {self._steps} steps"
        return "only its weights were kept" if self._is_weights_alone(step) else "not every node has it"

    def _set_aside(self, step: int, reason: str) -> bool:
        """Move a checkpoint out of the way of the one that will take its place; return false."""
        print(f"checkpoint-{step} is not used: {reason}", flush=True)
        self._move(step)
        return False

    def _move(self, step: int) -> Path:
        """Move a checkpoint away, so that none is ever there in part."""
        self._sound -= {(step, True), (step, False)}
        target = self._aside / self._of(step).name
        shutil.rmtree(target, ignore_errors=True)
        self._aside.mkdir(exist_ok=True)
        return self._of(step).rename(target)

    def _remove_old(self, best: int | None, *, keep: int = KEPT) -> None:
        """Delete what the newest marked checkpoints make superfluous: all of the others, but the weights of the best."""
        marked = [step for step in self._here() if (self._of(step) / MARKER).exists()]
        for step in self._here():
            if step == best and step in marked[keep:]:
                _leave_weights(self._of(step))
            elif step not in (*marked[:keep], best):
                shutil.rmtree(self._move(step), ignore_errors=True)

    def _here(self) -> list[int]:
        """Return the steps of the checkpoints on this machine, whole or not, newest first."""
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

    Besides every `save_steps` steps it saves as often as `minutes` asks for, which changes nothing in the result, and at SIGTERM, after
    which it ends. A machine or a job that is shut down in order leaves time for that; a step of a Kubeflow pipeline has about one second,
    which is too short.

    Args:
        work: They are in its directory `checkpoints`.
        steps: Steps of the training: a checkpoint beyond is not resumed from.
        stride: A resumed run is exact if it was saved after a multiple of so many steps.
        store: Where they are kept too; none to keep them in `work` alone.
        minutes: Longest time between two of them; none for no limit besides `save_steps`.

    Raises:
        Preempted: SIGTERM arrived, and a checkpoint was saved.
        StoreError: Object storage holds a checkpoint that cannot be had.
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
    """Delete all of a checkpoint but its weights and its marker, first of all what makes it one to go on from."""
    (checkpoint / TRAINER_STATE_NAME).unlink(missing_ok=True)
    for path in checkpoint.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif not path.name.startswith((MARKER, *WEIGHTS)):
            path.unlink()


def _yield_to_training() -> None:
    """Give this thread, and those that it starts, only the processor time that training leaves: Linux has priorities by thread."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
