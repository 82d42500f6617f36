"""The class behind `mixing_llm`. Imports vLLM."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

from vllm import LLM, RequestOutput, SamplingParams

from ngrpo.errors import ConfigError
from ngrpo.mixing.mixer import Mixer
from ngrpo.mixing.records import collate
from ngrpo.rollout.configured_strategy import source_of
from ngrpo.rollout.engine import Rollout, Sampling
from ngrpo.rollout.seeds import request_seed
from ngrpo.rollout.slots import RequestSettings
from ngrpo.rollout.vllm.engine import rollout_of
from ngrpo.rollout.vllm.options import MIXING, platform_defaults
from ngrpo.rollout.vllm.request import SETTINGS
from ngrpo.rollout.vllm.shared_file import shared_tensors

_HONOURED = {
    "n",
    "temperature",
    "top_p",
    "seed",
    "max_tokens",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "include_stop_str_in_output",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "extra_args",
    # How an output is passed on, and what vLLM derives.
    "output_kind",
    "stream_interval",
    "skip_clone",
    "output_text_buffer_length",
    "skip_reading_prefix_cache",
}
"""Fields of `SamplingParams` that a mixed response can follow. vLLM's samplers see no mixed request, so the others would do nothing."""

_STRATEGY = 0
"""Number of the only strategy that the workers know."""


@dataclass(frozen=True)
class Mixing:
    """What was mixed into one response.

    Attributes:
        positions: Positions in the response whose tokens were mixed on their way into the model.
        candidates: For each of them the token ids that were mixed, the response's own first; with `label="sampled"` the most likely one.
        weights: Their weights.
        logprobs: Log-probability of each token of the response, at the temperature it was sampled with.
        seed: Seed of the response.
    """

    positions: list[int]
    candidates: list[list[int]]
    weights: list[list[float]]
    logprobs: list[float]
    seed: int


