"""The interface of rollout engines, through which training and evaluation generate text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch

from ngrpo.errors import ConfigError
from ngrpo.mixing.mixer import Mixer
from ngrpo.mixing.records import RolloutRecords

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled.

    Attributes:
        max_tokens: Longest response, in tokens.
        temperature: tau of equations 2-3, above 0.
        top_p: Nucleus; 1 is the full distribution.
    """

    max_tokens: int
    temperature: float
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(
                f"temperature={self.temperature} leaves nothing to sample or to mix: choose one above 0 (equations 2-3 divide by it)"
            )


@dataclass(frozen=True)
class Rollout:
    """One generated response.

    Attributes:
        token_ids: Response tokens; on a neighbor-mixed step the anchor. Ends with an end-of-sequence token when `finish_reason` is "stop".
        logprobs: Log-probability of each token under the temperature-scaled distribution it came from (before the nucleus).
        finish_reason: "stop" at an end-of-sequence token, "length" at `Sampling.max_tokens`.
        records: Mixtures of the inputs that followed (empty without mixing).
    """

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    records: RolloutRecords


class RolloutEngine(Protocol):
    """Generates responses. Every engine gives the same meaning to gate, anchor, weights, records and seeds."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        mixer: Mixer | None = None,
    ) -> list[Rollout]:
        """Generate one response for each prompt.

        Args:
            prompts: Token ids of each prompt; repeat a prompt for a group.
            seeds: One seed a prompt, below 2**63. A response depends on its prompt, its seed and the weights, not on the batch.
            sampling: How tokens are sampled.
            mixer: What happens on gated steps; none switches mixing off.

        Returns:
            The responses, in the order of the prompts.
        """

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace the named weights of the model that generates."""

    def sleep(self) -> None:
        """Free the memory of a GPU that training shares; the next call must be `load_weights`."""

    def close(self) -> None:
        """Release what the engine holds."""


@runtime_checkable
class ContinuousEngine(RolloutEngine, Protocol):
    """An engine that accepts new requests while it decodes others, so that it is never idle between two calls."""

    def submit(
        self,
        number: int,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        sampling: Sampling,
        mixer: Mixer | None = None,
    ) -> None:
        """Begin to generate; see `generate`.

        Args:
            number: Identifies these responses in `step`; not in use by others still in flight.
            prompts: Token ids of each prompt.
            seeds: One seed a prompt.
            sampling: How tokens are sampled.
            mixer: What happens on gated steps; the same for all that are generated at a time.
        """

    def step(self) -> list[tuple[int, list[Rollout]]]:
        """Decode a step, and return the calls that it completes: their number, and the responses in the order of their prompts."""
