"""The rollout engine in processes of its own, which generate while training works on the previous batch: see `RolloutEngine`.

Weights are passed through a file in shared memory, written once per node. Requests and replies go through a socket as pickled bytes:
a tensor sent by itself would be placed in shared memory, for which these processes are not set up.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from ngrpo.errors import ConfigError
from ngrpo.mixing.mixer import Mixer
from ngrpo.rollout.child_process import ChildProcess, processes_of_node, visible_gpus
from ngrpo.rollout.configured_strategy import source_of
from ngrpo.rollout.engine import Rollout, Sampling
from ngrpo.rollout.separate_messages import EngineTask, NewMixer, NewWeights, Prompts
from ngrpo.rollout.vllm.shared_file import shared_tensors

_PROCESS = "ngrpo.rollout.separate_process"
_LOOK_SECONDS = 1.0
"""Seconds between checks that a process is still alive; its end is usually noticed at once."""
_CURE = "Nothing of the batch is kept: run again, and training goes on from its last checkpoint"


class SeparateEngine:
    """Generates in processes of its own, each with a part of the prompts of a call."""

    def __init__(
        self,
        task: EngineTask,
        devices: Sequence[str | None],
        as_sent: Callable[[Iterable[tuple[str, Tensor]]], Iterable[tuple[str, Tensor]]],
    ):
        """Start the processes; they load the model in the background.

        Args:
            task: Settings that all of them need.
            devices: GPUs of each (`devices_of_engines`).
            as_sent: Gives training weights the names, shapes and types that the engine expects.
        """
        self._as_sent = as_sent
        self._known: Mixer | None = None
        self._busy: list[ChildProcess] = []
        self._children: list[ChildProcess] = []
        for number, device in enumerate(devices, 1):
            where = f"process {number} of {len(devices)}" + ("" if device is None else f" (GPU {device})")
            self._children.append(ChildProcess(_PROCESS, [], device, f"rollout engine: {where}", _CURE))
            self._children[-1].send(pickle.dumps(task))

    def begin(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        mixer: Mixer | None = None,
    ) -> None:
        """Begin to generate in the background; see `RolloutEngine.generate`. The next call must be `finish`."""
        self._require_idle()
        if mixer is not None:
            told = pickle.dumps(self._news(mixer))
            for child in self._children:
                child.send(told)
            self._known = mixer
        share = -(-len(prompts) // len(self._children))
        for number, child in enumerate(self._children):
            part = slice(number * share, (number + 1) * share)
            if len(prompts[part]):
                child.send(pickle.dumps(Prompts(prompts[part], seeds[part], sampling, mixer is not None)))
                self._busy.append(child)

    def finish(self) -> list[Rollout]:
        """Wait for the responses, and return them in the order of the prompts.

        Raises:
            EngineError: A process failed or is gone.
        """
        answers = [self._answer(child) for child in self._busy]
        self._busy.clear()
        return [rollout for answer in answers for rollout in pickle.loads(answer)]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        mixer: Mixer | None = None,
    ) -> list[Rollout]:
        """Generate one response for each prompt; see `RolloutEngine.generate`."""
        self.begin(prompts, seeds, sampling, mixer)
        return self.finish()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the named weights of the generating model; all training processes must call this together.

        Raises:
            EngineError: A process failed or is gone.
        """
        self._require_idle()
        with self._in_shared_memory(self._as_sent(weights)) as path:
            for child in self._children:
                child.send(pickle.dumps(NewWeights(path)))
            for child in self._children:
                self._answer(child)
            PartialState().wait_for_everyone()  # then the file goes

    def sleep(self) -> None:
        """Nothing to free: these processes have devices of their own."""

    def close(self) -> None:
        """End the processes, whatever they are doing."""
        for child in self._children:
            child.kill()

    def _require_idle(self) -> None:
        if self._busy:
            raise RuntimeError("the engine is generating: call finish first")

    def _news(self, mixer: Mixer) -> NewMixer:
        known, marker = self._known, mixer.end_marker
        same = (
            known is not None
            and known.neighbors is mixer.neighbors
            and known.eligible is mixer.eligible
            and (known.end_marker is None if marker is None else marker.same_as(known.end_marker))
        )
        transitions = None if marker is None else marker.transitions.cpu()
        return NewMixer(
            mixer.source or source_of(mixer.strategy),
            mixer.rate,
            mixer.index_version,
            None if same else (mixer.neighbors.cpu(), mixer.eligible.cpu(), transitions),
        )

    def _answer(self, child: ChildProcess) -> bytes:
        while (answer := child.receive()) is None:
            wait([each.connection for each in self._children], _LOOK_SECONDS)
        return bytes(answer)

    @contextmanager
    def _in_shared_memory(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[str]:
        """Provide a file with weights, gathered by all processes and written by the first one of each node."""
        state = PartialState()
        if state.is_local_main_process:
            with shared_tensors({name: value.detach().cpu().contiguous() for name, value in weights}) as path:
                yield gather_object([path])[state.process_index]
            return
        for _ in weights:  # gathering sharded weights needs every process
            continue
        yield gather_object([""])[state.process_index - state.local_process_index]


def devices_of_engines(gpus: int, gpus_each: int) -> list[str | None]:
    """Return the GPUs of each engine of this training process, as CUDA names them; one engine without any if there are no GPUs.

    The training processes of a node have its first GPUs, one each; the last `gpus` are shared out evenly among them.

    Args:
        gpus: GPUs of the node that only generate.
        gpus_each: GPUs that share a model.

    Raises:
        ConfigError: They cannot be shared out.
    """
    count = torch.cuda.device_count()
    if not count:
        return [None]
    state, processes = PartialState(), processes_of_node()
    if gpus == 0 or processes + gpus > count or gpus % (processes * gpus_each):
        raise ConfigError(
            f"rollout.gpus={gpus} with rollout.placement='separate': {count} GPUs are visible here, and {processes} train: set it to a "
            f"multiple of {processes * gpus_each}, up to {count - processes}"
        )
    share = gpus // processes
    first = processes + state.local_process_index * share
    own = visible_gpus(count)[first : first + share]
    return [",".join(own[start : start + gpus_each]) for start in range(0, share, gpus_each)]