class MixingLLM(LLM):
    """A `vllm.LLM` that mixes: each `CompletionOutput` of `generate` and `chat` has its `Mixing` as `mixing`."""

    def __init__(self, model: str, *, mixer: Mixer, **options: Any):
        """Start vLLM; see `mixing_llm`.

        Raises:
            ConfigError: The mixer's index is not one for this model.
        """
        super().__init__(model=model, **MIXING, **(platform_defaults() | options))
        vocabulary = self.model_config.get_vocab_size()
        if len(mixer.neighbors) != vocabulary:
            raise ConfigError(
                f"mixing_llm.index: it has {len(mixer.neighbors)} tokens but the model has {vocabulary}: build it for this model"
            )
        self._mixer = mixer
        self._calls = 0
        tensors = {"neighbors": mixer.neighbors, "eligible": mixer.eligible}
        tensors |= {} if mixer.end_marker is None else {"transitions": mixer.end_marker.transitions}
        with shared_tensors(tensors) as path:
            self.collective_rpc("mixing_load_index", args=(path,))
        source = mixer.source or source_of(mixer.strategy)
        self.collective_rpc("mixing_load_strategy", args=(_STRATEGY, asdict(source)))

    def generate(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        lora_request: Any = None,
        priority: Any = None,
        **arguments: Any,
    ) -> list[RequestOutput]:
        """See `LLM.generate`.

        Raises:
            ConfigError: A mixed response cannot follow the sampling parameters.
        """
        one = isinstance(prompts, str | bytes | Mapping) or (
            bool(prompts) and all(isinstance(id_, int) for id_ in prompts)
        )
        call = _Call(self, [prompts] if one else list(prompts), sampling_params)
        outputs = super().generate(
            call.prompts,
            call.params,
            lora_request=call.for_each(lora_request),
            priority=call.for_each(priority),
            **arguments,
        )
        return call.finish(outputs)

    def chat(
        self,
        messages: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: Any = True,
        lora_request: Any = None,
        priority: Any = None,
        **arguments: Any,
    ) -> list[RequestOutput]:
        """See `LLM.chat`.

        Raises:
            ConfigError: A mixed response cannot follow the sampling parameters.
        """
        one = bool(messages) and isinstance(messages[0], Mapping)
        call = _Call(self, [messages] if one else list(messages), sampling_params)
        outputs = super().chat(
            call.prompts,
            call.params,
            use_tqdm,
            call.for_each(lora_request),
            call.for_each(priority),
            **arguments,
        )
        return call.finish(outputs)

    def enqueue(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: requests would be generated without mixing."""
        raise ConfigError("enqueue: responses would not be mixed; call generate or chat")

    def enqueue_chat(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: requests would be generated without mixing."""
        raise ConfigError("enqueue_chat: responses would not be mixed; call generate or chat")

    def beam_search(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: beams are scored without mixing."""
        raise ConfigError("beam_search: beams would not be mixed; call generate or chat")


class _Call:
    """One call of `generate` or `chat`: a request for each of the `n` responses to a prompt, with settings of its own.

    Attributes:
        prompts: A prompt for each request.
        params: Parameters for each request, with the settings that the worker reads.
    """

    def __init__(self, llm: MixingLLM, prompts: list[Any], params: SamplingParams | Sequence[SamplingParams] | None):
        self._llm = llm
        defaults = params is None
        given = llm.get_default_sampling_params() if params is None else params
        each = list(given) if isinstance(given, Sequence) else [given] * len(prompts)
        if len(each) != len(prompts):
            raise ConfigError(
                f"sampling_params: {len(each)} for {len(prompts)} prompts; give one for each, or one for all"
            )
        for one in {id(one): one for one in each}.values():
            _require_honoured(one, "the model's generation_config.json" if defaults else "sampling_params")
        self._counts = [one.n for one in each]
        name = uuid.uuid4().hex
        self._settings = [
            self._request(f"{name}-{row}-{sample}", one, row, sample)
            for row, one in enumerate(each)
            for sample in range(one.n)
        ]
        llm._calls += 1
        self.prompts = [prompt for prompt, count in zip(prompts, self._counts, strict=True) for _ in range(count)]
        repeated = [one for one in each for _ in range(one.n)]
        self.params = [_asking(one, settings) for one, settings in zip(repeated, self._settings, strict=True)]

    def _request(self, name: str, params: SamplingParams, row: int, sample: int) -> RequestSettings:
        llm, mixer = self._llm, self._llm._mixer
        longest = llm.model_config.max_model_len
        sampling = Sampling(min(params.max_tokens or longest, longest), params.temperature, params.top_p)
        drawn = request_seed(llm.model_config.seed, llm._calls, row, sample)
        return RequestSettings(
            name=name,
            seed=drawn if params.seed is None else (params.seed + sample) % 2**63,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            rate=mixer.rate,
            strategy=_STRATEGY,
        )

    def for_each(self, values: Any) -> Any:
        """Return what is given for each prompt as it is for each request."""
        if not isinstance(values, Sequence):
            return values
        return [value for value, count in zip(values, self._counts, strict=True) for _ in range(count)]

    def finish(self, outputs: list[RequestOutput]) -> list[RequestOutput]:
        """Return an output for each prompt, with all its responses and their records."""
        names = [settings.name for settings in self._settings]
        records = self._llm.collective_rpc("mixing_take", args=(names,))[0]
        for output, record, settings in zip(outputs, records, self._settings, strict=True):
            (completion,) = output.outputs
            completion.mixing = self._mixing(rollout_of(completion, record, settings.seed, self._llm._mixer))
        merged, start = [], 0
        for count in self._counts:
            first, *others = outputs[start : start + count]
            first.outputs += [other.outputs[0] for other in others]
            for place, completion in enumerate(first.outputs):
                completion.index = place
            merged.append(first)
            start += count
        return merged

    def _mixing(self, rollout: Rollout) -> Mixing:
        mixer, records = self._llm._mixer, rollout.records
        mixture = collate(
            [records],
            [rollout.token_ids],
            len(rollout.token_ids),
            strategy=mixer.strategy,
            neighbors=mixer.neighbors,
            index_version=mixer.index_version,
            device="cpu",
        )
        return Mixing(
            positions=records.positions.tolist(),
            candidates=mixture.candidates[0, records.positions].tolist(),
            weights=records.weights.tolist(),
            logprobs=rollout.logprobs,
            seed=records.seed,
        )


def _require_honoured(params: SamplingParams, source: str) -> None:
    defaults = SamplingParams()
    for name in SamplingParams.__struct_fields__:
        value, default = getattr(params, name), getattr(defaults, name)
        if name in _HONOURED or name.startswith("_") or value is default:
            continue
        if default is None or value != default:
            raise ConfigError(
                f"{name}={value!r} of {source}: a mixed response cannot follow it; pass SamplingParams without it "
                f"({', '.join(sorted(_HONOURED & {'n', 'temperature', 'top_p', 'seed', 'max_tokens', 'stop'}))} are followed)"
            )


def _asking(params: SamplingParams, settings: RequestSettings) -> SamplingParams:
    """Return parameters for one response, with the settings that the worker reads."""
    one = params.clone()
    # The token is drawn by our worker, from the request's seed: vLLM's own is refused with chunked prefill on a CPU.
    one.n, one.seed = 1, None
    one.extra_args = {**(one.extra_args or {}), SETTINGS: asdict(settings)}
    return one
