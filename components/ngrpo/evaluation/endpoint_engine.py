"""An engine that generates with a served model: see `ContinuousEngine`."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import torch

from ngrpo.errors import ConfigError, EngineError
from ngrpo.evaluation.endpoint_client import Choice, EndpointClient
from ngrpo.mixing.mixer import Mixer
from ngrpo.mixing.records import RolloutRecords
from ngrpo.rollout.engine import Rollout, Sampling


@dataclass(frozen=True)
class _Asked:
    """A request, and where its response belongs."""

    number: int
    row: int
    prompt: Sequence[int]
    seed: int
    sampling: Sampling
    rollout: Future[Rollout]


class EndpointEngine:
    """Sends a request for each sample, several at once, with the same seed, sampling settings and stop tokens as a local vLLM engine.

    The server's sampler draws the tokens with that seed. Random samples follow the same distribution as those of a local engine, but are
    not the same samples. Log-probabilities are not requested, so a `Rollout` has none.
    """

    def __init__(
        self, client: EndpointClient, model: str, eos_token_ids: Sequence[int], *, vocabulary: int, at_once: int
    ):
        """Generate with an endpoint.

        Args:
            client: The endpoint; `close` closes it too.
            model: Name of the model there.
            eos_token_ids: Tokens that end a response.
            vocabulary: Size of the model's vocabulary; a response with another token id is refused.
            at_once: Most concurrent requests.
        """
        self._client = client
        self._model = model
        self._ends = list(eos_token_ids)
        self._vocabulary = vocabulary
        self._at_once = at_once
        self._threads = 0
        self._waiting: SimpleQueue[_Asked | None] = SimpleQueue()
        self._ready: SimpleQueue[_Asked] = SimpleQueue()
        self._submitted: dict[int, dict[int, Rollout | None]] = {}

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling, mixer: Mixer | None = None
    ) -> list[Rollout]:
        """Generate one response for each prompt; see `RolloutEngine.generate`.

        Raises:
            EngineError: The endpoint cannot be reached, fails, or serves another model.
            ConfigError: It refuses the token or a request, or a response was cut short.
            RuntimeError: Other requests are in flight.
        """
        if self._submitted:
            raise RuntimeError("requests are in flight: collect their responses with `step` first")
        if not prompts:
            return []
        self.submit(0, prompts, seeds, sampling, mixer)
        while not (complete := self.step()):
            continue
        return complete[0][1]

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
            ConfigError: A mixer is given: a served model does not mix.
        """
        if mixer is not None:
            raise ConfigError("evaluation.mixing: a served model does not mix; leave evaluation.endpoint out")
        self._submitted[number] = dict.fromkeys(range(len(prompts)))
        for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            self._waiting.put(_Asked(number, row, prompt, seed, sampling, Future()))
        # Daemon threads: a server that does not answer must not keep the process from exiting.
        for _ in range(min(self._at_once - self._threads, len(prompts))):
            threading.Thread(target=self._work, name="endpoint", daemon=True).start()
            self._threads += 1

    def step(self) -> list[tuple[int, list[Rollout]]]:
        """Wait for a response, and return the batch that it completes, if any; see `ContinuousEngine.step`.

        Raises:
            EngineError: See `generate`.
            ConfigError: See `generate`.
        """
        asked = self._ready.get()
        rows = self._submitted[asked.number]
        rows[asked.row] = asked.rollout.result()
        rollouts = [rollout for rollout in rows.values() if rollout is not None]
        if len(rollouts) < len(rows):
            return []
        del self._submitted[asked.number]
        return [(asked.number, rollouts)]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Raise an error: the weights of a served model cannot be replaced.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("the weights of a served model cannot be replaced: serve the other model")

    def sleep(self) -> None:
        """See `RolloutEngine.sleep`; an endpoint uses no memory of this machine's GPUs."""

    def close(self) -> None:
        """Send no more requests, and close the client."""
        with suppress(Empty):
            while True:
                self._waiting.get_nowait()
        for _ in range(self._threads):
            self._waiting.put(None)
        self._threads = 0
        self._client.close()

    def _work(self) -> None:
        while (asked := self._waiting.get()) is not None:
            try:
                asked.rollout.set_result(self._answered(asked))
            except BaseException as error:  # raised where the response is waited for
                asked.rollout.set_exception(error)
            self._ready.put(asked)

    def _answered(self, asked: _Asked) -> Rollout:
        choice = self._client.complete(
            completion_request(self._model, asked.prompt, asked.sampling, asked.seed, self._ends)
        )
        self._require_whole(choice, asked.sampling)
        return Rollout(choice.token_ids, [], choice.finish_reason, _unmixed(asked.seed))

    def _require_whole(self, choice: Choice, sampling: Sampling) -> None:
        """Refuse a response that the measured model cannot have generated."""
        what = f"evaluation.endpoint.url={self._client.endpoint.url}"
        length = len(choice.token_ids)
        if choice.finish_reason == "length" and length < sampling.max_tokens:
            raise ConfigError(
                f"{what}: a response was cut off after {length} tokens, below evaluation.max_tokens={sampling.max_tokens}: the server has "
                "a smaller context; serve the model with a larger --max-model-len"
            )
        if (
            not length
            or length > sampling.max_tokens
            or not all(0 <= token < self._vocabulary for token in choice.token_ids)
        ):
            raise EngineError(
                f"{what}: a response of {length} tokens that the model, with a vocabulary of {self._vocabulary}, cannot have generated at "
                f"evaluation.max_tokens={sampling.max_tokens}; the endpoint serves another model: name the one that serves this model"
            )


def completion_request(
    model: str, prompt: Sequence[int], sampling: Sampling, seed: int, ends: Sequence[int]
) -> dict[str, Any]:
    """Return the request for a sample. It sets every parameter that vLLM would otherwise take from the model's `generation_config.json`."""
    return {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": seed,
        "stop_token_ids": list(ends),
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def _unmixed(seed: int) -> RolloutRecords:
    return RolloutRecords(torch.zeros(0, dtype=torch.long), torch.zeros(0, 1), seed, 0)
